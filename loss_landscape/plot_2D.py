"""Draw a loss surface: contours, filled contours, heat map and 3D.

    python plot_2D.py --surf_file ../to_plot/model_GCN_SAM_rho0.05.h5

writes ``plots/<surface>_2dcontour.png``, ``_2dcontourf.png``, ``_2dheat.png``, ``_3dsurface.png``.
All four have one scale, whose levels are quantiles of the values; see ``scale.py``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.backends import BackendFilter, backend_registry
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.contour import ContourSet, QuadContourSet
from matplotlib.figure import Figure
from matplotlib.patheffects import AbstractPathEffect, withStroke
from matplotlib.text import Text
from scipy.interpolate import RegularGridInterpolator

from loss_landscape.scale import LARGEST, Scale, make_scale, plain_numbers
from loss_landscape.surface_file import Surface, read_surface
from utilities.cli import Parser, finite_float, positive_float, report_files, run
from utilities.files import ROOT, locked
from utilities.pictures import HEIGHTS, MARK, save_picture

KINDS = ("2dcontour", "2dcontourf", "2dheat", "3dsurface")
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


def draw_kind(kind: str, figure: Figure, surface: Surface, name: str, scale: Scale) -> None:
    """Fill ``figure`` with one of ``KINDS``."""
    axes: Any = figure.add_subplot(projection="3d" if kind == "3dsurface" else None)
    drawn = None
    if kind == "3dsurface":
        draw_3d(axes, surface, name, scale)
    elif kind == "2dheat":
        place = np.ma.masked_invalid(scale.position(grid(surface, name).filled(np.nan)))
        last = len(scale.levels) - 1
        axes.pcolormesh(*mesh(surface), place, vmin=0, vmax=last, cmap=HEIGHTS, shading="nearest")
        label(axes, surface)
    else:
        drawn = draw_surface(axes, surface, name, scale, filled=kind == "2dcontourf")
    add_colour_bar(figure, scale, axes, NAMES.get(name, name))
    axes.set_title(full_title(surface), fontsize=10 if surface.interpolation else None)
    if isinstance(drawn, QuadContourSet) and not drawn.filled:
        label_contours(axes, drawn, scale)


def draw(
    path: Path,
    name: str,
    out_dir: Path,
    vmin: float | None = None,
    vmax: float | None = None,
    vlevel: float | None = None,
    log: bool | None = None,
    show: bool = False,
) -> list[Path]:
    """Draw the four pictures of one surface file; return their paths.

    Args:
        path: the surface.
        name: which of its values.
        out_dir: the folder that holds plots/.
        vmin: of the scale, as the next three: see ``scale.make_scale``.
        vmax: see there.
        vlevel: see there.
        log: see there.
        show: open a window with each, too.

    Raises:
        FileNotFoundError: no such surface.
        ValueError: damaged, or not drawable in 2D.
    """
    surface = read_surface(path)
    scale = make_scale([grid(surface, name).filled(np.nan)], vmin, vmax, vlevel, log)
    stem = out_dir / "plots" / (path.name if name == "train_loss" else f"{path.name}_{name}")
    pictures = []
    with locked(stem, "draw it into another --out_dir"):  # four pictures of one scale
        for kind in KINDS:
            figure = new_figure((6.4, 5.2), show)
            draw_kind(kind, figure, surface, name, scale)
            pictures.append(save_picture(figure, stem.with_name(f"{stem.name}_{kind}.png")))
    if show:
        pyplot.show()
    return pictures


def new_figure(size: tuple[float, float], show: bool) -> Figure:
    """A figure of ``size`` in inches; with ``show`` one of a window that ``--show`` opens."""
    return (pyplot.figure if show else Figure)(figsize=size, layout="constrained")


def add_scale_flags(parser: Any) -> None:
    """Add the flags of a picture's scale, named as loss-landscape's."""
    parser.add_argument("--vmin", type=finite_float, help="lowest level; the minimum if not given")
    parser.add_argument("--vmax", type=finite_float, help="highest level; automatic if not given")
    parser.add_argument(
        "--vlevel", type=positive_float, help="distance of the levels; quantiles if not given"
    )
    parser.add_argument(
        "--log",
        action=argparse.BooleanOptionalAction,
        help="logarithmic heights; if not given, where the scale spans more than a decade",
    )


def add_show_flag(parser: Any) -> None:
    """Add ``--show``, which is refused where no window can be opened."""
    parser.add_argument("--show", action=_Show, help="open a window with each picture, too")


class _Show(argparse.BooleanOptionalAction):
    """``--show`` and ``--no-show``, refused before anything is drawn."""

    def __init__(self, **options: Any) -> None:
        super().__init__(default=False, **options)

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        super().__call__(parser, namespace, values, option)
        backend = pyplot.get_backend().lower()
        if namespace.show and backend not in backend_registry.list_builtin(
            BackendFilter.INTERACTIVE
        ):
            parser.error(
                f"--show: no window can be opened here (matplotlib's backend is {backend}); leave "
                "it out and open the files"
            )


def check_scale_flags(args: argparse.Namespace) -> None:
    """Refuse ends of a scale that can't be drawn.

    Raises:
        ValueError: names the flag.
    """
    for flag in ("vmin", "vmax"):
        if abs(getattr(args, flag) or 0.0) > LARGEST:
            raise ValueError(f"--{flag} {getattr(args, flag):g}: beyond {LARGEST:g}, undrawable")
    if args.vmin is not None and args.vmax is not None and args.vmin >= args.vmax:
        raise ValueError(f"--vmin {args.vmin:g}: not below --vmax {args.vmax:g}")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("--surf_file", "-f", type=Path, required=True, help="the surface (.h5)")
    parser.add_argument("--surf_name", default="train_loss", help="which values to draw")
    add_scale_flags(parser)
    add_show_flag(parser)
    parser.add_argument("--out_dir", type=Path, default=ROOT, help="folder that holds plots/")
    args = parser.parse_args(argv)
    check_scale_flags(args)
    return args


def main(argv: Sequence[str] | None = None) -> list[Path]:
    """Draw as the command line says; return the pictures' paths."""
    args = parse_args(argv)
    scale = (args.vmin, args.vmax, args.vlevel, args.log)
    pictures = draw(args.surf_file, args.surf_name, args.out_dir, *scale, show=args.show)
    report_files(pictures)
    return pictures


if __name__ == "__main__":
    run(main)
