"""Eigenvalues, trace and density of known matrices."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from curvature_cases import KNOWN, generator, symmetric, wishart
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from loss_landscape.my_pyhessian import lanczos as linear


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
    projected = (basis @ matrix @ basis.T).numpy()
    np.testing.assert_allclose(pairs.projected, projected, atol=1e-12 * scale * len(basis))
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


def test_a_search_for_copies_that_is_cut_off_is_said() -> None:
    matrix = symmetric(KNOWN["ninefold"][0])
    start = torch.randn(len(matrix), generator=generator(3), dtype=torch.float64)
    with pytest.warns(UserWarning, match="after 4 Lanczos steps: larger or repeated ones"):
        pairs = linear.extreme_eigenvalues(lambda v: matrix @ v, start, 1, max_products=4)
    assert not pairs.converged
    assert pairs.values[0] == pytest.approx(5, rel=1e-3)


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


def test_a_small_residual_is_not_taken_for_the_largest_eigenvalue() -> None:
    """Kind: a layer of dead units, whose block is zero or negative but for one direction.

    At a loose tolerance Lanczos stopped at a vector that the matrix all but maps to 0.
    """
    parts = (torch.zeros(8000), torch.linspace(-2, -0.5, 20), torch.tensor([0.2]))
    values = torch.cat(parts).double()
    for see_larger, expected in ((False, 0.0), (True, 0.2)):
        for seed in range(10):
            start = torch.randn(len(values), generator=generator(seed), dtype=torch.float64)
            pairs = linear.extreme_eigenvalues(
                lambda v: values * v, start, 1, 160, 0.02, select=linear.Ends(1, 0), copies=False,
                see_larger=see_larger,
            )  # fmt: skip
            assert pairs.converged
            assert pairs.values[0] == pytest.approx(expected, abs=0.01)
