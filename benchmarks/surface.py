"""How fast a loss surface is: ours, a plain loop over a DataLoader, and ``loss-landscapes``.

    python benchmarks/surface.py                                  # 10 minutes on 2 cores
    python benchmarks/surface.py --part MUTAG PROTEINS --rounds=30
    python benchmarks/surface.py --WRN to_plot/model_cifar_SAM_rho0.05.pt

On the same checkpoint, samples and points, in turns. Ours is what plot_surface.py does, in the way
that it chooses for a grid of 51 x 51; what choosing and compiling takes stands apart, since it is
paid once. The plain loop is tomgoldstein/loss-landscape's: at each point it sets every weight to a
new tensor and reads the loss of each batch of a DataLoader, here of tensors in memory and in the
process itself. Both it and loss-landscapes (3.0.6, ``planar_interpolation`` with its ``Loss``, all
samples in one batch) run the model as one would write it with torch's and PyG's layers, in float32
and channels first. The points are those that loss-landscapes visits. "bf16, rechecked" adds a tenth
of the time in float32, which the recheck of a tenth of the points takes.

A checkpoint that is not given is trained for an epoch on few samples: what weights are worth makes
no difference to their time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import loss_landscapes
import numpy as np
import torch
from loss_landscapes.metrics.sl_metrics import Loss
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import plain
from benchmarks.timing import in_turns, machine, now, ratio
from loss_landscape import plot_surface
from loss_landscape.directions import coordinates, random_direction
from loss_landscape.evaluation import Visits, loss_and_accuracy
from loss_landscape.points.fast_evaluation import FastVisits, Task, Way, faster
from loss_landscape.restore import restore
from loss_landscape.surface_file import Surface
from trainings import my_train_cifar, my_train_GCN, my_train_mitbih
from utilities.cli import Parser, add_run_flags, positive_int, run
from utilities.tables import table

BATCH = 128
SAME = 1e-5  # of the largest loss, or of 1


class Case(NamedTuple):
    """A model and its samples, and how a checkpoint of it is made."""

    script: ModuleType
    flags: tuple[str, ...]
    samples: int | None
    rounds: int
    steps: int  # of loss-landscapes' grid: so many squared are the points of a round


FEW = ("--epochs=1", "--train_samples=1000")
CASES = {
    "WRN": Case(my_train_cifar, ("--depth=16", "--width_factor=2", *FEW), 1000, 7, 2),
    "Transformer": Case(my_train_mitbih, ("--epochs=1", "--train_samples=2000"), 2000, 9, 2),
    "MUTAG": Case(my_train_GCN, ("--dataset=MUTAG", "--epochs=20"), None, 15, 4),
    "PROTEINS": Case(my_train_GCN, ("--dataset=PROTEINS", "--epochs=5"), None, 11, 3),
}
WHOLE = Surface(np.linspace(-1, 1, 51), np.linspace(-1, 1, 51), {})


class Subject:
    """What is measured in all ways: a checkpoint, its samples and two directions."""

    def __init__(self, checkpoint: Path, samples: int | None, args: argparse.Namespace) -> None:
        flags = [f"--{n}={getattr(args, n)}" for n in ("data_dir", "device", "threads", "seed")]
        flags = [f"--model_file={checkpoint}", f"--batch_size={BATCH}", *flags]
        self.restored = restore(plot_surface.parse_args(flags))
        self.batches = self.restored.batches("train", samples, BATCH)
        self.weights = list(coordinates(self.restored.model, "weights").values())
        generator = torch.Generator().manual_seed(args.seed)
        draw = partial(random_direction, self.weights, "filter", "biasbn", generator)
        self.directions = [draw(), draw()]
        self.count = sum(len(targets) for _, targets in self.batches)

    def task(self) -> Task:
        batches = {"train": self.batches}
        at_point = partial(loss_and_accuracy, self.restored, batches)
        names = ("train_loss", "train_acc")
        return Task(self.restored, batches, Visits(self.weights, self.directions, names, at_point))

    def stock(self) -> nn.Module:
        """The model with stock layers, channels first."""
        content = torch.load(self.restored.path, weights_only=True)
        twin = plain.stock(self.restored.model, content["model_args"]).eval()
        return twin.to(memory_format=torch.contiguous_format)

    def samples(self) -> tuple[Any, Tensor]:
        """All samples as one batch of (inputs, targets), channels first."""
        targets = torch.cat([targets for _, targets in self.batches])
        inputs = [inputs for inputs, _ in self.batches]
        if isinstance(inputs[0], Tensor):
            return torch.cat(inputs).contiguous(), targets
        from torch_geometric.data import Batch, Data

        return Batch.from_data_list([Data(**graph) for graph in _apart(inputs)]), targets

    def loader(self) -> Iterable[tuple[Any, Tensor]]:
        """Batches of (inputs, targets) from a DataLoader."""
        inputs, targets = self.samples()
        if isinstance(inputs, Tensor):
            return DataLoader(TensorDataset(inputs, targets), BATCH)
        from torch_geometric.loader import DataLoader as GraphLoader

        graphs = inputs.to_data_list()
        for graph, target in zip(graphs, targets, strict=True):
            graph.y = target
        return Pairs(GraphLoader(graphs, BATCH))


class Pairs:
    """PyG's batches as (graphs, targets)."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Any:
        return ((graphs, graphs.y) for graphs in self.loader)


def _apart(batches: list[Any]) -> Iterable[dict[str, Tensor]]:
    """Each graph of our batches: x and edge_index, counted from 0."""
    for batch in batches:
        owner = batch.batch[batch.edge_index[0]]
        for index, (start, end) in enumerate(zip(batch.ptr[:-1], batch.ptr[1:], strict=True)):
            edges = batch.edge_index[:, owner == index] - start
            yield {"x": batch.x[start:end], "edge_index": edges}


def peer_points(steps: int) -> np.ndarray:
    """Points (steps^2, 2) in the order of ``planar_interpolation``'s result.

    It moves before it measures, so that it starts a step off, and back in every other row.
    """
    rows = [[(i / steps, (j + (i % 2 == 0)) / steps) for j in range(steps)] for i in range(steps)]
    return np.array(rows).reshape(-1, 2)


class PlainLoop:
    """tomgoldstein/loss-landscape's evaluation, point by point, with its accuracy."""

    def __init__(self, subject: Subject) -> None:
        self.model, self.loader, self.loss = (
            subject.stock(),
            subject.loader(),
            subject.restored.loss,
        )
        self.weights = [w.clone() for w in subject.weights]
        self.directions = subject.directions

    @torch.no_grad()
    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Losses (k,) at ``points`` (k, 2)."""
        return np.array([self._at(x, y) for x, y in points.tolist()])

    def _at(self, x: float, y: float) -> float:
        changes = [dx * x + dy * y for dx, dy in zip(*self.directions, strict=True)]
        for p, w, change in zip(self.model.parameters(), self.weights, changes, strict=True):
            p.data = w + change
        summed, right, count = 0.0, 0, 0
        for inputs, targets in self.loader:
            logits = self.model(inputs)
            summed += self.loss(logits, targets).mean().item() * len(targets)
            right += logits.argmax(1).eq(targets).sum().item()
            count += len(targets)
        return summed / count


class Peer:
    """loss-landscapes' planar_interpolation from the model to it plus each direction."""

    def __init__(self, subject: Subject) -> None:
        self.models = [subject.stock() for _ in range(3)]
        for model, direction in zip(self.models[1:], subject.directions, strict=True):
            for p, d in zip(model.parameters(), direction, strict=True):
                p.data = p.data + d
        loss = subject.restored.loss
        self.metric = Loss(
            lambda outputs, targets: loss(outputs, targets).mean(), *subject.samples()
        )

    def __call__(self, steps: int) -> np.ndarray:
        """Losses (steps^2,) at ``peer_points(steps)``."""
        found = loss_landscapes.planar_interpolation(
            *self.models, self.metric, steps=steps, deepcopy_model=True
        )
        return found.ravel()


def compare(label: str, checkpoint: Path, args: argparse.Namespace) -> list[list[str]]:
    """Rows of the table for one case.

    Raises:
        ValueError: a loss differs by more than rounding.
    """
    case = CASES[label]
    subject = Subject(checkpoint, args.samples or case.samples, args)
    points = peer_points(case.steps)
    ways: dict[str, tuple[FastVisits, float]] = {}
    calls: dict[str, Callable[[], np.ndarray]] = {}
    for precision in ("fp32", "bf16"):
        if precision == "fp32" or label == "WRN":
            began = now()
            fast = faster(subject.task(), WHOLE, precision)
            ways[precision] = (fast, now() - began)
            calls[f"ours, {precision}"] = partial(measured, fast, points)
    loop, peer = PlainLoop(subject), Peer(subject)
    calls |= {"plain loop": lambda: loop(points), "loss-landscapes": lambda: peer(case.steps)}
    expected = calls["plain loop"]()
    off = {name: float(difference(call(), expected)) for name, call in calls.items()}
    for name, value in off.items():
        if value > (1e-2 if "bf16" in name else SAME):
            raise ValueError(f"{label}, {name}: differs by {value:.2g} from the plain loop")
    quiet: dict[str, Callable[[], float | None]]
    quiet = {name: partial(nothing, call) for name, call in calls.items()}
    seconds = in_turns(quiet, args.rounds or case.rounds, warmup=1)
    if "bf16" in ways and ways["bf16"][0].deviates:
        seconds["ours, bf16, rechecked"] = seconds["ours, bf16"] + 0.1 * seconds["ours, fp32"]
    rows = []
    for name in sorted(seconds):
        chosen, once = ways.get(name.removeprefix("ours, "), (None, 0.0))
        middle, low, high = ratio(seconds["plain loop"], seconds[name])
        rows.append(
            [
                label,
                f"{subject.count:,}",
                name,
                chosen.way.said if chosen else "",
                f"{1e3 * np.median(seconds[name]) / len(points):.4g}",
                "" if name == "plain loop" else f"{middle:.2f} ({low:.2f} to {high:.2f})",
                f"{off[name]:.1g}" if off.get(name) else "",
                f"{once:.0f}" if chosen else "",
            ]
        )
    return rows


def measured(fast: FastVisits, points: np.ndarray) -> np.ndarray:
    """Ours without the exception for the centre, which is one point of a surface."""
    return fast.everywhere(points)["train_loss"]


def nothing(call: Callable[[], Any]) -> None:
    call()


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, of 1 or of the loss where it is larger."""
    return np.max(np.abs(found - expected) / np.maximum(1, np.abs(expected)))


# --- how time grows -------------------------------------------------------------------------------
GROWN = Way("folded", 64)
SAMPLES, POINTS, PROCESSES = (125, 250, 500, 1000), (25, 100, 400), (1, 2)


def growth(checkpoints: dict[str, Path], args: argparse.Namespace) -> list[list[str]]:
    """Rows of the table of growth: what grows, how much of it there is, and seconds."""
    rows = []
    points = peer_points(1)
    for count in SAMPLES:
        subject = Subject(checkpoints["WRN"], count, args)
        fast, loop = FastVisits(subject.task(), GROWN), PlainLoop(subject)
        calls: dict[str, Callable[[], float | None]] = {}
        calls["ours"] = partial(nothing, partial(fast.everywhere, points))
        calls["plain"] = partial(nothing, partial(loop, points))
        seconds = in_turns(calls, args.rounds or 5, warmup=1)
        each = [f"{np.median(seconds[name]):.3g}" for name in ("ours", "plain")]
        rows.append(["WRN-16-2, a point", f"{count} samples", *each])
    subject = Subject(checkpoints["PROTEINS"], None, args)
    loop = PlainLoop(subject)
    for count in POINTS:
        side = int(count**0.5)
        surface = Surface(np.linspace(-1, 1, side), np.linspace(-1, 1, side), {})
        grid = surface.points(np.argwhere(np.ones(surface.shape, dtype=bool)))
        began = now()
        faster(subject.task(), surface, "fp32")(grid)
        between = now()
        loop(grid)
        times = [f"{between - began:.3g}", f"{now() - between:.3g}"]
        rows.append(["PROTEINS, all of it", f"{count} points", *times])
    for count in PROCESSES:
        taken = shared(checkpoints["WRN"], args, count)
        said = f"{count} process{'es' * (count > 1)} of one thread"
        rows.append(["WRN-16-2, 8 points of 250 samples", said, f"{taken:.3g}", ""])
    return rows


def shared(checkpoint: Path, args: argparse.Namespace, processes: int) -> float:
    """Seconds that ``processes`` take for eight points, once all of them are ready."""
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(processes), context.Queue()
    workers = [
        context.Process(target=_take_part, args=(checkpoint, args, 8 // processes, barrier, queue))
        for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    seconds = [queue.get(timeout=300) for _ in workers]
    for worker in workers:
        worker.join()
    return max(seconds)


def _take_part(
    checkpoint: Path, args: argparse.Namespace, count: int, barrier: Any, queue: Any
) -> None:
    torch.set_num_threads(1)
    args.threads = 1
    fast = FastVisits(Subject(checkpoint, 250, args).task(), GROWN)
    points = np.full((count, 2), 0.1)
    fast(points[:1])
    barrier.wait()
    began = now()
    fast(points)
    queue.put(now() - began)


def trained(
    label: str, folder: Path, args: argparse.Namespace, flags: Sequence[str] | None = None
) -> Path:
    """A checkpoint of the case, trained for it with its own flags or these."""
    case = CASES[label]
    own = [f"--{n}={getattr(args, n)}" for n in ("data_dir", "device", "threads", "seed")]
    case.script.main([*(flags or case.flags), *own, f"--out_dir={folder / label}"])
    found = (folder / label / "to_plot").glob("model_*.pt")
    return next(path for path in found if not path.stem.endswith("_last"))


def add_checkpoint_flags(parser: Parser, labels: Iterable[str]) -> None:
    """A flag for each network's checkpoint."""
    for label in labels:
        parser.add_argument(f"--{label}", type=Path, help="checkpoint; trained if not given")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("--part", nargs="+", choices=[*CASES, "growth"], default=[*CASES, "growth"])
    add_checkpoint_flags(parser, CASES)
    parser.add_argument("--rounds", type=positive_int, help="measurements; default: by the case")
    parser.add_argument("--samples", type=positive_int, help="default: by the case")
    add_run_flags(parser, seed=0)
    return parser.parse_args(argv)


COMPARED = ["model", "samples", "tool", "by", "ms a point", "over the plain loop (95 %)"]
COMPARED += ["differs by", "s once"]
GROWTH = ["what", "of", "ours, s", "plain loop, s"]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print the tables."""
    args = parse_args(argv)
    began = now()
    labels = [label for label in CASES if label in args.part]
    needed = CASES if "growth" in args.part else labels
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = {
            label: getattr(args, label) or trained(label, Path(folder), args) for label in needed
        }
        rows = [row for label in labels for row in compare(label, checkpoints[label], args)]
        grown = growth(checkpoints, args) if "growth" in args.part else []
    print(f"\n{machine()}; {now() - began:.0f} s for all")
    for header, found in ((COMPARED, rows), (GROWTH, grown)):
        if found:
            print(f"\n{table(header, found)}")


if __name__ == "__main__":
    run(main)
