"""Loss and accuracy over all samples, at the weights and beside them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from loss_landscape.directions import coordinates
from loss_landscape.evaluation import evaluate, moved
from models.smooth_crossentropy import smooth_crossentropy


def test_unequal_batches_count_by_their_samples() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 4).double(), torch.randn(10, 3).double(), torch.arange(10) % 4
    loss = partial(smooth_crossentropy, smoothing=0.1)
    whole = evaluate(model, [(x, y)], loss)
    parts = evaluate(model, [(x[:7], y[:7]), (x[7:], y[7:])], loss)
    assert parts == pytest.approx(whole, rel=1e-12)
    assert whole[0] == pytest.approx(float(loss(model(x), y).mean().detach()))


def test_moved_weights_come_back_bit_for_bit() -> None:
    model = nn.Linear(3, 2)
    weights = list(coordinates(model, "weights").values())
    before = [w.clone() for w in weights]
    pointers = [p.data_ptr() for p in model.parameters()]
    direction = [torch.randn_like(w) for w in weights]
    with pytest.raises(KeyError), moved(weights, [direction, direction], [0.3, 0.4]):
        for p, w, d in zip(model.parameters(), before, direction, strict=True):
            torch.testing.assert_close(p.detach(), w + 0.7 * d)
        raise KeyError
    assert all(map(torch.equal, before, model.parameters()))
    assert pointers == [p.data_ptr() for p in model.parameters()]


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(ignore_index=0),
        nn.CrossEntropyLoss(weight=torch.arange(1.0, 5.0).double()),
        nn.CrossEntropyLoss(reduction="sum"),
        lambda logits, targets: (logits - targets[:, None]) ** 2,
        lambda logits, targets: (logits.sum(dim=1) - targets)[None],
    ],
    ids=["mean", "ignored", "weighted", "sum", "several a sample", "another axis"],
)
def test_a_loss_that_is_not_one_value_a_sample_is_refused(loss) -> None:
    """The kind: criteria whose mean over batches is not the mean over their samples."""
    torch.manual_seed(0)
    x, y = torch.randn(10, 3).double(), torch.arange(10) % 4
    with pytest.raises(ValueError, match="one value a sample"):
        evaluate(nn.Linear(3, 4).double(), [(x[:7], y[:7]), (x[7:], y[7:])], loss)


def test_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        evaluate(nn.Linear(3, 4), [], smooth_crossentropy)
