"""The pictures of a report; an optimizer has one colour, style and mark in all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from loss_landscape.my_pyhessian.density_plot import draw_density
from loss_landscape.my_pyhessian.spectrum_file import Spectrum
from loss_landscape.pictures.scale import make_scale
from loss_landscape.pictures.surface_picture import add_colour_bar, draw_surface, grid
from loss_landscape.plot_sharpness import EMPTY
from loss_landscape.surface_file import Surface
from studies.comparisons import Comparison, Correlation, Quantity, Results
from studies.minima_files import AlongTraining
from studies.plot_history import Curve
from studies.plot_history import draw as draw_curves
from studies.sentences import carries
from utilities.pictures import line_style, plain_number

MARKS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
MOST_BANDS = 4  # more would cover each other
MOST_PANELS = 6
MOST_ABREAST = 4
MOST_TICKS = 5
SPAN = 5.0  # values whose largest is so many times their smallest get a log axis


def looks(optimizers: Sequence[str]) -> dict[str, int]:
    """The number of each optimizer, by which a picture chooses colour, style and mark."""
    return {name: number for number, name in enumerate(optimizers)}


def mark(number: int) -> str:
    return MARKS[number % len(MARKS)]


def plain(text: str) -> str:
    """Text in which a dollar begins no formula."""
    return text.replace("$", r"\$")


def draw_differences(
    panels: Sequence[tuple[str, Sequence[Comparison]]], numbers: Mapping[str, int]
) -> Figure:
    """Differences to the base with their intervals, a panel a quantity; filled if claimed.

    Args:
        panels: of each its axis' label and its comparisons; all list the same ones.
        numbers: of the optimizers.
    """
    rows = list(dict.fromkeys((c.optimizer, c.against, c.kind) for _, cs in panels for c in cs))
    figure = Figure(figsize=(3.2 * len(panels) + 2.2, 0.36 * len(rows) + 1.3), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (text, comparisons) in zip(axes, panels, strict=True):
        for c in comparisons:
            _draw_difference(ax, c, rows.index((c.optimizer, c.against, c.kind)), numbers)
        ratio = any(c.ratio for c in comparisons)
        ax.axvline(1 if ratio else 0, color="0.5", lw=1, zorder=0)
        if ratio:
            _plain_log(ax)
        ax.set(xlabel=text, ylim=(len(rows) - 0.4, -0.6))
        ax.grid(axis="x", alpha=0.25)
        if not ratio:
            ax.locator_params(axis="x", nbins=MOST_TICKS)
    labels = [plain(f"{name} against {base}\n{kind}") for name, base, kind in rows]
    axes[0].set_yticks(range(len(rows)), labels, fontsize=7.5)
    return figure


def _draw_difference(ax: Axes, c: Comparison, row: int, numbers: Mapping[str, int]) -> None:
    e, number = c.estimate, numbers[c.optimizer]
    values = np.array([e.value, e.low, e.high])
    value, low, high = np.exp(values.clip(None, 700)) if c.ratio else values
    colour = line_style(number)["color"]
    claimed = carries(e, c.corrected)
    ax.plot([low, high], [row, row], color=colour, lw=1.8)
    ax.plot(value, row, mark(number), color=colour, ms=7, mfc=colour if claimed else "white")


def _plain_log(ax: Axes, which: str = "x") -> None:
    """Make an axis logarithmic, with a few plain numbers at it that don't overlap."""
    ax.set(**{f"{which}scale": "log"})
    axis = {"x": ax.xaxis, "y": ax.yaxis}[which]
    low, high = axis.get_view_interval()
    for steps in ((1, 2, 5), (1, 3), (1,)):
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [step * 10.0**power for power in powers for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= MOST_TICKS:
            break
    if len(ticks) < 2:
        ticks = list(np.geomspace(low, high, 4)[1:3])
    ticks = ticks[:: -(-len(ticks) // MOST_TICKS)]
    axis.set_ticks(ticks, labels=[plain_number(tick) for tick in ticks])
    axis.set_ticks([], minor=True)


def draw_minima(
    results: Results, data: str, correlations: Sequence[Correlation], numbers: Mapping[str, int]
) -> Figure:
    """Test error over sharpness, a panel a measure, a point a minimum."""
    shown = correlations[:MOST_PANELS]
    abreast = min(len(shown), 3)
    floors = -(-len(shown) // abreast)
    figure = Figure(figsize=(max(3.7 * abreast, 6.0), 3.1 * floors + 0.6), layout="constrained")
    axes = figure.subplots(floors, abreast, sharey=True, squeeze=False)
    for ax, correlation in zip(axes.flat, shown, strict=False):
        _draw_minima(ax, results, data, correlation, numbers)
    for ax in axes.flat[len(shown) :]:
        ax.set_visible(False)
    for row in axes:
        row[0].set_ylabel(f"100 - {results.score.text} (%)")
    figure.legend(
        handles=[_key(name, number) for name, number in numbers.items()],
        loc="outside lower center",
        ncols=min(len(numbers), 4),
        frameon=False,
        fontsize=9,
    )
    return figure


def _draw_minima(
    ax: Axes, results: Results, data: str, correlation: Correlation, numbers: Mapping[str, int]
) -> None:
    minima = results.minima(data, correlation.quantity)
    for name, number in numbers.items():
        own = [(value, error) for run, value, error in minima if run.optimizer == name]
        if own:
            x, y = zip(*own, strict=True)
            colour = line_style(number)["color"]
            ax.plot(x, y, mark(number), color=colour, ms=4, alpha=0.6, mew=0)
    values = np.array([value for _, value, _ in minima])
    if values.min() > 0 and values.max() > SPAN * values.min():
        _plain_log(ax)
    else:
        ax.xaxis.set_major_locator(MaxNLocator(MOST_TICKS))
    tau = correlation.tau
    span = "" if np.isnan(tau.low) else f" ({tau.low:.2f} to {tau.high:.2f})"
    said = "no tau" if np.isnan(tau.value) else f"tau {tau.value:.2f}{span}"
    ax.set_title(plain(f"{correlation.quantity.text}\n{said}"), fontsize=9)
    ax.grid(alpha=0.25)


def _key(name: str, number: int) -> Line2D:
    colour = line_style(number)["color"]
    return Line2D([], [], marker=mark(number), color=colour, ls="", label=plain(name))


def draw_histories(curves: Sequence[Curve], folds: bool, title: str) -> Figure:
    """Learning curves, training and validation, each the mean over the optimizer's runs.

    Args:
        curves: an optimizer each.
        folds: whether the runs are of folds, whose overlap Student's interval doesn't know.
        title: the study's name of the data set, of which another may be another split.
    """
    figure = draw_curves(curves, bands=not folds and len(curves) <= MOST_BANDS)
    figure.suptitle(plain(title[:80]))
    return figure


def draw_surfaces(surfaces: Mapping[str, Surface], name: str) -> Figure:
    """Surfaces from above, on one scale; a cross is the checkpoint."""
    scale = make_scale([grid(surface, name).filled(np.nan) for surface in surfaces.values()])
    abreast = min(len(surfaces), MOST_ABREAST)
    floors = -(-len(surfaces) // abreast)
    size = (2.6 * abreast + 1.2, 2.75 * floors + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(floors, abreast, sharex=True, sharey=True, squeeze=False)
    for ax, (label, surface) in zip(axes.flat, surfaces.items(), strict=False):
        draw_surface(ax, surface, name, scale)
        ax.set_title(plain(label), fontsize=9)
        ax.set_aspect("equal")
        ax.label_outer()
    for ax in axes.flat[len(surfaces) :]:
        ax.set_visible(False)
    add_colour_bar(figure, scale, axes, "training loss")
    return figure


def draw_along_training(runs: Mapping[str, AlongTraining], numbers: Mapping[str, int]) -> Figure:
    """The largest eigenvalue of the Hessian at the epochs that a run kept, a curve a run.

    Dotted and without marks is the run's edge of stability, where there is one and it is near.
    """
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    ax = figure.subplots()
    shown = [value for run in runs.values() for value in run.values.values()]
    highest = max(shown)
    for name, run in runs.items():
        look: Any = line_style(numbers[name])
        values = list(run.values.values())
        ax.plot(list(run.values), values, marker="o", ms=3, label=plain(name), **look)
        edges = run.edge.values if run.edge else {}
        if not edges:
            continue
        label, lowest = f"edge of stability, {name}", min(edges.values())
        if lowest > EMPTY * highest:
            label, edges = f"{label}: {lowest:.3g} and more, above the picture", {}
        dots: Any = {"color": look["color"], "ls": (0, (1, 1)), "lw": 1.2}
        ax.plot(list(edges), list(edges.values()), label=plain(label), **dots)
        shown += edges.values()
    if min(shown) > 0 and max(shown) > SPAN * min(shown):
        _plain_log(ax, "y")
    ax.set(xlabel="epoch", ylabel="largest eigenvalue of the Hessian")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=0.25)
    ax.legend()
    return figure


def draw_spectra(spectra: Mapping[str, Spectrum], numbers: Mapping[str, int]) -> Figure:
    """The densities of the Hessian's spectra on one axis."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    ax = figure.subplots()
    # Relatives of SAM are optimizers of their own here, though they share a flag.
    own = [replace(s, record={**s.record, "optimizer": name}) for name, s in spectra.items()]
    draw_density(ax, own, list(map(plain, spectra)))
    _recolour(ax, [numbers[name] for name in spectra])
    return figure


def _recolour(ax: Axes, numbers: Sequence[int]) -> None:
    """Give the labelled curves, and what has a curve's colour, the looks of ``numbers``."""
    curves: list[Any] = ax.get_legend_handles_labels()[0]
    looks = {to_rgb(c.get_color()): line_style(n) for c, n in zip(curves, numbers, strict=True)}
    for curve in curves:
        curve.set_linestyle(looks[to_rgb(curve.get_color())]["linestyle"])
    artists: list[Any] = [*ax.lines, *ax.collections]
    for artist in artists:
        colour = artist.get_color() if hasattr(artist, "get_color") else artist.get_facecolor()
        (rgba,) = to_rgba_array(colour)[:1]
        artist.set_color(looks[tuple(rgba[:3])]["color"])
    ax.legend()


def quantity_axis(quantity: Quantity, ratio: bool) -> str:
    """What a panel of differences shows."""
    if ratio:
        return f"{quantity.text}, times the base's"
    return f"difference in {quantity.text}" + (f" ({quantity.unit})" if quantity.unit else "")
