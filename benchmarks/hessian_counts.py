"""How many products each tool's algorithms take to an accuracy: ours, PyHessian and curvlinops.

Each algorithm is run with our product, which counts, since their number hangs on the matrix and not
on how its products are made. What was counted is kept below data/, part by part, so that a run that
was stopped goes on, and only times are taken anew (``benchmarks/hessian.py``).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import tempfile
from collections.abc import Callable
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
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from benchmarks.hessian_reference import TOP, Reference
from loss_landscape.my_pyhessian import hessian, stochastic
from loss_landscape.my_pyhessian.measurement import measure
from loss_landscape.my_pyhessian.operators import HessianOperator
from loss_landscape.my_pyhessian.probes import eigenvalues
from loss_landscape.my_pyhessian.spectral_density import distribution_error
from loss_landscape.my_pyhessian.unfinished import Unfinished
from utilities.files import atomic_write
from utilities.progress import Progress

TOLERANCE, TRACE_ERROR, DENSITY_ERROR = 1e-3, 0.02, 0.05
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # are tried until the values are right
ROUNDING = 2e-6  # of an eigenvalue: what float32's products make of it, about
STEPS, SPREAD, RUNS = (60, 120), 100, 4
MOST_PROBES = {"WRN": 4, "Transformer": 6}  # of a peer's density; 12 of the others
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
    label: str, operator: HessianOperator, known: Reference, checkpoint: Path, counts: Counts
) -> dict[str, Costs]:
    """Each tool's costs."""
    found: dict[str, Costs] = {"ours": {}, "PyHessian": {}, "curvlinops": {}}
    most = MOST_PROBES.get(label, 12)

    def as_near() -> float:
        near = [cost["top 5"].off for cost in (found["PyHessian"], found["curvlinops"])]
        return min(TOLERANCE, max(ROUNDING, min(near)))

    makers = {
        "PyHessian": pyhessian(operator, known, most),
        "curvlinops": curvlinops(operator, known, most, lambda: found["PyHessian"]["trace"]),
        "ours": {"all": lambda: ours(operator, known, checkpoint, as_near())},
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


# --- ours -----------------------------------------------------------------------------------------
def ours(operator: HessianOperator, known: Reference, checkpoint: Path, near: float) -> Costs:
    """As hessian.py measures: the eigenvalues first, trace and density beside what they leave.

    ``near``: the eigenvalues' relative error to reach.
    """
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
        found = by_tolerance(operator, top, near)
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
    parts = {"trace": trace, "density": density, "all": both}
    return found | {name: cost.and_before(found["top 5"]) for name, cost in parts.items()}


# --- the peers ------------------------------------------------------------------------------------
def probed(
    operator: HessianOperator, probe: Callable[..., Any], known: Reference, most: int
) -> Cost:
    """Probes until the density is near enough, or until their spread says how many would be."""
    rows: list[list[np.ndarray]] = [[], []]

    def run(matrix: Counted) -> float:
        off = np.inf
        while off > DENSITY_ERROR and len(rows[0]) < most:
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


def pyhessian(operator: HessianOperator, known: Reference, most: int) -> Makers:
    """PyHessian 0.1's power iteration, Hutchinson's trace and Lanczos."""

    def top(tolerance: float, matrix: Counted) -> float:
        values = Substituted(matrix).eigenvalues(100, tolerance, TOP)[0]
        print(f"PyHessian's eigenvalues {values}, right {known.magnitudes}")
        return eigenvalue_error(values, known.magnitudes)

    def density() -> Costs:
        with patch.object(torch, "eig", _eig, create=True):
            call = lambda matrix: Substituted(matrix).density(STEPS[0], 1)  # noqa: E731
            return {"density": probed(operator, call, known, most)}

    return {
        "top 5": lambda: by_tolerance(operator, top, TOLERANCE),
        # Its own rule, that the running mean stands still, ends at errors of any size.
        "trace": lambda: {
            "trace": sampled(operator, lambda m: Substituted(m).trace(1, 0.0)[0], known)
        },
        "density": density,
    }


def _eig(matrix: Tensor, eigenvectors: bool) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(matrix)
    return torch.stack([values, torch.zeros_like(values)], dim=1), vectors


def curvlinops(
    operator: HessianOperator, known: Reference, most: int, plain: Callable[[], Cost]
) -> Makers:
    """Curvlinops with what its documentation takes; ``plain``: Hutchinson's samples."""

    def top(tolerance: float, matrix: Counted) -> float:
        numpy = LinearOperator(
            matrix.shape, lambda x: matrix(torch.as_tensor(x.ravel())).numpy(), dtype=np.float32
        )
        values = eigsh(numpy, TOP, tol=tolerance, which="LA", return_eigenvectors=False)
        return eigenvalue_error(values, known.values)

    def extrapolated(products: int) -> Cost:
        """XTrace's, of one run; off by the root of the mean squared error of ``RUNS``."""

        def run(matrix: Counted) -> float:
            found = [float(xtrace(matrix, products)) for _ in range(RUNS)]
            return float(np.sqrt(np.mean((np.array(found) / known.trace - 1) ** 2)))

        cost = counted(operator, run)
        return cost._replace(products=cost.products // RUNS, beside=cost.beside / RUNS)

    def trace() -> Costs:
        for count in XTRACE:
            if count >= plain().products:
                break
            cost = extrapolated(count)
            if cost.off <= TRACE_ERROR:
                fewer = extrapolated(3 * count // 4)  # the list's steps are coarse
                return {"trace": fewer if fewer.off <= TRACE_ERROR else cost}
        return {"trace": plain()}

    def density(matrix: Counted) -> tuple[Tensor, Tensor]:
        values, vectors = fast_lanczos(matrix, STEPS[0])
        return values, vectors[0] ** 2

    return {
        "top 5": lambda: by_tolerance(operator, top, TOLERANCE),
        "trace": trace,
        "density": lambda: {"density": probed(operator, density, known, most)},
    }
