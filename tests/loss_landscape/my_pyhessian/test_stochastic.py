"""Trace and density of known matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from curvature_cases import KNOWN, generator, symmetric, wishart
from scipy import stats

from loss_landscape.my_pyhessian import stochastic
from loss_landscape.my_pyhessian.lanczos import extreme_eigenvalues


# --- trace ----------------------------------------------------------------------------------------
def test_hutchinson_stops_on_the_standard_error() -> None:
    matrix = symmetric(np.linspace(0.5, 1.5, 50).tolist())
    template = torch.zeros(50, dtype=torch.float64)
    samples = stochastic.hutchinson(lambda v: matrix @ v, template, generator(), 10_000, tol=0.005)
    assert 10 <= len(samples) < 10_000
    assert stochastic.standard_error(samples) <= 0.005 * np.mean(samples)
    assert np.mean(samples) == pytest.approx(50, rel=0.03)


@pytest.mark.parametrize("name", ["outliers", "uniform"])
def test_the_intervals_of_the_trace_cover_it(name: str) -> None:
    """Nominally in 95 % of all cases; 1,500 tell that from 93 and 97 % by 3.5 standard errors."""
    matrix = symmetric(KNOWN[name][0][:60])
    template = torch.randn(60, generator=generator(3), dtype=torch.float64)
    known = {}
    if name == "outliers":  # else few samples are too skewed for Student's t
        pairs = extreme_eigenvalues(lambda v: matrix @ v, template, 5)
        known = {"basis": pairs.basis, "basis_trace": pairs.basis_trace}
    signs, runs = generator(7), []
    for _ in range(1500):
        runs.append(
            stochastic.hutchinson(lambda v: matrix @ v, template, signs, 10, tol=0, **known)
        )
    errors = np.std(runs, axis=1, ddof=1) / math.sqrt(10)
    far = np.abs(np.mean(runs, axis=1) - float(matrix.trace())) / errors
    assert 0.93 <= np.mean(far <= stats.t.ppf(0.975, 9)) <= 0.97


def test_a_known_space_takes_the_variance_away() -> None:
    matrix = symmetric(KNOWN["outliers"][0])
    template = torch.randn(len(matrix), generator=generator(3), dtype=torch.float64)
    pairs = extreme_eigenvalues(lambda v: matrix @ v, template, 5)
    known = (lambda: None, pairs.basis, pairs.basis_trace)
    plain, deflated = (
        stochastic.hutchinson(lambda v: matrix @ v, template, generator(), 50, 0, *extra)
        for extra in ((), known)
    )
    assert np.std(deflated) < np.std(plain) / 20


# --- density --------------------------------------------------------------------------------------
def test_quadrature_is_close_to_the_spectrum() -> None:
    matrix = wishart()
    exact = torch.linalg.eigvalsh(matrix).numpy()
    template = torch.zeros(len(matrix), dtype=torch.float64)
    nodes, weights = stochastic.quadrature(lambda v: matrix @ v, template, generator(), 20, 30)
    distance = stats.wasserstein_distance(nodes.ravel(), exact, weights.ravel())
    assert distance < 0.01 * (exact.max() - exact.min())


@pytest.mark.parametrize("name", ["zero", "identity", "low rank", "all of them", "number"])
def test_quadrature_of_few_distinct_eigenvalues_is_padded(name: str) -> None:
    values, _ = KNOWN[name]
    matrix = symmetric(values)
    template = torch.zeros(len(matrix), dtype=torch.float64)
    nodes, weights = stochastic.quadrature(lambda v: matrix @ v, template, generator(), 3, 60)
    assert nodes.shape == weights.shape == (3, 60)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    assert nodes.min() >= min(values) - 1e-12 and nodes.max() <= max(values) + 1e-12
