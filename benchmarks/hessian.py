"""What the Hessian's top 5 eigenvalues, trace and density cost: ours, PyHessian and curvlinops.

    python benchmarks/hessian.py --part MUTAG PROTEINS
    python benchmarks/hessian.py --quick                   # fewer samples, a shorter reference
    python benchmarks/hessian.py --WRN to_plot/model_cifar_SAM_rho0.05.pt

On the same checkpoint and samples, asked for the same accuracy: the top 5 eigenvalues within 1e-3
of themselves, the trace with a standard error of 2 %, the density within a Wasserstein distance of
5 % of the eigenvalues' mean magnitude. The reference is a longer run in float64, which is kept
below data/hessian_reference.

How many products an algorithm takes to get there, and what it takes beside them, doesn't depend on
how they are made: each tool's own algorithm is run with our product and counted. The product is
timed with each tool's own, in turns. The seconds are the products' and the rest.

PyHessian 0.1 is given all samples as one batch, whose graph it keeps, or for the WRN batches, whose
graphs would not fit. Its ``density`` stops on today's torch, which has no ``torch.eig``; it is run
with ``torch.linalg.eigh`` in its place. Both peers need attention's plain kernel, which is forced
around them. curvlinops 3.0.1 (with scipy's ``eigsh``, its ``hutchinson_trace`` or ``xtrace`` and
its ``fast_lanczos``) stops on batches of graphs, which have no ``shape``.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import threading
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import psutil
import torch
from curvlinops import HessianLinearOperator
from curvlinops.papyan2020traces.spectrum import fast_lanczos
from curvlinops.trace.epperly2024xtrace import xtrace
from pyhessian import hessian as peer_hessian
from pyhessian.utils import hessian_vector_product
from scipy.sparse.linalg import LinearOperator, eigsh
from scipy.stats import wasserstein_distance
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from benchmarks.surface import Subject, trained
from benchmarks.timing import in_turns, machine, now
from loss_landscape.my_pyhessian import stochastic
from loss_landscape.my_pyhessian.lanczos import extreme_eigenvalues
from loss_landscape.my_pyhessian.operators import HessianOperator
from loss_landscape.my_pyhessian.products import choose
from utilities.cli import Parser, add_run_flags, positive_int, run
from utilities.files import ROOT, atomic_write
from utilities.tables import table

SAMPLES = {"WRN": 1000, "Transformer": 2000, "MUTAG": None, "PROTEINS": None}
QUICK = {"WRN": 32, "Transformer": 64, "MUTAG": None, "PROTEINS": 128}
TOP, TOLERANCE, TRACE_ERROR, DENSITY_ERROR = 5, 1e-3, 0.02, 0.05
STEPS, MOST_PROBES, MOST_SAMPLES = 40, 20, 1000
TIGHTER = (1e-3, 1e-4, 1e-5, 1e-6)  # tolerances that are tried until the values are right


class Reference(NamedTuple):
    """Eigenvalues (5,), the trace, its standard error, nodes and weights of the density."""

    values: np.ndarray
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
        size = operator.flat.numel()
        self.shape, self.dtype, self.device = (size, size), operator.flat.dtype, "cpu"

    def __call__(self, vector: Tensor) -> Tensor:
        began = now()
        product = self.operator(vector)
        self.count, self.inside = self.count + 1, self.inside + now() - began
        return product

    def __matmul__(self, vectors: Tensor) -> Tensor:
        if vectors.ndim == 1:
            return self(vectors)
        return torch.stack([self(column) for column in vectors.T.contiguous()], dim=1)


class Cost(NamedTuple):
    """What one result takes: products, seconds beside them, and how far it is off."""

    products: int
    beside: float
    off: float


def reference(subject: Subject, args: argparse.Namespace) -> Reference:
    """The cached one, or a new one in float64."""
    size = (3, 50, 60) if args.quick else (MOST_PROBES, 80, 400)
    digest = hashlib.sha256(subject.restored.path.read_bytes())
    digest.update(f"{subject.count} {size}".encode())
    path = ROOT / "data" / "hessian_reference" / f"{digest.hexdigest()[:16]}.npz"
    if not path.exists():
        probes, steps, most = size
        model, batches = tree_map(_double, (subject.restored.model, subject.batches))
        operator = HessianOperator(model, subject.restored.loss, batches, subject.restored.forward)
        choose(operator, 1000, compiling=False)
        flat, draw = operator.flat, torch.Generator().manual_seed(1)
        start = stochastic.rademacher(flat.numel(), flat, draw)
        pairs = extreme_eigenvalues(operator, start, TOP, 400, 1e-6)
        nodes, weights = stochastic.quadrature(operator, flat, draw, probes, steps)
        known = (pairs.basis, pairs.basis_trace)
        with warnings.catch_warnings():
            samples = stochastic.hutchinson(
                operator, flat, draw, most, 5e-3, basis=known[0], basis_trace=known[1]
            )
        model.float()
        error = stochastic.standard_error(samples)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as part, part.open("wb") as file:
            np.savez(
                file,
                values=pairs.values,
                trace=np.mean(samples),
                error=error,
                nodes=nodes,
                weights=weights,
            )
    with np.load(path) as file:
        found = [file[name] for name in Reference._fields]
    return Reference(found[0], float(found[1]), float(found[2]), *found[3:])


def _double(leaf: Any) -> Any:
    is_floating = isinstance(leaf, Tensor) and leaf.is_floating_point()
    return leaf.double() if is_floating or isinstance(leaf, nn.Module) else leaf


# --- the algorithms, each with our product --------------------------------------------------------
def counted(operator: HessianOperator, call: Callable[[Counted], float]) -> Cost:
    """Run ``call``, which returns how far its result is off."""
    matrix, began = Counted(operator), now()
    off = call(matrix)
    return Cost(matrix.count, now() - began - matrix.inside, off)


def until(costs: Sequence[Callable[[], Cost]], goal: float) -> Cost:
    """The first cost that reaches the goal, or the last."""
    cost = Cost(0, 0.0, np.inf)
    for make in costs:
        cost = make()
        if cost.off <= goal:
            break
    return cost


def eigenvalue_error(values: Any, known: Reference) -> float:
    found = np.sort(np.abs(values))[::-1][:TOP]
    return float(np.max(np.abs(found / np.sort(np.abs(known.values))[::-1] - 1)))


def ours(operator: HessianOperator, known: Reference) -> dict[str, Cost]:
    """The eigenvalues first; the trace and the density beside what they leave."""
    flat, draw, kept = operator.flat, torch.Generator().manual_seed(0), {}

    def top(tolerance: float, matrix: Counted) -> float:
        start = stochastic.rademacher(flat.numel(), flat, draw)
        kept["pairs"] = extreme_eigenvalues(matrix, start, TOP, 400, tolerance)
        return eigenvalue_error(kept["pairs"].values, known)

    def trace(matrix: Counted) -> float:
        pairs = kept["pairs"]
        more: dict[str, Any] = {"basis": pairs.basis, "basis_trace": pairs.basis_trace}
        samples = stochastic.hutchinson(matrix, flat, draw, MOST_SAMPLES, TRACE_ERROR, **more)
        return stochastic.standard_error(samples) / abs(known.trace)

    def density(matrix: Counted) -> float:
        return _probed(lambda: stochastic.quadrature(matrix, flat, draw, 1, STEPS), known)

    tries = [partial(counted, operator, partial(top, t)) for t in TIGHTER]
    return {
        "top 5": until(tries, TOLERANCE),
        "trace": counted(operator, trace),
        "density": counted(operator, density),
    }


def _probed(probe: Callable[[], tuple[Any, Any]], known: Reference) -> float:
    """Probes until the density is right; how far it is off."""
    rows: list[list[np.ndarray]] = [[], []]
    off = np.inf
    while off > DENSITY_ERROR and len(rows[0]) < MOST_PROBES:
        for row, new in zip(rows, probe(), strict=True):
            row.append(np.asarray(new).ravel())
        off = known.distance(np.stack(rows[0]), np.stack(rows[1]))
    return off


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
        return eigenvalue_error(Substituted(matrix).eigenvalues(200, tolerance, TOP)[0], known)

    def trace(matrix: Counted) -> float:
        # Its own rule, that the running mean stands still, ends at errors of any size.
        return _sampled(lambda: Substituted(matrix).trace(1, 0.0), known)

    def density(matrix: Counted) -> float:
        return _probed(lambda: Substituted(matrix).density(STEPS, 1), known)

    tries = [partial(counted, operator, partial(top, t)) for t in TIGHTER]
    with patch.object(torch, "eig", _eig):
        return {
            "top 5": until(tries, TOLERANCE),
            "trace": counted(operator, trace),
            "density": counted(operator, density),
        }


def _eig(matrix: Tensor, eigenvectors: bool) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(matrix)
    return torch.stack([values, torch.zeros_like(values)], dim=1), vectors


def _sampled(sample: Callable[[], list[float]], known: Reference) -> float:
    samples: list[float] = []
    error = np.inf
    while (len(samples) < 10 or error > TRACE_ERROR) and len(samples) < MOST_SAMPLES:
        samples += sample()
        if len(samples) > 1:
            error = stochastic.standard_error(samples) / abs(known.trace)
    return error


def curvlinops(operator: HessianOperator, known: Reference) -> dict[str, Cost]:
    """Curvlinops with what its documentation takes."""

    def top(tolerance: float, matrix: Counted) -> float:
        numpy = LinearOperator(
            matrix.shape, lambda x: matrix(torch.as_tensor(x.ravel())).numpy(), dtype=np.float32
        )
        return eigenvalue_error(
            eigsh(numpy, TOP, tol=tolerance, which="LM", return_eigenvectors=False), known
        )

    def trace(products: int, matrix: Counted) -> float:
        return abs(float(xtrace(matrix, products)) / known.trace - 1)

    def density(matrix: Counted) -> float:
        def probe() -> tuple[Tensor, Tensor]:
            values, vectors = fast_lanczos(matrix, STEPS)
            return values, vectors[0] ** 2

        return _probed(probe, known)

    return {
        "top 5": until([partial(counted, operator, partial(top, t)) for t in TIGHTER], TOLERANCE),
        "trace": until(
            [partial(counted, operator, partial(trace, n)) for n in (16, 32, 64, 128, 256, 400)],
            TRACE_ERROR,
        ),
        "density": counted(operator, density),
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


def peer_products(label: str, subject: Subject) -> dict[str, Callable[[], Any]]:
    """A product by each peer that can make it, with the model of stock layers."""
    model, loss = subject.stock(), MeanLoss(subject.restored.loss)
    params = [p for p in model.parameters() if p.requires_grad]
    draw = torch.Generator().manual_seed(0)
    vector = [torch.randn(p.shape, generator=draw) for p in params]
    whole = subject.samples()
    if label == "WRN":
        loader = subject.loader()
        mean = peer_hessian(model, loss, dataloader=loader, cuda=False)
        calls = {"PyHessian": lambda: mean.dataloader_hv_product(vector)}
    else:
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mean = peer_hessian(model, loss, data=whole, cuda=False)
        calls = {"PyHessian": lambda: hessian_vector_product(mean.gradsH, mean.params, vector)}
    if isinstance(whole[0], Tensor):
        twin = subject.stock()
        matrix = HessianLinearOperator(
            twin,
            loss,
            list(twin.parameters()),
            list(subject.loader()),
            check_deterministic=False,
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
    samples = args.samples or (QUICK if args.quick else SAMPLES)[label]
    subject = Subject(checkpoint, samples, args)
    known = reference(subject, args)
    restored = subject.restored
    operator = HessianOperator(restored.model, restored.loss, subject.batches, restored.forward)
    choose(operator, 300)
    costs = {"ours": ours(operator, known), "PyHessian": pyhessian(operator, known)}
    costs["curvlinops"] = curvlinops(operator, known)
    calls: dict[str, Callable[[], Any]] = {"ours": lambda: operator(operator.flat)}
    calls |= peer_products(label, subject)

    def timed(call: Callable[[], Any]) -> None:
        with sdpa_kernel(SDPBackend.MATH):
            call()

    memory = {name: peak(partial(timed, call)) for name, call in calls.items()}
    seconds = in_turns({n: partial(timed, c) for n, c in calls.items()}, args.rounds, warmup=1)
    each = {name: float(np.median(taken)) for name, taken in seconds.items()}
    rows = []
    for name in calls:
        totals = [cost.products * each[name] + cost.beside for cost in costs[name].values()]
        mine = [cost.products * each["ours"] + cost.beside for cost in costs["ours"].values()]
        cells = [
            f"{cost.products} ({total:.3g} s, {cost.off:.1g})"
            for cost, total in zip(costs[name].values(), totals, strict=True)
        ]
        pairs = zip([*totals, sum(totals)], [*mine, sum(mine)], strict=True)
        over = ", ".join(f"{total / our:.2f}" for total, our in pairs)
        each_said, held = f"{1e3 * each[name]:.4g}", f"{memory[name]:.0f}"
        rows.append([label, f"{subject.count:,}", name, each_said, *cells, over, held])
    return rows


HEADER = ["model", "samples", "tool", "ms a product", "top 5", "trace", "density"]
HEADER += ["over ours: each, all", "MiB"]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("--part", nargs="+", choices=list(SAMPLES), default=list(SAMPLES))
    for label in SAMPLES:
        parser.add_argument(f"--{label}", type=Path, help="checkpoint; trained if not given")
    parser.add_argument("--rounds", type=positive_int, default=5, help="timings of a product")
    parser.add_argument("--samples", type=positive_int, help="default: by the case")
    parser.add_argument(
        "--quick",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="fewer samples and a shorter reference",
    )
    add_run_flags(parser, seed=0)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    args = parse_args(argv)
    began = now()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for label in args.part:
            checkpoint = getattr(args, label) or trained(label, Path(folder), args)
            rows += compare(label, checkpoint, args)
    print(f"\n{machine()}; {now() - began:.0f} s for all")
    print("\nproducts (seconds, error) to reach each accuracy\n")
    print(table(HEADER, rows))


if __name__ == "__main__":
    run(main)
