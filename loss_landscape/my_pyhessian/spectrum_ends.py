"""The lowest and the largest eigenvalue, and whether there may be others beyond them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from loss_landscape.my_pyhessian.lanczos import (
    KrylovSpace,
    Matvec,
    Tick,
    both_ends,
    no_tick,
    nothing_is_hidden,
    without_autocast,
)
from loss_landscape.my_pyhessian.stochastic import direction

SPACE = 40  # vectors that Lanczos holds before it restarts


class SpectrumEnds(NamedTuple):
    """Two eigenvalues with their residuals |Av - av|.

    Attributes:
        certain: one that lies beyond an end that was looked for by 1 % of the largest magnitude
            would have been seen, but for one random vector of 100 at each end.
        converged: the residuals are small enough and, unless Lanczos was restarted, ``certain``.
        products: how many were made.
    """

    low: float
    high: float
    low_residual: float
    high_residual: float
    certain: bool
    converged: bool
    products: int


@without_autocast
def spectrum_ends(
    matvec: Matvec,
    template: Tensor,
    max_products: int = 200,
    tol: float = 1e-3,
    seed: int = 0,
    lower_too: bool = True,
    tick: Tick = no_tick,
) -> SpectrumEnds:
    """Both ends of a symmetric matrix, or the upper one, by Lanczos from a random vector.

    A small residual says that there is an eigenvalue, not that it is the last one. So Lanczos goes
    on until one beyond an end would have been seen (``hidden_share``); of a spectrum so dense that
    it has to restart before, the residuals alone decide.

    Args:
        matvec: product with the matrix.
        template: (dim,), for size, type and device; of 2 or more for both ends.
        max_products: where to stop at the latest; 2 or more for both ends.
        tol: residual over the largest magnitude at which an eigenvalue is known.
        seed: of the random vector, of which all directions are alike: random signs have nothing of
            (1, -1, 0, ...) every other time.
        lower_too: whether the lower end is waited for.
        tick: called after each product.

    Raises:
        ValueError: a product is NaN or infinite.
    """
    ends = [0, -1] if lower_too else [-1]
    space = KrylovSpace(matvec, direction(template, (seed,)), min(SPACE, max_products), tick)
    restarted = certain = False
    for products in range(1, max_products + 1):
        space.extend()
        values, vectors, residuals = space.ritz()
        certain = certain or (not restarted and nothing_is_hidden(space, values, lower_too))
        known = residuals[ends].max() <= tol * np.abs(values).max() and products >= len(ends)
        converged = bool(known and (certain or restarted))
        if converged or not space.beta or space.is_whole:
            break
        if space.n == space.size and products < max_products:
            half, restarted = max(space.size // 2, len(ends)), True
            kept = both_ends(values, half) if lower_too else slice(-half, None)
            space.restart(vectors[:, kept], values[kept])
    low, high, *rest = (float(x) for x in (*values[[0, -1]], *residuals[[0, -1]]))
    return SpectrumEnds(low, high, rest[0], rest[1], certain, converged, products)
