"""Which models, criteria and batches a curvature operator takes: right, or refused in one line."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from curvature_cases import CASES, curvature_case, dense, flattened, generator, graphs
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, TensorDataset

from loss_landscape.my_pyhessian.hessian import hessian
from loss_landscape.my_pyhessian.operators import (
    CurvatureOperator,
    FisherOperator,
    GaussNewtonOperator,
    HessianOperator,
)


def points(count: int = 12, classes: int = 3, dtype: torch.dtype = torch.float64):
    x = torch.randn(count, 4, generator=generator(3), dtype=dtype)
    return x, torch.arange(count) % classes


def perceptron(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)


def matrix(of: hessian) -> Tensor:
    """All columns of the operator."""
    return torch.stack([of.operator(e) for e in torch.eye(of.operator.like.numel()).double()])


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
    wide = matrix(hessian(model, F.cross_entropy, data=points()))
    model = nn.Sequential(model[0], nn.Tanh(), Cast(), model[2].float())
    found = hessian(model, F.cross_entropy, data=points())
    assert found.operator.like.dtype == torch.float64
    torch.testing.assert_close(matrix(found), wide, rtol=1e-4, atol=1e-6)


# --- criteria -------------------------------------------------------------------------------------
WEIGHT = torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64)


def in_batches(x: Tensor, y: Tensor, size: int = 5) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(size), y.split(size), strict=True))


def ignored() -> tuple[nn.Module, Tensor, Tensor]:
    x, y = points()
    return perceptron(), x, torch.where(torch.arange(12) < 4, -100, y)


def weighted() -> tuple[nn.Module, Tensor, Tensor]:
    x, y = points()
    return perceptron(), x, y.sort().values  # classes differ from batch to batch


def undecided() -> tuple[nn.Module, Tensor, Tensor]:
    """Each class is as probable: all samples' losses are equal, and only gradients differ."""
    model, x, y = weighted()
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    return model, x, y


class Tokens(nn.Module):
    """(samples, length, 4) -> logits (samples, 3, length)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = perceptron()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).transpose(1, 2)


def tokens() -> tuple[nn.Module, Tensor, Tensor]:
    x = torch.randn(12, 3, 4, generator=generator(4), dtype=torch.float64)
    y = torch.randint(0, 3, (12, 3), generator=generator(5))
    y[:5, 1:] = -100  # padding
    return Tokens(), x, y


def counted(y: Tensor) -> Tensor:
    return (y != -100).sum()


def class_weights(y: Tensor) -> Tensor:
    return WEIGHT[y].sum()


UNEVEN = [
    (ignored, {}, counted),
    (weighted, {"weight": WEIGHT}, class_weights),
    (undecided, {"weight": WEIGHT}, class_weights),
    (tokens, {}, counted),
]


@pytest.mark.parametrize(("data", "options", "denominator"), UNEVEN)
def test_means_that_are_not_over_samples(
    data: Callable, options: dict, denominator: Callable
) -> None:
    """Kind: a batch's mean whose denominator isn't its number of samples.

    In several batches it is refused; as a sum with a denominator it is the mean over all.
    """
    model, x, y = data()
    mean = nn.CrossEntropyLoss(**options)
    expected = dense(model, x, y, mean)
    torch.testing.assert_close(matrix(hessian(model, mean, data=(x, y))), expected)
    with pytest.raises(ValueError, match=r"not theirs weighted by samples.*denominator="):
        hessian(model, mean, dataloader=in_batches(x, y))
    total = nn.CrossEntropyLoss(**options, reduction="sum")
    for batches in (in_batches(x, y), [(x, y)], in_batches(x, y, 1)):
        found = hessian(model, total, dataloader=batches, denominator=denominator)
        torch.testing.assert_close(matrix(found), expected)


def pairs(z: Tensor, y: Tensor) -> Tensor:
    """Each sample with each of its batch, as contrastive losses have it."""
    return ((z[:, None] - z) ** 2).mean()


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(reduction="sum"), pairs])
def test_sums_and_losses_of_pairs_are_refused_in_several_batches(criterion: Callable) -> None:
    x, y = points()
    with pytest.raises(ValueError, match="not theirs weighted by samples"):
        hessian(perceptron(), criterion, dataloader=in_batches(x, y))


def test_sequences_of_several_lengths_need_a_denominator() -> None:
    model, x, y = tokens()
    batches = [(x[:5, :1], y[:5, :1]), (x[5:], y[5:])]  # the first is nothing but padding else
    for reduction in ("mean", "none"):
        with pytest.raises(ValueError, match="denominator="):
            hessian(model, nn.CrossEntropyLoss(reduction=reduction), dataloader=batches)
    expected = dense(model, x, y, nn.CrossEntropyLoss())
    for reduction in ("sum", "none"):
        criterion = nn.CrossEntropyLoss(reduction=reduction)
        found = hessian(model, criterion, dataloader=batches, denominator=counted)
        torch.testing.assert_close(matrix(found), expected)


@pytest.mark.parametrize("size", [12, 5])
def test_a_mean_with_a_denominator_is_refused(size: int) -> None:
    x, y = points()
    with pytest.raises(ValueError, match="not the sum of theirs"):
        hessian(perceptron(), F.cross_entropy, dataloader=in_batches(x, y, size), denominator=len)


@pytest.mark.parametrize("value", [float("nan"), -1.0, 0.0])
def test_a_denominator_that_is_none_is_refused(value: float) -> None:
    criterion = nn.CrossEntropyLoss(reduction="sum")
    with pytest.raises(ValueError, match="denominator: "):
        hessian(perceptron(), criterion, data=points(), denominator=lambda y: value)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("criterion", [nn.MSELoss, nn.CrossEntropyLoss, nn.BCEWithLogitsLoss])
def test_means_over_samples_are_taken_in_any_batches(criterion: type, reduction: str) -> None:
    x, y = points()
    targets = y if criterion is nn.CrossEntropyLoss else F.one_hot(y).double()
    loss = criterion(reduction=reduction)
    expected = dense(perceptron(), x, targets, loss)
    for size in (5, 1):
        found = hessian(perceptron(), loss, dataloader=in_batches(x, targets, size))
        torch.testing.assert_close(matrix(found), expected)


# --- batches --------------------------------------------------------------------------------------
class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = perceptron()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.inner(x * mask)


Triple = namedtuple("Triple", "x mask y")


@pytest.mark.parametrize(
    "kind", ["dict", "dict of two", "triple", "namedtuple", "graphs", "tensor"]
)
def test_batches_that_are_no_pairs_need_a_forward_function(kind: str) -> None:
    """Kind: what a loader yields is unpacked as (inputs, targets) without being it."""
    x, y = points(6)
    mask = (x > 0).double()
    batch, forward = {
        "dict": ({"x": x, "m": mask, "y": y}, lambda m, b: (m(b["x"], b["m"]), b["y"])),
        "dict of two": ({"x": x, "y": y}, lambda m, b: (m(b["x"], b["x"] > 0), b["y"])),
        "triple": ((x, mask, y), lambda m, b: (m(b[0], b[1]), b[2])),
        "namedtuple": (Triple(x, mask, y), lambda m, b: (m(b.x, b.mask), b.y)),
        "graphs": (graphs(6), lambda m, b: (m(x, mask), y)),
        "tensor": (x[:2], lambda m, b: (m(b, mask[:2]), y[:2])),
    }[kind]
    model = Masked()
    count = 2 if kind == "tensor" else 6
    for flags in ({"data": batch}, {"dataloader": [batch]}):
        with pytest.raises(ValueError, match=r"not a pair.*forward="):
            hessian(model, F.cross_entropy, **flags)
        found = hessian(model, F.cross_entropy, **flags, forward=forward)
        torch.testing.assert_close(
            matrix(found), dense(model.inner, (x * mask)[:count], y[:count], F.cross_entropy)
        )


def test_one_batch_for_several_and_several_for_one_are_refused() -> None:
    x, y = points()
    with pytest.raises(ValueError, match="dataloader takes several"):
        hessian(perceptron(), F.cross_entropy, data=[(x, y), (x, y)])
    for one in ((x, y), {"x": x, "y": y}, x):
        with pytest.raises(ValueError, match=r"not a pair|data takes a single one"):
            hessian(perceptron(), F.cross_entropy, dataloader=one)
    with pytest.raises(ValueError, match="first dimension"):
        hessian(perceptron(), F.cross_entropy, data=(x[0], y[0]))


def test_a_generator_is_read_once_and_a_buffer_that_it_fills_again_is_copied() -> None:
    x, y = points()
    batches = in_batches(x, y, 4)

    def refilled() -> Iterator[tuple[Tensor, Tensor]]:
        inputs, targets = torch.empty(4, 4).double(), torch.empty(4, dtype=torch.int64)
        for a, b in batches:
            inputs.copy_(a)
            targets.copy_(b)
            yield inputs, targets

    expected = dense(perceptron(), x, y, F.cross_entropy)
    for loader in (batches, iter(batches), (b for b in batches), refilled()):
        found = hessian(perceptron(), F.cross_entropy, dataloader=loader)
        torch.testing.assert_close(matrix(found), expected)
        torch.testing.assert_close(matrix(found), expected)  # the second time too
    with pytest.raises(ValueError, match="no batch"):
        hessian(perceptron(), F.cross_entropy, dataloader=iter(()))


def test_a_shuffling_loader_leaves_the_global_generator_alone() -> None:
    loader = DataLoader(TensorDataset(*points()), batch_size=5, shuffle=True)
    state = torch.random.get_rng_state()
    found = hessian(perceptron(), F.cross_entropy, dataloader=loader)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.testing.assert_close(matrix(found), dense(perceptron(), *points(), F.cross_entropy))


# --- models ---------------------------------------------------------------------------------------
def test_models_without_parameters_are_refused() -> None:
    """Kind: nothing to differentiate by."""
    frozen = perceptron().requires_grad_(False)
    for model in (nn.Identity(), nn.Sequential(), frozen):
        with pytest.raises(ValueError, match="no parameter"):
            hessian(model, F.cross_entropy, data=points())
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
    torch.testing.assert_close(matrix(found), dense(perceptron(), *points(), F.cross_entropy))


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
