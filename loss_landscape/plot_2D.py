"""Draw a loss surface: contours, filled contours, heat map and 3D.

    python plot_2D.py --surf_file ../to_plot/model_GCN_SAM_rho0.05.h5

writes ``plots/<surface>_2dcontour.png``, ``_2dcontourf.png``, ``_2dheat.png``, ``_3dsurface.png``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, LogNorm, Normalize
from matplotlib.figure import Figure

from loss_landscape.surface_file import Surface, read_surface
from utilities.cli import Parser, finite_float, positive_float, report_files, run
from utilities.files import ROOT, locked
from utilities.pictures import HEIGHTS, MARK, save_picture

LARGEST = 1e30  # of a value in a picture: matplotlib computes with powers and differences of them
SMALLEST_SPAN = 1e-9  # of a scale, over its larger end: levels closer than that may coincide
MOST_LEVELS = 200
NAMES = {
    "train_loss": "training loss",
    "test_loss": "test loss",
    "train_acc": "training accuracy (%)",
    "test_acc": "test accuracy (%)",
}


def colour_scale(
    values: Sequence[np.ndarray], vmin: float | None = None, vmax: float | None = None
) -> Normalize:
    """One scale for one or several surfaces, logarithmic where they span more than a decade.

    Without ``vmax`` it ends at the 98th percentile, so that a cliff doesn't hide the basin.

    Raises:
        ValueError: ``vmin`` and ``vmax`` leave nothing between them and the values.
    """
    finite = np.concatenate([v[np.isfinite(v)].ravel() for v in values])
    if not len(finite):
        finite = np.array([0.0, 1.0])
    finite = finite.clip(-LARGEST, LARGEST)
    low = float(finite.min()) if vmin is None else vmin
    high = float(np.percentile(finite, 98)) if vmax is None else vmax
    least = SMALLEST_SPAN * max(abs(low), abs(high))
    if high - low <= least:
        for flag, given in (("--vmin", vmin), ("--vmax", vmax)):
            if given is not None:
                raise ValueError(
                    f"{flag} {given:g}: the colours would go from {low:g} to {high:g}; the values "
                    f"go from {finite.min():g} to {finite.max():g}"
                )
        high = low + max(abs(low), 1.0) * 1e-6  # all values are one
    bottom = max(low, 1 / LARGEST)
    return LogNorm(bottom, high) if low > 0 and high > 10 * bottom else Normalize(low, high)


def contour_levels(norm: Normalize, count: int = 12) -> np.ndarray:
    """The levels of a scale with bounds of its own, or ``count`` spread evenly as it counts."""
    if isinstance(norm, BoundaryNorm):
        return np.asarray(norm.boundaries)
    low, high = norm.vmin, norm.vmax
    assert low is not None and high is not None
    spread = np.geomspace if isinstance(norm, LogNorm) else np.linspace
    return spread(low, high, count)


def stepped(norm: Normalize, vlevel: float) -> BoundaryNorm:
    """``norm`` with one colour between each level and the next, which is ``vlevel`` higher.

    Raises:
        ValueError: there would be too many levels, or one alone.
    """
    low, high = norm.vmin, norm.vmax
    assert low is not None and high is not None
    steps = (high - low) / vlevel
    if not 1 <= steps <= MOST_LEVELS:
        raise ValueError(
            f"--vlevel {vlevel:g}: {steps:.3g} steps between {low:g} and {high:g}, which are "
            f"from 1 to {MOST_LEVELS}; try {(high - low) / 12:.2g}"
        )
    return BoundaryNorm(low + vlevel * np.arange(int(steps + 1e-9) + 1), 256, extend="both")


def title(surface: Surface) -> str:
    """Which run's surface it is, in a reader's words, where the file says it."""
    a = surface.attributes
    text = str(a.get("title", ""))
    if not text and "model" in a:  # of an older version
        rho = f", rho {a['rho']}" if a.get("rho") else ""
        text = f"{a['model']} on {a.get('dataset')}, {a.get('optimizer')}{rho}"
    return text[:200].replace("$", r"\$")  # a dollar would begin a formula


def draw_surface(
    axes: Axes, surface: Surface, name: str, norm: Normalize, filled: bool = True
) -> ScalarMappable:
    """Draw contours of ``name`` into ``axes``; a cross marks the checkpoint.

    Raises:
        ValueError: the surface has fewer than 2 x 2 points.
    """
    z = grid(surface, name)
    levels = contour_levels(norm)
    x, y = mesh(surface)
    if filled:
        drawn = axes.contourf(x, y, z, levels=levels, norm=norm, cmap=HEIGHTS, extend="both")
        axes.contour(x, y, z, levels=levels, colors="white", linewidths=0.4, alpha=0.6)
    else:
        drawn = axes.contour(x, y, z, levels=levels, norm=norm, cmap=HEIGHTS)
        axes.clabel(drawn, fontsize=7, fmt="%.3g")
    label(axes, surface)
    return drawn


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
    axes.set_xlabel("direction x" + (" (filter-normalised)" if norms[0] == "filter" else ""))
    axes.set_ylabel("direction y" + (" (filter-normalised)" if norms[1] == "filter" else ""))
    axes.locator_params(nbins=5)
    x, y = mesh(surface)
    if x.min() <= 0 <= x.max() and y.min() <= 0 <= y.max():
        axes.plot(0, 0, "+", color=MARK, ms=9, mew=1.6)


def draw(
    path: Path,
    name: str,
    out_dir: Path,
    vmin: float | None = None,
    vmax: float | None = None,
    vlevel: float | None = None,
) -> list[Path]:
    """Draw the four pictures of one surface file; return their paths.

    Raises:
        FileNotFoundError: no such surface.
        ValueError: damaged, or not drawable in 2D.
    """
    surface = read_surface(path)
    norm = colour_scale([grid(surface, name).filled(np.nan)], vmin, vmax)
    if vlevel is not None:
        norm = stepped(norm, vlevel)
    stem = out_dir / "plots" / (path.name if name == "train_loss" else f"{path.name}_{name}")
    pictures = []
    with locked(stem, "draw it into another --out_dir"):  # four pictures of one scale
        for kind in ("2dcontour", "2dcontourf", "2dheat", "3dsurface"):
            figure = Figure(figsize=(6.4, 5.2), layout="constrained")
            _draw_kind(kind, figure, surface, name, norm)
            pictures.append(save_picture(figure, stem.with_name(f"{stem.name}_{kind}.png")))
    return pictures


def add_colour_bar(figure: Any, norm: Normalize, axes: Any, text: str) -> None:
    """A colour bar with plain numbers (2, not 2 x 10^0) on logarithmic scales too."""
    mappable = ScalarMappable(norm, HEIGHTS)
    bar = figure.colorbar(mappable, ax=axes, label=text, extend="max", shrink=0.85)
    if isinstance(norm, LogNorm):
        bar.set_ticks(contour_levels(norm, 6), labels=[f"{v:.3g}" for v in contour_levels(norm, 6)])
        bar.ax.minorticks_off()


def _draw_kind(kind: str, figure: Figure, surface: Surface, name: str, norm: Normalize) -> None:
    if kind == "3dsurface":
        axes = figure.add_subplot(projection="3d")
        x, y = mesh(surface)
        # Cut at the scale's top: matplotlib would draw a cliff through the roof of the box.
        z = np.ma.minimum(grid(surface, name), np.float64(norm.vmax or np.inf))
        axes.plot_surface(x, y, z, norm=norm, cmap=HEIGHTS, rcount=80, ccount=80)
        axes.set(xlabel="direction x", ylabel="direction y")  # z is what the colour bar says
        axes.locator_params(nbins=5)
        axes.view_init(elev=32, azim=-60)
    else:
        axes = figure.add_subplot()
        if kind == "2dheat":
            z = grid(surface, name)
            axes.pcolormesh(*mesh(surface), z, norm=norm, cmap=HEIGHTS, shading="nearest")
            label(axes, surface)
        else:
            draw_surface(axes, surface, name, norm, filled=kind == "2dcontourf")
    add_colour_bar(figure, norm, axes, NAMES.get(name, name))
    axes.set_title(title(surface))


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("--surf_file", "-f", type=Path, required=True, help="the surface (.h5)")
    parser.add_argument("--surf_name", default="train_loss", help="which values to draw")
    parser.add_argument("--vmin", type=finite_float, help="lowest level; the minimum if not given")
    parser.add_argument("--vmax", type=finite_float, help="highest level; automatic if not given")
    parser.add_argument("--vlevel", type=positive_float, help="distance of the levels")
    parser.add_argument("--out_dir", type=Path, default=ROOT, help="folder that holds plots/")
    args = parser.parse_args(argv)
    for flag in ("vmin", "vmax"):
        if abs(getattr(args, flag) or 0.0) > LARGEST:
            raise ValueError(f"--{flag} {getattr(args, flag):g}: beyond {LARGEST:g}, undrawable")
    if args.vmin is not None and args.vmax is not None and args.vmin >= args.vmax:
        raise ValueError(f"--vmin {args.vmin:g}: not below --vmax {args.vmax:g}")
    return args


def main(argv: Sequence[str] | None = None) -> list[Path]:
    """Draw as the command line says; return the pictures' paths."""
    args = parse_args(argv)
    pictures = draw(args.surf_file, args.surf_name, args.out_dir, args.vmin, args.vmax, args.vlevel)
    report_files(pictures)
    return pictures


if __name__ == "__main__":
    run(main)
