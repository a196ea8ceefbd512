"""Histories drawn as they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from histories import run_rows, write
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from scipy import stats

from studies import plot_history
from utilities import cli
from utilities.files import ROOT
from utilities.history import read_history


def test_runs_that_differ_in_the_seed_are_one_curve_with_its_t_interval(tmp_path: Path) -> None:
    paths = []
    for optimizer, rho in (("ADAM", 0.0), ("SAM", 0.05)):
        for seed in range(3):
            path = tmp_path / f"{optimizer}{seed}.dat"
            flags = {"optimizer": optimizer, "rho": rho, "threads": seed, "seed": seed, "eta": 0.01}
            paths.append(write(path, run_rows(seed), **flags))
    adam, sam = plot_history.read_curves(paths, ["seed"])
    assert (adam.label, sam.label) == ("ADAM (n=3)", "SAM, rho 0.05 (n=3)")
    values = [read_history(path)[1]["val_loss"] for path in paths[:3]]
    mean, half = plot_history.mean_and_band(adam.values["val_loss"])
    for epoch in range(4):
        sample = [run[epoch] for run in values]
        interval = stats.ttest_1samp(sample, 0).confidence_interval(0.95)
        assert mean[epoch] == pytest.approx(np.mean(sample))
        assert [mean[epoch] - half[epoch], mean[epoch] + half[epoch]] == pytest.approx(interval)


def test_one_run_has_no_band_and_a_short_one_ends_its_curve(tmp_path: Path, capsys) -> None:
    write(tmp_path / "a.dat", run_rows(0, 5), seed=0)
    write(tmp_path / "b.dat", run_rows(1, 3), seed=1)
    (curve,) = plot_history.read_curves([tmp_path / "a.dat"], ["seed"])
    assert np.isnan(plot_history.mean_and_band(curve.values["val_acc"])[1]).all()
    capsys.readouterr()
    (curve,) = plot_history.read_curves([tmp_path / "a.dat", tmp_path / "b.dat"], ["seed"])
    assert curve.values["val_acc"].shape == (2, 3)
    assert "b.dat ends after epoch 3" in capsys.readouterr().out


def test_a_run_in_its_first_epoch_is_left_out(tmp_path: Path, capsys) -> None:
    whole, fresh = write(tmp_path / "a.dat", run_rows(0), seed=0), write(tmp_path / "b.dat", [])
    (curve,) = plot_history.read_curves([fresh, whole], ["seed"])
    assert curve.values["epoch"].shape == (1, 4)
    assert f"{fresh} has no epoch yet" in capsys.readouterr().out
    with pytest.raises(ValueError, match="nor in any other"):
        plot_history.read_curves([fresh], ["seed"])


def test_folds_are_repetitions_if_asked_for(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / f"{fold}.dat", run_rows(fold), seed=0, fold=fold) for fold in range(3)
    ]
    assert len(plot_history.read_curves(paths, ["seed"])) == 3
    assert len(plot_history.read_curves(paths, ["seed", "fold"])) == 1
    with pytest.raises(ValueError, match=r"0\.dat: the same settings as .*0\.dat, seed too"):
        plot_history.read_curves([paths[0], paths[0]], ["seed"])


def test_eight_curves_are_told_apart_and_nothing_overlaps(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / f"{k}{seed}.dat", run_rows(10 * k + seed), seed=seed, rho=k / 100,
              optimizer="SAM", schedule=f"a_long_name_{k}", tag="$\\frac$")
        for k in range(8) for seed in range(2)
    ]  # fmt: skip
    figure = plot_history.draw(plot_history.read_curves(paths, ["seed"]))
    FigureCanvasAgg(figure).draw()
    looks = {(to_rgb(line.get_color()), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(looks) == 8
    legend = figure.legends[0].get_window_extent()
    below = [ax.get_tightbbox().y0 for ax in figure.axes]
    assert legend.y1 <= min(below) and legend.y0 >= 0
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.width
    assert min(ax.get_window_extent().height for ax in figure.axes) > 2 * figure.dpi  # inches
    drawn = figure.axes[1].lines[3].get_ydata()  # validation loss of the fourth curve
    pair = [read_history(path)[1]["val_loss"] for path in paths[6:8]]
    assert drawn.tolist() == pytest.approx(np.mean(pair, axis=0).tolist())


@pytest.mark.parametrize(("low", "scale"), [(0.5, "linear"), (0.001, "log"), (0.0, "linear")])
def test_a_loss_over_decades_gets_a_log_axis(low: float, scale: str) -> None:
    ax = Figure().add_subplot()
    plot_history.set_limits(ax, [np.array([[2.0, low]])], "loss")
    assert ax.get_yscale() == scale
    assert ax.get_ylim()[0] <= low and ax.get_ylim()[1] >= 2


def test_the_command_line_needs_no_display_and_no_locale(tmp_path: Path) -> None:
    path = write(tmp_path / "r\u00fcn.dat", run_rows(0), seed=0)
    write(tmp_path / "short.dat", run_rows(1, 3), seed=1)
    odd = {"DISPLAY", "LANG", "LC_ALL", "PYTHONUTF8"}
    env = {k: v for k, v in os.environ.items() if k not in odd}
    env |= {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    picture = tmp_path / "new" / "\u00fc.png"
    command = [sys.executable, "-m", "studies.plot_history", path, tmp_path / "short.dat"]
    done = subprocess.run(
        [*map(str, command), "--output", str(picture)],
        cwd=ROOT, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "\\xfc.png" in done.stdout, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert os.listdir(picture.parent) == [picture.name]


def test_bad_input_is_one_line_code_2_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    bad, picture = tmp_path / "bad.dat", tmp_path / "p.png"
    bad.write_text("epoch\tx\n1\tnan\n")
    picture.write_text("old")
    monkeypatch.setattr(sys, "argv", ["plot_history", str(bad), "--output", str(picture)])
    with pytest.raises(SystemExit) as end:
        cli.run(plot_history.main)
    errors = capsys.readouterr().err
    assert end.value.code == 2
    assert "bad.dat, row 2, x: 'nan'" in errors and len(errors.splitlines()) == 1
    assert picture.read_text() == "old" and len(os.listdir(tmp_path)) == 2


def test_a_name_that_is_no_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.xyz: no picture's name"):
        plot_history.main([str(tmp_path / "run.dat"), "--output", str(tmp_path / "a.xyz")])
    with pytest.raises(FileNotFoundError, match="no such history"):
        plot_history.main([str(tmp_path / "run.dat"), "--output", str(tmp_path / "a.png")])
