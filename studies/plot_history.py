"""Draw loss, accuracy and macro F1 of several runs, on training and validation, in one figure.

    python -m studies.plot_history outputs/*.dat --output plots/history.png

Runs that differ in nothing but their seed are one curve: the mean, in a band that is the 95 %
t interval of that mean. ``--over seed fold`` takes folds for repetitions too.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utilities.cli import Parser, report_files, run
from utilities.files import ROOT
from utilities.history import Columns, NoEpochError, Settings, read_history
from utilities.pictures import check_picture, line_style, save_picture
from utilities.runs import DATA_SETS, identity

PARTS = {"train": "training", "val": "validation"}
ROWS = {"loss": "loss", "acc": "accuracy (%)", "f1": "macro F1 (%)"}
FEW = 6  # runs; their band may be wider than all of them
LOG_FROM = 20.0  # a loss whose largest value is this many times its smallest gets a log axis


@dataclass
class Curve:
    """Runs of the same settings.

    Attributes:
        settings: all that define it.
        values: (runs, epochs) of each column, to the end of the shortest run.
        label: for the legend, from what tells this curve from the others.
        number: chooses colour and style; None for its place among the curves of a figure.
    """

    settings: Settings
    values: dict[str, np.ndarray]
    label: str = ""
    number: int | None = None


def read_curves(paths: Sequence[Path], over: Sequence[str]) -> list[Curve]:
    """Read histories and gather the runs that differ in nothing but the settings ``over``.

    One without an epoch yet is left out, and a line says so.

    Raises:
        FileNotFoundError: no such history.
        ValueError: a history is damaged, two are of one and the same run, or none has an epoch.
    """
    groups: dict[frozenset[tuple[str, str]], dict[tuple[str | None, ...], Any]] = {}
    settings_of: dict[frozenset[tuple[str, str]], Settings] = {}
    for path in paths:
        try:
            settings, columns = read_history(path)
        except NoEpochError:
            print(f"note: {path} has no epoch yet and is left out")
            continue
        which = tuple(settings.get(key) for key in over)
        of_curve = identity(settings, over)
        key = frozenset(of_curve.items())
        runs = groups.setdefault(key, {})
        settings_of.setdefault(key, of_curve)
        if which in runs:
            raise ValueError(
                f"{path}: the same settings as {runs[which][0]}, seed too; leave one of them out"
            )
        runs[which] = (path, columns)
    if not groups:
        raise ValueError(f"{paths[0]}: no epoch in it nor in any other; wait for the first")
    curves = [_curve(settings_of[key], list(runs.values())) for key, runs in groups.items()]
    for curve, label in zip(curves, labels([c.settings for c in curves]), strict=True):
        curve.label = textwrap.fill(f"{label} (n={len(curve.values['epoch'])})", 66)
    return curves


def _curve(settings: Settings, runs: list[tuple[Path, Columns]]) -> Curve:
    names = [name for name in runs[0][1] if all(name in columns for _, columns in runs)]
    lengths = [len(columns["epoch"]) for _, columns in runs]
    for (path, _), length in zip(runs, lengths, strict=True):
        if length < max(lengths):
            print(f"note: {path} ends after epoch {length}, and so does its curve")
    stop = min(lengths)
    return Curve(settings, {k: np.array([c[k][:stop] for _, c in runs]) for k in names})


def labels(groups: Sequence[Settings]) -> list[str]:
    """For each group's settings, the ones in which the groups differ, as text for a legend."""
    keys = list(dict.fromkeys(key for settings in groups for key in settings))
    differing = [key for key in keys if len({s.get(key) for s in groups}) > 1]
    differing.sort(key=lambda key: (key != "optimizer", keys.index(key)))
    return [_label(settings, differing) for settings in groups]


def _label(settings: Settings, differing: list[str]) -> str:
    words = []
    for key in differing:
        if key == "rho" and "SAM" not in settings.get("optimizer", "SAM"):
            continue  # it has none
        value = _short(settings.get(key, "") or "unset")
        words.append(value if key in ("optimizer", "dataset") else f"{key} {value}")
    text = ", ".join(words) or settings.get("optimizer", "all runs")
    return text[:240].replace("$", r"\$")  # a dollar would begin a formula


def _short(value: str) -> str:
    """A number as a person would write it; all else as it is."""
    try:
        return format(float(value), ".6g") if "." in value else value
    except ValueError:
        return value


def mean_and_band(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over runs and half the width of its 95 % t interval (Student 1908).

    Args:
        values: (runs, epochs).

    Returns:
        Mean and half width, (epochs,) each; the width is NaN for a single run.
    """
    from utilities.statistics import half_width  # loading scipy for it takes half a second

    return values.mean(axis=0), half_width(values)


def draw(curves: Sequence[Curve], bands: bool = True) -> Figure:
    """One row for each measure, training left and validation right, on one scale a row.

    Args:
        curves: what is drawn.
        bands: draw the intervals too.

    Raises:
        ValueError: the histories have no loss, accuracy or F1 in common.
    """
    rows = [row for row in ROWS if all(f"{p}_{row}" in c.values for p in PARTS for c in curves)]
    if not rows:
        raise ValueError("the histories have no column train_ and val_ loss, acc or f1 in common")
    height = 2.9 * len(rows) + 0.7 + 0.2 * sum(c.label.count("\n") + 1 for c in curves)
    figure = Figure(figsize=(11, height), layout="constrained")
    grid = figure.subplots(len(rows), 2, sharex=True, sharey="row", squeeze=False)
    for row, axes in zip(rows, grid, strict=True):
        for part, ax in zip(PARTS, axes, strict=True):
            ax.grid(alpha=0.25)
            for number, curve in enumerate(curves):
                look = number if curve.number is None else curve.number
                draw_curve(ax, curve, f"{part}_{row}", look, bands)
        axes[0].set_ylabel(ROWS[row])
        shown = [extent(c.values[f"{part}_{row}"], bands) for part in PARTS for c in curves]
        set_limits(axes[0], shown, row)
    for ax, name in zip(grid[0], PARTS.values(), strict=True):
        ax.set_title(name)
    for ax in grid[-1]:
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    add_legend(figure, curves, grid[0, 0], bands)
    return figure


def draw_curve(ax: Axes, curve: Curve, name: str, number: int, band: bool = True) -> None:
    """Draw one column of one curve, the ``number``-th of the figure."""
    mean, half = mean_and_band(curve.values[name])
    epochs = np.arange(1, len(mean) + 1)
    look: Any = line_style(number)
    marker = "o" if len(epochs) <= 15 else None
    ax.plot(epochs, mean, marker=marker, ms=3.5, lw=1.6, label=curve.label, **look)
    if band and len(curve.values[name]) > 1:
        ax.fill_between(epochs, mean - half, mean + half, color=look["color"], alpha=0.15, lw=0)


def extent(values: np.ndarray, band: bool = True) -> np.ndarray:
    """What has to be in sight of a curve (runs, epochs): all of few runs, the band of many."""
    if not band:
        return values.mean(axis=0)
    if len(values) < FEW:
        return values
    mean, half = mean_and_band(values)
    return np.stack([mean - half, mean + half]).clip(values.min(), values.max())


def set_limits(ax: Axes, values: list[np.ndarray], row: str) -> None:
    """Show all runs' values: a band of two runs would be 13 times as wide, and is cut."""
    low, high = min(v.min() for v in values), max(v.max() for v in values)
    if row == "loss" and low > 0 and high / low >= LOG_FROM:
        ax.set_yscale("log")
        ax.set_ylim(low / 1.15, high * 1.15)
        return
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    top = high + margin if row == "loss" else min(high + margin, 101)
    ax.set_ylim(max(low - margin, 0) if low >= 0 else low - margin, top)


def add_legend(figure: Figure, curves: Sequence[Curve], ax: Axes, bands: bool) -> None:
    """Name the curves below the axes, and above them the data set if it is one."""
    lines = ax.get_lines()
    widest = max(len(line) for c in curves for line in c.label.splitlines())
    columns = max(1, min(len(curves), 4, 150 // (widest + 8)))
    several = any(len(v) > 1 for c in curves for v in c.values.values())
    said = "mean of n runs" + (", band: 95 % t interval of the mean" if bands else "")
    figure.legend(
        handles=lines,
        labels=[c.label for c in curves],
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=9,
        handlelength=3,
        title=said if several else None,
    )
    names = {c.settings.get("dataset", "") for c in curves}
    if len(names) == 1:
        name = names.pop()
        figure.suptitle(DATA_SETS.get(name, name)[:80].replace("$", r"\$"))


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("histories", type=Path, nargs="+", help="outputs/*.dat")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "plots" / "history.png", help="the picture"
    )
    parser.add_argument(
        "--over", nargs="+", default=["seed"], help="settings in which a curve's runs may differ"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> Path:
    """Draw as the command line says; return the picture's path."""
    args = parse_args(argv)
    check_picture(args.output)
    save_picture(draw(read_curves(args.histories, args.over)), args.output)
    report_files([args.output])
    return args.output


if __name__ == "__main__":
    run(main)
