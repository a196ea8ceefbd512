"""A loss that is no number, in the first pass or the second, and the report at the end."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from toy import Toy, make_model, steps, train  # noqa: F401

from trainings.state import better
from utilities import checkpoint

RUN = ["--learning_rate=0.02", "--momentum=0.9"]


def same_parameters(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name, _ in make_model().named_parameters())


@pytest.mark.parametrize("optimizer", ["SGD", "SAM", "ASAM"])
@pytest.mark.parametrize("base", ["SGD", "ADAM"])
def test_a_poisoned_batch_stops_the_run_names_it_and_leaves_the_weights(
    optimizer: str,
    base: str,
    steps,  # noqa: F811
    tmp_path: Path,
) -> None:
    data, model = Toy(), make_model()
    data.poisoned = 7  # four batches an epoch
    flags = [f"--optimizer={optimizer}", f"--base_optimizer={base}", "--out_dir", tmp_path, *RUN]
    with pytest.raises(ValueError, match=r"epoch 2, batch 3 \(step 7\): .* not finite") as error:
        train(tmp_path, *flags, data=data, model=model)
    assert "the best epoch so far, 1, is in" in str(error.value)
    assert len(steps) == 7
    assert same_parameters(model.state_dict(), steps[5]["weights"])  # not stepped, not perturbed
    best = checkpoint.load(next(tmp_path.glob("to_plot/model*rho?.*[!t].pt")))
    assert best["epoch"] == 1 and same_parameters(best["state_dict"], steps[3]["weights"])
    table = pd.read_table(next(tmp_path.glob("outputs/*.dat")), comment="#")
    assert table["epoch"].tolist() == [1]


class Poison(nn.Module):
    """A model whose ``call``-th output in training is of this value."""

    def __init__(self, call: int, value: float) -> None:
        super().__init__()
        self.body, self.call, self.value, self.calls = make_model(), call, value, 0

    def forward(self, points: Tensor) -> Tensor:
        logits = self.body(points)
        self.calls += self.training
        return logits * self.value if self.training and self.calls == self.call else logits


@pytest.mark.parametrize("optimizer", ["SAM", "ASAM"])
@pytest.mark.parametrize("base", ["SGD", "ADAM"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_second_pass_that_is_no_number_leaves_out_its_step_and_says_so(
    optimizer: str,
    base: str,
    value: float,
    steps,  # noqa: F811
    tmp_path: Path,
    capsys,
) -> None:
    flags = [f"--optimizer={optimizer}", f"--base_optimizer={base}", *RUN]
    args = train(tmp_path, *flags, model=Poison(14, value))  # the 7th step's second pass
    weights = [{k.removeprefix("body."): v for k, v in s["weights"].items()} for s in steps]
    assert same_parameters(weights[6], weights[5])
    assert not same_parameters(weights[7], weights[6])
    assert "1 steps were left out: their gradient was not finite" in capsys.readouterr().out
    table = pd.read_table(args.run.history, comment="#")
    assert len(table) == 4 and table.notna().all(axis=None)


def test_the_report_says_best_validation_and_test_at_it_and_the_files(
    tmp_path: Path, capsys
) -> None:
    args = train(tmp_path, "--tensorboard")
    lines = capsys.readouterr().out.splitlines()
    best = checkpoint.load(args.run.best)
    m = best["metrics"]
    at = lines.index(f"best epoch on validation: {best['epoch']} of 4; with its weights")
    for name, part, line in zip(
        ("validation", "test"), ("val", "test"), lines[at + 1 :], strict=False
    ):
        assert line.split() == (
            f"{name}: {m[f'{part}_acc']:.2f} %, macro F1 {m[f'{part}_f1']:.2f} %, "
            f"loss {m[f'{part}_loss']:.4f}"
        ).split()  # fmt: skip
    assert lines[at + 5].split()[:2] == ["one", "10"]
    written = lines[lines.index("files written:") + 1 :]
    events = args.run.history.parent / "tensorboard" / args.run.history.stem
    assert [line.strip() for line in written] == [
        str(path) for path in (args.run.history, events, args.run.best, args.run.last)
    ]
    assert all(path.exists() for path in (args.run.history, events, args.run.best, args.run.last))
    assert m["val_acc"] == pd.read_table(args.run.history, comment="#")["val_acc"].max()


NO_NUMBER = {"val_acc": 90.0, "val_f1": 90.0, "val_loss": torch.nan}
WORSE = {"val_acc": 20.0, "val_f1": 20.0, "val_loss": 2.0}


@pytest.mark.parametrize("by", ["acc", "f1", "loss"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_epoch_whose_validation_loss_is_no_number_is_never_the_best(by, value) -> None:
    bad = {**NO_NUMBER, "val_loss": value}
    assert not better(bad, WORSE, by)
    assert better(WORSE, bad, by)  # though it came first
    assert better(bad, {}, by)
