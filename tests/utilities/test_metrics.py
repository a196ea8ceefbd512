"""Metrics against scikit-learn, and sums over batches against the whole."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle
from torch import nn
from torch.nn.functional import one_hot

from models.smooth_crossentropy import smooth_crossentropy
from utilities.metrics import (
    SHOWN_CLASSES,
    Total,
    class_report,
    evaluate,
    macro_f1,
    recall_precision_f1,
)
from utilities.ranks import Ranks

# Few samples of up to six classes: most examples lack some class, as true or as predicted one.
pairs = st.integers(1, 6).flatmap(
    lambda classes: st.tuples(
        st.just(classes),
        st.lists(
            st.tuples(st.integers(0, classes - 1), st.integers(0, classes - 1)),
            min_size=1, max_size=30,
        ),
    )
)  # fmt: skip


def total_of(classes: int, labels: list[tuple[int, int]], batch: int = 7) -> Total:
    """Sums over batches of these (true, predicted) labels."""
    true, predicted = torch.tensor(labels).unbind(1)
    total = Total(classes)
    for targets, guesses in zip(true.split(batch), predicted.split(batch), strict=True):
        total.add(one_hot(guesses, classes).float(), targets.float(), targets)
    return total


@pytest.mark.filterwarnings("ignore:A single label was found")
@settings(max_examples=150, deadline=None)
@given(pairs)
def test_everything_is_what_scikit_learn_says(case: tuple[int, list[tuple[int, int]]]) -> None:
    classes, labels = case
    true, predicted = map(list, zip(*labels, strict=True))
    total, numbers = total_of(classes, labels), list(range(classes))
    matrix = oracle.confusion_matrix(true, predicted, labels=numbers)
    assert total.confusion.tolist() == matrix.tolist()
    precision, recall, f1, _ = oracle.precision_recall_fscore_support(
        true, predicted, labels=numbers, zero_division=0
    )
    ours = recall_precision_f1(total.confusion.double())
    for mine, theirs in zip(ours, (recall, precision, f1), strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs, atol=1e-12)
    # Without labels scikit-learn, too, averages over the classes that occur at all.
    expected = oracle.f1_score(true, predicted, average="macro", zero_division=0)
    found = total.metrics("val")
    assert found["val_f1"] == pytest.approx(100 * expected, abs=1e-9)
    assert found["val_acc"] == pytest.approx(100 * oracle.accuracy_score(true, predicted))
    assert found["val_loss"] == pytest.approx(np.mean(true))


def test_no_sample_at_all_has_no_f1() -> None:
    assert macro_f1(torch.zeros(3, 3)) == 0.0


def test_a_total_goes_on_where_it_was_saved() -> None:
    labels = [(i % 3, i * i % 3) for i in range(20)]
    whole = total_of(3, labels)
    part, rest = total_of(3, labels[:14]), Total(3)
    rest.load_state_dict(part.state_dict())
    true, guesses = torch.tensor(labels[14:]).unbind(1)
    rest.add(one_hot(guesses, 3).float(), true.float(), true)
    assert torch.equal(whole.confusion, rest.confusion)
    assert whole.metrics("a") == rest.metrics("a")
    assert whole.over(Ranks(torch.device("cpu"))).metrics("a") == whole.metrics("a")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_first_bad_batch_is_counted_from_1(bad: float) -> None:
    total = Total(2)
    assert total.first_bad() is None
    targets = torch.tensor([0, 1])
    for losses in ([1.0, 2.0], [1.0, bad], [bad, bad]):
        total.add(torch.eye(2), torch.tensor(losses), targets)
        assert total.first_bad() == (None if losses == [1.0, 2.0] else 2)


BEATS = [
    [18000, 30, 40, 1, 0],
    [100, 400, 50, 2, 3],
    [20, 3, 1400, 10, 9],
    [0] * 5,
    [2, 0, 3, 0, 9],
]


def test_the_report_is_readable_and_says_what_scikit_learn_says() -> None:
    lines = class_report(BEATS, "NSVFQ").splitlines()
    true = np.repeat(np.arange(5), np.sum(BEATS, axis=1))
    predicted = np.concatenate([np.repeat(np.arange(5), row) for row in BEATS])
    expected = oracle.classification_report(
        true,
        predicted,
        labels=list(range(5)),
        target_names=list("NSVFQ"),
        output_dict=True,
        zero_division=0,
    )
    for name, line in zip("NSVFQ", lines[1:6], strict=True):
        of_class = expected[name]
        values = [f"{100 * of_class[key]:.2f}" for key in ("recall", "precision", "f1-score")]
        assert line.split() == [name, str(int(of_class["support"])), *values]
    assert lines[6] == "rows: true class, columns: predicted class"
    assert [list(map(int, line.split()[1:])) for line in lines[8:]] == BEATS
    assert lines[7].split() == list("NSVFQ")
    for table in (lines[:6], lines[7:]):
        assert len(set(map(len, table))) == 1  # aligned to the right
    assert max(map(len, lines)) <= 42


def test_long_names_and_many_classes_stay_readable() -> None:
    names = ["airplane", "automobile", *"abcdefgh"]
    lines = class_report([[k] * 10 for k in range(10)], names).splitlines()
    assert max(map(len, lines)) <= 80 and lines[12].split()[:2] == ["airp", "auto"]
    many = SHOWN_CLASSES + 1
    lines = class_report([[1] * many] * many).splitlines()
    assert len(lines) == 1 + many + 1 and "test_confusion" in lines[-1]
    assert lines[1].split()[0] == "0"


def test_unequal_batches_count_by_their_samples() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 4).double(), torch.randn(10, 3).double(), torch.arange(10) % 4
    loss = partial(smooth_crossentropy, smoothing=0.1)
    whole = evaluate(model, [(x, y)], loss, 4).loss_and_accuracy()
    parts = evaluate(model, [(x[:7], y[:7]), (x[7:], y[7:])], loss, 4).loss_and_accuracy()
    assert parts == pytest.approx(whole, rel=1e-12)
    assert whole[0] == pytest.approx(float(loss(model(x), y).mean().detach()))


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
        evaluate(nn.Linear(3, 4).double(), [(x[:7], y[:7]), (x[7:], y[7:])], loss, 4)


def test_no_samples_are_refused() -> None:
    total = evaluate(nn.Linear(3, 4), [], smooth_crossentropy, 4)
    with pytest.raises(ValueError, match="no samples"):
        total.metrics("val")
