"""The figures of the interactive page, which plotly draws: surfaces to turn, spectra, curves."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import plotly.graph_objects as go
from matplotlib.colors import to_hex, to_rgb
from plotly.subplots import make_subplots

from loss_landscape.my_pyhessian.density_plot import (
    band_of,
    bars_of,
    described,
    floor_of,
    grid_of,
    kernel_of,
    matrix_of,
    rug_of,
    styles,
    ticks_of,
)
from loss_landscape.my_pyhessian.spectral_density import Band, Kernel
from loss_landscape.my_pyhessian.spectrum_file import Spectrum
from loss_landscape.pictures.scale import LARGEST, Scale, plain_numbers
from loss_landscape.sharpness_measures.epoch_sharpness import Row
from loss_landscape.surface_file import ACCURACY, Surface
from utilities.pictures import COLOURS, HEIGHTS, MARK

DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}  # matplotlib's and plotly's
MOST_LETTERS = 60  # of a label in a legend


def surface_figure(surface: Surface, name: str, scale: Scale, text: str) -> go.Figure:
    """A surface to turn, with the values of ``name`` under the mouse.

    Height and colour have one scale, cut at its ends; the value that is shown is the file's own.

    Args:
        surface: in 2D.
        name: of the values.
        scale: of all surfaces on the page.
        text: what the values are, for people.
    """
    text = html.escape(text)
    shown = _heights(surface, name, scale, text)
    figure = go.Figure([shown, *_checkpoint(surface, surface.values[name], scale)])
    figure.update_layout(
        scene={
            "xaxis": {"title": {"text": "direction x"}},
            "yaxis": {"title": {"text": "direction y"}},
            "zaxis": _height_axis(scale, text),
            "aspectmode": "cube",
            "camera": {"eye": {"x": 1.4, "y": -1.7, "z": 1.1}, "center": {"z": -0.12}},
        },
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        height=460,
        showlegend=False,
    )
    return figure


def _heights(surface: Surface, name: str, scale: Scale, text: str) -> go.Surface:
    """The values as heights and colours, with a colour bar."""
    values = surface.values[name]
    place = scale.position(values.clip(-LARGEST, LARGEST))
    last = len(scale.levels) - 1
    shades = matplotlib.colormaps[HEIGHTS](np.linspace(0, 1, 33))
    shown = np.arange(0, last + 1, -(-last // 20))
    bar = {"title": {"text": text, "side": "right"}, "tickvals": shown, "len": 0.8}
    return go.Surface(
        x=surface.x,
        y=surface.y,
        z=np.where(np.isfinite(values), scale.height(values, cut=False), np.nan),
        surfacecolor=np.where(np.isfinite(values), place, np.nan),
        cmin=0,
        cmax=last,
        colorscale=[(k / 32, to_hex(c)) for k, c in enumerate(shades)],
        colorbar={**bar, "ticktext": plain_numbers(scale.levels[shown])},
        **_under_the_mouse(surface, name, text),
    )


def _under_the_mouse(surface: Surface, name: str, text: str) -> dict[str, Any]:
    """What a point says of itself: the file's own value, and the accuracy where there is one."""
    values = surface.values[name]
    accuracy = surface.values.get(ACCURACY.get(name, ""))
    hover = f"x %{{x:.4g}}, y %{{y:.4g}}<br>{text} %{{customdata[0]}}"
    below = np.full_like(values, np.nan) if accuracy is None else accuracy
    guessed = np.zeros(values.shape) if surface.interpolated is None else surface.interpolated
    # By column and row, (nx, ny): plotly takes these the other way round than z.
    columns = zip(values.T, below.T, guessed.T, strict=True)
    said = [
        [
            (f"{v:.6g}", f"{a:.4g}", "<br>interpolated" if g else "")
            for v, a, g in zip(*column, strict=True)
        ]
        for column in columns
    ]
    hover += "" if accuracy is None else "<br>accuracy %{customdata[1]} %"
    return {"customdata": said, "hovertemplate": hover + "%{customdata[2]}<extra></extra>"}


def _height_axis(scale: Scale, text: str) -> dict[str, Any]:
    ends = scale.height(scale.levels[[0, -1]])
    margin = 0.02 * (ends[1] - ends[0])
    axis = {"range": [ends[0] - margin, ends[1] + margin], "title": {"text": text}}
    if scale.log:
        ticks = scale.ticks(5)
        axis |= {"tickvals": scale.height(ticks), "ticktext": plain_numbers(ticks)}
    return axis


def _checkpoint(surface: Surface, values: np.ndarray, scale: Scale) -> list[go.Scatter3d]:
    """A mark at (0, 0), where the grid has that point."""
    assert surface.y is not None
    rows, columns = np.flatnonzero(surface.y == 0), np.flatnonzero(surface.x == 0)
    if not len(rows) or not len(columns) or not np.isfinite(values[rows[0], columns[0]]):
        return []
    height = scale.height(values[rows[0], columns[0]])
    marker = {"color": MARK, "size": 5, "symbol": "cross"}
    # Without hover of its own: the surface's value below it is to be seen.
    return [go.Scatter3d(x=[0], y=[0], z=[height], mode="markers", marker=marker, hoverinfo="skip")]


def spectra_figure(spectra: Sequence[Spectrum], labels: Sequence[str]) -> go.Figure:
    """The densities of several spectra with bands and Ritz values, as ``density_plot.py`` has them.

    The eigenvalues' axis is asinh(eigenvalue / linear), as the kernel is; ticks and what is under
    the mouse say the eigenvalue itself.
    """
    kernel = kernel_of(spectra)
    grid, floor = grid_of(spectra, kernel, 1000), floor_of(spectra, kernel)
    figure = go.Figure()
    top = floor
    for i, (spectrum, label) in enumerate(zip(spectra, labels, strict=True)):
        found = band_of(spectrum, grid, kernel)
        top = max(top, float(found.upper.max()))
        look, named = styles(spectra)[i], {"name": _short(label), "legendgroup": f"{i}"}
        figure.add_traces(_density(found, grid, kernel, floor, look, named))
        figure.add_trace(_ritz_values(spectrum, kernel, floor * 0.4 ** (i + 1), look, named))
    low, high = grid[0], grid[-1]
    ticks = ticks_of(kernel, low, high)
    figure.update_layout(
        xaxis={
            "title": {"text": f"eigenvalue of the {matrix_of(spectra[0])}"},
            "tickvals": kernel.place(ticks),
            "ticktext": [f"{tick:g}" for tick in ticks],
        },
        yaxis={
            "type": "log",
            "exponentformat": "power",
            "range": [np.log10(floor * 0.4 ** (len(spectra) + 1)), np.log10(2 * top)],
            "title": {"text": "spectral density"},
        },
        title={
            "text": described(spectra, kernel).replace("\n", "; "),
            "font": {"size": 13},
        },
        margin={"t": 40},
        height=460,
        legend={"x": 0.99, "xanchor": "right", "y": 0.95},
        template="plotly_white",
    )
    return figure


def _density(
    found: Band,
    grid: np.ndarray,
    kernel: Kernel,
    floor: float,
    look: dict[str, Any],
    named: dict[str, str],
) -> list[go.Scatter]:
    """A band and its curve, which is not drawn below ``floor``."""
    places = kernel.place(grid)
    red, green, blue = (round(255 * part) for part in to_rgb(look["color"]))
    band = go.Scatter(
        x=np.concatenate([places, places[::-1]]),
        y=np.maximum(np.concatenate([found.upper, found.lower[::-1]]), floor / 1e3),
        **{"fill": "toself", "fillcolor": f"rgba({red},{green},{blue},0.2)"},
        **{"line": {"width": 0}, "hoverinfo": "skip", "legendgroup": named["legendgroup"]},
        showlegend=False,
    )
    curve = go.Scatter(
        x=places,
        y=np.where(found.mean < floor, np.nan, found.mean),
        customdata=grid,
        hovertemplate="eigenvalue %{customdata:.4g}<br>density %{y:.3g}",
        line={"color": look["color"], "dash": DASHES[look["linestyle"]]},
        mode="lines",
        **named,
    )
    return [band, curve]


def _ritz_values(
    spectrum: Spectrum, kernel: Kernel, level: float, look: dict[str, Any], named: dict[str, str]
) -> go.Scatter:
    """A row of marks at the height ``level``, the larger the more weight a value has."""
    values, heights = rug_of(spectrum)
    return go.Scatter(
        x=kernel.place(values),
        y=np.full(len(values), level),
        customdata=values,
        hovertemplate="Ritz value %{customdata:.5g}",
        marker={"symbol": "line-ns-open", "color": look["color"], "size": 3 + 9 * heights},
        mode="markers",
        showlegend=False,
        **named,
    )


def layers_figure(spectra: Sequence[Spectrum], labels: Sequence[str]) -> go.Figure | None:
    """Bars of the layers' largest eigenvalues and traces; None where not all spectra have them."""
    if not all(spectrum.record.get("per_layer") for spectrum in spectra):
        return None
    bars = bars_of([spectrum.record["per_layer"] for spectrum in spectra])
    titles = [title.replace("\n", " ") for *_, title in bars]
    figure = make_subplots(1, 2, shared_yaxes=True, subplot_titles=titles)
    for i, (spectrum, label) in enumerate(zip(spectra, labels, strict=True)):
        rows = spectrum.record["per_layer"]
        names = [html.escape(f"{row['layer']} ({row['parameters']:,})") for row in rows]
        for column, (measure, error, _) in enumerate(bars, 1):
            figure.add_bar(
                x=[row[measure] for row in rows],
                y=names,
                error_x={"array": [row[error] or 0.0 for row in rows], "thickness": 1},
                **{"orientation": "h", "name": _short(label), "legendgroup": f"{i}"},
                **{"showlegend": column == 1, "row": 1, "col": column},
                marker={"color": styles(spectra)[i]["color"]},
            )
    count = len(spectra[0].record["per_layer"])
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(
        height=max(240, 100 + count * (14 + 10 * len(spectra))),
        margin={"t": 40, "b": 40},
        template="plotly_white",
    )
    return figure


def along_figure(curves: Sequence[Mapping[int, Row]], labels: Sequence[str]) -> go.Figure:
    """The largest eigenvalue of the Hessian over the epochs of each training."""
    figure = go.Figure()
    for i, (rows, label) in enumerate(zip(curves, labels, strict=True)):
        values = [row["lambda_max"] for row in rows.values()]
        colour = COLOURS[i % len(COLOURS)]
        name = _short(label)
        figure.add_scatter(
            x=list(rows), y=values, name=name, mode="lines+markers", line={"color": colour}
        )
    figure.update_layout(
        height=320, margin={"t": 40, "b": 40}, template="plotly_white", showlegend=True
    )
    figure.update_layout(xaxis_title="epoch", yaxis_title="largest eigenvalue")
    return figure


def _short(label: str) -> str:
    """A label for a legend, which must leave room for the curves."""
    return html.escape(label if len(label) <= MOST_LETTERS else label[: MOST_LETTERS - 1] + "…")
