"""Eigenvalues, trace and density of known matrices."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from curvature_cases import generator, symmetric
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from loss_landscape.my_pyhessian import lanczos as linear

BULK = np.random.default_rng(0).normal(0, 0.02, 300).tolist()
KNOWN = {  # eigenvalues, and how many to find
    "outliers": ([10, 7, 5, 4, 3, 2, 1.5, *BULK], 5),
    "repeated": ([*4 * [5.0], 1, *BULK], 5),
    "ninefold": ([*9 * [5.0], *BULK], 5),
    "pairs": ([3, 3, -3, -3, *BULK], 4),
    "negative": ([-5, -4, -3, -2, -1, *(-abs(b) for b in BULK)], 3),
    "uniform": (np.linspace(0, 1, 200).tolist(), 5),
    "zero": (30 * [0.0], 3),
    "identity": (20 * [2.0], 4),
    "low rank": ([3.0, 2.0, 1.0] + 50 * [0.0], 5),
    "all of them": ([5.0, 5.0, 1.0, 0.0], 4),
    "number": ([-2.0], 1),
    "huge": ([1e30, 1e29, 1e28, *(1e26 * np.array(BULK))], 2),
    "tiny": ([1e-30, 1e-31, *(1e-33 * np.array(BULK))], 2),
}


def wishart(dim: int = 150) -> Tensor:
    x = torch.randn(3 * dim, dim, generator=generator(), dtype=torch.float64)
    return x.T @ x / len(x)


@pytest.mark.parametrize("select", [linear.largest_magnitude, linear.both_ends])
@pytest.mark.parametrize("name", [*KNOWN, "wishart"])
def test_extreme_eigenvalues_of_known_matrices(name: str, select: linear.Select) -> None:
    values, count = KNOWN.get(name, ([], 5))
    matrix = symmetric(values) if values else wishart()
    exact = torch.linalg.eigvalsh(matrix).numpy()
    scale = max(np.abs(exact).max(), 1e-300)
    start = torch.randn(len(matrix), generator=generator(3), dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pairs = linear.extreme_eigenvalues(lambda v: matrix @ v, start, count, select=select)
    assert pairs.converged
    expected = exact[select(exact, count)]
    # Pairs of +v and -v have no order.
    np.testing.assert_allclose(np.sort(pairs.values), np.sort(expected), atol=1e-3 * scale)
    basis, vectors = pairs.basis, pairs.vectors
    identity = torch.eye(len(basis), dtype=torch.float64)
    assert float((basis @ basis.T - identity).abs().max()) < 1e-10
    assert pairs.basis_trace == pytest.approx(
        float(torch.trace(basis @ matrix @ basis.T)), abs=1e-12 * scale * len(basis)
    )
    residuals = (vectors @ matrix - torch.tensor(pairs.values)[:, None] * vectors).norm(dim=1)
    assert (residuals.numpy() <= pairs.residuals + 1e-12 * scale).all()
    assert (pairs.residuals <= 1e-3 * scale).all()


@pytest.mark.parametrize("name", ["outliers", "ninefold", "low rank", "zero"])
def test_float32_finds_the_same(name: str) -> None:
    values, count = KNOWN[name]
    matrix = symmetric(values).float()
    start = torch.randn(len(matrix), generator=generator(3))
    pairs = linear.extreme_eigenvalues(lambda v: matrix @ v, start, count)
    best = np.sort(values)[linear.largest_magnitude(np.sort(values), count)]
    np.testing.assert_allclose(pairs.values, best, atol=1e-3 * max(values))
    identity = torch.eye(len(pairs.basis))
    assert float((pairs.basis @ pairs.basis.T - identity).abs().max()) < 1e-5


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.data())
def test_every_copy_is_found(values: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(values)))
    matrix = symmetric([float(v) for v in values])
    start = torch.randn(len(values), generator=generator(1), dtype=torch.float64)
    pairs = linear.extreme_eigenvalues(lambda v: matrix @ v, start, count, 1000, tol=1e-8)
    expected = np.sort(np.abs(values))[::-1][:count]
    np.testing.assert_allclose(np.abs(pairs.values), expected, atol=1e-6)


def test_a_restart_goes_on_from_what_it_has() -> None:
    """Twice the steps from the beginning, again and again, took 20 + 40 + 80 + 150 products."""
    matrix = symmetric(np.linspace(0, 1, 150).tolist())
    start = torch.randn(150, generator=generator(), dtype=torch.float64)
    seen: list[float] = []

    def product(v: Tensor) -> Tensor:
        seen.append(float(v.norm()))
        return matrix @ v

    pairs = linear.extreme_eigenvalues(product, start, 5, max_products=1000, tol=1e-6, copies=False)
    assert pairs.converged
    assert len(pairs.basis) <= 40 < pairs.products == len(seen) < 140
    np.testing.assert_allclose(pairs.values, np.linspace(0, 1, 150)[:-6:-1], atol=1e-9)
    np.testing.assert_allclose(seen, 1)


@pytest.mark.parametrize("count", [0, 5, 21])
def test_a_number_that_cannot_be_found_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} eigenvalues of a matrix of size 20 in 4"):
        linear.extreme_eigenvalues(lambda v: v, torch.ones(20), count, max_products=4)


def test_no_convergence_is_said_with_residuals() -> None:
    matrix = symmetric(np.linspace(0, 1, 200).tolist())
    start = torch.randn(200, generator=generator(), dtype=torch.float64)
    with pytest.warns(UserWarning, match="not converged after 20 Lanczos steps"):
        pairs = linear.extreme_eigenvalues(lambda v: matrix @ v, start, 5, 20, tol=1e-8)
    assert not pairs.converged
    for value, vector, residual in zip(pairs.values, pairs.vectors, pairs.residuals, strict=True):
        assert float((matrix @ vector - value * vector).norm()) == pytest.approx(residual, rel=1e-4)


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


def test_a_product_of_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        linear.lanczos(lambda v: v * math.nan, torch.ones(3), 3)


@pytest.mark.parametrize(("start", "steps"), [(0.0, 3), (math.nan, 3), (math.inf, 3), (1.0, 0)])
def test_no_start_and_no_step_are_refused(start: float, steps: int) -> None:
    with pytest.raises(ValueError, match="1 step or more"):
        linear.lanczos(lambda v: v, torch.full((3,), start), steps)


# --- trace ----------------------------------------------------------------------------------------
def test_hutchinson_stops_on_the_standard_error() -> None:
    matrix = symmetric(np.linspace(0.5, 1.5, 50).tolist())
    like = torch.zeros(50, dtype=torch.float64)
    samples = linear.hutchinson(lambda v: matrix @ v, like, generator(), 10_000, tol=0.005)
    assert 10 <= len(samples) < 10_000
    assert linear.standard_error(samples) <= 0.005 * np.mean(samples)
    assert np.mean(samples) == pytest.approx(50, rel=0.03)


@pytest.mark.parametrize("name", ["outliers", "uniform"])
def test_the_intervals_of_the_trace_cover_it(name: str) -> None:
    """Nominally in 95 % of all cases; 1,500 tell that from 93 and 97 % by 3.5 standard errors."""
    matrix = symmetric(KNOWN[name][0][:60])
    like = torch.randn(60, generator=generator(3), dtype=torch.float64)
    known = {}
    if name == "outliers":  # else few samples are too skewed for Student's t
        pairs = linear.extreme_eigenvalues(lambda v: matrix @ v, like, 5)
        known = {"basis": pairs.basis, "basis_trace": pairs.basis_trace}
    signs, runs = generator(7), []
    for _ in range(1500):
        runs.append(linear.hutchinson(lambda v: matrix @ v, like, signs, 10, tol=0, **known))
    errors = np.std(runs, axis=1, ddof=1) / math.sqrt(10)
    far = np.abs(np.mean(runs, axis=1) - float(matrix.trace())) / errors
    assert 0.93 <= np.mean(far <= stats.t.ppf(0.975, 9)) <= 0.97


def test_a_known_space_takes_the_variance_away() -> None:
    matrix = symmetric(KNOWN["outliers"][0])
    like = torch.randn(len(matrix), generator=generator(3), dtype=torch.float64)
    pairs = linear.extreme_eigenvalues(lambda v: matrix @ v, like, 5)
    plain, deflated = (
        linear.standard_error(linear.hutchinson(lambda v: matrix @ v, like, generator(), 50, 0, *k))
        for k in ((), (lambda: None, pairs.basis, pairs.basis_trace))
    )
    assert deflated < plain / 20


# --- density --------------------------------------------------------------------------------------
def test_quadrature_is_close_to_the_spectrum() -> None:
    matrix = wishart()
    exact = torch.linalg.eigvalsh(matrix).numpy()
    like = torch.zeros(len(matrix), dtype=torch.float64)
    nodes, weights = linear.quadrature(lambda v: matrix @ v, like, generator(), 20, 30)
    distance = stats.wasserstein_distance(nodes.ravel(), exact, weights.ravel())
    assert distance < 0.01 * (exact.max() - exact.min())


@pytest.mark.parametrize("name", ["zero", "identity", "low rank", "all of them", "number"])
def test_quadrature_of_few_distinct_eigenvalues_is_padded(name: str) -> None:
    values, _ = KNOWN[name]
    matrix = symmetric(values)
    like = torch.zeros(len(matrix), dtype=torch.float64)
    nodes, weights = linear.quadrature(lambda v: matrix @ v, like, generator(), 3, 60)
    assert nodes.shape == weights.shape == (3, 60)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    assert nodes.min() >= min(values) - 1e-12 and nodes.max() <= max(values) + 1e-12
