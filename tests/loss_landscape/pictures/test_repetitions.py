"""Repetitions of minima over seeds and folds, beside scipy and by hand."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats

from loss_landscape import compare
from loss_landscape.pictures.repetitions import (
    Repetitions,
    difference,
    draw_repetitions,
    read_repetitions,
    worth,
)
from utilities import checkpoint
from utilities.runs import run_settings

OLD = Path(__file__).parents[2] / "old_files" / "to_plot" / "model_GCN_SAM_rho0.05.pt"
LABELS = ["GCN on MUTAG, ADAM", "GCN on MUTAG, SAM, rho 0.05"]


def write(path: Path, accuracy: float, **changes: Any) -> Path:
    """A finished run like the old one, with other arguments of its training."""
    content = copy.deepcopy(checkpoint.load(OLD))
    content["train_args"] |= changes
    content["metrics"]["test_acc"] = accuracy
    content["test_confusion"] = [[5, 2], [4, 8]]
    checkpoint.save(path, content)
    return path


def folds(values: list[float], test_to_train: float = 0.125) -> Repetitions:
    return Repetitions({(42, i): v for i, v in enumerate(values)}, [18, 19], test_to_train)


def test_repetitions_go_to_the_minimum_with_their_settings(tmp_path: Path) -> None:
    minima = [
        checkpoint.load(write(tmp_path / f"{rate}.pt", 1.0, learning_rate=rate))
        for rate in (0.1, 0.2)
    ]
    files = [
        write(tmp_path / f"{rate}_{fold}.pt", 50 + fold, learning_rate=rate, fold=fold, folds=10)
        for rate in (0.2, 0.1)
        for fold in range(3)
    ]
    # a setting that the old minimum lacks would make it another run
    for minimum in minima:
        minimum["train_args"]["folds"] = 10
    first, second = read_repetitions(files[:5], minima)
    assert first.accuracies == {(42, 0): 50, (42, 1): 51}
    assert second.accuracies == {(42, 0): 50, (42, 1): 51, (42, 2): 52}
    assert first.samples == [19, 19]
    assert first.test_to_train == pytest.approx(1 / (9 * 0.9))  # a tenth of the rest validates


def test_what_is_no_repetition_is_refused(tmp_path: Path) -> None:
    minimum = checkpoint.load(write(tmp_path / "a.pt", 1.0))
    other = write(tmp_path / "b.pt", 1.0, epochs=7)
    state = tmp_path / "state.pt"
    checkpoint.save(state, {**checkpoint.load(other), "resume": {}})
    with pytest.raises(ValueError, match="differs in more than seed and fold"):
        read_repetitions([other], [minimum])
    with pytest.raises(ValueError, match="not the best checkpoint of a finished run"):
        read_repetitions([state], [minimum])
    with pytest.raises(ValueError, match="none of them has the settings"):
        read_repetitions([tmp_path / "a.pt"], [minimum, checkpoint.load(other)])
    with pytest.raises(ValueError, match="not others' models"):
        read_repetitions([other], [{"model": "nets:resnet", "model_args": {}}])


def test_difference_has_the_corrected_interval() -> None:
    """Nadeau and Bengio 2003, equation 9, by hand."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(70, 5, (2, 10)).round(2)
    text = difference([folds(list(first)), folds(list(second))], ["ADAM", "SAM"])
    d = second - first
    half = stats.t.ppf(0.975, 9) * np.sqrt((1 / 10 + 0.125) * d.var(ddof=1))
    assert f"SAM less ADAM: {d.mean():+.1f} points over 10 runs" in text
    assert f"(95 % interval {d.mean() - half:+.1f} to {d.mean() + half:+.1f})" in text
    assert text.endswith("can't be told apart")


@pytest.mark.parametrize("shift", [-10.0, 10.0])
def test_what_its_interval_carries_is_said_to_differ(shift: float) -> None:
    values = [70.0, 71.0, 72.0, 73.0]
    other = [v + shift + 0.1 * i for i, v in enumerate(values)]
    assert difference([folds(values), folds(other)], ["a", "b"]).endswith("they differ")
    same = difference([folds(values), folds([v + shift for v in values])], ["a", "b"])
    assert "all 4 values are the same" in same and "differ" not in same.replace("difference", "")


def test_one_sample_is_said_to_be_worth_what_it_is() -> None:
    assert worth([folds([1.0]), folds([2.0])]) == "one sample of 18 is 5.6 points"


def test_panel_has_a_dot_a_run_and_a_line_a_pair() -> None:
    axes = Figure().subplots()
    draw_repetitions(axes, [folds([70.0, 75.0, 80.0]), folds([71.0, 74.0])], LABELS)
    lines = [line.get_xdata().tolist() for line in axes.lines]
    for drawn in ([70.0, 71.0], [75.0, 74.0], [70.0, 75.0, 80.0], [71.0, 74.0]):
        assert drawn in lines
    assert [t.get_text() for t in axes.get_yticklabels()] == ["ADAM", "SAM, rho 0.05"]


def test_sharpness_along_the_training_is_that_of_the_run(tmp_path: Path, run_here) -> None:
    """It is in the picture and on the page; another run's, or none, is refused."""
    shutil.copytree(OLD.parents[1], tmp_path, dirs_exist_ok=True)
    model = tmp_path / "to_plot" / OLD.name
    flags = ["--model_files", model, model, "--out_dir", tmp_path, "--output", tmp_path / "a.png"]
    flags += ["--along", "--html", tmp_path / "a.html"]
    result = run_here(compare.main, *flags)
    assert result.returncode == 2 and "plot_sharpness.py writes it" in result.stderr
    row = {"residual": 0.0, "gradient_norm": 1.0, "products": 4, "converged": True}
    rows = [{"epoch": epoch, "lambda_max": 2.0 + epoch, **row} for epoch in (0, 5, 10)]
    run = run_settings(checkpoint.load(model))
    record = tmp_path / "Eigenvalues" / "GCN_SAM_sharpness_epochs.json"
    record.write_text(json.dumps({"settings": {"run": run}, "epochs": rows}, default=str))
    result = run_here(compare.main, *flags)
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "a.html").read_text("utf-8")
    assert 'id="along"' in page and "largest eigenvalue" in page
    other = {"settings": {"run": {**run, "epochs": 7_777}}, "epochs": rows}
    record.write_text(json.dumps(other, default=str))
    result = run_here(compare.main, *flags)
    assert result.returncode == 2 and "of another run, by epochs" in result.stderr
