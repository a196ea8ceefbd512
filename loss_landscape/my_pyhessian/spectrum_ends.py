"""The lowest and the largest eigenvalue, and whether there may be others beyond them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from loss_landscape.my_pyhessian.lanczos import (
    KrylovSpace,
    Matvec,
    both_ends,
    nothing_is_hidden,
    without_autocast,
)
from loss_landscape.my_pyhessian.stochastic import direction

SPACE = 40  # vectors that Lanczos holds before it restarts


class SpectrumEnds(NamedTuple):
    """Two eigenvalues with their residuals |Av - av|.

    Attributes:
        certain: one that lies beyond either end by 1 % of the largest magnitude would have been
            seen, but for one random vector of 100 at each end.
        products: how many were made.
    """

    low: float
    high: float
    low_residual: float
    high_residual: float
    certain: bool
    products: int


@without_autocast
def spectrum_ends(
    matvec: Matvec, template: Tensor, max_products: int = 200, tol: float = 1e-3, seed: int = 0
) -> SpectrumEnds:
    """Both ends of a symmetric matrix by Lanczos from a random vector, all directions alike.

    A small residual says that there is an eigenvalue, not that it is the last one. So Lanczos goes
    on until one beyond either end would have been seen (``hidden_share``); if it has to restart
    before, the residuals alone decide.

    Args:
        matvec: product with the matrix.
        template: (dim,), of 2 or more, for size, type and device.
        max_products: 2 or more; where to stop at the latest.
        tol: residual over the largest magnitude at which an eigenvalue is known.
        seed: of the random vector.

    Raises:
        ValueError: a product is NaN or infinite.
    """
    space = KrylovSpace(matvec, direction(template, (seed,)), min(SPACE, max_products))
    restarted = certain = False
    for products in range(1, max_products + 1):
        space.extend()
        values, vectors, residuals = space.ritz()
        certain = certain or (not restarted and nothing_is_hidden(space, values, lower_too=True))
        known = max(residuals[0], residuals[-1]) <= tol * np.abs(values).max()
        if (known and products > 1 and (certain or restarted)) or not space.beta or space.is_whole:
            break
        if space.n == space.size and products < max_products:
            kept, restarted = both_ends(values, max(space.size // 2, 2)), True
            space.restart(vectors[:, kept], values[kept])
    low, high, *rest = (float(x) for x in (*values[[0, -1]], *residuals[[0, -1]]))
    return SpectrumEnds(low, high, rest[0], rest[1], certain, products)
