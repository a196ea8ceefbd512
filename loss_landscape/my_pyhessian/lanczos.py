"""Spectra of a symmetric matrix known only through its products with vectors.

Nothing here knows of networks: ``matvec`` maps (dim,) to (dim,).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from scipy import stats
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

Matvec = Callable[[Tensor], Tensor]
Select = Callable[[np.ndarray, int], np.ndarray]  # values, count -> indices of the best, in order
Tick = Callable[[], None]  # called after each product, for a progress display
Report = Callable[[np.ndarray, np.ndarray], None]  # the best values so far, and their residuals
F = TypeVar("F", bound=Callable[..., Any])
MARGIN = 0.01  # of the largest magnitude: how much larger one is that must not stay unseen
MISSED = 0.01  # chance that it does, over the random vector
LEAST = float(stats.chi2.ppf(MISSED, 1))  # share of an eigenvector that shows it, times the size
ROUNDING = 10  # times the type's epsilon: what is left of a vector by rounding alone


def no_tick() -> None:
    """Show nothing."""


def without_autocast(function: F) -> F:
    """Without the caller's autocast, which would multiply the basis in half precision."""
    for device in ("cpu", "cuda"):
        function = torch.autocast(device, enabled=False)(function)
    return torch.inference_mode(False)(function)


def largest_magnitude(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the ``count`` values of largest magnitude, largest first."""
    return np.argsort(-np.abs(values), kind="stable")[:count]


def both_ends(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the largest value, the lowest, the second largest, and so on."""
    falling, rising = (np.argsort(v, kind="stable") for v in (-values, values))
    order = np.stack([falling, rising], axis=1).ravel()
    _, first = np.unique(order, return_index=True)  # an odd number meets in the middle
    return order[np.sort(first)][:count]


@dataclass(frozen=True)
class Ends:
    """Chooses the ``top`` largest and the ``bottom`` lowest values; of another count in proportion.

    The first of each end come first, so that no end is forgotten.
    """

    top: int
    bottom: int

    def __call__(self, values: np.ndarray, count: int) -> np.ndarray:
        falling, rising = (np.argsort(v, kind="stable") for v in (-values, values))
        places = np.arange(len(values))
        ends = ((falling, self.top), (rising, self.bottom))
        ranks = np.concatenate([places / wanted for _, wanted in ends if wanted])
        order = np.concatenate([end for end, wanted in ends if wanted])
        order = order[np.argsort(ranks, kind="stable")]
        _, first = np.unique(order, return_index=True)  # few values are at both ends
        return order[np.sort(first)][:count]


# --- Krylov space ---------------------------------------------------------------------------------
class KrylovSpace:
    """Orthonormal vectors V and T = V'AV, extended by one product at a time.

    Each new vector is orthogonalised twice against all earlier ones, as matrix products: once is
    not enough in floating point, twice is (Giraud et al. 2005). All coefficients enter T, so that
    it stays V'AV after ``restart`` and ``begin_again`` too, where it is no longer tridiagonal.

    Args:
        matvec: product with a symmetric matrix.
        start: (dim,), finite and not zero.
        size: most vectors to hold.
        tick: called after each product.

    Attributes:
        n: vectors whose product is known.
        beta: norm of what the last product has outside of the space; 0: the space is invariant.

    Raises:
        ValueError: no vector to hold, or no start.
    """

    def __init__(self, matvec: Matvec, start: Tensor, size: int, tick: Tick = no_tick) -> None:
        size, norm = min(size, start.numel()), float(start.norm())
        if size < 1 or not 0 < norm < math.inf:
            raise ValueError(
                f"Lanczos needs 1 step or more ({size}) and a finite start other than 0"
            )
        self.matvec, self.size, self.tick = matvec, size, tick
        self.vectors = start.new_empty(size + 1, start.numel())
        self.vectors[0] = start / norm
        self._projected = np.zeros((size, size))
        self.n, self.beta, self.scale = 0, norm, 0.0
        # Of what earlier searches left outside: norm times coordinates, a row a search.
        self.outside = np.zeros((0, 0))

    @property
    def basis(self) -> Tensor:
        """V', (n, dim)."""
        return self.vectors[: self.n]

    @property
    def projected(self) -> np.ndarray:
        """T, (n, n) float64."""
        return self._projected[: self.n, : self.n]

    @property
    def is_whole(self) -> bool:
        return self.n == self.vectors.shape[1]

    def make_room(self, size: int) -> None:
        """For ``size`` vectors, at most ``dim``; what is there stays."""
        size = min(size, self.vectors.shape[1])
        vectors, projected = self.vectors, self.projected
        self.vectors = vectors.new_empty(size + 1, vectors.shape[1])
        self.vectors[: self.n + 1] = vectors[: self.n + 1]
        self._projected = np.zeros((size, size))
        self._projected[: self.n, : self.n] = projected
        self.size = size

    def extend(self) -> None:
        """Multiply the newest vector and make the next one of what is new in the product.

        Raises:
            ValueError: the product is NaN or infinite.
        """
        w = self.matvec(self.vectors[self.n])
        self.tick()
        self.n += 1
        self.outside = np.pad(self.outside, ((0, 0), (0, 1)))
        w, coefficients = self._orthogonalised(w)
        if not np.isfinite(coefficients).all():
            raise ValueError("the Hessian's product is not finite; the loss or its weights are NaN")
        self._projected[: self.n, self.n - 1] = self._projected[self.n - 1, : self.n] = coefficients
        self.beta = float(w.norm(dtype=torch.float64))
        self.scale = max(self.scale, abs(coefficients[-1]), self.beta)
        if self.beta <= ROUNDING * torch.finfo(w.dtype).eps * self.scale:
            self.beta = 0.0
        else:
            self.vectors[self.n] = self._unit(w)

    def _unit(self, w: Tensor) -> Tensor:
        """``w`` as a vector of the basis; of one that is all but within it, rounding is left."""
        w, _ = self._orthogonalised(w / w.norm())
        return w / w.norm()

    def _orthogonalised(self, w: Tensor) -> tuple[Tensor, np.ndarray]:
        total = np.zeros(self.n)
        for _ in range(2):
            coefficients = self.basis @ w
            w = w - self.basis.T @ coefficients
            total += coefficients.double().cpu().numpy()
        return w, total

    def restart(self, vectors: np.ndarray, values: np.ndarray) -> None:
        """Keep Ritz vectors, the columns of (n, kept), and the direction to go on in.

        The search goes on from what it has found (thick restart, Wu & Simon 2000).
        """
        kept = len(values)
        self.vectors[:kept] = _combined(vectors, self.basis)
        self.vectors[kept] = self.vectors[self.n]
        self.outside = self.outside @ vectors
        self._projected[:] = 0
        self._projected[:kept, :kept] = np.diag(values)
        self.n = kept

    def begin_again(
        self, vectors: np.ndarray, values: np.ndarray, generator: torch.Generator
    ) -> None:
        """Keep Ritz vectors, the columns of (n, kept), and go on from a random direction."""
        left = self.beta * vectors[-1:]
        self.restart(vectors, values)
        self.outside = np.concatenate([self.outside, left])
        v = torch.randn(self.vectors.shape[1], generator=generator, dtype=torch.float64)
        v, _ = self._orthogonalised((v / v.norm()).to(self.vectors))
        self.vectors[self.n], self.beta = self._unit(v), 0.0

    def ritz(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Eigenvalues of T, rising, its vectors in columns, and bounds of their residuals in A."""
        values, vectors = np.linalg.eigh(self.projected)
        outside = np.abs(self.outside @ vectors).sum(axis=0)
        return values, vectors, np.abs(self.beta * vectors[-1]) + outside


def _combined(coordinates: np.ndarray, basis: Tensor) -> Tensor:
    """Combinations of the rows of ``basis`` by the columns of (n, count): (count, dim)."""
    rows = torch.as_tensor(coordinates.T.copy(), dtype=basis.dtype, device=basis.device)
    return rows @ basis


# --- whether there is a larger one ----------------------------------------------------------------
def nothing_is_hidden(space: KrylovSpace, values: np.ndarray, lower_too: bool = False) -> bool:
    """Whether an eigenvalue that is larger by ``MARGIN`` would have been seen from a random vector.

    Of 100 random vectors ``MISSED`` times 100 have so little of an eigenvector that they would not
    show it. No eigenvalue need have been found for that; see ``hidden_share``.

    Args:
        space: not restarted, begun with a random vector.
        values: its Ritz values.
        lower_too: whether one that is lower by as much would have been seen, too.
    """
    margin = MARGIN * float(np.abs(values).max())
    beyond = [float(values.max()) + margin]
    beyond += [float(values.min()) - margin] if lower_too else []
    least = LEAST / space.vectors.shape[1]
    return space.is_whole or all(hidden_share(space, value) <= least for value in beyond)


def hidden_share(space: KrylovSpace, value: float) -> float:
    """Most that a search's first vector can have of eigenvectors at ``value`` or above, squared.

    That is Christoffel's function of the measure whose moments the products tell (Szego 1975,
    section 3.41): 1 over the sum of its squared orthonormal polynomials at ``value``, which grow
    the faster the farther that is above the bulk of what was seen. A random unit vector has
    chi-squared / dim of an eigenvector, with one degree of freedom.

    Args:
        space: not restarted.
        value: above all Ritz values.
    """
    t = space.projected
    before, now, total, last = 0.0, 1.0, 1.0, 0.0
    for centre, step in zip(t.diagonal(), [*t.diagonal(1), space.beta], strict=True):
        if not step:
            return 0.0
        before, now, last = now, ((value - centre) * now - last * before) / step, step
        total += now**2
    return 1 / total


# --- eigenvalues ----------------------------------------------------------------------------------
@dataclass
class Eigenpairs:
    """Approximate eigenvalues (count,), vectors (count, dim) and bounds of the residuals |Av - av|.

    Attributes:
        products: how many were made.
        space: in which the pairs were found.
        bound: largest residual that was allowed.
    """

    values: np.ndarray
    vectors: Tensor
    residuals: np.ndarray
    converged: bool
    products: int
    space: KrylovSpace
    bound: float

    @property
    def basis(self) -> Tensor:
        """Of the space: (n, dim), orthonormal rows."""
        return self.space.basis

    @property
    def projected(self) -> np.ndarray:
        """The matrix within the space, (n, n)."""
        return self.space.projected

    def settled(self) -> tuple[np.ndarray, Tensor]:
        """Values (k,) and vectors (k, dim) of all pairs in the space that are known well.

        More than were asked for: those whose residual is as small as was asked and at most a tenth
        of the value.
        """
        values, vectors, residuals = self.space.ritz()
        few = residuals <= np.minimum(self.bound, 0.1 * np.abs(values))
        return values[few], _combined(vectors[:, few], self.space.basis)


@without_autocast
def extreme_eigenvalues(
    matvec: Matvec,
    start: Tensor,
    count: int,
    max_products: int = 200,
    tol: float = 1e-3,
    tick: Tick = no_tick,
    select: Select = largest_magnitude,
    copies: bool = True,
    seed: int = 0,
    report: Report | None = None,
    see_larger: bool = False,
) -> Eigenpairs:
    """The ``count`` eigenvalues that ``select`` prefers, by Lanczos with thick restarts.

    It stops when each residual is at most ``tol`` times the largest magnitude. Of an eigenvalue
    that is repeated, Lanczos from one vector finds one copy; with ``copies`` a second search, from
    a random vector orthogonal to what was found, goes on until its best values, with their
    residuals, are none that would be preferred.

    Args:
        matvec: product with a symmetric matrix.
        start: (dim,), finite and not zero.
        count: how many, at most ``dim`` and ``max_products``.
        max_products: where to stop, converged or not; a warning says so.
        tol: see above.
        tick: called after each product.
        select: which ones; see ``largest_magnitude`` and ``both_ends``.
        copies: look for copies of repeated eigenvalues.
        seed: of the vectors that later searches begin with.
        report: called with the best values so far and their residuals, after each product.
        see_larger: go on, at least until a restart, while one larger than all that are found could
            be hidden to a random ``start``; for few eigenvalues without ``copies``.

    Raises:
        ValueError: a product is NaN or infinite, or ``count`` is out of its range.
    """
    if not 1 <= count <= min(start.numel(), max_products):
        raise ValueError(
            f"{count} eigenvalues of a matrix of size {start.numel()} in {max_products} products"
        )
    space = KrylovSpace(matvec, start, min(max(3 * count + 20, 40), max_products), tick)
    generator = torch.Generator().manual_seed(seed)
    known: np.ndarray | None = None  # when the present search began; None in the first one
    seen = not see_larger
    for products in range(1, max_products + 1):
        space.extend()
        values, vectors, residuals = space.ritz()
        best = select(values, count)
        if report:
            report(values[best], residuals[best])
        bound = tol * max(float(np.abs(values).max()), 1e-30)
        found = len(best) == count and bool((residuals[best] <= bound).all())
        again = space.beta == 0
        seen = seen or nothing_is_hidden(space, values)
        found = found and seen
        if found and copies and not space.is_whole:
            nothing_left = known is not None and _nothing_left(
                values, residuals, best, bound, select
            )
            unchanged = nothing_left and np.abs(values[best] - known).max() <= 2 * bound
            again |= known is None or nothing_left
            found = bool(unchanged)
        if found or space.is_whole or products == max_products:
            break
        if again:
            space.begin_again(vectors[:, best], values[best], generator)
            known = values[best] if len(best) == count else None
        elif space.n == space.size:
            kept = select(values, (count + space.size) // 2)
            space.restart(vectors[:, kept], values[kept])
            seen = True  # as far as can be said
    if not found:
        all_known = len(best) == count and bool((residuals[best] <= bound).all())
        _warn(products, float(residuals[best].max()), all_known)
    pairs = (values[best], _combined(vectors[:, best], space.basis), residuals[best])
    return Eigenpairs(*pairs, found, products, space, bound)


def _warn(products: int, residual: float, all_known: bool) -> None:
    """Say what is missing, at the line that called ``extreme_eigenvalues``."""
    reason = f"largest residual {residual:.3g}; raise --max_steps or --tol"
    if all_known:
        reason = "larger or repeated ones may be missing; raise --max_steps"
    warnings.warn(
        f"eigenvalues not converged after {products} Lanczos steps: {reason}", stacklevel=6
    )


def _nothing_left(
    values: np.ndarray, residuals: np.ndarray, best: np.ndarray, bound: float, select: Select
) -> bool:
    """Whether the best of the other Ritz values are known well enough to be none of the best."""
    others = np.setdiff1d(np.arange(len(values)), best)
    if not len(others):
        return False
    candidates = others[select(values[others], min(2, len(best)))]
    for value, residual in zip(values[candidates], residuals[candidates], strict=True):
        if residual > max(0.1 * abs(value), bound):
            return False
        margin = max(residual - 2 * bound, 0)
        for end in (value - margin, value + margin):
            if len(best) in select(np.append(values[best], end), len(best)):
                return False
    return True


# --- without restarts -----------------------------------------------------------------------------
@dataclass
class Tridiagonal:
    """T of A Q = Q T + beta q e', the matrix that ``n`` Lanczos steps leave.

    Attributes:
        diagonal: (n,) float64.
        off_diagonal: (n - 1,) float64.
        beta: norm of the last residual; 0 says that the subspace is invariant.
        basis: (n, dim), the orthonormal rows of Q'.
    """

    diagonal: np.ndarray
    off_diagonal: np.ndarray
    beta: float
    basis: Tensor

    def ritz(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues (n,), rising, and eigenvectors (n, n) in columns, of T."""
        return eigh_tridiagonal(self.diagonal, self.off_diagonal)


@without_autocast
def lanczos(matvec: Matvec, start: Tensor, steps: int, tick: Tick = no_tick) -> Tridiagonal:
    """Lanczos' algorithm with full reorthogonalisation (Golub & Van Loan 2013, section 10.3).

    It stops early when the subspace is invariant, at the latest after ``dim`` steps.

    Args:
        matvec: product with a symmetric matrix.
        start: (dim,), finite and not zero.
        steps: most products to make.
        tick: called after each product.

    Raises:
        ValueError: a product is NaN or infinite, or there is no step or no start.
    """
    space = KrylovSpace(matvec, start, steps, tick)
    while space.n < space.size and space.beta:
        space.extend()
    t = space.projected
    return Tridiagonal(t.diagonal().copy(), t.diagonal(1).copy(), space.beta, space.basis)
