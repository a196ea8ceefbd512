"""What the Hessian's top 5 eigenvalues, trace and density cost: ours, PyHessian and curvlinops.

    python benchmarks/hessian.py --part MUTAG PROTEINS                   # trained first
    python benchmarks/hessian.py --part WRN --samples=200 --WRN to_plot/model_cifar_SAM_rho0.05.pt
    python benchmarks/hessian.py --part Transformer --samples=500 --no-compiling

On the same checkpoint and samples, asked for the same accuracy: the top 5 eigenvalues within 1e-3
of themselves, the trace with a standard error of 2 %, the density within a Wasserstein distance of
5 % of the eigenvalues' mean magnitude. The reference is a longer run in float64, which is kept
below data/hessian_reference.

How many products an algorithm takes to get there, and what it takes beside them, hangs on the
matrix and not on how its products are made: each tool's own algorithm is run with our product and
counted, on ``--counted`` samples, few enough for a float64 reference. The product over all samples
is timed with each tool's own, in turns. Seconds are the processor's time, so that other work on the
machine counts little: the products' and the rest, ours with what choosing the way takes.

Ours is what ``my_pyhessian/hessian.py`` does, with limits high enough to stop by its own errors.
One eigenvalue run serves its trace and its density, so that each of them alone is counted with it,
and all three together are fewer than their sum. The peers are told when to stop, which flatters
them: their density when it is near enough to the reference, their trace when the spread of 100
samples says that so many suffice (XTrace: the root of the mean squared error over four runs). Where
a peer's density isn't near enough after the most probes that are tried, their spread says how many
would be. A ~ marks such counts, and those of more than 100 samples.

PyHessian finds the eigenvalues of largest magnitude, the others the largest; each is compared with
what it looks for. It is given all samples as one batch, whose graph it keeps, or for the WRN
batches, whose graphs would not fit. Its ``density`` stops on today's torch, which has no
``torch.eig``; it is run with ``torch.linalg.eigh`` in its place. Both peers need attention's plain
kernel, which is forced around them. curvlinops is taken with scipy's ``eigsh``, its ``xtrace`` or
``hutchinson_trace``, whichever takes fewer products, and its ``fast_lanczos``; batches of graphs
are given to it as dicts, which is what it takes beside tensors.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import math
import tempfile
import threading
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import psutil
import torch
from curvlinops import HessianLinearOperator
from curvlinops.papyan2020traces.spectrum import fast_lanczos
from curvlinops.trace.epperly2024xtrace import xtrace
from curvlinops.trace.hutchinson import hutchinson_trace
from pyhessian import hessian as peer_hessian
from pyhessian.utils import hessian_vector_product
from scipy.sparse.linalg import LinearOperator, eigsh
from scipy.stats import wasserstein_distance
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from benchmarks.surface import Subject, trained
from benchmarks.timing import in_turns, machine
from loss_landscape.my_pyhessian import hessian, stochastic
from loss_landscape.my_pyhessian.lanczos import Ends, extreme_eigenvalues
from loss_landscape.my_pyhessian.measurement import measure
from loss_landscape.my_pyhessian.operators import HessianOperator
from loss_landscape.my_pyhessian.probes import eigenvalues
from loss_landscape.my_pyhessian.products import choose
from loss_landscape.my_pyhessian.spectral_density import distribution_error
from loss_landscape.my_pyhessian.stochastic import Known, direction
from loss_landscape.my_pyhessian.unfinished import Unfinished
from utilities.cli import Parser, add_run_flags, positive_int, run
from utilities.files import ROOT, atomic_write
from utilities.progress import Progress
from utilities.tables import table

SAMPLES = {"WRN": 1000, "Transformer": 2000, "MUTAG": None, "PROTEINS": None}
COUNTED = {"WRN": 16, "Transformer": 64, "MUTAG": None, "PROTEINS": 128}
# Of the reference: probes, their steps, and the most samples of the trace.
LONG = {
    "WRN": (3, 60, 30),
    "Transformer": (4, 60, 60),
    "MUTAG": (30, 200, 6000),
    "PROTEINS": (10, 120, 400),
}
BATCH = 256  # of hessian.py, unless it is told otherwise
TOP, TOLERANCE, TRACE_ERROR, DENSITY_ERROR = 5, 1e-3, 0.02, 0.05
STEPS, MOST_PROBES, SPREAD, RUNS = (60, 120), 12, 100, 4
TIGHTER = (1e-3, 1e-4, 1e-5)  # tolerances that are tried until the values are right


class Reference(NamedTuple):
    """The largest eigenvalues (5,), those of largest magnitude, the trace, the density."""

    values: np.ndarray
    magnitudes: np.ndarray
    trace: float
    error: float
    nodes: np.ndarray
    weights: np.ndarray

    @property
    def scale(self) -> float:
        return float((self.weights * np.abs(self.nodes)).sum() / self.weights.sum())

    def distance(self, nodes: np.ndarray, weights: np.ndarray) -> float:
        """Wasserstein's, of the eigenvalues' mean magnitude."""
        pairs = (self.nodes.ravel(), nodes.ravel(), self.weights.ravel(), weights.ravel())
        return float(wasserstein_distance(*pairs) / self.scale)


class Counted:
    """Our product as whatever a tool takes a matrix to be; counts products and their seconds."""

    def __init__(self, operator: HessianOperator) -> None:
        self.operator, self.count, self.inside = operator, 0, 0.0
        self.flat, size = operator.flat, operator.flat.numel()
        self.shape, self.dtype, self.device = (size, size), operator.flat.dtype, "cpu"

    def __call__(self, vector: Tensor) -> Tensor:
        began = process_time()
        product = self.operator(vector)
        self.count, self.inside = self.count + 1, self.inside + process_time() - began
        return product

    def __matmul__(self, vectors: Tensor) -> Tensor:
        if vectors.ndim == 1:
            return self(vectors)
        return torch.stack([self(column) for column in vectors.T.contiguous()], dim=1)


class Cost(NamedTuple):
    """What one result takes: products, seconds beside them, and how far it is off.

    ``about``: so many products would reach the goal, as the spread of fewer says.
    """

    products: int
    beside: float
    off: float
    about: bool = False

    def and_before(self, other: Cost) -> Cost:
        """With what had to be there before."""
        return self._replace(
            products=self.products + other.products, beside=self.beside + other.beside
        )


def reference(label: str, subject: Subject) -> Reference:
    """The cached one, or a new one in float64."""
    digest = hashlib.sha256(subject.restored.path.read_bytes())
    digest.update(f"2 {subject.count} {LONG[label]}".encode())
    path = ROOT / "data" / "hessian_reference" / f"{digest.hexdigest()[:16]}.npz"
    if not path.exists():
        found = _long_run(label, subject)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as part, part.open("wb") as file:
            np.savez(file, **found._asdict())
    with np.load(path) as file:
        values, magnitudes, trace, error, nodes, weights = (file[n] for n in Reference._fields)
    return Reference(values, magnitudes, float(trace), float(error), nodes, weights)


def _long_run(label: str, subject: Subject) -> Reference:
    probes, steps, most = LONG[label]
    model, batches = tree_map(_double, (subject.restored.model, subject.batches))
    operator = HessianOperator(model, subject.restored.loss, batches, subject.restored.forward)
    choose(operator, 1000, compiling=False)
    draw = partial(direction, operator.flat)
    pairs = extreme_eigenvalues(operator, draw((1, 0)), 2 * TOP, 400, 1e-5, select=Ends(TOP, TOP))
    known, rows, samples = Known.of(pairs), [], []
    for number in range(probes):
        rows.append(stochastic.probe(operator, known, draw((1, 1, number)), steps))
        samples.append(rows[-1].trace)
    while len(samples) < most and not stochastic.is_exact_enough(samples, TRACE_ERROR / 4):
        samples.append(stochastic.trace_sample(operator, known, draw((1, 2, len(samples)))))
    model.float()
    falling = np.sort(pairs.values)[::-1]
    largest = pairs.values[np.argsort(-np.abs(pairs.values))][:TOP]
    error = stochastic.standard_error(samples)
    nodes, weights = (np.concatenate([getattr(r, n) for r in rows]) for n in ("nodes", "weights"))
    return Reference(falling[:TOP], largest, float(np.mean(samples)), error, nodes, weights)


def _double(leaf: Any) -> Any:
    is_floating = isinstance(leaf, Tensor) and leaf.is_floating_point()
    return leaf.double() if is_floating or isinstance(leaf, nn.Module) else leaf


# --- the algorithms, each with our product --------------------------------------------------------
def counted(operator: HessianOperator, call: Callable[[Counted], float]) -> Cost:
    """Run ``call``, which returns how far its result is off."""
    matrix, began = Counted(operator), process_time()
    off = call(matrix)
    return Cost(matrix.count, process_time() - began - matrix.inside, off)


def until(costs: Sequence[Callable[[], Cost]], goal: float) -> Cost:
    """The first cost that reaches the goal, or the last."""
    cost = Cost(0, 0.0, np.inf)
    for make in costs:
        cost = make()
        if cost.off <= goal:
            break
    return cost


def eigenvalue_error(values: Any, expected: np.ndarray) -> float:
    """The largest of the relative errors."""
    found, right = (np.asarray(v)[np.argsort(-np.abs(v))] for v in (values, expected))
    return float(np.max(np.abs(found / right - 1)))


def ours(operator: HessianOperator, known: Reference, checkpoint: Path) -> dict[str, Cost]:
    """As hessian.py measures: the eigenvalues first, trace and density beside what they leave."""
    flags = [f"--model_file={checkpoint}", f"--top_n={TOP}", "--bottom_n=0", "--max_steps=400"]
    flags += ["--probes=500", "--trace_probes=10000"]
    args = hessian.parse_args(flags)
    pieces: dict[str, np.ndarray] = {}

    def top(tolerance: float, matrix: Counted) -> float:
        args.tol = tolerance
        with Progress("eigenvalues") as progress:
            pieces.update(eigenvalues(matrix, args, progress))  # type: ignore[arg-type]
        return eigenvalue_error(pieces["eigenvalues"], known.values)

    def rest(args: argparse.Namespace, record: dict[str, Any], matrix: Counted) -> float:
        with tempfile.TemporaryDirectory() as folder:
            kept = Unfinished(Path(folder) / "spectrum", {}, False)
            kept.pieces["eigenvalues"] = pieces
            nodes, weights = measure(lambda layers: matrix, args, record, kept, (None, {}))  # type: ignore[arg-type,return-value]
        return known.distance(nodes, weights)

    with contextlib.redirect_stdout(io.StringIO()):
        first = until([partial(counted, operator, partial(top, t)) for t in TIGHTER], TOLERANCE)
        alone: dict[str, Any] = {}
        together: dict[str, Any] = {}
        few = argparse.Namespace(**{**vars(args), "probes": 1, "lanczos_steps": 1})
        trace = counted(operator, partial(rest, few, alone))
        for args.lanczos_steps in STEPS:
            both = counted(operator, partial(rest, args, together))
            if both.off <= DENSITY_ERROR:
                break
    trace = trace._replace(off=alone["trace_standard_error"] / abs(known.trace))
    print(
        f"ours: trace {together['trace']:.5g} +- {together['trace_standard_error']:.2g}, alone "
        f"{alone['trace']:.5g}; reference {known.trace:.5g} +- {known.error:.2g}; "
        f"products {together['products']}; density's own error {together['density_error']:.3f} "
        f"with {args.lanczos_steps} steps"
    )
    density = both._replace(products=together["products"]["density"])
    return {
        "top 5": first,
        "trace": trace.and_before(first),
        "density": density.and_before(first),
        "all": both.and_before(first),
    }


def probed(operator: HessianOperator, probe: Callable[..., Any], known: Reference) -> Cost:
    """Probes until the density is near enough, or until their spread says how many would be."""
    rows: list[list[np.ndarray]] = [[], []]

    def run(matrix: Counted) -> float:
        off = np.inf
        while off > DENSITY_ERROR and len(rows[0]) < MOST_PROBES:
            for row, new in zip(rows, probe(matrix), strict=True):
                row.append(np.asarray(new).ravel())
            off = known.distance(np.stack(rows[0]), np.stack(rows[1]))
        return off

    cost = counted(operator, run)
    if cost.off <= DENSITY_ERROR:
        return cost
    # The distance is expected to be sqrt(2 / pi) of that error, and falls as a standard error does.
    expected = math.sqrt(2 / math.pi) * distribution_error(np.stack(rows[0]), np.stack(rows[1]))
    more = max(1.0, (expected / DENSITY_ERROR) ** 2)
    return Cost(math.ceil(cost.products * more), cost.beside * more, cost.off, True)


def sampled(
    operator: HessianOperator, sample: Callable[[Counted], float], known: Reference
) -> Cost:
    """Samples of the trace that the goal takes, as the spread of ``SPREAD`` says."""
    found: list[float] = []

    def run(matrix: Counted) -> float:
        found.extend(sample(matrix) for _ in range(SPREAD))
        return stochastic.standard_error(found) / abs(known.trace)

    cost = counted(operator, run)
    count = max(10, math.ceil(SPREAD * (cost.off / TRACE_ERROR) ** 2))
    off = cost.off * math.sqrt(SPREAD / count)
    return Cost(count, cost.beside * count / SPREAD, off, count > SPREAD)


class Substituted(peer_hessian):
    """PyHessian's class with our product."""

    def __init__(self, matrix: Counted) -> None:
        self.matrix, self.model = matrix, matrix.operator.model
        self.device, self.full_dataset, self.params = "cpu", True, matrix.operator.params

    def dataloader_hv_product(self, v: list[Tensor]) -> tuple[float, list[Tensor]]:
        flat = torch.cat([part.detach().flatten() for part in v]).to(self.matrix.dtype)
        product = self.matrix(flat)
        return float(product @ flat), self.matrix.operator.split(product)


def pyhessian(operator: HessianOperator, known: Reference) -> dict[str, Cost]:
    """PyHessian 0.1's power iteration, Hutchinson's trace and Lanczos."""

    def top(tolerance: float, matrix: Counted) -> float:
        values = Substituted(matrix).eigenvalues(100, tolerance, TOP)[0]
        print(f"PyHessian's eigenvalues {values}, right {known.magnitudes}")
        return eigenvalue_error(values, known.magnitudes)

    tries = [partial(counted, operator, partial(top, t)) for t in TIGHTER]
    with patch.object(torch, "eig", _eig, create=True):
        return {
            "top 5": until(tries, TOLERANCE),
            # Its own rule, that the running mean stands still, ends at errors of any size.
            "trace": sampled(operator, lambda m: Substituted(m).trace(1, 0.0)[0], known),
            "density": probed(operator, lambda m: Substituted(m).density(STEPS[0], 1), known),
        }


def _eig(matrix: Tensor, eigenvectors: bool) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(matrix)
    return torch.stack([values, torch.zeros_like(values)], dim=1), vectors


def curvlinops(operator: HessianOperator, known: Reference) -> dict[str, Cost]:
    """Curvlinops with what its documentation takes."""

    def top(tolerance: float, matrix: Counted) -> float:
        numpy = LinearOperator(
            matrix.shape, lambda x: matrix(torch.as_tensor(x.ravel())).numpy(), dtype=np.float32
        )
        values = eigsh(numpy, TOP, tol=tolerance, which="LA", return_eigenvectors=False)
        return eigenvalue_error(values, known.values)

    def trace(products: int, matrix: Counted) -> float:
        found = [float(xtrace(matrix, products)) for _ in range(RUNS)]
        return float(np.sqrt(np.mean((np.array(found) / known.trace - 1) ** 2)))

    def density(matrix: Counted) -> tuple[Tensor, Tensor]:
        values, vectors = fast_lanczos(matrix, STEPS[0])
        return values, vectors[0] ** 2

    plain = sampled(operator, lambda m: float(hutchinson_trace(m, 1)), known)
    counts = [n for n in (8, 16, 32, 64, 128, 256, 512) if n < plain.products]
    better = until([partial(counted, operator, partial(trace, n)) for n in counts], TRACE_ERROR)
    better = better._replace(products=better.products // RUNS, beside=better.beside / RUNS)
    return {
        "top 5": until([partial(counted, operator, partial(top, t)) for t in TIGHTER], TOLERANCE),
        "trace": better if better.off <= TRACE_ERROR else plain,
        "density": probed(operator, density, known),
    }


# --- a product of each tool -----------------------------------------------------------------------
class MeanLoss(nn.Module):
    """The mean over a batch, as curvlinops wants to know it."""

    reduction = "mean"

    def __init__(self, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.loss(outputs, targets).mean()


class OfDict(nn.Module):
    """A graph network on batches as dicts."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, parts: dict[str, Any]) -> Tensor:
        from torch_geometric.data import Batch

        return self.model(Batch(**{k: v for k, v in parts.items() if k != "size"}))


def peer_products(label: str, subject: Subject) -> dict[str, Callable[[], Any]]:
    """A product by each peer that can make it, with the model of stock layers."""
    model, loss = subject.stock(), MeanLoss(subject.restored.loss)
    params = [p for p in model.parameters() if p.requires_grad]
    vector = [torch.ones_like(p) for p in params]  # whose product is the same in any order
    whole = subject.samples()
    if label == "WRN":
        loader = subject.loader()
        mean = peer_hessian(model, loss, dataloader=loader, cuda=False)
        calls = {"PyHessian": lambda: mean.dataloader_hv_product(vector)[1]}
    else:
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mean = peer_hessian(model, loss, data=whole, cuda=False)
        calls = {"PyHessian": lambda: hessian_vector_product(mean.gradsH, mean.params, vector)}
    twin: nn.Module = subject.stock()
    data = list(subject.loader())
    if not isinstance(whole[0], Tensor):
        names = ("x", "edge_index", "batch")
        data = [({n: getattr(x, n) for n in names} | {"size": len(y)}, y) for x, y in data]
        twin = OfDict(twin)
    matrix = HessianLinearOperator(
        twin,
        loss,
        list(twin.parameters()),
        data,
        check_deterministic=False,
        batch_size_fn=None if isinstance(whole[0], Tensor) else lambda x: x["size"],
    )
    calls["curvlinops"] = lambda: matrix @ vector
    return calls


def peak(call: Callable[[], Any]) -> float:
    """MiB of the process at the most during ``call``, beyond what it had before."""
    process, done, most = psutil.Process(), threading.Event(), [0]

    def watch() -> None:
        while not done.wait(0.002):
            most[0] = max(most[0], process.memory_info().rss)

    before = process.memory_info().rss
    thread = threading.Thread(target=watch)
    thread.start()
    call()
    done.set()
    thread.join()
    return max(0, most[0] - before) / 2**20


def compare(label: str, checkpoint: Path, args: argparse.Namespace) -> list[list[str]]:
    """Rows of the table for one case."""
    samples = args.samples or SAMPLES[label]
    few = args.counted or COUNTED[label]
    fewer = min(filter(None, (samples, few)), default=None)
    counted_on = Subject(checkpoint, fewer, args)
    known = reference(label, counted_on)
    operator, _ = own(counted_on, False)
    costs = {"ours": ours(operator, known, checkpoint), "PyHessian": pyhessian(operator, known)}
    costs["curvlinops"] = curvlinops(operator, known)
    for name, cost in costs.items():
        print(label, name, cost, flush=True)
    subject = counted_on if samples == fewer else Subject(checkpoint, samples, args)
    operator, once = own(subject, args.compiling)
    calls: dict[str, Callable[[], Any]] = {
        "ours": lambda: [operator(torch.ones_like(operator.flat))]
    }
    calls |= peer_products(label, subject)

    def timed(call: Callable[[], Any]) -> float:
        with sdpa_kernel(SDPBackend.MATH):
            began = process_time()
            call()
            return process_time() - began

    memory = {name: peak(partial(timed, call)) for name, call in calls.items()}
    with sdpa_kernel(SDPBackend.MATH):
        made = {name: _sorted(call()) for name, call in calls.items()}
    differs = {name: float((v - made["ours"]).norm() / v.norm()) for name, v in made.items()}
    seconds = in_turns({n: partial(timed, c) for n, c in calls.items()}, args.rounds, warmup=1)
    each = {name: float(np.median(taken)) for name, taken in seconds.items()}
    totals = {name: _totals(costs[name], each[name], once * (name == "ours")) for name in calls}
    rows = []
    for name in calls:
        cells = [
            f"{'~' * cost.about}{cost.products:,} ({totals[name][part]:.3g} s, {cost.off:.1g})"
            for part, cost in costs[name].items()
            if part != "all"
        ]
        over = [f"{total / totals['ours'][part]:.2g}" for part, total in totals[name].items()]
        each_said, held = f"{1e3 * each[name]:.4g}", f"{memory[name]:.0f}"
        head = [label, f"{subject.count:,} ({counted_on.count:,})", name, each_said]
        head.append(f"{differs[name]:.1g}")
        rows.append([*head, *cells, f"{totals[name]['all']:.3g}", ", ".join(over), held])
    return rows


def _sorted(parts: Sequence[Tensor]) -> Tensor:
    """All entries in rising order: models with other layers have other orders of parameters."""
    return torch.cat([part.detach().flatten() for part in parts]).sort()[0]


def own(subject: Subject, compiling: bool) -> tuple[HessianOperator, float]:
    """Our operator as hessian.py makes it, and the seconds that choosing the way took."""
    restored = subject.restored
    batches = restored.batches("train", subject.count, BATCH)
    operator = HessianOperator(restored.model, restored.loss, batches, restored.forward)
    began = process_time()
    choose(operator, 500, compiling=compiling)
    return operator, process_time() - began


def _totals(costs: dict[str, Cost], each: float, once: float) -> dict[str, float]:
    """Seconds for each part and for all of them."""
    taken = {part: cost.products * each + cost.beside for part, cost in costs.items()}
    taken.setdefault("all", sum(taken.values()))
    return {part: seconds + once for part, seconds in taken.items()}


HEADER = [
    "model",
    "samples (counted on)",
    "tool",
    "ms a product",
    "differs by",
    "top 5",
    "trace",
    "density",
]
HEADER += ["all, s", "over ours: each, all", "MiB by the first product"]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("--part", nargs="+", choices=list(SAMPLES), default=list(SAMPLES))
    for label in SAMPLES:
        parser.add_argument(f"--{label}", type=Path, help="checkpoint; trained if not given")
    parser.add_argument("--rounds", type=positive_int, default=5, help="timings of a product")
    parser.add_argument("--samples", type=positive_int, help="default: by the case")
    parser.add_argument("--counted", type=positive_int, help="samples to count products on")
    parser.add_argument(
        "--compiling",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="let ours try compiled products, as hessian.py does where it expects them to pay",
    )
    add_run_flags(parser, seed=0)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    args = parse_args(argv)
    began = process_time()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for label in args.part:
            checkpoint = getattr(args, label) or trained(label, Path(folder), args)
            rows += compare(label, checkpoint, args)
    print(f"\n{machine()}; {process_time() - began:.0f} s for all")
    print("\nproducts (seconds, error) to reach each accuracy\n")
    print(table(HEADER, rows))


if __name__ == "__main__":
    run(main)
