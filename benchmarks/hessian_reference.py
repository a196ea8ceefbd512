"""A Hessian's spectrum as well as a long run in float64 tells it, kept below data/.

What the results of ``benchmarks/hessian.py`` are compared with: the eigenvalues and the density in
float64, the trace from many samples in float32, whose rounding is nothing beside their spread.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import wasserstein_distance
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from benchmarks.surface import Subject
from loss_landscape.my_pyhessian import stochastic
from loss_landscape.my_pyhessian.lanczos import Eigenpairs, Ends, extreme_eigenvalues
from loss_landscape.my_pyhessian.operators import HessianOperator
from loss_landscape.my_pyhessian.products import choose
from loss_landscape.my_pyhessian.spectral_density import distribution_error
from loss_landscape.my_pyhessian.stochastic import Known, direction
from utilities.files import atomic_write, sha256_of

TOP = 5  # eigenvalues
# Of the reference: probes, their steps, and the most samples of the trace.
LONG = {
    "WRN": (1, 200, 150),
    "Transformer": (2, 400, 400),
    "MUTAG": (30, 200, 6000),
    "PROTEINS": (40, 160, 1600),
}


class Reference(NamedTuple):
    """The largest eigenvalues (5,), those of largest magnitude, the trace, the density.

    ``error`` is the trace's standard error, ``spread`` what more probes are expected to move the
    density by, of the eigenvalues' mean magnitude.
    """

    values: np.ndarray
    magnitudes: np.ndarray
    trace: float
    error: float
    nodes: np.ndarray
    weights: np.ndarray

    @property
    def spread(self) -> float:
        return float(distribution_error(self.nodes, self.weights))

    def distance(self, nodes: np.ndarray, weights: np.ndarray) -> float:
        """See ``distance``."""
        return distance((nodes, weights), (self.nodes, self.weights))


def distance(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> float:
    """Wasserstein's of two densities, nodes and weights, over the mean magnitude of the other."""
    values, weights, others, shares = (part.ravel() for part in (*one, *other))
    mean = shares @ np.abs(others) / shares.sum()
    return float(wasserstein_distance(values, others, weights, shares) / mean)


def kept_in(folder: Path, subject: Subject, *settings: Any) -> Path:
    """Where what is found of this checkpoint and these samples is kept, without an ending."""
    said = f"{sha256_of(subject.restored.path)} {subject.count} {settings}"
    return folder / hashlib.sha256(said.encode()).hexdigest()[:16]


def reference(label: str, subject: Subject, folder: Path) -> Reference:
    """The kept one, or a new one."""
    path = kept_in(folder, subject, "reference 3", LONG[label]).with_suffix(".npz")
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
    operator, draw, pairs = in_float64(subject)
    known = Known.of(pairs)
    rows = [
        stochastic.probe(operator, known, draw((1, 1, number)), steps) for number in range(probes)
    ]
    subject.restored.model.float()
    operator = _operator(subject, subject.batches)
    known.vectors, known.basis = (x.to(operator.flat) for x in (known.vectors, known.basis))
    draw = partial(direction, operator.flat)
    samples = [row.trace for row in rows]
    while len(samples) < most and not stochastic.is_exact_enough(samples, 0.005):
        samples.append(stochastic.trace_sample(operator, known, draw((1, 2, len(samples)))))
    falling = np.sort(pairs.values)[::-1]
    largest = pairs.values[np.argsort(-np.abs(pairs.values))][:TOP]
    error = stochastic.standard_error(samples)
    longest = max(len(row.nodes) for row in rows)  # Lanczos ends where nothing is left
    nodes = np.stack([np.pad(r.nodes, (0, longest - len(r.nodes)), "edge") for r in rows])
    weights = np.stack([np.pad(r.weights, (0, longest - len(r.weights))) for r in rows])
    return Reference(falling[:TOP], largest, float(np.mean(samples)), error, nodes, weights)


def in_float64(
    subject: Subject,
) -> tuple[HessianOperator, Callable[[Sequence[int]], Tensor], Eigenpairs]:
    """The matrix, random directions by their numbers, the five outermost pairs at each end."""
    subject.restored.model.double()
    operator = _operator(subject, tree_map(double, subject.batches))
    draw = partial(direction, operator.flat)
    ends = Ends(TOP, TOP)
    pairs = extreme_eigenvalues(operator, draw((1, 0)), 2 * TOP, 400, 1e-5, select=ends)
    return operator, draw, pairs


def _operator(subject: Subject, batches: list[Any]) -> HessianOperator:
    restored = subject.restored
    operator = HessianOperator(restored.model, restored.loss, batches, restored.forward)
    with contextlib.redirect_stdout(io.StringIO()):
        choose(operator, 1000, compiling=False)
    return operator


def double(leaf: Any) -> Any:
    is_floating = isinstance(leaf, Tensor) and leaf.is_floating_point()
    return leaf.double() if is_floating or isinstance(leaf, nn.Module) else leaf
