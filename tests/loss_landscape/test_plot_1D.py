"""Lines along several directions: what may stand together, and how flat a minimum is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from loss_landscape import plot_1D
from loss_landscape.sharpness_measures.flatness import flatness, largest_radius
from loss_landscape.surface_file import Surface, create, write_cells
from utilities.statistics import half_width

X = np.linspace(-1, 1, 21)
SAID = {
    "checkpoint_sha256": "one",
    "seed": 1,
    "norm": "filter filter",
    "samples": 0,
    "dataset": "MUTAG",
    "title": "GCN, ADAM",
}


def line(path: Path, slope: float = 1.0, x: np.ndarray = X, **said: Any) -> Path:
    """A file of the line 0.5 + slope x^2."""
    recorded = {"idx": said.pop("idx", 0), "model_file2": said.pop("end", None)}
    arguments = json.dumps({**recorded, "directions": said.pop("kind", "random")})
    attributes = {**SAID, **said, "arguments": arguments}
    create(path, Surface(x, None, {}, attributes), [], ("train_loss",))
    values = {"train_loss": 0.5 + slope * x**2}
    write_cells(path, np.ones(len(x), bool), values)
    return path


def bundles(folder: Path, count: int = 4) -> list[Path]:
    """Two checkpoints, each along the same directions; the second's rises are twice the first's."""
    return [
        line(folder / f"{name}.{seed}.h5", factor * (1 + seed), seed=seed, checkpoint_sha256=name)
        for name, factor in (("one", 1.0), ("two", 2.0))
        for seed in range(count)
    ]


def test_mean_rise_is_the_curvatures_and_its_interval_the_textbooks(tmp_path: Path) -> None:
    """Around a quadratic minimum the rise at r is r^2 d'Hd / 2, here r^2 (1 + seed)."""
    one, two = plot_1D.read_bundles(bundles(tmp_path), "train_loss")
    figure = flatness(one, "train_loss", 0.5)
    rises = 0.25 * np.array([1.0, 2.0, 3.0, 4.0])
    np.testing.assert_allclose(figure.rises, rises)
    low, high = stats.ttest_1samp(rises, 0).confidence_interval(0.95)
    assert figure.mean - figure.half_width == pytest.approx(low)
    assert figure.mean + figure.half_width == pytest.approx(high)
    doubled = flatness(two, "train_loss", 0.5)
    np.testing.assert_allclose(doubled.rises, 2 * rises)
    text = plot_1D.report(["A", "B"], [figure, doubled])[-1]
    half = float(half_width(rises))  # of pairs, not of two means
    assert text == f"  B, less A: +0.625 +- {half:#.2g}"


@given(st.integers(0, 2**32 - 1))
def test_a_slope_is_no_rise(seed: int) -> None:
    """A checkpoint that isn't quite at its minimum is no flatter on the side that falls."""
    slope, curve = np.random.default_rng(seed).normal(size=2)
    surface = Surface(X, None, {"train_loss": 1 + slope * X + curve * X**2})
    rise = flatness([surface], "train_loss", 0.3).rises[0]
    assert rise == pytest.approx(0.09 * curve, abs=1e-12)


def test_one_direction_has_no_interval() -> None:
    figure = flatness([Surface(X, None, {"train_loss": X**2})], "train_loss", 1.0)
    assert str(figure) == "1 over 1 direction"
    assert np.isnan(figure.half_width)


def test_the_interval_holds_the_mean_as_often_as_it_says() -> None:
    """Coverage over 2,000 draws of 8 normal rises: 95 % with a standard error of 0.5 %."""
    rng = np.random.default_rng(0)
    draws = rng.normal(3.0, 2.0, (2000, 8))
    held = [abs(draw.mean() - 3.0) <= half_width(draw) for draw in draws]
    assert 0.93 < np.mean(held) < 0.97


@pytest.mark.parametrize(
    ("x", "radius"),
    [
        (X, 1.0),
        (X[::-1], 1.0),
        (np.linspace(-0.5, 1, 16), 0.5),
        (np.linspace(-1, 1, 20), None),
        (np.linspace(0, 1, 11), None),
        (np.array([0.0]), None),
    ],
)
def test_the_largest_radius_has_points_on_both_sides(x: np.ndarray, radius: float | None) -> None:
    assert largest_radius([Surface(x, None, {})]) == pytest.approx(radius)


def test_no_rise_where_a_value_is_missing_or_there_is_no_point() -> None:
    values = 1 + X**2
    for position, message in ((0, "is nan"), (20, "is inf"), (10, "is inf")):
        holed = values.copy()
        holed[position] = np.nan if position == 0 else np.inf
        with pytest.raises(ValueError, match=message):
            flatness([Surface(X, None, {"train_loss": holed})], "train_loss", 1.0)
    with pytest.raises(ValueError, match=r"no point at 0\.25, the nearest is 0\.2"):
        flatness([Surface(X, None, {"train_loss": values})], "train_loss", 0.25)


def test_no_rise_from_what_was_not_measured() -> None:
    guessed = np.zeros(len(X), dtype=bool)
    guessed[5] = True  # -0.5
    lines = [Surface(X, None, {"train_loss": 1 + X**2}, interpolated=guessed, deviation=(0, 0))]
    assert flatness(lines, "train_loss", 1.0).mean == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"at -0\.5 of a line is interpolated, not measured"):
        flatness(lines, "train_loss", 0.5)


def test_bands_of_two_checkpoints(tmp_path: Path, run_here) -> None:
    output = tmp_path / "lines.png"
    flags = ("--output", output, "--radius", 0.5, "--surf_file", *bundles(tmp_path))
    result = run_here(plot_1D.main, *flags)
    assert result.returncode == 0, result.stderr
    assert output.stat().st_size > 10_000
    assert "mean rise of the loss at 0.5, with 95 % intervals" in result.stdout
    assert "over 4 directions" in result.stdout and "less GCN, ADAM" in result.stdout


OTHERS = {
    "range": ({"x": 2 * X}, "--x"),
    "points": ({"x": np.linspace(-1, 1, 11)}, "--x"),
    "norm": ({"norm": "layer filter"}, r"--norm \(\['layer'\], not \['filter'\]\)"),
    "samples": ({"samples": 500}, r"--samples \(500, not 0\)"),
    "data": ({"dataset": "PROTEINS"}, r"--dataset \(PROTEINS, not MUTAG\)"),
    "statistics": ({"bn": "recalibrate"}, r"--bn \(recalibrate, not eval\)"),
    "end": ({"end": "B.pt"}, r"--model_file2 \(B\.pt, not None\)"),
    "twice": ({"seed": 1}, "a second line with --seed 1 --idx 0"),
    "another's draws": ({"checkpoint_sha256": "two", "seed": 7}, "not those of GCN, ADAM .*seed 1"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_lines_that_were_not_taken_in_one_way_are_refused(name: str, tmp_path: Path) -> None:
    """The kind: every setting in which a line can differ but for its own draw."""
    said, message = OTHERS[name]
    paths = [line(tmp_path / "a.h5"), line(tmp_path / "b.h5", **{"seed": 2, **said})]
    with pytest.raises(ValueError, match=message) as error:
        plot_1D.read_bundles(paths, "train_loss")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("said", "flag"),
    [({"end": "B.pt"}, "--model_file2"), ({"kind": "gradient"}, "--directions gradient")],
)
def test_chosen_lines_are_no_random_draws(said: dict, flag: str, tmp_path: Path) -> None:
    paths = [line(tmp_path / f"{seed}.h5", seed=seed, **said) for seed in (1, 2)]
    with pytest.raises(ValueError, match=f"come from {flag}, so it is no random draw"):
        plot_1D.read_bundles(paths, "train_loss")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--loss_max", "0.4"], "--loss_max 0.4: not above the lowest value, 0.5"),
        (["--xmin", "1", "--xmax", "-1"], "--xmin, --xmax: nothing lies between 1 and -1"),
        (["--radius", "0.5"], "--output, --radius: are for several --surf_file"),
        (["--surf_name", "test_loss"], "--surf_name test_loss: not in"),
    ],
)
def test_flags_that_leave_nothing_to_draw_are_one_line(flags, message, tmp_path, run_here) -> None:
    path = line(tmp_path / "a.h5")
    result = run_here(plot_1D.main, "--surf_file", path, "--out_dir", tmp_path, *flags)
    assert result.returncode == 2 and message in result.stderr
    assert len(result.stderr.splitlines()) == 1 and not (tmp_path / "plots").exists()


def test_a_line_of_decades_is_logarithmic_and_one_with_zero_is_not(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    for values, log, scale in (
        (10.0 ** (3 * X), None, "log"),
        (10.0 ** (3 * X), False, "linear"),
        (X**2, None, "linear"),
        (1 + X**2, True, "log"),
    ):
        axes = Figure().subplots()
        plot_1D.set_scale(axes, [values], log=log)
        assert axes.get_yscale() == scale
    with pytest.raises(ValueError, match="--log: the values go down to 0"):
        plot_1D.set_scale(Figure().subplots(), [X**2], log=True)
