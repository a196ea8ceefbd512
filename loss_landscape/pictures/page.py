"""An interactive page of surfaces and spectra: one HTML file that needs no network.

It holds plotly's JavaScript (5 MB). Its security policy lets it load nothing and call nobody, and
each name from a file is text, never markup.
"""

from __future__ import annotations

import argparse
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import plotly.graph_objects as go
from matplotlib.colors import to_hex, to_rgb
from plotly.io import to_html
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from loss_landscape.my_pyhessian.density_plot import (
    band_of,
    described,
    floor_of,
    grid_of,
    kernel_of,
    matrix_of,
    rug_of,
    styles,
    ticks_of,
)
from loss_landscape.my_pyhessian.spectrum_file import Spectrum
from loss_landscape.pictures.scale import LARGEST, Scale, plain_numbers
from loss_landscape.sharpness_measures.epoch_sharpness import Row
from loss_landscape.surface_file import ACCURACY, Surface
from utilities.files import target
from utilities.pictures import COLOURS, HEIGHTS, MARK

MOST_SCENES = 12  # browsers end the oldest of more than 16 drawings in 3D
DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}  # matplotlib's and plotly's
MOST_LETTERS = 60  # of a label in a legend
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:"  # plotly compiles its shaders' wrappers with Function
)
STYLE = """
body {font: 16px/1.5 system-ui, sans-serif; margin: 1rem auto; max-width: 1500px; padding: 0 1rem;
  overflow-wrap: anywhere}
.surfaces {display: flex; flex-wrap: wrap; gap: 1rem}
figure {margin: 0; flex: 1 1 420px; min-width: 0}
figcaption, th {font-weight: 600}
table {border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto}
td, th {border-bottom: 1px solid #ccc; padding: .3rem .8rem; text-align: right}
td:first-child, th:first-child {text-align: left}
td, .minima th {overflow-wrap: normal}
.minima td:first-child {overflow-wrap: anywhere}
.sharpness :is(td, th):last-child {text-align: left}
.sharpness td:not(:last-child) {white-space: nowrap}
.sharpness td:last-child {min-width: 16rem}
.sharpness td[title] {cursor: help}
caption {text-align: left}
"""
# Turning one surface turns the others, so that all are seen from one side.
TURN_ALL = """
const surfaces = [...document.querySelectorAll('.surfaces .plotly-graph-div')];
surfaces.forEach(one => Plotly.Plots.resize(one));  // the first was drawn before the second came
let turning = false;
surfaces.forEach(one => one.on('plotly_relayout', change => {
  const camera = change['scene.camera'];
  if (!camera || turning) return;
  turning = true;
  // The turned one too, which would glide on a little.
  Promise.all(surfaces.map(each => Plotly.relayout(each, {'scene.camera': camera})))
    .finally(() => turning = false);
}));
"""
CONFIG = {"displaylogo": False, "responsive": True}


def page_path(text: str) -> Path:
    """The path of a page, as argparse's ``type`` of ``--html``.

    Raises:
        argparse.ArgumentTypeError: it doesn't end in .html, or is a folder's.
    """
    path = Path(text)
    if path.suffix.lower() not in (".html", ".htm"):
        raise argparse.ArgumentTypeError(f"{text}: no page's name; end it in .html")
    try:
        target(path)
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return path


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
    values = surface.values[name]
    place = scale.position(values.clip(-LARGEST, LARGEST))
    last = len(scale.levels) - 1
    shades = matplotlib.colormaps[HEIGHTS](np.linspace(0, 1, 33))
    shown = np.arange(0, last + 1, -(-last // 20))
    bar = {"title": {"text": text, "side": "right"}, "tickvals": shown, "len": 0.8}
    accuracy = surface.values.get(ACCURACY.get(name, ""))
    hover = f"x %{{x:.4g}}, y %{{y:.4g}}<br>{text} %{{customdata[0]}}"
    below = np.full_like(values, np.nan) if accuracy is None else accuracy
    guessed = np.zeros(values.shape) if surface.interpolated is None else surface.interpolated
    drawn = go.Surface(
        x=surface.x,
        y=surface.y,
        z=np.where(np.isfinite(values), scale.height(values, cut=False), np.nan),
        surfacecolor=np.where(np.isfinite(values), place, np.nan),
        cmin=0,
        cmax=last,
        colorscale=[(k / 32, to_hex(c)) for k, c in enumerate(shades)],
        colorbar={**bar, "ticktext": plain_numbers(scale.levels[shown])},
        # By column and row, (nx, ny): plotly takes these the other way round than z.
        customdata=[
            [
                (f"{v:.6g}", f"{a:.4g}", "<br>interpolated" if g else "")
                for v, a, g in zip(*column, strict=True)
            ]
            for column in zip(values.T, below.T, guessed.T, strict=True)
        ],
        hovertemplate=hover
        + ("" if accuracy is None else "<br>accuracy %{customdata[1]} %")
        + "%{customdata[2]}<extra></extra>",
    )
    figure = go.Figure([drawn, *_checkpoint(surface, values, scale)])
    ends = scale.height(scale.levels[[0, -1]])
    margin = 0.02 * (ends[1] - ends[0])
    axis = {"range": [ends[0] - margin, ends[1] + margin], "title": {"text": text}}
    if scale.log:
        ticks = scale.ticks(5)
        axis |= {"tickvals": scale.height(ticks), "ticktext": plain_numbers(ticks)}
    figure.update_layout(
        scene={
            "xaxis": {"title": {"text": "direction x"}},
            "yaxis": {"title": {"text": "direction y"}},
            "zaxis": axis,
            "aspectmode": "cube",
            "camera": {"eye": {"x": 1.3, "y": -1.6, "z": 1.0}},
        },
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        height=460,
        showlegend=False,
    )
    return figure


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
    places = kernel.place(grid)
    figure = go.Figure()
    top = floor
    for i, (spectrum, label) in enumerate(zip(spectra, labels, strict=True)):
        look, name = styles(spectra)[i], _short(label)
        found = band_of(spectrum, grid, kernel)
        top = max(top, float(found.upper.max()))
        red, green, blue = (round(255 * part) for part in to_rgb(look["color"]))
        figure.add_scatter(
            x=np.concatenate([places, places[::-1]]),
            y=np.maximum(np.concatenate([found.upper, found.lower[::-1]]), floor / 1e3),
            **{"fill": "toself", "fillcolor": f"rgba({red},{green},{blue},0.2)"},
            **{"line": {"width": 0}, "hoverinfo": "skip", "legendgroup": f"{i}"},
            showlegend=False,
        )
        figure.add_scatter(
            x=places,
            y=np.where(found.mean < floor, np.nan, found.mean),
            customdata=grid,
            hovertemplate="eigenvalue %{customdata:.4g}<br>density %{y:.3g}",
            **{"name": name, "mode": "lines", "legendgroup": f"{i}"},
            line={"color": look["color"], "dash": DASHES[look["linestyle"]]},
        )
        values, heights = rug_of(spectrum)
        marker = {"symbol": "line-ns-open", "color": look["color"], "size": 3 + 9 * heights}
        figure.add_scatter(
            x=kernel.place(values),
            y=np.full(len(values), floor * 0.4 ** (i + 1)),
            customdata=values,
            hovertemplate="Ritz value %{customdata:.5g}",
            **{"name": name, "mode": "markers", "legendgroup": f"{i}", "marker": marker},
            showlegend=False,
        )
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


def layers_figure(spectra: Sequence[Spectrum], labels: Sequence[str]) -> go.Figure | None:
    """Bars of the layers' largest eigenvalues and traces; None where not all spectra have them."""
    if not all(spectrum.record.get("per_layer") for spectrum in spectra):
        return None
    titles = ("largest eigenvalue of the layer's block", "trace (± standard error)")
    figure = make_subplots(1, 2, shared_yaxes=True, subplot_titles=titles)
    for i, (spectrum, label) in enumerate(zip(spectra, labels, strict=True)):
        rows = spectrum.record["per_layer"]
        names = [html.escape(f"{row['layer']} ({row['parameters']:,})") for row in rows]
        measures = (("lambda_max", "residual"), ("trace", "trace_standard_error"))
        for column, (measure, error) in enumerate(measures, 1):
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


def page(
    headline: str,
    surfaces: Sequence[tuple[str, go.Figure]],
    spectra: go.Figure | None,
    table: Sequence[Sequence[str]],
    caption: str,
    layers: go.Figure | None = None,
    along: go.Figure | None = None,
    sharpness: str = "",
) -> str:
    """The whole page.

    Args:
        headline: above all.
        surfaces: of each its label and its figure.
        spectra: below them, or None.
        table: rows of text, the first the columns' names.
        caption: of the table.
        layers: below the spectra, or None.
        along: below the layers, or None.
        sharpness: a table in HTML, below the other one; see sharpness_table.py.
    """
    figures = []
    for i, (label, figure) in enumerate(surfaces):
        name = f"<figcaption>{html.escape(label)}</figcaption>"
        figures.append(f"<figure>{name}{_div(f'surface{i}', figure)}</figure>")
    cells = [
        "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in row)
        for tag, row in zip(["th", *["td"] * len(table)], table, strict=False)
    ]
    body = [
        f"<h1>{html.escape(headline)}</h1>",
        "<p>Drag to turn, scroll to come nearer, point to read a value. All surfaces have one "
        "scale of colours and heights, cut at its top; the cross is the checkpoint.</p>",
        f'<div class="surfaces">{"".join(figures)}</div>',
        "" if spectra is None else _div("spectra", spectra),
        "" if layers is None else _div("layers", layers),
        "" if along is None else _div("along", along),
        f'<table class="minima"><caption>{html.escape(caption)}</caption>',
        "".join(f"<tr>{row}</tr>" for row in cells) + "</table>",
        sharpness,
        f"<script>{TURN_ALL}</script>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(headline)}</title><style>{STYLE}</style>"
        f"<script>{get_plotlyjs()}</script></head>\n<body>" + "\n".join(body) + "</body></html>\n"
    )


def _div(name: str, figure: go.Figure) -> str:
    return to_html(figure, CONFIG, full_html=False, include_plotlyjs=False, div_id=name)
