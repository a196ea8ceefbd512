"""Learning rates of every step, and averages of the weights, against what the papers define."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import SGD, lr_scheduler
from toy import ALONE, COUNTS, Toy, make_args, make_model, steps, train  # noqa: F401

from models.smooth_crossentropy import smooth_crossentropy
from trainings import averaging
from trainings.averaging import Average
from trainings.fit import forward_backward
from trainings.schedules import SCHEDULES, Schedule
from trainings.state import TrainingState
from utilities import checkpoint

EPOCH = 4  # steps: 60 samples in batches of 16


# --- schedules ------------------------------------------------------------------------------------
def torchs_rates(schedule: str, total: int) -> list[float]:
    """Learning rates by torch's own schedulers, stepped after each step."""
    optimizer = SGD([torch.zeros(1)], lr=0.1)
    milestones = [math.ceil(share * total / 10) for share in (3, 6, 8)]
    scheduler: Any = {
        "constant": lambda: lr_scheduler.ConstantLR(optimizer, 1.0, 1),
        "step": lambda: lr_scheduler.MultiStepLR(optimizer, milestones, 0.2),
        "cosine": lambda: lr_scheduler.CosineAnnealingLR(optimizer, total),
    }[schedule]()
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("epochs", [1, 4, 10, 17])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_each_steps_rate_is_torchs(schedule: str, epochs: int) -> None:
    whole = Schedule(schedule, 0.1, steps=epochs * EPOCH)
    ours = [whole.rate(step) for step in range(epochs * EPOCH)]
    assert ours == pytest.approx(torchs_rates(schedule, epochs * EPOCH), rel=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_rises_linearly_to_the_schedules_rate(schedule: str) -> None:
    warm = Schedule(schedule, 0.1, steps=10 * EPOCH, warmup_steps=1.5 * EPOCH)
    plain = torchs_rates(schedule, 10 * EPOCH)
    for step, rate in enumerate(plain):
        share = min(1, (step + 1) / 6)  # 1.5 epochs of 4 steps
        assert warm.rate(step) == pytest.approx(share * rate)


@pytest.mark.parametrize("optimizer", ["SGD", "SAM"])
def test_the_rate_is_the_one_that_steps(optimizer: str, steps, tmp_path: Path) -> None:  # noqa: F811
    flags = ["--schedule=cosine", "--warmup_epochs=1", "--learning_rate=0.1", "--momentum=0"]
    args = train(tmp_path, f"--optimizer={optimizer}", "--base_optimizer=SGD", *flags)
    before = list(make_model().parameters())
    schedule = Schedule("cosine", 0.1, steps=4 * EPOCH, warmup_steps=EPOCH)
    for number, step in enumerate(steps):
        rate = schedule.rate(number)
        assert step["rates"] == {rate}  # of SAM and of its base
        after = [step["weights"][name] for name, _ in make_model().named_parameters()]
        for old, gradient, new in zip(before, step["gradients"], after, strict=True):
            torch.testing.assert_close(new, old - rate * gradient)
        before = after
    logged = pd.read_table(args.run.history, comment="#")["learning_rate"]
    assert logged.tolist() == pytest.approx([schedule.rate(k) for k in range(0, 16, 4)])


# --- averages of the weights ----------------------------------------------------------------------
def floats(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.double() for k, v in state.items() if v.is_floating_point()}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in floats(found).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


def evaluate(weights: dict[str, Tensor], data: Toy) -> tuple[float, float]:
    """Loss and accuracy on validation, by hand and in float64."""
    model = make_model().double().eval()
    model.load_state_dict(weights)
    points, labels = data.points[60:90].double(), data.labels[60:90]
    logits = model(points).detach()
    hits = (logits.argmax(1) == labels).double().mean()
    return float(cross_entropy(logits, labels)), 100 * float(hits)


@pytest.mark.parametrize("optimizer", ["ADAM", "SAM"])
def test_ema_is_its_recursion_and_what_is_validated_and_kept(
    optimizer: str,
    steps,  # noqa: F811
    tmp_path: Path,
) -> None:
    common = [f"--optimizer={optimizer}", "--learning_rate=0.02"]
    train(tmp_path / "plain", *common)
    plain = [step["weights"] for step in steps]
    steps.clear()
    args = train(tmp_path / "ema", *common, "--average=ema", "--ema_decay=0.9")
    for alone, averaged in zip(plain, (step["weights"] for step in steps), strict=True):
        assert all(torch.equal(alone[k], averaged[k]) for k in alone)  # training is the same
    average = floats(plain[0])  # the first step's weights begin it
    at_end = {}
    for number, weights in enumerate(plain[1:], start=2):
        new = floats(weights)
        average = {k: 0.9 * average[k] + 0.1 * new[k] for k in average}  # batch norm's too
        at_end[number / EPOCH] = average
    best, last = checkpoint.load(args.run.best), checkpoint.load(args.run.last)
    assert_close(best["state_dict"], at_end[best["epoch"]])
    assert_close(last["state_dict"], at_end[4])
    table = pd.read_table(args.run.history, comment="#")
    for row in table.itertuples():
        weights = {**best["state_dict"], **at_end[row.epoch]}
        assert (row.val_loss, row.val_acc) == pytest.approx(evaluate(weights, Toy()), rel=1e-5)
    assert best["epoch"] == min(table.itertuples(), key=lambda r: (-r.val_acc, r.val_loss)).epoch


def test_swa_is_the_mean_of_the_last_epochs_with_batch_norm_measured_anew(
    steps,  # noqa: F811
    tmp_path: Path,
) -> None:
    train(tmp_path / "plain", "--epochs=5")
    plain = [step["weights"] for step in steps]
    steps.clear()
    args = train(tmp_path / "swa", "--epochs=5", "--average=swa", "--swa_start=0.4")
    for alone, averaged in zip(plain, (step["weights"] for step in steps), strict=True):
        assert all(torch.equal(alone[k], averaged[k]) for k in alone)
    last = checkpoint.load(args.run.last)["state_dict"]
    ends = [floats(weights) for weights in plain[EPOCH - 1 :: EPOCH]]
    names = [name for name, _ in make_model().named_parameters()]
    for name in names:  # epochs 3, 4 and 5 of 5
        expected = torch.stack([end[name] for end in ends[2:]]).mean(0)
        torch.testing.assert_close(last[name].double(), expected, rtol=1e-5, atol=1e-6)
    data = Toy()
    hidden = data.points[:60].double() @ last["0.weight"].double().T + last["0.bias"].double()
    assert_close({"m": last["1.running_mean"]}, {"m": hidden.mean(0)})
    assert_close({"v": last["1.running_var"]}, {"v": hidden.var(0)})
    row = pd.read_table(args.run.history, comment="#").iloc[-1]
    assert (row.val_loss, row.val_acc) == pytest.approx(evaluate(last, data), rel=1e-5)


def test_before_swa_starts_the_plain_weights_are_validated(
    steps,  # noqa: F811
    tmp_path: Path,
) -> None:
    args = train(tmp_path, "--epochs=2", "--average=swa", "--swa_start=0.5")
    row = pd.read_table(args.run.history, comment="#").iloc[0]
    weights = steps[EPOCH - 1]["weights"]
    assert (row.val_loss, row.val_acc) == pytest.approx(evaluate(weights, Toy()), rel=1e-5)


def test_batch_norm_is_measured_in_batches_of_nearly_one_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """update_bn weighs all batches alike, and a batch of one sample can't be normalised."""
    monkeypatch.setattr(averaging, "MEASURED", 20)
    data, model = Toy(counts=(30, 6, 5)), make_model()
    average = Average("swa", model, start=0)
    average.after_epoch(1, data)
    assert data.asked == [14, 14, 13]
    parts = model[0](data.points[:41]).detach().split(14)
    expected = torch.stack([part.mean(0) for part in parts]).mean(0)
    assert average.model is not None
    torch.testing.assert_close(average.model.module[1].running_mean, expected)


# --- balance --------------------------------------------------------------------------------------
def test_class_weights_make_each_class_count_alike_and_keep_the_scale(tmp_path: Path) -> None:
    args = make_args(tmp_path, "--class_weights", "--batch_size=60")
    data, model = Toy(60), make_model()
    state = TrainingState(args, data, model, ALONE)
    model.eval()  # so that the gradient is that of a fixed function
    batch = data.fetch(data.train.indices)
    passes: list[Any] = []
    forward_backward(state, smooth_crossentropy_plain, iter([batch]), passes)
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    losses = cross_entropy(model(batch[0]), batch[1], reduction="none")
    each = torch.stack([losses[batch[1] == k].mean() for k in range(3)])
    for ours, theirs in zip(
        found, torch.autograd.grad(each.mean(), model.parameters()), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(passes[0][1], losses.detach())  # what is logged is not weighted
    assert state.class_weights is not None
    assert float(state.class_weights[batch[1]].mean()) == pytest.approx(1)
    assert state.class_weights.tolist() == pytest.approx([60 / 3 / count for count in COUNTS])


def smooth_crossentropy_plain(logits: Tensor, targets: Tensor) -> Tensor:
    return smooth_crossentropy(logits, targets, 0.0)


def test_balanced_sampling_draws_all_classes_equally_often(tmp_path: Path) -> None:
    data = Toy()
    train(tmp_path, "--balanced_sampling", "--epochs=1", data=data)
    epochs = [torch.cat([targets for _, targets in data.train]) for _ in range(100)]
    assert {len(epoch) for epoch in epochs} == {60}
    counts = torch.cat(epochs).bincount().tolist()
    assert sum(counts) == 6000
    assert chisquare(counts).pvalue > 0.001
    unbalanced = torch.cat([targets for _, targets in Toy().train]).bincount()
    assert unbalanced.tolist() == list(COUNTS)


def test_balance_by_the_square_root_draws_classes_as_the_root_of_their_samples(
    tmp_path: Path,
) -> None:
    data, roots = Toy(), [count**0.5 for count in COUNTS]
    train(tmp_path, "--balanced_sampling", "--balance_sqrt", "--epochs=1", data=data)
    counts = torch.cat([targets for _ in range(100) for _, targets in data.train]).bincount()
    expected = [6000 * root / sum(roots) for root in roots]
    assert chisquare(counts.tolist(), expected).pvalue > 0.001
    args = make_args(tmp_path, "--class_weights", "--balance_sqrt")
    weights = TrainingState(args, Toy(), make_model(), ALONE).class_weights
    assert weights is not None
    assert weights.tolist() == pytest.approx([60 / sum(roots) / root for root in roots])
