"""Draw a loss surface: contours, filled contours, heat map and 3D.

    python plot_2D.py --surf_file ../to_plot/model_GCN_SAM_rho0.05.h5

writes ``plots/<surface>_2dcontour.png``, ``_2dcontourf.png``, ``_2dheat.png``, ``_3dsurface.png``.
All four have one scale, whose levels are quantiles of the values; see ``pictures/scale.py``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure

from loss_landscape.pictures.picture_flags import (
    add_scale_flags,
    add_show_flag,
    check_scale_flags,
    new_figure,
)
from loss_landscape.pictures.scale import Scale, make_scale
from loss_landscape.pictures.surface_picture import (
    NAMES,
    add_colour_bar,
    draw_3d,
    draw_surface,
    full_title,
    grid,
    label,
    label_contours,
    mesh,
)
from loss_landscape.surface_file import Surface, read_surface
from utilities.cli import Parser, report_files, run
from utilities.files import ROOT, locked
from utilities.pictures import HEIGHTS, save_picture

KINDS = ("2dcontour", "2dcontourf", "2dheat", "3dsurface")


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
