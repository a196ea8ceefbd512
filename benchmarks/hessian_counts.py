"""How many products each tool's algorithms take to an accuracy: ours, PyHessian and curvlinops.

Each algorithm is run with our product, which counts, since their number hangs on the matrix and not
on how its products are made. What was counted is kept below data/, part by part, so that a run that
was stopped goes on, and only times are taken anew (``benchmarks/hessian.py``).
"""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from curvlinops.papyan2020traces.spectrum import fast_lanczos
from curvlinops.trace.epperly2024xtrace import xtrace
from pyhessian import hessian as peer_hessian
from scipy.linalg import eigh_tridiagonal
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from benchmarks.hessian_reference import TOP, Reference
from loss_landscape.my_pyhessian import hessian, stochastic
from loss_landscape.my_pyhessian.lanczos import lanczos
from loss_landscape.my_pyhessian.operators import HessianOperator
from loss_landscape.my_pyhessian.probes import DENSITY, TRACE, eigenvalues, known_of
from loss_landscape.my_pyhessian.spectral_density import distribution_error
from loss_landscape.my_pyhessian.stochastic import Known
from utilities.files import atomic_write
from utilities.progress import Progress

TOLERANCE, TRACE_ERROR = 1e-3, 0.02
# Wasserstein's distance to reach. A large network's many small eigenvalues are what it is the sum
# of, and those take hundreds of Lanczos steps to tell apart, of which even the reference has few.
DENSITY_ERROR = {"WRN": 0.25, "Transformer": 0.25, "MUTAG": 0.05, "PROTEINS": 0.05}
# Lanczos steps of a probe, of which the fewest that do are counted, and the most probes.
STEPS = {"WRN": (40, 60, 80, 100), "Transformer": (40, 60, 80, 120, 180, 240)}
STEPS |= {"MUTAG": (40, 60, 80, 120), "PROTEINS": (40, 60, 80, 120)}
MOST_PROBES = {"WRN": 2, "Transformer": 4, "MUTAG": 20, "PROTEINS": 20}
TOLERANCES = (1e-1, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5)  # are tried until the values are right
ROUNDING = 2e-6  # of an eigenvalue: what float32's products make of it, about
SPREAD, RUNS = 100, 6  # samples of a trace, runs of XTrace, whose spread says how far it is off
WIDER = 400  # most products to widen ours' space by
XTRACE = (16, 32, 64, 128, 256, 512)


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


# By part: "top 5", "trace", "density" and, for ours, "all"; "tol 0.001" are the top 5 by tolerance.
Costs = dict[str, Cost]
Makers = dict[str, Callable[[], Costs]]


class Counts:
    """What was found of one checkpoint, in ``path``.json, each part as soon as it is there."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_suffix(".json")
        self.parts: dict[str, Any] = {}
        if self.path.exists():
            self.parts = json.loads(self.path.read_text(encoding="utf-8"))

    def get(self, name: str, make: Callable[[], Any]) -> Any:
        """What is kept under this name, or what ``make`` gives, which then is."""
        if name not in self.parts:
            torch.manual_seed(0)
            self.parts[name] = make()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.path) as part:
                part.write_text(json.dumps(self.parts, indent=1), encoding="utf-8")
        return self.parts[name]

    def costs(self, name: str, make: Callable[[], Costs]) -> Costs:
        """The same for costs."""
        found = self.get(name, lambda: {part: list(cost) for part, cost in make().items()})
        return {part: Cost(*values) for part, values in found.items()}


def count_all(
    label: str, operator: HessianOperator, known: Reference, counts: Counts
) -> dict[str, Costs]:
    """Each tool's costs."""
    found: dict[str, Costs] = {"ours": {}, "PyHessian": {}, "curvlinops": {}}

    def as_near() -> float:
        near = [cost["top 5"].off for cost in (found["PyHessian"], found["curvlinops"])]
        return min(TOLERANCE, max(ROUNDING, min(near)))

    makers = {
        "PyHessian": pyhessian(label, operator, known),
        "curvlinops": curvlinops(label, operator, known, lambda: found["PyHessian"]["trace"]),
        "ours": {"all": lambda: ours(label, operator, known, as_near())},
    }
    for tool, parts in makers.items():
        for part, make in parts.items():
            found[tool] |= counts.costs(f"{tool}, {part}", make)
        print(label, tool, *(f"\n  {name}: {cost}" for name, cost in found[tool].items()))
    return found


def counted(operator: HessianOperator, call: Callable[[Counted], float]) -> Cost:
    """Run ``call``, which returns how far its result is off."""
    matrix, began = Counted(operator), process_time()
    off = call(matrix)
    return Cost(matrix.count, process_time() - began - matrix.inside, off)


# --- eigenvalues ----------------------------------------------------------------------------------
def by_tolerance(
    operator: HessianOperator, call: Callable[[float, Counted], float], goal: float
) -> Costs:
    """Costs of the top 5 by tolerance, up to the loosest one that reaches the goal: "top 5"."""
    found: Costs = {}
    for tolerance in TOLERANCES:
        cost = found[f"tol {tolerance:g}"] = counted(operator, partial(call, tolerance))
        if cost.off <= goal:
            break
    return found | {"top 5": cost}


def eigenvalue_error(values: Any, expected: np.ndarray) -> float:
    """The largest of the relative errors."""
    found, right = (np.asarray(v)[np.argsort(-np.abs(v))] for v in (values, expected))
    return float(np.max(np.abs(found / right - 1)))


# --- density and trace ----------------------------------------------------------------------------
class Tridiagonal(NamedTuple):
    """What Lanczos' steps of one probe leave; the first ones' part is what fewer steps would.

    ``values`` are known eigenvalues, of one part in ``dim`` each, that the probe was kept from.
    """

    diagonal: np.ndarray
    off_diagonal: np.ndarray
    values: np.ndarray = np.zeros(0)
    dim: int = 1

    @classmethod
    def of(cls, nodes: np.ndarray, vectors: np.ndarray) -> Tridiagonal:
        """From its eigenvalues and its eigenvectors, which are columns."""
        matrix = (vectors * nodes) @ vectors.T
        return cls(matrix.diagonal(), matrix.diagonal(1))

    def quadrature(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Nodes and weights that so many steps give, those left out with weight 0."""
        steps = min(steps, len(self.diagonal))
        nodes, vectors = eigh_tridiagonal(self.diagonal[:steps], self.off_diagonal[: steps - 1])
        left = 1 - len(self.values) / self.dim
        weights = [np.full(len(self.values), 1 / self.dim), left * vectors[0] ** 2]
        return np.concatenate([self.values, nodes]), np.concatenate(weights)


def density(probes: Sequence[Tridiagonal], steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights that so many steps of all these probes give."""
    pairs = [probe.quadrature(steps) for probe in probes]
    values, weights = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    return values, weights / len(probes)


def probed(
    label: str,
    operator: HessianOperator,
    known: Reference,
    probe: Callable[[Counted, int], Tridiagonal],
    power: int = 2,
) -> Cost:
    """The fewest products whose density is near enough, or how many their spread says would be.

    Args:
        label: of the case.
        operator: the matrix.
        known: the reference.
        probe: the algorithm with so many steps.
        power: of a probe's steps, to which its time beside the products grows.
    """
    goal, steps, found = DENSITY_ERROR[label], STEPS[label], list[Tridiagonal]()
    best = Cost(0, 0.0, np.inf)

    def off(count: int) -> float:
        return known.distance(*density(found, count))

    while len(found) < MOST_PROBES[label] and not best.products:
        cost = counted(operator, lambda matrix: found.append(probe(matrix, steps[-1])) or 0.0)
        best = best._replace(beside=best.beside + cost.beside)
        near = [(count, off(count)) for count in steps]
        enough = [(count, distance) for count, distance in near if distance <= goal]
        if enough:
            share = (enough[0][0] / steps[-1]) ** power
            best = Cost(len(found) * enough[0][0], best.beside * share, enough[0][1])
    if best.products:
        return best
    # The distance is expected to be sqrt(2 / pi) of that error, and falls as a standard error does.
    rows = [t.quadrature(steps[-1]) for t in found]
    spread = distribution_error(*(np.stack(each) for each in zip(*rows, strict=True)))
    more = max(1.0, (math.sqrt(2 / math.pi) * spread / goal) ** 2)
    products = math.ceil(len(found) * steps[-1] * more)
    return Cost(products, best.beside * more, near[-1][1], True)


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


# --- the tools ------------------------------------------------------------------------------------
def ours(label: str, operator: HessianOperator, known: Reference, near: float) -> Costs:
    """As hessian.py measures: the eigenvalues first, trace and density beside their space.

    The trace widens it; for the density alone that is left out, as by ``--trace_probes=1``.

    ``near``: the eigenvalues' relative error to reach.
    """
    flags = ["--model_file=none", f"--top_n={TOP}", "--bottom_n=0", "--max_steps=400"]
    args = hessian.parse_args(flags)
    pieces: dict[str, np.ndarray] = {}
    numbers = iter(range(10**6))

    def top(tolerance: float, matrix: Counted, wider: int = 0) -> float:
        args.tol, args.trace_probes = tolerance, wider
        with Progress("eigenvalues") as progress:
            pieces.update(eigenvalues(matrix, args, progress))  # type: ignore[arg-type]
        return eigenvalue_error(pieces["eigenvalues"], known.values)

    def sample(settled: Known, matrix: Counted) -> float:
        start = stochastic.direction(operator.flat, (0, TRACE, next(numbers)))
        return stochastic.trace_sample(matrix, settled, start)

    def probe(settled: Known, matrix: Counted, steps: int) -> Tridiagonal:
        start = stochastic.direction(operator.flat, (0, DENSITY, next(numbers)))
        return beside(settled, matrix, start, steps)

    with contextlib.redirect_stdout(io.StringIO()):
        found = by_tolerance(operator, top, near)
        narrow = known_of(pieces, operator.flat)
        wide = counted(operator, partial(top, args.tol, wider=WIDER))
    widened = known_of(pieces, operator.flat)
    alone = probed(label, operator, known, partial(probe, narrow))
    trace = sampled(operator, partial(sample, widened), known).and_before(wide)
    # A probe's first product gives a sample of the trace too, which isn't taken into account.
    density = probed(label, operator, known, partial(probe, widened)).and_before(trace)
    return found | {"trace": trace, "density": alone.and_before(found["top 5"]), "all": density}


def beside(
    settled: Known, matvec: Callable[[Tensor], Tensor], start: Tensor, steps: int
) -> Tridiagonal:
    """Lanczos' steps of a probe beside the eigenpairs that are known."""

    def rest(v: Tensor) -> Tensor:
        return stochastic.outside(settled.vectors, matvec(v))

    t = lanczos(rest, stochastic.outside(settled.vectors, start), steps)
    return Tridiagonal(t.diagonal, t.off_diagonal, settled.values, start.numel())


class Substituted(peer_hessian):
    """PyHessian's class with our product."""

    def __init__(self, matrix: Counted) -> None:
        self.matrix, self.model = matrix, matrix.operator.model
        self.device, self.full_dataset, self.params = "cpu", True, matrix.operator.params

    def dataloader_hv_product(self, v: list[Tensor]) -> tuple[float, list[Tensor]]:
        flat = torch.cat([part.detach().flatten() for part in v]).to(self.matrix.dtype)
        product = self.matrix(flat)
        return float(product @ flat), self.matrix.operator.split(product)


def pyhessian(label: str, operator: HessianOperator, known: Reference) -> Makers:
    """PyHessian 0.1's power iteration, Hutchinson's trace and Lanczos."""

    def top(tolerance: float, matrix: Counted) -> float:
        values = Substituted(matrix).eigenvalues(100, tolerance, TOP)[0]
        print(f"PyHessian's eigenvalues {values}, right {known.magnitudes}")
        return eigenvalue_error(values, known.magnitudes)

    def probe(matrix: Counted, steps: int) -> Tridiagonal:
        seen: list[Tensor] = []

        def eig(matrix: Tensor, eigenvectors: bool) -> tuple[Tensor, Tensor]:
            seen.append(matrix.double())
            values, vectors = torch.linalg.eigh(matrix)
            return torch.stack([values, torch.zeros_like(values)], dim=1), vectors

        with patch.object(torch, "eig", eig, create=True):
            Substituted(matrix).density(steps, 1)
        return Tridiagonal(seen[0].diagonal().numpy(), seen[0].diagonal(1).numpy())

    return {
        "top 5": lambda: by_tolerance(operator, top, TOLERANCE),
        # Its own rule, that the running mean stands still, ends at errors of any size.
        "trace": lambda: {
            "trace": sampled(operator, lambda m: Substituted(m).trace(1, 0.0)[0], known)
        },
        "density": lambda: {"density": probed(label, operator, known, probe)},
    }


def curvlinops(
    label: str, operator: HessianOperator, known: Reference, plain: Callable[[], Cost]
) -> Makers:
    """Curvlinops with what its documentation takes; ``plain``: Hutchinson's samples."""

    def top(tolerance: float, matrix: Counted) -> float:
        numpy = LinearOperator(
            matrix.shape, lambda x: matrix(torch.as_tensor(x.ravel())).numpy(), dtype=np.float32
        )
        values = eigsh(numpy, TOP, tol=tolerance, which="LA", return_eigenvectors=False)
        return eigenvalue_error(values, known.values)

    def extrapolated(products: int) -> Cost:
        """XTrace's, of one run; off by the spread of ``RUNS``, since it is unbiased."""

        def run(matrix: Counted) -> float:
            found = [float(xtrace(matrix, products)) for _ in range(RUNS)]
            return float(np.std(found, ddof=1) / abs(known.trace))

        cost = counted(operator, run)
        return cost._replace(products=cost.products // RUNS, beside=cost.beside / RUNS)

    def trace() -> Costs:
        for count in XTRACE:
            if count >= min(plain().products, operator.flat.numel()):
                break
            cost = extrapolated(count)
            if cost.off <= TRACE_ERROR:
                fewer = extrapolated(3 * count // 4)  # the list's steps are coarse
                return {"trace": fewer if fewer.off <= TRACE_ERROR else cost}
        return {"trace": plain()}

    def probe(matrix: Counted, steps: int) -> Tridiagonal:
        nodes, vectors = fast_lanczos(matrix, steps)
        return Tridiagonal.of(nodes.double().numpy(), vectors.double().numpy())

    return {
        "top 5": lambda: by_tolerance(operator, top, TOLERANCE),
        "trace": trace,
        "density": lambda: {"density": probed(label, operator, known, probe, 1)},
    }
