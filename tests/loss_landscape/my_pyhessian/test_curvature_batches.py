"""Which criteria and batches a curvature operator takes: right, or refused in one line."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from curvature_cases import (
    dense,
    generator,
    graphs,
    in_batches,
    matrix,
    perceptron,
    points,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from loss_landscape.my_pyhessian.hessian import hessian

# --- criteria -------------------------------------------------------------------------------------
WEIGHT = torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64)


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
    torch.testing.assert_close(matrix(hessian(model, mean, data=(x, y)).operator), expected)
    with pytest.raises(ValueError, match=r"not theirs weighted by samples.*denominator="):
        hessian(model, mean, dataloader=in_batches(x, y))
    total = nn.CrossEntropyLoss(**options, reduction="sum")
    for batches in (in_batches(x, y), [(x, y)], in_batches(x, y, 1)):
        found = hessian(model, total, dataloader=batches, denominator=denominator)
        torch.testing.assert_close(matrix(found.operator), expected)


def pairs(z: Tensor, y: Tensor) -> Tensor:
    """Each sample with each of its batch, as contrastive losses have it."""
    return ((z[:, None] - z) ** 2).mean()


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(reduction="sum"), pairs])
def test_sums_and_losses_of_pairs_are_refused_in_several_batches(criterion: Callable) -> None:
    x, y = points()
    with pytest.raises(ValueError, match="not theirs weighted by samples"):
        hessian(perceptron(), criterion, dataloader=in_batches(x, y))


@pytest.mark.parametrize("loss", [0.5, (torch.tensor(0.5),), None])
def test_a_criterion_that_gives_no_tensor_is_refused(loss: object) -> None:
    """Kind: ``.item()`` in the criterion, several losses at once, a forgotten return."""
    with pytest.raises(ValueError, match=r"the criterion gives a \w+, not a tensor"):
        hessian(perceptron(), lambda outputs, targets: loss, data=points())


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
        torch.testing.assert_close(matrix(found.operator), expected)


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
        torch.testing.assert_close(matrix(found.operator), expected)


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
        "nested": (((x, mask), (y,)), lambda m, b: (m(*b[0]), b[1][0])),
        "triple": ((x, mask, y), lambda m, b: (m(b[0], b[1]), b[2])),
        "namedtuple": (Triple(x, mask, y), lambda m, b: (m(b.x, b.mask), b.y)),
        "graphs": (graphs(6), lambda m, b: (m(x, mask), y)),
        "tensor": (x[:2], lambda m, b: (m(b, mask[:2]), y[:2])),
    }[kind]
    model = Masked()
    count = 2 if kind == "tensor" else 6
    for flags in ({"data": batch}, {"dataloader": [batch]}):
        with pytest.raises(ValueError, match=r"not a pair.*forward=|dataloader takes several"):
            hessian(model, F.cross_entropy, **flags)
        found = hessian(model, F.cross_entropy, **flags, forward=forward)
        torch.testing.assert_close(
            matrix(found.operator),
            dense(model.inner, (x * mask)[:count], y[:count], F.cross_entropy),
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
        torch.testing.assert_close(matrix(found.operator), expected)
        torch.testing.assert_close(matrix(found.operator), expected)  # the second time too
    with pytest.raises(ValueError, match="no batch"):
        hessian(perceptron(), F.cross_entropy, dataloader=iter(()))


def test_a_shuffling_loader_leaves_the_global_generator_alone() -> None:
    loader = DataLoader(TensorDataset(*points()), batch_size=5, shuffle=True)
    state = torch.random.get_rng_state()
    found = hessian(perceptron(), F.cross_entropy, dataloader=loader)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.testing.assert_close(
        matrix(found.operator), dense(perceptron(), *points(), F.cross_entropy)
    )
