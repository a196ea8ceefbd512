"""Lanczos, trace and quadrature on known matrices."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from curvature_cases import generator, symmetric
from hypothesis import given, settings
from hypothesis import strategies as st

from loss_landscape.my_pyhessian import lanczos as linear


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=25), st.integers(0, 99))
def test_lanczos_keeps_its_equation(values: list[float], seed: int) -> None:
    matrix = symmetric(values, seed)
    start = torch.randn(len(values), generator=generator(seed), dtype=torch.float64)
    t = linear.lanczos(lambda v: matrix @ v, start, steps=40)
    n = len(t.diagonal)
    assert n <= len(values)
    torch.testing.assert_close(t.basis @ t.basis.T, torch.eye(n).double(), atol=1e-10, rtol=0)
    expected = np.diag(t.diagonal) + np.diag(t.off_diagonal, 1) + np.diag(t.off_diagonal, -1)
    found = t.basis @ matrix @ t.basis.T
    scale = max(map(abs, values)) + 1
    np.testing.assert_allclose(found, expected, atol=1e-7 * scale)
    ritz, _ = t.ritz()
    assert ritz.min() >= min(values) - 1e-7 * scale  # never outside the spectrum
    assert ritz.max() <= max(values) + 1e-7 * scale


@pytest.mark.parametrize(
    "values", [[0.0] * 6, [2.0] * 6, [-5.0, 1.0, 1.0, 1.0, 0.0], [1.0], [3.0, 3.0, -3.0, 0.5]]
)
def test_degenerate_spectra(values: list[float]) -> None:
    matrix = symmetric(values)
    start = torch.randn(len(values), generator=generator(), dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pairs = linear.extreme_eigenvalues(lambda v: matrix @ v, start, count=2)
    assert abs(pairs.values[0]) == pytest.approx(max(map(abs, values)), abs=1e-9)
    assert pairs.converged
    assert (pairs.residuals <= 1e-9).all()
    nodes, weights = linear.quadrature(lambda v: matrix @ v, start, generator(), 3, 10)
    assert nodes.shape == weights.shape == (3, 10)
    np.testing.assert_allclose(weights.sum(axis=1), 1)


def test_no_convergence_is_said_with_residuals() -> None:
    matrix = symmetric(np.linspace(0, 1, 200).tolist())
    start = torch.randn(200, generator=generator(), dtype=torch.float64)
    with pytest.warns(UserWarning, match="not converged after 20 Lanczos steps"):
        pairs = linear.extreme_eigenvalues(lambda v: matrix @ v, start, 5, max_steps=20, tol=1e-8)
    for value, vector, residual in zip(pairs.values, pairs.vectors, pairs.residuals, strict=True):
        assert float((matrix @ vector - value * vector).norm()) == pytest.approx(residual, rel=1e-4)


def test_a_product_of_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        linear.lanczos(lambda v: v * math.nan, torch.ones(3), 3)


def test_hutchinson_stops_on_the_standard_error() -> None:
    matrix = symmetric(np.linspace(0.5, 1.5, 50).tolist())
    like = torch.zeros(50, dtype=torch.float64)
    samples = linear.hutchinson(lambda v: matrix @ v, like, generator(), 10_000, tol=0.005)
    assert 10 <= len(samples) < 10_000
    assert linear.standard_error(samples) <= 0.005 * np.mean(samples)
    assert np.mean(samples) == pytest.approx(50, rel=0.03)
