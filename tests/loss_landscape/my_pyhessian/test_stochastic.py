"""Trace and density of known matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from curvature_cases import KNOWN, generator, symmetric, wishart
from scipy import stats
from torch import Tensor

from loss_landscape.my_pyhessian import stochastic
from loss_landscape.my_pyhessian.lanczos import Eigenpairs, extreme_eigenvalues


# --- trace ----------------------------------------------------------------------------------------
def test_hutchinson_stops_on_the_standard_error() -> None:
    matrix = symmetric(np.linspace(0.5, 1.5, 50).tolist())
    template = torch.zeros(50, dtype=torch.float64)
    samples = stochastic.hutchinson(lambda v: matrix @ v, template, generator(), 10_000, tol=0.005)
    assert 10 <= len(samples) < 10_000
    assert stochastic.standard_error(samples) <= 0.005 * np.mean(samples)
    assert np.mean(samples) == pytest.approx(50, rel=0.03)


def test_the_intervals_of_hutchinsons_trace_cover_it() -> None:
    """Nominally in 95 % of all cases; 1,500 tell that from 93 and 97 % by 3.5 standard errors."""
    matrix = symmetric(KNOWN["uniform"][0][:60])
    template, signs, runs = torch.zeros(60, dtype=torch.float64), generator(7), []
    for _ in range(1500):
        runs.append(stochastic.hutchinson(lambda v: matrix @ v, template, signs, 10, tol=0))
    errors = np.std(runs, axis=1, ddof=1) / math.sqrt(10)
    far = np.abs(np.mean(runs, axis=1) - float(matrix.trace())) / errors
    assert 0.93 <= np.mean(far <= stats.t.ppf(0.975, 9)) <= 0.97


def searched(matrix: Tensor, count: int = 5) -> Eigenpairs:
    start = stochastic.direction(matrix[0], (1, 0))
    return extreme_eigenvalues(lambda v: matrix @ v, start, count, tol=1e-3)


def pilots(matrix: Tensor) -> list[Tensor]:
    return [stochastic.direction(matrix[0], (2, number)) for number in range(4)]


def variance_left(matrix: Tensor, basis: Tensor) -> float:
    """Of dim v'Bv / v'v for random v outside of the basis, of the rest B of the matrix there."""
    rest = matrix - matrix @ basis.T @ basis
    rest = rest - basis.T @ (basis @ rest)
    values = torch.linalg.eigvalsh(rest).numpy()
    values = values[np.argsort(np.abs(values))][len(basis) :]
    return 2 * len(values) * float(np.var(values))


DECAYING = [1 / (1 + i) for i in range(300)]
SIGNED = [(-1) ** i * value for i, value in enumerate(DECAYING)]


@pytest.mark.parametrize("values", [DECAYING, SIGNED, [3.0, 2.0, *DECAYING[:80], *[0.0] * 99]])
def test_a_wider_space_spares_more_samples_than_it_costs(values: list[float]) -> None:
    """Judged by the dense matrix, of which the rule knows nothing but the products."""
    matrix, error = symmetric(values), 0.002 * abs(sum(values))
    pairs, start = searched(matrix), pilots(matrix)
    n, before = len(pairs.basis), variance_left(matrix, pairs.basis)
    made = stochastic.widen(pairs.space, start, 0.002, 120)
    assert len(pairs.basis) == n + made - len(start) and made > len(start) + stochastic.WINDOW
    after = variance_left(matrix, pairs.basis)
    assert (before - after) / error**2 > made


def test_a_space_is_widened_up_to_where_that_no_longer_pays() -> None:
    matrix, error = symmetric(DECAYING), 0.02 * sum(DECAYING)
    pairs = searched(matrix)
    assert stochastic.widen(pairs.space, pilots(matrix), 0.02, 250) < 100
    left = [variance_left(matrix, pairs.basis)]
    stochastic.widen(pairs.space, pilots(matrix), 0.0, 4 + stochastic.WINDOW)
    left.append(variance_left(matrix, pairs.basis))
    assert left[0] - left[1] < 1.5 * stochastic.WINDOW * error**2


def test_a_wider_space_is_orthonormal_and_holds_the_matrix() -> None:
    matrix = symmetric(DECAYING)
    pairs = searched(matrix)
    few = len(pairs.settled()[0])
    assert stochastic.widen(pairs.space, pilots(matrix), 1e-4, 68) == 68
    basis, n = pairs.basis, len(pairs.basis)
    torch.testing.assert_close(basis @ basis.T, torch.eye(n).double(), atol=1e-10, rtol=0)
    np.testing.assert_allclose(pairs.projected, (basis @ matrix @ basis.T).numpy(), atol=1e-12)
    values, vectors = pairs.settled()
    assert len(values) > few + 20
    residuals = (vectors @ matrix - torch.tensor(values)[:, None] * vectors).norm(dim=1)
    assert float(residuals.max()) <= pairs.bound + 1e-11


def test_a_space_is_not_widened_where_that_does_not_pay(monkeypatch) -> None:
    """All alike but one, nothing left, the whole matrix, no products, no memory."""

    def made(pairs: Eigenpairs, error: float = 1e-9, most: int = 100) -> int:
        return stochastic.widen(pairs.space, pilots(pairs.vectors), error, most)

    least = 4 + stochastic.WINDOW
    assert made(searched(symmetric([5.0, *np.linspace(0.5, 1.5, 199)]), 1), 0.02) == least
    assert made(searched(symmetric([3.0, 2.0, 1.0] + [0.0] * 97), 3)) <= least
    assert made(searched(symmetric([3.0, 2.0, 1.0]), 3)) == 0
    decaying = searched(symmetric(DECAYING))
    n = len(decaying.basis)
    assert made(decaying, most=least - 1) == 0
    monkeypatch.setattr(stochastic, "WIDEST", 300 * (n + stochastic.WINDOW + 1))
    assert made(decaying) == least and len(decaying.basis) == n + stochastic.WINDOW


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
