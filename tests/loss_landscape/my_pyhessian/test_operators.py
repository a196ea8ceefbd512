"""Products of curvature operators against whole matrices, and the models that they take."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from curvature_cases import (
    CASES,
    curvature_case,
    dense,
    flattened,
    generator,
    in_batches,
    matrix,
    perceptron,
    points,
)
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from loss_landscape.my_pyhessian.hessian import hessian
from loss_landscape.my_pyhessian.operators import (
    CurvatureOperator,
    FisherOperator,
    GaussNewtonOperator,
    HessianOperator,
)


# --- half precision -------------------------------------------------------------------------------
class Wrapped(nn.Module):
    """A model whose forward pass computes in half precision and hides it."""

    def __init__(self, half: str) -> None:
        super().__init__()
        self.inner, self.half = perceptron(torch.float32), half

    def forward(self, x: Tensor) -> Tensor:
        if self.half == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                return self.inner(x).float()
        if self.half == "casts":
            return self.inner(x).bfloat16().float()
        return self.inner(x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("part", ["model", "layer"])
def test_parameters_of_half_precision_are_refused(part: str, dtype: torch.dtype) -> None:
    """Kind: curvature in a type whose rounding is coarser than the spectrum."""
    model = perceptron(torch.float32)
    (model if part == "model" else model[2]).to(dtype)
    x, y = points(dtype=torch.float32)
    with pytest.raises(ValueError, match=rf"weight: is {dtype}.*model\.float"):
        hessian(model, F.cross_entropy, data=(x, y))


@pytest.mark.parametrize("half", ["autocast", "casts"])
def test_half_precision_within_a_model_is_refused(half: str) -> None:
    x, y = points(dtype=torch.float32)
    with pytest.raises(ValueError, match=r"computes in torch\.bfloat16"):
        hessian(Wrapped(half), F.cross_entropy, data=(x, y))
    with pytest.raises(ValueError, match=r"computes in torch\.bfloat16"):
        hessian(Wrapped(""), lambda z, y: F.cross_entropy(z.bfloat16(), y), data=(x, y))


def test_the_callers_autocast_and_inference_mode_change_nothing() -> None:
    x, y = points(dtype=torch.float32)
    expected = hessian(perceptron(torch.float32), F.cross_entropy, data=(x, y)).eigenvalues(top_n=3)
    model = perceptron(torch.float32)
    for context in (torch.autocast("cpu", torch.bfloat16), torch.inference_mode()):
        with context:
            found = hessian(model, F.cross_entropy, data=(x, y)).eigenvalues(top_n=3)
        assert found[0] == expected[0]


def test_features_of_half_precision_below_the_parameters_are_taken() -> None:
    model = perceptron().float()
    model[0].bfloat16().requires_grad_(False)
    head = nn.Sequential(model[0], nn.Tanh(), Cast(), model[2])
    x, y = points()
    found = hessian(head.eval(), F.cross_entropy, data=(x.bfloat16(), y)).eigenvalues()[0]
    with torch.no_grad():
        features = model[0](x.bfloat16()).tanh().float()
    assert found == hessian(model[2], F.cross_entropy, data=(features, y)).eigenvalues()[0]


class Cast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float()


def test_parameters_of_two_types_give_products_in_the_wider() -> None:
    model = perceptron()
    wide = matrix(hessian(model, F.cross_entropy, data=points()).operator)
    model = nn.Sequential(model[0], nn.Tanh(), Cast(), model[2].float())
    found = hessian(model, F.cross_entropy, data=points())
    assert found.operator.flat.dtype == torch.float64
    torch.testing.assert_close(matrix(found.operator), wide, rtol=1e-4, atol=1e-6)


# --- models ---------------------------------------------------------------------------------------
def test_models_without_parameters_are_refused() -> None:
    """Kind: nothing to differentiate by."""
    frozen = perceptron().requires_grad_(False)
    for model in (nn.Identity(), nn.Sequential(), frozen):
        with pytest.raises(ValueError, match="no parameter"):
            hessian(model, F.cross_entropy, data=points())
    with pytest.raises(ValueError, match="the loss depends on no parameter"):
        hessian(perceptron(), lambda z, y: F.cross_entropy(z.detach(), y), data=points())
    with pytest.raises(ValueError, match="weight: has no shape yet"):
        hessian(nn.LazyLinear(3), F.cross_entropy, data=points())


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = perceptron()

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.inner(x), 0.5)  # in eval mode too


def test_a_model_that_is_random_in_eval_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="random in eval mode"):
        hessian(Dropping(), F.cross_entropy, data=points())


def test_a_compiled_model_is_taken_as_it_was_written() -> None:
    model = torch.compile(perceptron(), backend="aot_eager")
    found = hessian(model, F.cross_entropy, data=points())
    torch.testing.assert_close(
        matrix(found.operator), dense(perceptron(), *points(), F.cross_entropy)
    )


def test_a_device_that_the_model_is_not_on_is_refused() -> None:
    with pytest.raises(ValueError, match="cuda=True: the model is on cpu"):
        hessian(perceptron(), F.cross_entropy, data=points(), cuda=True)


# --- numbers --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("method", "flags"),
    [
        ("eigenvalues", {"maxIter": 0}),
        ("eigenvalues", {"maxIter": -3}),
        ("eigenvalues", {"maxIter": 2.5}),
        ("eigenvalues", {"maxIter": True}),
        ("eigenvalues", {"top_n": 0}),
        ("eigenvalues", {"top_n": 44}),
        ("eigenvalues", {"top_n": 5, "maxIter": 4}),
        ("eigenvalues", {"tol": float("nan")}),
        ("eigenvalues", {"tol": -1e-3}),
        ("trace", {"maxIter": 0}),
        ("trace", {"tol": float("inf")}),
        ("density", {"iter": 0}),
        ("density", {"n_v": 0}),
    ],
)
def test_numbers_out_of_range_are_refused(method: str, flags: dict) -> None:
    """Kind: a count of nothing, which gave no value, NaN or a bare IndexError."""
    found = hessian(perceptron(), F.cross_entropy, data=points())
    with pytest.raises(ValueError, match=next(iter(flags))):
        getattr(found, method)(**flags)


# --- products against whole matrices --------------------------------------------------------------
def dense_fisher(model: nn.Module, inputs: object, targets: Tensor, loss: Callable) -> Tensor:
    function, start = flattened(model, inputs)
    with sdpa_kernel(SDPBackend.MATH):
        rows = torch.func.jacrev(lambda w: loss(function(w), targets))(start)
    return rows.T @ rows / len(rows)


def dense_gauss_newton(model: nn.Module, inputs: object, targets: Tensor, loss: Callable) -> Tensor:
    function, start = flattened(model, inputs)
    with sdpa_kernel(SDPBackend.MATH):
        outputs, rows = function(start), torch.func.jacrev(function)(start)
    inner = torch.func.hessian(lambda z: loss(z, targets).mean())(outputs)  # (n, c, n, c)
    size = outputs.numel()
    rows = rows.reshape(size, -1)
    return rows.T @ inner.reshape(size, size) @ rows


DENSE = {
    HessianOperator: dense,
    GaussNewtonOperator: dense_gauss_newton,
    FisherOperator: dense_fisher,
}


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize("name", CASES)
def test_products_are_the_dense_matrixs(name: str, kind: type[CurvatureOperator]) -> None:
    model, inputs, targets, loss = curvature_case(name)
    expected = DENSE[kind](model, inputs, targets, loss)
    operator = kind(model, loss, [(inputs, targets)])
    vectors = torch.randn(4, len(expected), generator=generator(), dtype=torch.float64)
    found = torch.stack([operator(v) for v in vectors])
    torch.testing.assert_close(found, vectors @ expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found @ vectors.T, (found @ vectors.T).T)  # symmetric
    if kind is not HessianOperator:
        assert float((found * vectors).sum(dim=1).min()) > -1e-12
    for bad in (p.grad for p in model.parameters()):
        assert bad is None


@pytest.mark.parametrize("kind", DENSE)
def test_batches_of_any_size_and_sums_give_one_matrix(kind: type[CurvatureOperator]) -> None:
    model, x, y, loss = curvature_case("perceptron")
    expected = DENSE[kind](model, x, y, loss)
    vector = torch.randn(len(expected), generator=generator(), dtype=torch.float64)
    for size in (7, 3, 1):
        for options in ({}, {"denominator": len}):
            operator = kind(model, loss, in_batches(x, y, size), **options)
            torch.testing.assert_close(operator(vector), expected @ vector)


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize(
    ("layers", "where"),
    [
        (["0"], range(25)),
        (["2"], range(25, 43)),
        (["2.bias", "0.weight"], [*range(20), *range(40, 43)]),
        (["0", "2"], range(43)),
    ],
)
def test_a_layers_block_is_that_of_the_whole_matrix(
    layers: list[str], where: Sequence[int], kind: type[CurvatureOperator]
) -> None:
    model, x, y, loss = curvature_case("perceptron")
    block = DENSE[kind](model, x, y, loss)[list(where)][:, list(where)]
    operator = kind(model, loss, [(x, y)], layers=layers)
    torch.testing.assert_close(matrix(operator), block)


@pytest.mark.parametrize("layers", [["1"], ["0", "3"], ["0.weigh"], "0", []])
def test_layers_without_parameters_are_refused(layers: Sequence[str]) -> None:
    model, x, y, loss = curvature_case("perceptron")
    with pytest.raises(ValueError, match=r"layers|no parameter"):
        HessianOperator(model, loss, [(x, y)], layers=layers)


def test_linear_regression_is_the_closed_form() -> None:
    """All of J' H J is 2 X'X / n, and nothing of it the model's own curvature."""
    model, x, y, loss = curvature_case("linear")
    augmented = torch.cat([x, torch.ones(7, 1).double()], dim=1)
    expected = 2 * augmented.T @ augmented / 7
    for kind in (HessianOperator, GaussNewtonOperator):
        operator = kind(model, loss, [(x, y)])
        found = torch.stack([operator(e) for e in torch.eye(5).double()])
        torch.testing.assert_close(found, expected)


def test_gauss_newton_and_fisher_say_what_they_need() -> None:
    model, x, y, loss = curvature_case("perceptron")
    with pytest.raises(ValueError, match=r"a sample, reduction=\"none\""):
        FisherOperator(model, nn.CrossEntropyLoss(), [(x, y)])
    with pytest.raises(ValueError, match="needs one tensor"):
        GaussNewtonOperator(
            model, lambda z, y: loss(z[0], y), [(x, y)], forward=lambda m, b: ((m(b[0]),), b[1])
        )
