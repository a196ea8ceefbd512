"""Both ends of known spectra, and what may hide beyond them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from curvature_cases import KNOWN, symmetric, wishart
from torch import Tensor

from loss_landscape.my_pyhessian.spectrum_ends import SpectrumEnds, spectrum_ends

LONE = [name for name in KNOWN if name != "number"]  # which is a single weight


def ends_of(values: np.ndarray, **how: float) -> SpectrumEnds:
    """Of a diagonal matrix, whose ends are ``values``' own."""
    diagonal = torch.from_numpy(values)
    return spectrum_ends(lambda v: diagonal * v, diagonal, **how)


@pytest.mark.parametrize("name", [*LONE, "wishart"])
def test_both_ends_of_known_matrices(name: str) -> None:
    matrix = wishart() if name == "wishart" else symmetric(KNOWN[name][0])
    exact = torch.linalg.eigvalsh(matrix)
    scale = float(exact.abs().max())
    found = spectrum_ends(lambda v: matrix @ v, matrix[0], tol=1e-6)
    assert found.low == pytest.approx(float(exact[0]), abs=1e-4 * scale)
    assert found.high == pytest.approx(float(exact[-1]), abs=1e-4 * scale)
    assert max(found.low_residual, found.high_residual) <= 2e-6 * max(scale, 1e-9)
    assert found.certain


def test_what_is_certain_is_right_but_for_few_random_vectors() -> None:
    """Each end is 3 % beyond its neighbour; by the residuals alone two of three draws miss one."""
    bulk = np.random.default_rng(0).normal(0, 0.3, 396)
    values = np.concatenate([[5.15, 5.0, -5.0, -5.15], bulk])
    missed = []
    for seed in range(400):
        found = ends_of(values, tol=0.03, seed=seed)
        assert found.certain
        missed.append(found.high < 5.09 or found.low > -5.09)
    assert np.mean(missed) <= 0.02 + 3 * np.sqrt(0.02 / 400)


def test_a_spectrum_too_dense_to_be_certain_says_so() -> None:
    """It restarts before; the ends are known by their residuals."""
    values = np.linspace(-1, 1, 3000)
    found = ends_of(values)
    assert not found.certain and found.products > 40
    assert found.high == pytest.approx(1, abs=2e-3) and found.low == pytest.approx(-1, abs=2e-3)


def test_few_products_are_not_certain() -> None:
    found = ends_of(np.linspace(-1, 1, 50), max_products=3)
    assert found.products == 3 and not found.certain and found.high_residual > 1e-3


def test_a_product_that_is_not_finite_is_refused() -> None:
    def product(v: Tensor) -> Tensor:
        return v * torch.nan

    with pytest.raises(ValueError, match="not finite"):
        spectrum_ends(product, torch.ones(5))
