"""An interactive page of surfaces and spectra: one HTML file that needs no network.

It holds plotly's JavaScript (5 MB). Its security policy lets it load nothing and call nobody, and
each name from a file is text, never markup.
"""

from __future__ import annotations

import argparse
import html
from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go
from plotly.io import to_html
from plotly.offline import get_plotlyjs

from utilities.files import target

MOST_SCENES = 12  # browsers end the oldest of more than 16 drawings in 3D
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
