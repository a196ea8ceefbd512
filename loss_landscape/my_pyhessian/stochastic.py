"""Trace and spectral density of a symmetric matrix from its products with random vectors."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from loss_landscape.my_pyhessian.lanczos import Matvec, Tick, lanczos, no_tick, without_autocast


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
    basis: Tensor | None = None,
    basis_trace: float = 0.0,
) -> list[float]:
    """Samples whose mean estimates the trace: v'Av with random signs v (Hutchinson 1990).

    With an orthonormal ``basis``, within which the trace is known, only what is orthogonal to it is
    sampled, as Hutch++ does (Meyer et al. 2021); the space of a few large eigenvalues, which
    ``extreme_eigenvalues`` leaves, takes most of the variance away and costs no product. It must
    have been found without the signs that are drawn here.

    Stops when the standard error falls to ``tol`` times the mean, after 10 probes at the
    earliest; not when the running mean stands still, which chance does early.

    Args:
        matvec: product with a symmetric matrix.
        template: (dim,), for its size, type and device.
        generator: of the random signs.
        max_probes: where to stop at the latest.
        tol: see above.
        tick: called after each product.
        basis: (n, dim), orthonormal rows.
        basis_trace: trace of basis A basis'.
    """
    samples: list[float] = []
    for _ in range(max_probes):
        v = rademacher(template.numel(), template, generator)
        if basis is not None:
            for _ in range(2):
                v = v - basis.T @ (basis @ v)
        samples.append(basis_trace + float(torch.dot(matvec(v).double(), v.double())))
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
