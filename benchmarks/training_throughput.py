"""How fast training is: our loop against a plain one, and each relative of SAM against SGD.

    python benchmarks/training_throughput.py                     # 5.5 minutes on 2 cores
    python benchmarks/training_throughput.py --part GCN --rounds=20
    python benchmarks/training_throughput.py --part bf16         # in bf16 on a CPU, and in fp32
    python benchmarks/training_throughput.py --part gpu          # WRN-16-8 on all images, a GPU

Ours is what the scripts run: their data sets, models, flags and training loop, with --precision
as they choose it on this machine. The plain loop (benchmarks/plain.py) is what davda54/sam's
example does, in float32 and behind a DataLoader, with the same weights at the start, batch size
and augmentations. Its DataLoader works in the process itself: workers would take the same cores.
Memory is the most that torch's allocator held in the first epoch, beyond weights and data.
"""

from __future__ import annotations

import argparse
import copy
import gc
import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch

from benchmarks import plain
from benchmarks.timing import in_turns, machine, now, ratio
from models.smooth_crossentropy import smooth_crossentropy
from trainings import fit, my_train_cifar, my_train_GCN, my_train_mitbih
from trainings.fit import train_epoch
from trainings.options import start
from trainings.state import TrainingState
from utilities.cli import Parser, add_run_flags, positive_int, run
from utilities.tables import table


class Case(NamedTuple):
    """A training: its script and flags, what it counts, and the plain loop's data."""

    script: ModuleType
    flags: tuple[str, ...]
    optimizers: tuple[str, ...]
    unit: str
    loader: Callable[[Any], Any]
    samples: int | None
    rounds: int


IMAGES = ("SGD", "SAM"), "images/s", plain.image_loader
OTHERS = ("ADAM", "SAM")
GRAPHS = OTHERS, "graphs/s", plain.GraphLoader
CASES = {
    "WRN-16-2": Case(my_train_cifar, ("--depth=16", "--width_factor=2"), *IMAGES, 256, 9),
    "WRN-16-4": Case(my_train_cifar, ("--depth=16", "--width_factor=4"), *IMAGES, 256, 5),
    "Transformer": Case(my_train_mitbih, (), OTHERS, "beats/s", plain.beat_loader, 1280, 9),
    "PROTEINS": Case(my_train_GCN, ("--dataset=PROTEINS",), *GRAPHS, None, 15),
    "MUTAG": Case(my_train_GCN, ("--dataset=MUTAG",), *GRAPHS, None, 15),
}
PARTS = {
    "WRN": ("WRN-16-2", "WRN-16-4"),
    "Transformer": ("Transformer",),
    "GCN": ("PROTEINS", "MUTAG"),
}
PRICED = {  # flags beside those of the relative's radius, at the values that its paper uses
    "SGD": "--optimizer=SGD",
    "SAM": "--optimizer=SAM",
    "ASAM": "--optimizer=ASAM",
    "SAM-ON": "--optimizer=SAM --only_norm",
    "GSAM": "--optimizer=SAM --gsam_alpha=0.4",
    "Friendly SAM": "--optimizer=SAM --fsam_sigma=1",
    "SAM, half of the batch climbs": "--optimizer=SAM --ascent_fraction=0.5",
    "SAM, a quarter climbs": "--optimizer=SAM --ascent_fraction=0.25",
    "SAM in the run's second half": "--optimizer=SAM --sam_start=0.5 --epochs=1",
    "SAM in every fifth step": "--optimizer=SAM --every=5",
    "LookSAM, k = 5": "--optimizer=SAM --every=5 --looksam_alpha=0.7",
    "MSAM": "--optimizer=SAM --msam",
}
PRICE_STEPS, PRICE_BATCH = 10, 32
BF16_CASES = ("WRN-16-2", "Transformer")
GPU_FLAGS = {
    "fp32": "--precision=fp32",
    "bf16": "--precision=bf16",
    "fp16": "--precision=fp16",
    "bf16, compiled": "--precision=bf16 --compile",
}


class Ours:
    """What a script trains, up to its call of ``fit``, and its loop with any optimizer's flags."""

    def __init__(self, script: ModuleType, flags: Sequence[str]) -> None:
        self.script, self.flags = script, list(flags)
        with mock.patch.object(script, "fit", lambda *arguments: arguments):
            held_back = script.main(self.flags)
        _, _, self.dataset, self.model, self.model_args, self.ranks = held_back

    def state(self, *more: str) -> TrainingState:
        """A fresh training with the same weights and data."""
        args = self.script.parse_args([*self.flags, *more])
        start(args)
        return TrainingState(args, self.dataset, copy.deepcopy(self.model), self.ranks)


def our_epoch(state: TrainingState) -> None:
    """One epoch, from the first step of a run as the schedule and SAM's options see it."""
    loss = partial(smooth_crossentropy, smoothing=state.args.label_smoothing)
    train_epoch(state, loss, partial(check, state))
    state.total, state.steps = state.new_total(), 0
    for group in state.optimizer.param_groups:
        group["steps"] = 0


def check(state: TrainingState) -> None:
    """What the scripts do after each step, but for saving."""
    if state.ranks.device.type == "cpu" and not math.isfinite(state.total.losses[-1]):
        raise ValueError("the loss is not finite; lower the learning rate")


def plain_epoch(state: TrainingState, case: Case, model_args: dict[str, Any]) -> Callable[[], Any]:
    """The same training as a plain loop; call the result for an epoch."""
    model = plain.stock(state.model, model_args).to(memory_format=torch.contiguous_format)
    optimizer = plain.make_optimizer(state.args, model)
    loader, smoothing = case.loader(state.dataset), state.args.label_smoothing
    return partial(plain.epoch, model, optimizer, loader, smoothing, state.ranks.device)


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """The most that torch's allocator held during ``call``, beyond what it held before.

    ``call`` must not free what was there before, as a training's first epoch doesn't.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # lest it say that there is no GPU
    gc.collect()
    with torch.profiler.profile(profile_memory=True) as profiler:
        call()
    events = profiler.profiler.kineto_results.events()
    sizes = [event.nbytes() for event in events if event.name() == "[memory]"]
    return int(np.cumsum(sizes).max(initial=0))


def compare(label: str, args: argparse.Namespace) -> list[list[str]]:
    """Rows of the table for one case: each optimizer with our loop and the plain one."""
    case = CASES[label]
    samples = args.samples or case.samples
    flags = [*case.flags, *passed_on(args)]
    flags += [] if samples is None else [f"--train_samples={samples}"]
    ours = Ours(case.script, flags)
    calls: dict[str, Callable[[], Any]] = {}
    for name in case.optimizers:
        state = ours.state(f"--optimizer={name}")
        calls[f"plain {name}"] = plain_epoch(state, case, ours.model_args)
        calls[f"ours {name}"] = partial(our_epoch, state)
    memory = {name: peak_bytes(call, ours.ranks.device) / 2**20 for name, call in calls.items()}
    seconds = in_turns(calls, args.rounds or case.rounds, warmup=0)
    rows, count = [], ours.dataset.train.samples
    precision = ours.state().precision
    for name in case.optimizers:
        old, new = (seconds[f"{who} {name}"] for who in ("plain", "ours"))
        middle, low, high = ratio(old, new)
        rates = [f"{count / np.median(s):.4g}" for s in (old, new)]
        peaks = [f"{memory[f'{who} {name}']:.3g}" for who in ("plain", "ours")]
        gain = f"{middle:.2f} ({low:.2f} to {high:.2f})"
        rows.append([label, name, precision, case.unit, *rates, gain, *peaks])
    return rows


def price(args: argparse.Namespace) -> list[list[str]]:
    """Rows of the table of SAM's relatives: time over SGD's."""
    samples = f"--train_samples={PRICE_STEPS * PRICE_BATCH}"
    flags = [*CASES["WRN-16-2"].flags, samples, f"--batch_size={PRICE_BATCH}", *passed_on(args)]
    ours = Ours(my_train_cifar, flags)
    states = {name: ours.state(*text.split()) for name, text in PRICED.items()}
    calls = {name: partial(our_epoch, state) for name, state in states.items()}
    seconds = in_turns(calls, args.rounds or 7, warmup=1)
    rows = []
    for name, text in PRICED.items():
        middle, low, high = ratio(seconds[name], seconds["SGD"])
        shown = " ".join(flag for flag in text.split() if flag != "--epochs=1")
        step = f"{1e3 * np.median(seconds[name]) / PRICE_STEPS:.4g}"
        rows.append([name, f"`{shown}`", step, f"{middle:.2f} ({low:.2f} to {high:.2f})"])
    return rows


def in_bf16(args: argparse.Namespace) -> list[list[str]]:
    """Rows of the table of bf16 on a CPU, as training has it and as torch's autocast alone."""

    def by_torch(state: TrainingState) -> None:
        with mock.patch.object(fit, "autocast", lambda *_: torch.autocast("cpu", torch.bfloat16)):
            our_epoch(state)

    rows = []
    for label in BF16_CASES:
        case = CASES[label]
        samples = args.samples or case.samples
        flags = [*case.flags, f"--train_samples={samples}", *passed_on(args), "--device=cpu"]
        ours = Ours(case.script, flags)
        ways = {"fp32": ("fp32", our_epoch), "bf16": ("bf16", our_epoch)}
        ways["bf16 by torch's autocast alone"] = ("bf16", by_torch)
        calls = {
            way: partial(epoch, ours.state(f"--optimizer={case.optimizers[0]}", f"--precision={p}"))
            for way, (p, epoch) in ways.items()
        }
        seconds = in_turns(calls, args.rounds or 5, warmup=1)
        for way, taken in seconds.items():
            middle, low, high = ratio(taken, seconds["fp32"])
            rate = f"{ours.dataset.train.samples / np.median(taken):.4g}"
            span = "" if way == "fp32" else f"{middle:.3g} ({low:.3g} to {high:.3g})"
            rows.append([label, way, case.unit, rate, span])
    return rows


def on_gpu(args: argparse.Namespace) -> list[list[str]]:
    """Rows of the table of WRN-16-8 on all images, each precision, on a GPU.

    Raises:
        ValueError: there is none.
    """
    if not torch.cuda.is_available() or args.device.startswith("cpu"):
        raise ValueError("--part gpu: no GPU here; leave it out, or run it where there is one")
    return precisions(args, ["--depth=16", "--width_factor=8"])


def precisions(args: argparse.Namespace, model_flags: list[str]) -> list[list[str]]:
    """Rows of the table of one model: whole epochs in each precision, with SGD and with SAM."""
    samples = [] if args.samples is None else [f"--train_samples={args.samples}"]
    ours = Ours(my_train_cifar, [*model_flags, *samples, *passed_on(args)])
    rows = []
    for label, text in GPU_FLAGS.items():
        for name in ("SGD", "SAM"):
            state = ours.state(f"--optimizer={name}", *text.split())
            call = partial(our_epoch, state)
            memory = peak_bytes(call, ours.ranks.device) / 2**20  # the first epoch: warms up too
            seconds = in_turns({label: call}, args.rounds or 3, warmup=0)[label]
            rate = ours.dataset.train.samples / seconds
            span = f"{np.median(rate):.5g} ({rate.min():.5g} to {rate.max():.5g})"
            rows.append([label, name, span, f"{memory:.4g}"])
    return rows


def passed_on(args: argparse.Namespace) -> list[str]:
    """The flags of this script that the training scripts take too."""
    names = ("seed", "device", "threads", "data_dir", "out_dir")
    return [f"--{name}={getattr(args, name)}" for name in names]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parts = [*PARTS, "price"]
    parser.add_argument("--part", nargs="+", choices=[*parts, "bf16", "gpu"], default=parts)
    parser.add_argument("--rounds", type=positive_int, help="measurements; default: by the part")
    parser.add_argument("--samples", type=positive_int, help="an epoch; default: by the part")
    add_run_flags(parser, seed=0)
    return parser.parse_args(argv)


COMPARED = ["training", "optimizer", "ours in", "", "plain loop", "ours", "ours over plain (95 %)"]
COMPARED += ["plain: peak, MiB", "ours: peak, MiB"]
PRICES = ["relative", "flags", "step, ms", "over SGD's (95 %)"]
IN_BF16 = ["training", "precision", "", "rate", "time over fp32's (95 %)"]
ON_GPU = ["precision", "optimizer", "images/s: median (range)", "peak, MiB"]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print the tables."""
    args = parse_args(argv)
    began = now()
    gpu = on_gpu(args) if "gpu" in args.part else []
    labels = [label for part in args.part for label in PARTS.get(part, ())]
    compared = [row for label in labels for row in compare(label, args)]
    prices = price(args) if "price" in args.part else []
    bf16 = in_bf16(args) if "bf16" in args.part else []
    print(f"{machine()}; {now() - began:.0f} s for all")
    tables = ((COMPARED, compared), (PRICES, prices), (IN_BF16, bf16), (ON_GPU, gpu))
    for header, rows in tables:
        if rows:
            print(f"\n{table(header, rows)}")


if __name__ == "__main__":
    run(main)
