"""Trace and spectral density of a symmetric matrix from its products with random vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from loss_landscape.my_pyhessian.lanczos import (
    Eigenpairs,
    KrylovSpace,
    Matvec,
    Tick,
    lanczos,
    no_tick,
    without_autocast,
)
from utilities.statistics import half_width

NORMAL = float(stats.norm.ppf(0.975))
WINDOW = 8  # products, over which it is judged whether more of them pay
WIDEST = 2**28  # numbers in a space's vectors: 1 GiB of float32


def rademacher(dim: int, template: Tensor, generator: torch.Generator) -> Tensor:
    """Random signs, (dim,), drawn on the CPU so that every device sees the same ones."""
    signs = torch.randint(0, 2, (dim,), generator=generator) * 2 - 1
    return signs.to(template.device, template.dtype)


@without_autocast
def hutchinson(
    matvec: Matvec,
    template: Tensor,
    generator: torch.Generator,
    max_probes: int = 100,
    tol: float = 1e-3,
    tick: Tick = no_tick,
) -> list[float]:
    """Samples whose mean estimates the trace: v'Av with random signs v (Hutchinson 1990).

    Stops when the standard error falls to ``tol`` times the mean, after 10 probes at the
    earliest; not when the running mean stands still, which chance does early.

    Args:
        matvec: product with a symmetric matrix.
        template: (dim,), for its size, type and device.
        generator: of the random signs.
        max_probes: where to stop at the latest.
        tol: see above.
        tick: called after each product.
    """
    samples: list[float] = []
    for _ in range(max_probes):
        v = rademacher(template.numel(), template, generator)
        samples.append(float(torch.dot(matvec(v).double(), v.double())))
        tick()
        if len(samples) >= 10 and standard_error(samples) <= tol * abs(np.mean(samples)):
            break
    return samples


def standard_error(samples: list[float] | np.ndarray) -> float:
    """Standard error of the mean; NaN for fewer than two samples."""
    return (
        float(np.std(samples, ddof=1) / math.sqrt(len(samples))) if len(samples) > 1 else math.nan
    )


@without_autocast
def quadrature(
    matvec: Matvec,
    template: Tensor,
    generator: torch.Generator,
    probes: int,
    steps: int,
    tick: Tick = no_tick,
) -> tuple[np.ndarray, np.ndarray]:
    """Stochastic Lanczos quadrature of the spectral density (Ghorbani et al. 2019, section 2).

    Returns:
        Nodes (Ritz values) and weights, each (probes, steps) float64; a probe's weights sum to 1.
        Where Lanczos ends early or ``dim`` is smaller, the rest is padded with the last node and
        weight 0.

    Raises:
        ValueError: a product is NaN or infinite.
    """
    nodes, weights = np.zeros((2, probes, steps))
    for probe in range(probes):
        start = rademacher(template.numel(), template, generator)
        values, vectors = lanczos(matvec, start, steps, tick).ritz()
        nodes[probe] = np.pad(values, (0, steps - len(values)), mode="edge")
        weights[probe, : len(values)] = vectors[0] ** 2
    return nodes, weights


# --- beside what an eigenvalue run knows ----------------------------------------------------------
@dataclass
class Known:
    """What a matrix's eigenvalue run knows of it, which random vectors then need not find.

    Attributes:
        values: (k,), eigenvalues.
        vectors: (k, dim), their orthonormal eigenvectors.
        basis: (q, dim), the space in which they were found, orthonormal rows.
        projected: (q, q), the matrix within it.
    """

    values: np.ndarray
    vectors: Tensor
    basis: Tensor
    projected: np.ndarray

    @classmethod
    def of(cls, pairs: Eigenpairs) -> Known:
        return cls(*pairs.settled(), pairs.basis, pairs.projected)

    @property
    def trace(self) -> float:
        """Trace of the matrix within ``basis``."""
        return float(np.trace(self.projected))


class Captured(NamedTuple):
    """How much of a matrix A the space of ``n`` Lanczos vectors holds.

    Attributes:
        n: dimensions.
        trace: of T = V'AV.
        squares: |T|_F^2 + 2 beta^2, that is |A|_F^2 less what is left outside.
    """

    n: int
    trace: float
    squares: float

    @classmethod
    def by(cls, space: KrylovSpace) -> Captured:
        t = space.projected
        return cls(space.n, float(np.trace(t)), float(np.square(t).sum()) + 2 * space.beta**2)

    def spread(self, dim: int, trace: float) -> float:
        """|A|_F^2 less half the variance of a sample outside, for A of this size and trace."""
        return self.squares + (trace - self.trace) ** 2 / (dim - self.n)


@without_autocast
def widen(space: KrylovSpace, starts: Sequence[Tensor], error: float, most: int) -> int:
    """Extend an eigenvalue run's space while a product there spares the trace more than one.

    Outside of it, B = PAP with the projection P, a sample of the trace has the variance
    2 N / (N + 2) (|B|_F^2 - tr(B)^2 / N), N = dim - n. Its first factor is taken as 2. |B|_F^2 is
    |A|_F^2 - |T|_F^2 - 2 beta^2: what products take off it is known, though |A|_F is not. So
    A-Hutch++ (Persson, Cortinovis and Kressner 2022, section 3) chooses how many vectors it takes
    out; those of a Krylov space cost it one product each instead of two. It stops after ``WINDOW``
    products that did not pay.

    Args:
        space: of the eigenvalue run; it is extended.
        starts: random ``direction``s, a few; their products say about how large the trace is.
        error: the trace's standard error to reach, of the trace.
        most: products.

    Returns:
        The products that were made.

    Raises:
        ValueError: a product is NaN or infinite.
    """
    dim, began, cost = space.vectors.shape[1], space.n, len(starts)
    room = min(began + most - cost, dim - 1, WIDEST // dim)
    if room < began + WINDOW or not space.beta:
        return 0
    space.make_room(room)
    pilots = [(start, space.matvec(start)) for start in starts]
    for _ in starts:
        space.tick()
    pays = True
    while pays and space.beta and space.n + WINDOW <= room:
        before = Captured.by(space)
        while space.beta and space.n < before.n + WINDOW:
            space.extend()
        known = Known(np.zeros(0), space.basis[:0], space.basis, space.projected)
        trace = float(np.mean([_trace_sample(known, *pilot) for pilot in pilots]))
        gain = 2 * (Captured.by(space).spread(dim, trace) - before.spread(dim, trace))
        pays = gain > WINDOW * (error * trace) ** 2
    return cost + space.n - began


@dataclass
class Probe:
    """What one random vector tells: nodes and weights (k + steps,), and a sample of the trace."""

    nodes: np.ndarray
    weights: np.ndarray
    trace: float
    products: int


def direction(template: Tensor, seeds: Sequence[int]) -> Tensor:
    """A unit vector (dim,), all directions alike; its generator is seeded by ``seeds`` alone.

    So which vector a probe has hangs neither on the probes before it nor on where it is made.
    """
    seed = np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(seed >> np.uint64(1)))
    v = torch.randn(template.numel(), generator=generator, dtype=torch.float64)
    return (v / v.norm()).to(template)


@without_autocast
def probe(matvec: Matvec, known: Known, start: Tensor, steps: int, tick: Tick = no_tick) -> Probe:
    """Stochastic Lanczos quadrature of what is orthogonal to the known eigenvectors.

    Each known eigenvalue gets the weight 1 / dim that it has, which a random vector gives it only
    on average: the large ones would make most of the variance. The start's part orthogonal to the
    eigenvectors is uniform among its directions, so that weights and trace are unbiased.

    The trace costs no product: it is v'Av of the part v that is orthogonal to the whole basis, as
    Hutch++ has it (Meyer et al. 2021) with a space that is there already.

    Args:
        matvec: product with a symmetric matrix.
        known: found without ``start``.
        start: (dim,), a random ``direction``.
        steps: of Lanczos.
        tick: called after each product.

    Raises:
        ValueError: a product is NaN or infinite.
    """
    dim, k = start.numel(), len(known.values)
    masses = np.full(k, 1 / dim)
    if k == dim:
        return Probe(known.values, masses, known.trace, 0)
    products: list[Tensor] = []  # the first one

    def rest(v: Tensor) -> Tensor:
        product = matvec(v)
        if not products:
            products.append(product)
        return outside(known.vectors, product)

    t = lanczos(rest, outside(known.vectors, start), min(steps, dim - k), tick)
    values, vectors = t.ritz()
    return Probe(
        np.concatenate([known.values, values]),
        np.concatenate([masses, vectors[0] ** 2 * (1 - k / dim)]),
        _trace_sample(known, t.basis[0], products[0]),
        len(values),
    )


@without_autocast
def trace_sample(matvec: Matvec, known: Known, start: Tensor) -> float:
    """A sample of the trace from one product, as ``probe`` has it."""
    if len(known.basis) == start.numel():
        return known.trace
    v = outside(known.basis, start)
    return _trace_sample(known, v, matvec(v))


def _trace_sample(known: Known, v: Tensor, product: Tensor) -> float:
    """From v and Av: the part w of v outside of the basis has w'Aw / w'w, and there are dim - q."""
    left = v.numel() - len(known.basis)
    if not left:
        return known.trace
    inside = (known.basis @ v).double().cpu().numpy()
    mixed = (known.basis @ product).double().cpu().numpy()
    v, product = v.double(), product.double()
    quadratic = float(v @ product) - 2 * inside @ mixed + inside @ known.projected @ inside
    return known.trace + left * float(quadratic) / (float(v @ v) - float(inside @ inside))


def outside(basis: Tensor, v: Tensor) -> Tensor:
    """The part of v that is orthogonal to the rows of ``basis``; twice, against rounding."""
    for _ in range(2):
        v = v - basis.T @ (basis @ v)
    return v


def is_exact_enough(samples: Sequence[float], error: float) -> bool:
    """Whether a mean's standard error is at most ``error`` of it, with room for its own error.

    A standard error of few samples is itself uncertain, and a rule that stops when it is small
    stops where it is too small: Student's quantile over the normal one makes up for that.
    """
    return float(half_width(samples)) / NORMAL <= error * abs(float(np.mean(samples)))


def rounds(first: int, most: int) -> list[int]:
    """After how many samples to ask whether they suffice: ``first``, half as many more each time.

    Few looks keep the interval that a stop leaves honest; ``most`` ends it.
    """
    counts = [min(first, most)]
    while counts[-1] < most:
        counts.append(min(math.ceil(1.5 * counts[-1]), most))
    return counts
