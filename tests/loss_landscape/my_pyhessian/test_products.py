"""Each way of making products against whole matrices, and how one is chosen."""

from __future__ import annotations

import math
from functools import cache, partial

import pytest
import torch
import torch.nn.functional as F
from curvature_cases import curvature_case, generator, in_batches, matrix, perceptron, points
from hypothesis import given, settings
from hypothesis import strategies as st
from test_operators import DENSE
from torch import Tensor, nn

from loss_landscape.forward_pass.stand_ins import UnsuitedError
from loss_landscape.my_pyhessian import products
from loss_landscape.my_pyhessian.hessian import hessian
from loss_landscape.my_pyhessian.operators import (
    CurvatureOperator,
    GaussNewtonOperator,
    HessianOperator,
)
from loss_landscape.my_pyhessian.products import FastProducts, Trial, Way, choose
from loss_landscape.my_pyhessian.quick_layers import QuickLayers

WAYS = [
    *((name, "plain") for name in ("logistic", "perceptron", "cifar", "mitbih", "GCN")),
    ("cifar", "quick"),
    ("GCN", "merged"),
]


def taken(operator: CurvatureOperator, way: Way, room: float = math.inf) -> FastProducts:
    fast = FastProducts(operator, way)
    fast.try_out(torch.ones_like(operator.flat), room)
    operator.batch_product = fast
    return fast


# --- each way gives the whole matrix --------------------------------------------------------------
@cache
def known(name: str, kind: type[CurvatureOperator]) -> Tensor:
    return DENSE[kind](*curvature_case(name))


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize(("name", "layers"), WAYS)
def test_each_way_gives_the_dense_matrix(
    name: str, layers: str, kind: type[CurvatureOperator]
) -> None:
    """From what is kept, anew each time, and with several vectors at once."""
    model, inputs, targets, loss = curvature_case(name)
    operator, expected = kind(model, loss, [(inputs, targets)]), known(name, kind)
    vectors = torch.eye(len(expected)).double()[:: max(1, len(expected) // 8)]
    for kept in (True, False):
        fast = taken(operator, Way(layers, kept))
        assert fast.held == [0] * kept
        several = operator.products(vectors)
        torch.testing.assert_close(several, vectors @ expected)
        for vector, product in zip(vectors[:2], several, strict=False):
            torch.testing.assert_close(operator(vector), product, rtol=1e-12, atol=1e-14)


def test_large_merged_matrices_stay_sparse_and_have_a_transposed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(products, "DENSEST", 0)
    model, inputs, targets, loss = curvature_case("GCN")
    operator = HessianOperator(model, loss, [(inputs, targets)])
    taken(operator, Way("merged", True))
    torch.testing.assert_close(matrix(operator), known("GCN", HessianOperator))


@pytest.mark.parametrize("name", ["logistic", "cifar", "mitbih"])
def test_forward_over_reverse_gives_the_dense_matrix(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With layer norms, whose own forward over reverse is wrong, and parameters nobody uses."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    model, inputs, targets, loss = curvature_case(name)
    expected = known(name, HessianOperator)
    model.unused = nn.Parameter(torch.ones(2).double())
    operator = HessianOperator(model, loss, [(inputs, targets)])
    taken(operator, Way(compiled=True))
    vectors = torch.eye(len(operator.flat)).double()[:: max(1, len(expected) // 8)]
    own = [p.numel() for n, p in model.named_parameters() if p.requires_grad and n != "unused"]
    first = next(n for n, p in model.named_parameters() if p.requires_grad) == "unused"
    part = slice(2, None) if first else slice(0, sum(own))
    products_ = operator.products(vectors)
    torch.testing.assert_close(products_[:, part], vectors[:, part] @ expected)
    assert products_.count_nonzero() == products_[:, part].count_nonzero()


def test_compiled_products_are_the_dense_matrixs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a block of two layers, by torch.compile without its C++, which takes the longest."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3)).double()
    whole = matrix(HessianOperator(model, F.cross_entropy, [points()]))
    before = torch.get_rng_state()
    operator = HessianOperator(model, F.cross_entropy, [points()], layers=["3", "0.weight"])
    taken(operator, Way(compiled=True))
    where = torch.tensor([*range(20), *range(35, 53)])
    torch.testing.assert_close(matrix(operator), whole[where][:, where])
    assert torch.equal(torch.get_rng_state(), before)


# --- quick layers ---------------------------------------------------------------------------------
@settings(max_examples=25, deadline=None)
@given(
    dims=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
    weights_alone=st.booleans(),
)
def test_quick_layers_have_torchs_values_and_derivatives(
    dims: int,
    kernel: int,
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
    bias: bool,
    weights_alone: bool,
) -> None:
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    torch.manual_seed(0)
    layer = convolution(4, 6, kernel, stride, padding, dilation, groups, bias)
    model = nn.Sequential(layer, norm(6, affine=bias), nn.Tanh()).double().eval()
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    x = torch.randn(2, 4, *dims * [6], generator=generator(1)).double()
    inputs = [*model.parameters()] if weights_alone else [x.requires_grad_(), *model.parameters()]
    found = []
    for quick in (False, True):
        with QuickLayers() if quick else torch.enable_grad():
            y = model(x)
        first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        vector = [torch.randn(t.shape, generator=generator(2)).double() for t in first]
        found.append([y, *first, *torch.autograd.grad(first, inputs, vector)])
    torch.testing.assert_close(found[1], found[0])


def test_quick_layers_leave_alone_what_they_dont_know() -> None:
    x, weight = torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3)
    calls = [
        lambda: F.conv2d(x, weight, padding="same"),
        lambda: F.conv2d(x[0], weight),
        lambda: F.batch_norm(x, None, None, training=True),
    ]
    for call in calls:
        with QuickLayers():
            found = call()
        assert torch.equal(found, call())


# --- what is kept ---------------------------------------------------------------------------------
def two_batches(kind: type[CurvatureOperator] = HessianOperator) -> CurvatureOperator:
    return kind(perceptron(), F.cross_entropy, in_batches(*points(12), 6))


@pytest.mark.parametrize("through", ["data", "no_grad", "buffer"])
def test_what_was_kept_is_forgotten_where_weights_move(through: str) -> None:
    """Kind: curvature of where the weights were."""
    model = nn.Sequential(perceptron(), nn.BatchNorm1d(3).double())
    operator = HessianOperator(model, F.cross_entropy, [points(12)])
    fast, vector = taken(operator, Way(kept=True)), torch.ones_like(operator.flat)
    before = operator(vector)
    if through == "buffer":
        model[1].running_var.mul_(4)
    elif through == "data":
        model[0][0].weight.data.mul_(2)
    else:
        with torch.no_grad():
            model[0][0].weight.mul_(2)
    after = operator(vector)
    assert fast.held == [0] and not torch.allclose(after, before)
    assert torch.equal(after, HessianOperator(model, F.cross_entropy, [points(12)])(vector))


def test_no_more_is_kept_than_memory_holds() -> None:
    operator = two_batches()
    with operator.evaluating(), products._saved() as sizes:
        product = operator.plain_product(0)
    assert product is not None
    needed = sum(sizes.values())
    for room, held in ((0.0, 0), (0.9 * needed, 0), (1.5 * needed, 1), (2 * needed, 2)):
        fast = taken(operator, Way(kept=True), room)
        operator(operator.flat)
        assert len(fast.held) == len(fast.kept) == held


def test_keeping_makes_no_difference_to_a_bit() -> None:
    operator = two_batches()
    plain, vector = operator(operator.flat), operator.flat
    taken(operator, Way(kept=True))
    assert torch.equal(operator(vector), plain) and torch.equal(operator(vector), plain)
    pair = operator.products(torch.stack([vector, 2 * vector]))
    assert torch.equal(pair[0], plain)


# --- the choice -----------------------------------------------------------------------------------
class Padded(nn.Module):
    """Reads memory as it lies, which is wrong in channels_last."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.linear = nn.Conv2d(2, 3, 1), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.convolution(x)
        return self.linear(torch.as_strided(y, (len(y), 12), (12, 1)))


def test_a_way_that_gives_another_product_is_not_taken() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(6, 2, 2, 2), torch.arange(6) % 3
    operator, said = HessianOperator(Padded(), F.cross_entropy, [(x, y)]), []
    expected = operator(operator.flat)
    way = choose(operator, 100, compiling=False, say=said.append)
    assert way.layers == "plain" and "is off by" in said[0] and "by reverse over" in said[1]
    assert torch.equal(operator(operator.flat), expected)


def test_few_products_are_made_the_plain_way_without_a_word() -> None:
    operator, said = two_batches(), []
    assert choose(operator, 2, say=said.append) == Way() and not said


@pytest.mark.parametrize("why", ["no compiler", "slower", "another product", "pays"])
def test_compiling_is_tried_where_it_pays_and_left_with_a_word(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_(function, **options):
        if why == "no compiler":
            raise RuntimeError("no compiler found\nsecond line")
        if why == "another product":
            return lambda values, vector, batch: [2 * v for v in function(values, vector, batch)]
        return function

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(products, "COMPILING", -math.inf)
    monkeypatch.setattr(products, "GAIN", math.inf if why == "pays" else 0.0)
    operator, said = two_batches(), []
    expected = matrix(operator)
    way = choose(operator, 100, say=said.append)
    assert way.compiled == (why == "pays")
    assert said[0].startswith("compiling for up to 100 products")
    reasons = {"no compiler": "no compiler found", "slower": "no faster", "pays": "compiled"}
    assert reasons.get(why, "is off by") in said[1] and "second line" not in said[1]
    torch.testing.assert_close(matrix(operator), expected)


def test_graphs_and_other_matrices_are_not_compiled() -> None:
    model, inputs, targets, loss = curvature_case("GCN")
    trial = Trial(HessianOperator(model, loss, [(inputs, targets)]), print)
    fast, reason = trial.attempt(Way(compiled=True))
    assert fast is None and reason
    with pytest.raises(UnsuitedError, match="only products with the Hessian"):
        FastProducts(two_batches(GaussNewtonOperator), Way(compiled=True))


def test_a_spectrum_goes_on_the_way_it_was_begun() -> None:
    operator = two_batches()
    way = Way("plain", kept=True)
    assert choose(operator, 100, begun=str(way)) == way == Way.read(str(way))
    for text, reason in (
        (str(Way("merged", True)), "the way it was begun: the model is not one"),
        ('{"layers": "odd"}', "is unknown"),
        ('{"layer": "plain"}', "is none"),
        ("[", "is none"),
    ):
        with pytest.raises(ValueError, match=reason):
            choose(operator, 100, begun=text)


def test_choosing_changes_nothing_of_the_model() -> None:
    """Kind: a product that leaves traces; also where a way fails."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Dropout(), nn.Flatten())
    model.append(nn.Linear(12, 3)).train()
    model[0].eval()
    model[4].weight.grad = torch.ones(3, 12)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    rng, modes = torch.get_rng_state(), [module.training for module in model.modules()]
    batch = (torch.randn(6, 2, 2, 2, generator=generator()), torch.arange(6) % 3)
    operator = HessianOperator(model, F.cross_entropy, [batch])
    choose(operator, 100, compiling=False, say=lambda line: None)
    operator(operator.flat)
    assert torch.equal(torch.get_rng_state(), rng)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(model[4].weight.grad, torch.ones(3, 12)) and model[0].weight.grad is None
    assert all(p.is_contiguous() for p in model.parameters())


def test_the_class_is_fast_or_plain_and_gives_the_same() -> None:
    for name in ("cifar", "mitbih", "GCN"):
        model, inputs, targets, loss = curvature_case(name)
        found = [
            hessian(model, loss, data=(inputs, targets), fast=fast).eigenvalues(top_n=5, tol=1e-8)
            for fast in (False, True, True)
        ]
        plain, *fast = (values for values, _ in found)
        for own in fast:
            # Pairs of both signs are equal in size, so that rounding says which of one comes first.
            assert sorted(map(abs, own)) == pytest.approx(sorted(map(abs, plain)), rel=1e-9)
            assert sorted(own[:4]) == pytest.approx(sorted(plain[:4]), rel=1e-9)
