"""Measures of sharpness against closed forms, brute force and the published code, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sharpness_cases import (
    cross_entropies,
    generator,
    losses_of,
    points,
    published_ascent,
    quadratic,
    relu_net,
    rescaled,
)
from torch import Tensor, nn

from loss_landscape.my_pyhessian.operators import HessianOperator
from loss_landscape.my_pyhessian.sample_error import quotients_of
from loss_landscape.my_pyhessian.stochastic import rademacher
from loss_landscape.sharpness_measures.measures import (
    Measured,
    ascend,
    average_case,
    eigenvalue_ratio,
    epsilon_sharpness,
    frobenius_norm,
    lambda_max,
    m_sharpness,
    probe,
    top_eigenpairs,
    trace,
    worst_case,
)

SPECTRUM = (5.0, 4.0, 2.0, 1.0, 0.5, 0.3, -0.2, -6.0)  # the largest in magnitude is negative
few = settings(max_examples=25, deadline=None)


def matrix(values: tuple[float, ...] = SPECTRUM, seed: int = 0) -> Tensor:
    dim = len(values)
    q, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator(seed), dtype=torch.float64))
    return q @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ q.T


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def quadratic_case(m: int = 3):
    """Hessian, weights, samples (12, 8), and what measures take of them."""
    hessian, weights, x = matrix(), normal(8), normal(12, 8, seed=2)
    return hessian, weights, x, quadratic(hessian, weights, x, m)


def pairs_of(operator, **how):
    size = operator.flat.numel()
    return top_eigenpairs(operator, rademacher(size, operator.flat, generator()), **how)


def rises_by_formula(rises: Tensor) -> Measured:
    return Measured(float(rises.mean()), float(rises.std() / math.sqrt(len(rises))))


def same(found: Measured, expected: Measured, rel: float = 1e-9) -> None:
    assert found.value == pytest.approx(expected.value, rel=rel)
    assert found.standard_error == pytest.approx(expected.standard_error, rel=rel)


# --- closed forms ---------------------------------------------------------------------------------
def test_eigenvalues_are_the_largest_not_the_largest_in_magnitude() -> None:
    *_, (operator, _, _) = quadratic_case()
    pairs = pairs_of(operator, tol=1e-10)
    assert lambda_max(pairs).value == pytest.approx(5.0)
    assert eigenvalue_ratio(pairs).value == pytest.approx(10.0)
    assert lambda_max(pairs).standard_error is None


def test_a_bound_is_as_wide_as_the_error_or_wider() -> None:
    values = tuple(np.linspace(0.1, 4, 40))
    operator, _, _ = quadratic(matrix(values), normal(40), normal(4, 40), 2)
    for tol in (0.3, 0.1, 0.03):
        pairs = pairs_of(operator, tol=tol)
        nearest = np.abs(np.array(values) - lambda_max(pairs).value).min()
        assert nearest <= lambda_max(pairs).bound <= 4 * tol
        assert lambda_max(pairs).value <= 4 + 1e-9


def regression(inputs: Tensor) -> HessianOperator:
    """Linear regression, whose Hessian is the mean of 2 x x' over the rows x."""
    model = nn.Linear(inputs.shape[1], 1, bias=False).double()
    batch = (inputs, torch.zeros(len(inputs), 1, dtype=inputs.dtype))
    return HessianOperator(model, nn.MSELoss(), [batch])


@pytest.mark.parametrize("size", [32, 73])
def test_errors_of_eigenvalues_are_the_spread_over_draws_of_samples(size: int) -> None:
    """Of a few hundred draws, also where a loader's last batch is a single sample."""
    values, errors = [], []
    scales = np.array([3.0, 2.0, 1.5, 1.2, 1.0, 0.8, 0.5])
    for seed in range(300):
        rows = np.random.default_rng(seed).standard_t(6, (512, len(scales))) * scales
        inputs = torch.from_numpy(rows)
        pairs = pairs_of(regression(inputs), tol=1e-10)
        both = pairs.vectors[[0, -1]]
        quotients = quotients_of(map(regression, inputs.split(size)), both)
        found = lambda_max(pairs, quotients), eigenvalue_ratio(pairs, quotients)
        values.append([one.value for one in found])
        errors.append([one.standard_error for one in found])
    spread, said = np.std(values, axis=0), np.sqrt(np.square(errors).mean(axis=0))
    assert said == pytest.approx(spread, rel=0.15)


def test_a_ratio_without_a_positive_fifth_eigenvalue_is_none() -> None:
    for values in ((3.0, 1.0, 0.5, 0.0, 0.0, 0.0, -1.0), (3.0, 1.0, 0.5, -0.1, -0.2, -0.3)):
        dim = len(values)
        operator, _, _ = quadratic(matrix(values), normal(dim), normal(4, dim), 2)
        ratio = eigenvalue_ratio(pairs_of(operator))
        assert ratio.value is None and "lambda_5" in ratio.remark
    operator, _, _ = quadratic(matrix((3.0, 1.0)), normal(2), normal(4, 2), 2)
    assert "no fifth" in eigenvalue_ratio(pairs_of(operator, tol=1e-9)).remark


def test_trace_and_norm_are_within_four_standard_errors() -> None:
    values = (9.0, 7.0, 3.0, *np.random.default_rng(0).normal(0.1, 0.3, 60))
    operator, _, _ = quadratic(matrix(values), normal(63), normal(4, 63), 2)
    for tol in (1e-8, 0.2):  # the second leaves pairs that are rough
        found = probe(operator, pairs_of(operator, tol=tol), generator(5), 200, accuracy=0)
        assert len(found.traces) == 200
        for measured, exact in (
            (trace(found), sum(values)),
            (frobenius_norm(found), math.sqrt(sum(v * v for v in values))),
        ):
            assert measured.standard_error < 0.1 * exact
            assert abs(measured.value - exact) < 4 * measured.standard_error


def test_standard_errors_are_the_spread_of_repetitions() -> None:
    """So is the norm's, whose square is what the samples are of."""
    values = tuple(np.random.default_rng(0).normal(0.1, 0.3, 60))
    operator, _, _ = quadratic(matrix(values), normal(60), normal(4, 60), 2)
    pairs, signs = pairs_of(operator), generator(5)
    repeated = [probe(operator, pairs, signs, 10, accuracy=0) for _ in range(60)]
    for measure in (trace, frobenius_norm):
        found = [measure(each) for each in repeated]
        spread = np.std([each.value for each in found], ddof=1)
        claimed = np.sqrt(np.mean([each.standard_error**2 for each in found]))
        assert 0.75 < claimed / spread < 1.3


def test_probes_end_where_they_are_accurate_enough() -> None:
    values = (9.0, *np.random.default_rng(0).normal(0.5, 0.2, 60))
    operator, _, _ = quadratic(matrix(values), normal(61), normal(4, 61), 2)
    pairs = pairs_of(operator)
    found = probe(operator, pairs, generator(), 1000, accuracy=0.01)
    assert 10 <= len(found.traces) < 1000
    for measured in (trace(found), frobenius_norm(found)):
        assert measured.standard_error <= 0.01 * measured.value


def test_m_sharpness_is_one_step_of_ascent_a_subset() -> None:
    hessian, weights, x, (_, loss, subsets) = quadratic_case(m=3)
    rho = 0.2
    gradients = hessian @ weights + torch.stack([part.mean(dim=0) for part in x.split(3)])
    norms = gradients.norm(dim=1)
    curvature = torch.einsum("si,ij,sj->s", gradients, hessian, gradients) / norms**2
    rises = rho * norms + rho**2 / 2 * curvature
    same(m_sharpness(loss, subsets, rho), rises_by_formula(rises))
    assert m_sharpness(loss, subsets[:1], rho).standard_error is None


def test_the_average_case_of_a_quadratic_is_half_of_rho_squared_times_the_scaled_trace() -> None:
    hessian, weights, _, (_, loss, subsets) = quadratic_case(m=3)
    for scale in (weights.abs(), torch.ones_like(weights)):
        found = average_case(loss, subsets, scale, 0.3, generator(), draws=150)
        exact = 0.3**2 / 2 * float((scale**2 * hessian.diagonal()).sum())
        assert abs(found.value - exact) < 4 * found.standard_error
        assert found.standard_error < 0.25 * abs(exact)
    one = average_case(loss, subsets[:1], weights.abs(), 0.3, generator(), draws=150)
    exact = 0.3**2 / 2 * float((weights**2 * hessian.diagonal()).sum())
    assert abs(one.value - exact) < 4 * one.standard_error  # over draws


def test_the_average_case_is_the_mean_over_plain_draws_too() -> None:
    """A network's, by its definition: draws without their opposites, one after the other."""
    model, (x, y) = relu_net(), points()
    _, loss, _ = losses_of(model, x, y, 24, cross_entropies)
    scale, batch = loss.weights.abs(), [(x, y)]
    found = average_case(loss, [batch], scale, 0.2, generator(), draws=200)
    noise = torch.randn(800, len(scale), generator=generator(9), dtype=torch.float64)
    plain = np.array([loss(batch, 0.2 * scale * z) for z in noise]) - loss(batch)
    error = math.hypot(found.standard_error, plain.std() / math.sqrt(len(plain)))
    assert abs(found.value - plain.mean()) < 4 * error
    assert found.standard_error < plain.std() / math.sqrt(400)  # of as many passes


def test_epsilon_sharpness_of_a_linear_loss_is_the_boxs_corner() -> None:
    weights, x = normal(8), normal(12, 8, seed=2)
    _, loss, _ = quadratic(torch.zeros(8, 8, dtype=torch.float64), weights, x, 3, constant=2.0)
    slope = x.mean(dim=0)
    rise = 0.01 * float(((weights.abs() + 1) * slope.abs()).sum())
    expected = 100 * rise / (1 + 2 + float(slope @ weights))
    found = epsilon_sharpness(loss, [(x, torch.zeros(12))], 0.01)
    assert found.value == pytest.approx(expected, rel=1e-6) and found.standard_error is None


# --- the ascent -----------------------------------------------------------------------------------
def brute_force(hessian: Tensor, slope: Tensor, radius: Tensor, norm: str) -> float:
    """The largest rise of a quadratic in two dimensions over a fine grid of the ball."""
    line = torch.linspace(-1, 1, 401, dtype=torch.float64)
    if norm == "linf":
        u = torch.cartesian_prod(line, line)
    else:
        angle, length = torch.cartesian_prod(math.pi * line, line[200:]).T
        u = length[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    d = u * radius
    return float((d @ slope + torch.einsum("ni,ij,nj->n", d, hessian, d) / 2).max())


numbers = st.floats(-3, 3).map(lambda value: round(value, 3))


@few
@given(st.lists(numbers, min_size=7, max_size=7), st.sampled_from(["linf", "l2"]))
def test_the_ascent_is_a_lower_bound_of_the_worst_case(entries: list[float], norm: str) -> None:
    a, b, c, *rest = entries
    hessian = torch.tensor([[a, b], [b, c]], dtype=torch.float64)
    weights, slope = torch.tensor(rest, dtype=torch.float64).split(2)
    # The samples' mean, which takes the quadratic's slope at the weights to ``slope``.
    x = (slope - hessian @ weights)[None]
    _, loss, subsets = quadratic(hessian, weights, x, 1)
    radius = 0.5 * weights.abs()
    before, highest = ascend(loss, subsets[0], radius, norm)
    exact = brute_force(hessian, slope, radius, norm)
    assert before == loss(subsets[0])
    assert -1e-12 <= highest - before <= exact + 1e-9 + 1e-4 * abs(exact)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_ascent_reaches_the_worst_case(norm: str) -> None:
    """Where there is one maximum that counts: of a bowl, a saddle and a ridge within the ball."""
    for a, b, c, steep in ((2, 0.5, 1, 0.7), (2, 0.3, -3, 0.4), (-8, 1, -6, 0.6)):
        hessian = torch.tensor([[a, b], [b, c]], dtype=torch.float64)
        weights = torch.tensor([1.0, -2.0], dtype=torch.float64)
        slope = torch.tensor([steep, 0.3], dtype=torch.float64)
        _, loss, subsets = quadratic(hessian, weights, (slope - hessian @ weights)[None], 1)
        radius = 0.5 * weights.abs()
        before, highest = ascend(loss, subsets[0], radius, norm, iterations=40)
        exact = brute_force(hessian, slope, radius, norm)
        assert highest - before == pytest.approx(exact, rel=0.01)


def test_the_ascent_leaves_a_point_without_a_slope() -> None:
    hessian, weights = matrix((3.0, 2.0, 1.0)), normal(3)
    _, loss, subsets = quadratic(hessian, weights, -(hessian @ weights)[None], 1)
    before, highest = ascend(loss, subsets[0], 0.1 * torch.ones_like(weights), "l2")
    assert highest - before == pytest.approx(0.1**2 / 2 * 3.0, rel=0.01)


@pytest.mark.parametrize("iterations", [1, 2, 5, 20, 33])
def test_the_worst_case_is_the_published_one(iterations: int) -> None:
    """Up to its restarts, after which theirs takes only the gradient at the best point."""
    model, (x, y) = relu_net(), points()
    _, loss, subsets = losses_of(model, x, y, 8, cross_entropies)
    batches = [batch for subset in subsets for batch in subset]
    found = worst_case(loss, subsets, loss.weights.abs(), 0.3, "linf", iterations).value
    twin = published_ascent(model, batches, F.cross_entropy, 0.3, iterations, whole_restart=True)
    assert found == pytest.approx(twin, rel=1e-12)
    theirs = published_ascent(model, batches, F.cross_entropy, 0.3, iterations, whole_restart=False)
    assert found == pytest.approx(theirs, rel=1e-12 if iterations < 3 else 0.05)


# --- rescaling ------------------------------------------------------------------------------------
def all_measures(model: nn.Module) -> dict[str, float]:
    x, y = points()
    operator, loss, subsets = losses_of(model, x, y, 8, cross_entropies)
    pairs = pairs_of(operator, tol=1e-10)
    probes = probe(operator, pairs, generator(), 40)
    absolute, one = loss.weights.abs(), torch.ones_like(loss.weights)
    found = {
        "lambda_max": lambda_max(pairs),
        "ratio": eigenvalue_ratio(pairs),
        "trace": trace(probes),
        "frobenius_norm": frobenius_norm(probes),
        "epsilon": epsilon_sharpness(loss, [(x, y)], 0.05, 8),
        "average": average_case(loss, subsets, one, 0.1, generator()),
        "adaptive average": average_case(loss, subsets, absolute, 0.1, generator()),
        "m": m_sharpness(loss, subsets, 0.1),
    }
    for norm in ("linf", "l2"):
        found[norm] = worst_case(loss, subsets, one, 0.1, norm, 8)
        found[f"adaptive {norm}"] = worst_case(loss, subsets, absolute, 0.1, norm, 8)
    return {name: measured.value for name, measured in found.items()}


MEASURES = all_measures(relu_net())


@settings(max_examples=4, deadline=None)
@given(st.floats(0.05, 0.6) | st.floats(1.7, 20))
def test_rescaling_two_layers_leaves_the_adaptive_ones_alone(a: float) -> None:
    """And moves the others, though the network is the same function."""
    model, (x, _) = rescaled(relu_net(), a), points()
    torch.testing.assert_close(model(x), relu_net()(x))
    found = all_measures(model)
    for name, value in MEASURES.items():
        if name.startswith("adaptive"):
            assert found[name] == pytest.approx(value, rel=1e-6), name
        else:
            assert abs(found[name] - value) > 0.02 * abs(value), name


# --- nothing is changed, nothing wrong is given ---------------------------------------------------
class Failing(nn.Module):
    """Fails in its k-th pass; notes with which weights it is called."""

    def __init__(self, passes: int) -> None:
        super().__init__()
        self.linear, self.left = nn.Linear(4, 3).double(), passes

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if not self.left:
            raise RuntimeError("out of memory")
        return self.linear(x)


def test_weights_come_back_bit_for_bit_also_on_an_exception() -> None:
    x, y = points()
    for passes in range(4, 25, 3):
        model = Failing(10**9).train()
        _, loss, subsets = losses_of(model, x, y, 8, cross_entropies)
        model.linear.weight.grad = torch.ones_like(model.linear.weight)
        before = [p.detach().clone() for p in model.parameters()]
        state, model.left = torch.random.get_rng_state(), passes
        with pytest.raises(RuntimeError, match="memory"):
            worst_case(loss, subsets, loss.weights.abs(), 0.5)
        model.left = 10**9
        worst_case(loss, subsets, loss.weights.abs(), 0.5)
        average_case(loss, subsets, loss.weights.abs(), 0.5, generator())
        m_sharpness(loss, subsets)
        assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
        assert model.training and model.linear.training
        assert torch.equal(model.linear.weight.grad, torch.ones_like(model.linear.weight))
        assert model.linear.bias.grad is None
        assert torch.equal(state, torch.random.get_rng_state())


def test_dropout_is_off() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    _, loss, subsets = losses_of(model.train(), *points(), 8, cross_entropies)
    assert loss(subsets[0]) == loss(subsets[0]) == loss.with_gradient(subsets[0])[0]


class Wall(nn.Module):
    """A loss that is not finite a little beside the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weights + (2.05 - self.weights.sum()).log()


def test_a_loss_that_is_not_finite_nearby_is_refused() -> None:
    x = torch.ones(4, 2, dtype=torch.float64)
    _, loss, subsets = losses_of(Wall(), 30 * x, torch.zeros(4), 2)
    one = torch.ones(2, dtype=torch.float64)
    for measure, flag in (
        (lambda: m_sharpness(loss, subsets, 0.5), "--rho 0.5"),
        (lambda: average_case(loss, subsets, one, 0.5, generator()), "--average_rho 0.5"),
        (lambda: worst_case(loss, subsets, one, 0.5), "--worst_rho"),
    ):
        with pytest.raises(ValueError, match=flag):
            measure()
    assert torch.equal(loss.params[0].detach(), one)
    with pytest.raises(ValueError, match="linf or l2"):
        ascend(loss, subsets[0], one, "l1", 3)
