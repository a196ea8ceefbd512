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
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

Matvec = Callable[[Tensor], Tensor]
F = TypeVar("F", bound=Callable[..., Any])
Tick = Callable[[], None]  # called after each product, for a progress display


def _no_tick() -> None:
    pass


def _exact(function: F) -> F:
    """Without the caller's autocast, which would multiply the basis in half precision."""
    for device in ("cpu", "cuda"):
        function = torch.autocast(device, enabled=False)(function)
    return torch.inference_mode(False)(function)


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


@_exact
def lanczos(matvec: Matvec, start: Tensor, steps: int, tick: Tick = _no_tick) -> Tridiagonal:
    """Lanczos' algorithm with full reorthogonalisation (Golub & Van Loan 2013, section 10.3).

    Each new vector is orthogonalised twice against all earlier ones: once is not enough in
    floating point, twice is (Giraud et al. 2005). It stops early when the subspace is invariant,
    at the latest after ``dim`` steps.

    Args:
        matvec: product with a symmetric matrix.
        start: (dim,), not zero.
        steps: most products to make.
        tick: called after each product.

    Returns:
        T and the basis; T's entries are computed in float64.

    Raises:
        ValueError: a product is NaN or infinite, or there is no step or no start.
    """
    steps = min(steps, start.numel())
    if steps < 1 or not 0 < float(start.norm()) < math.inf:
        raise ValueError(f"Lanczos needs 1 step or more ({steps}) and a finite start other than 0")
    basis = start.new_empty(steps, start.numel())
    basis[0] = start / start.norm()
    diagonal: list[float] = []
    betas: list[float] = []
    scale = 0.0
    for n in range(steps):
        w = matvec(basis[n])
        tick()
        diagonal.append(float(torch.dot(w.double(), basis[n].double())))
        if not math.isfinite(diagonal[-1]):
            raise ValueError("the Hessian's product is not finite; the loss or its weights are NaN")
        known = basis[: n + 1]
        for _ in range(2):
            w = w - known.T @ (known @ w)
        beta = float(w.norm(dtype=torch.float64))
        betas.append(beta)
        scale = max(scale, abs(diagonal[-1]), beta)
        if beta <= scale * math.sqrt(start.numel()) * torch.finfo(start.dtype).eps:
            betas[-1] = 0.0
            break
        if n + 1 < steps:
            basis[n + 1] = w / beta
    n = len(diagonal)
    return Tridiagonal(np.array(diagonal), np.array(betas[:-1]), betas[-1], basis[:n])


@dataclass
class Eigenpairs:
    """Approximate eigenvalues (count,), vectors (count, dim) and residual norms |Av - av|."""

    values: np.ndarray
    vectors: Tensor
    residuals: np.ndarray
    converged: bool


@_exact
def extreme_eigenvalues(
    matvec: Matvec,
    start: Tensor,
    count: int,
    max_steps: int = 200,
    tol: float = 1e-3,
    tick: Tick = _no_tick,
) -> Eigenpairs:
    """The ``count`` eigenvalues of largest magnitude, largest first, by restarted Lanczos.

    Steps double until each residual is at most ``tol`` times the largest magnitude. Of an
    eigenvalue that is repeated exactly, Lanczos from one vector finds one copy.

    Raises:
        ValueError: a product is NaN or infinite.
    """
    steps = min(max(2 * count + 10, 20), max_steps)
    while True:
        pairs = _ritz_pairs(lanczos(matvec, start, steps, tick), count, tol)
        if pairs.converged or steps >= min(max_steps, start.numel()):
            break
        steps = min(2 * steps, max_steps)
    if not pairs.converged:
        warnings.warn(
            f"eigenvalues not converged after {steps} Lanczos steps: largest residual "
            f"{pairs.residuals.max():.3g}; raise --max_steps or --tol",
            stacklevel=2,
        )
    return pairs


def _ritz_pairs(tridiagonal: Tridiagonal, count: int, tol: float) -> Eigenpairs:
    values, vectors = tridiagonal.ritz()
    order = np.argsort(-np.abs(values), kind="stable")[:count]
    residuals = np.abs(tridiagonal.beta * vectors[-1, order])
    basis = tridiagonal.basis
    rows = torch.as_tensor(vectors[:, order].T.copy(), dtype=basis.dtype, device=basis.device)
    # An invariant subspace smaller than asked for is all that this start can reach.
    complete = len(order) == count or tridiagonal.beta == 0
    converged = complete and bool((residuals <= tol * max(np.abs(values).max(), 1e-30)).all())
    return Eigenpairs(values[order], rows @ basis, residuals, converged)


def rademacher(dim: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Random signs, (dim,), drawn on the CPU so that every device sees the same ones."""
    signs = torch.randint(0, 2, (dim,), generator=generator) * 2 - 1
    return signs.to(like.device, like.dtype)


@_exact
def hutchinson(
    matvec: Matvec,
    like: Tensor,
    generator: torch.Generator,
    max_probes: int = 100,
    tol: float = 1e-3,
    tick: Tick = _no_tick,
) -> list[float]:
    """Samples v'Av, whose mean estimates the trace (Hutchinson 1990), with random signs v.

    Stops when the standard error falls to ``tol`` times the mean, after 10 probes at the
    earliest; not when the running mean stands still, which chance does early.
    """
    samples: list[float] = []
    for _ in range(max_probes):
        v = rademacher(like.numel(), like, generator)
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


@_exact
def quadrature(
    matvec: Matvec,
    like: Tensor,
    generator: torch.Generator,
    probes: int,
    steps: int,
    tick: Tick = _no_tick,
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
        start = rademacher(like.numel(), like, generator)
        values, vectors = lanczos(matvec, start, steps, tick).ritz()
        nodes[probe] = np.pad(values, (0, steps - len(values)), mode="edge")
        weights[probe, : len(values)] = vectors[0] ** 2
    return nodes, weights
