"""A surface as a picture: its contours, its heights in 3D, and what axes and titles say of it."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.contour import ContourSet, QuadContourSet
from matplotlib.figure import Figure
from matplotlib.patheffects import AbstractPathEffect, withStroke
from matplotlib.text import Text
from scipy.interpolate import RegularGridInterpolator

from loss_landscape.pictures.scale import LARGEST, Scale, plain_numbers
from loss_landscape.surface_file import Surface
from utilities.pictures import HEIGHTS, MARK

FACES = 80  # of a surface in 3D, each way: the colours' borders are then no steps
CHOSEN = {  # of --directions, x first
    "eigenvectors": ("first eigenvector of the Hessian", "second eigenvector"),
    "gradient": ("gradient", "first eigenvector of the Hessian beside it"),
    "pca": ("principal component 1 of the path", "principal component 2"),
}
NAMES = {
    "train_loss": "training loss",
    "test_loss": "test loss",
    "train_acc": "training accuracy (%)",
    "test_acc": "test accuracy (%)",
    "min_eig": "smallest eigenvalue of the Hessian",
    "max_eig": "largest eigenvalue of the Hessian",
    "eig_ratio": "|smallest / largest eigenvalue|",
}


def title(surface: Surface) -> str:
    """Which run's surface it is, in a reader's words, where the file says it."""
    a = surface.attributes
    text = str(a.get("title", ""))
    if not text and "model" in a:  # of an older version
        rho = f", rho {a['rho']}" if a.get("rho") else ""
        text = f"{a['model']} on {a.get('dataset')}, {a.get('optimizer')}{rho}"
    return text[:200].replace("$", r"\$")  # a dollar would begin a formula


def full_title(surface: Surface) -> str:
    """Of a picture of one surface: whose it is, and below that how much of it is interpolated."""
    return "\n".join(filter(None, [title(surface), surface.interpolation]))


def grid(surface: Surface, name: str) -> np.ma.MaskedArray:
    """The values (ny, nx) with NaN and infinite cells masked and huge ones cut.

    Raises:
        ValueError: no such values, none that is finite, or fewer than 2 x 2 points.
    """
    if name not in surface.values:
        raise ValueError(f"--surf_name {name}: not in the surface ({', '.join(surface.values)})")
    if surface.y is None or min(surface.shape) < 2:
        raise ValueError(
            f"a surface of {surface.shape} points can't be drawn in 2D; use plot_1D.py"
        )
    values = surface.values[name]
    if not np.isfinite(values).any():
        raise ValueError(f"{name} has no finite value to draw: nothing is computed, or all is NaN")
    return np.ma.masked_array(values.clip(-LARGEST, LARGEST), mask=~np.isfinite(values))


def mesh(surface: Surface) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of each cell, x and y, both (ny, nx)."""
    x, y = np.meshgrid(surface.x, surface.x if surface.y is None else surface.y)
    return x, y


def label(axes: Axes, surface: Surface) -> None:
    """Name the axes and mark the checkpoint at (0, 0)."""
    norms = [*str(surface.attributes.get("norm", "")).split(), "", ""]
    for i, axis in enumerate("xy"):  # one to another checkpoint or from a file has no norm of ours
        if not str(surface.attributes.get(f"{axis}direction_is", "drawn")).startswith("drawn"):
            norms[i] = ""
    names = CHOSEN.get(str(surface.attributes.get("directions")), ("direction x", "direction y"))
    axes.set_xlabel(names[0] + (" (filter-normalised)" if norms[0] == "filter" else ""))
    axes.set_ylabel(names[1] + (" (filter-normalised)" if norms[1] == "filter" else ""))
    axes.locator_params(nbins=5)
    x, y = mesh(surface)
    if x.min() <= 0 <= x.max() and y.min() <= 0 <= y.max():
        axes.plot(0, 0, "+", color=MARK, ms=9, mew=1.6)


def colours(scale: Scale) -> ListedColormap:
    """A colour for each band between two levels."""
    bands = len(scale.levels) - 1
    return ListedColormap(matplotlib.colormaps[HEIGHTS]((np.arange(bands) + 0.5) / bands))


def draw_surface(
    axes: Axes, surface: Surface, name: str, scale: Scale, filled: bool = True
) -> ContourSet:
    """Draw contours of ``name`` into ``axes``; a cross marks the checkpoint.

    Raises:
        ValueError: the surface has fewer than 2 x 2 points.
    """
    z = grid(surface, name)
    x, y = mesh(surface)
    palette = matplotlib.colormaps[HEIGHTS]
    if filled:
        bands = colours(scale)(np.arange(len(scale.levels) - 1))
        ends = {"both": [palette(0.0), *bands, palette(1.0)], "max": [*bands, palette(1.0)]}
        shades = {**ends, "min": [palette(0.0), *bands], "neither": bands}[scale.extend]
        drawn = axes.contourf(x, y, z, scale.levels, colors=shades, extend=scale.extend)
        axes.contour(x, y, z, scale.levels, colors="white", linewidths=0.4, alpha=0.6)
    else:
        shades = palette(np.linspace(0, 1, len(scale.levels)))
        drawn = axes.contour(x, y, z, scale.levels, colors=shades)
    label(axes, surface)
    return drawn


def label_contours(axes: Axes, drawn: QuadContourSet, scale: Scale) -> list[Text]:
    """Write its level beside each contour, where no other label is; return the labels.

    Call it last: what fits depends on where the layout puts the axes.
    """
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    texts = dict(zip(drawn.levels, plain_numbers(scale.levels), strict=True))
    halo: list[AbstractPathEffect] = [withStroke(linewidth=2.5, foreground="white")]
    kept: list[Text] = []
    for text in axes.clabel(drawn, fontsize=7, fmt=texts, inline=False, colors="black"):
        text.set_path_effects(halo)
        box = text.get_window_extent().padded(2)
        inside = axes.bbox.containsx(box.x0) and axes.bbox.containsx(box.x1)
        inside = inside and axes.bbox.containsy(box.y0) and axes.bbox.containsy(box.y1)
        if inside and not any(box.overlaps(other.get_window_extent()) for other in kept):
            kept.append(text)
        else:
            text.remove()
    return kept


def draw_3d(axes: Any, surface: Surface, name: str, scale: Scale) -> None:
    """Draw ``name`` into axes in 3D: height and colour have one scale, cut at its ends."""
    # Cut after the interpolation: before it, the edge of the cut would be jagged.
    x, y, z = finer(surface, scale.height(grid(surface, name).filled(np.nan), cut=False))
    ends = scale.height(scale.levels[[0, -1]])
    z = z.clip(*ends)
    place = scale.position(10**z if scale.log else z)
    shades = matplotlib.colormaps[HEIGHTS](np.nan_to_num(place) / (len(scale.levels) - 1))
    # Their edges have the faces' colours and hide the seams between them.
    axes.plot_surface(x, y, z, facecolors=shades, rstride=1, cstride=1, linewidth=0.3)
    axes.set_zlim(*ends)
    if scale.log:
        axes.set_zticks(scale.height(scale.ticks(5)), plain_numbers(scale.ticks(5)))
    axes.set(xlabel="direction x", ylabel="direction y")  # z is what the colour bar says
    axes.locator_params(axis="x", nbins=5)
    axes.locator_params(axis="y", nbins=5)
    axes.view_init(elev=32, azim=-60)
    axes.set_box_aspect(None, zoom=0.95)  # else its labels leave the picture


def finer(surface: Surface, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bilinear interpolation between the grid's points, whose own values it keeps."""
    assert surface.y is not None
    x, y = (
        np.interp(np.arange(0, len(a) - 1 + 1e-9, 1 / -(-FACES // len(a))), np.arange(len(a)), a)
        for a in (surface.x, surface.y)
    )
    columns, rows = np.meshgrid(x, y)
    step = 1 if surface.y[0] < surface.y[-1] else -1
    turn = 1 if surface.x[0] < surface.x[-1] else -1
    known = RegularGridInterpolator((surface.y[::step], surface.x[::turn]), z[::step, ::turn])
    return columns, rows, known(np.stack([rows, columns], axis=-1))


def add_colour_bar(figure: Any, scale: Scale, axes: Any, text: str) -> None:
    """A colour bar with all levels at equal distances, as plain numbers."""
    last = len(scale.levels) - 1
    mappable = ScalarMappable(Normalize(0, last), colours(scale))
    bar = figure.colorbar(mappable, ax=axes, label=text, extend=scale.extend, shrink=0.85)
    shown = np.arange(0, last + 1, -(-last // 20))
    bar.set_ticks(shown, labels=plain_numbers(scale.levels[shown]))
