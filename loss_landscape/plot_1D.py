r"""Draw loss and accuracy along one direction, or the loss along several as a band.

    python plot_1D.py --surf_file ../to_plot/line.h5
    python plot_1D.py --output ../plots/lines.png --surf_file ../to_plot/ADAM.seed*.h5 \
        ../to_plot/SAM.seed*.h5

The first writes ``plots/<surface>_1d.png``. The second takes lines of one or several checkpoints
along the same random directions, made with ``plot_surface.py --seed 1 --surf_file ...seed1.h5`` and
so on, and prints how far the loss rises at ``--radius``, with its interval; see
``sharpness_measures/flatness.py``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes

from loss_landscape.pictures.picture_flags import add_show_flag, new_figure
from loss_landscape.pictures.scale import DECADE, LARGEST
from loss_landscape.pictures.surface_picture import NAMES, full_title, title
from loss_landscape.pictures.together import DRAW, draw_of, refuse_different
from loss_landscape.sharpness_measures.flatness import Flatness, flatness, largest_radius
from loss_landscape.surface_file import ACCURACY, Surface, read_surface
from utilities.cli import Parser, finite_float, positive_float, report_files, run
from utilities.files import ROOT
from utilities.pictures import COLOURS, line_style, picture_path, save_picture
from utilities.statistics import half_width

BAND = (10, 90)  # percentiles of the directions


def read_line(path: Path, name: str) -> Surface:
    """A surface in 1D that has values to draw.

    Raises:
        FileNotFoundError: no such surface.
        ValueError: damaged, of two dimensions, without ``name``, or without a finite value.
    """
    surface = read_surface(path)
    if surface.y is not None:
        raise ValueError(f"{path}: a surface in 2D; use plot_2D.py")
    if name not in surface.values:
        raise ValueError(f"--surf_name {name}: not in {path} ({', '.join(surface.values)})")
    if not np.isfinite(surface.values[name]).any():
        raise ValueError(f"{path}: {name} has no finite value to draw")
    return surface


def draw(path: Path, name: str, out_dir: Path, show: bool = False, **look: Any) -> list[Path]:
    """Draw a 1D surface file; return the picture's path in a list, as plot_2D.draw does.

    Args:
        path: the surface.
        name: which of its values.
        out_dir: the folder that holds plots/.
        show: open a window, too.
        look: see ``set_scale``.

    Raises:
        FileNotFoundError: no such surface.
        ValueError: damaged, of two dimensions, without ``name``, or without a finite value.
    """
    surface = read_line(path, name)
    figure = new_figure((6.4, 4.2), show)
    left = figure.add_subplot()
    values = surface.values[name].clip(-LARGEST, LARGEST)
    measured = surface.interpolated is None or ~surface.interpolated
    left.plot(surface.x, values, color=COLOURS[0])
    left.plot(surface.x, np.where(measured, values, np.nan), ".", color=COLOURS[0])
    left.set_xlabel("position along the direction (0 is the checkpoint)")
    left.set_ylabel(NAMES.get(name, name), color=COLOURS[0])
    left.set_title(full_title(surface))
    accuracy = ACCURACY.get(name)
    if accuracy in surface.values:
        right = left.twinx()
        right.plot(surface.x, surface.values[accuracy], color=COLOURS[1], ls="--")
        right.set_ylabel(NAMES[accuracy], color=COLOURS[1])
        right.set_ylim(0, 101)
    set_scale(left, [values], **look)
    pictures = [save_picture(figure, out_dir / "plots" / f"{path.name}_1d.png")]
    if show:
        pyplot.show()
    return pictures


def read_bundles(paths: Sequence[Path], name: str) -> list[list[Surface]]:
    """Lines along several directions, those of one checkpoint together, in the order given.

    Raises:
        FileNotFoundError: no such surface.
        ValueError: one can't be drawn (see ``read_line``), they were not taken in one way, one is
            no random draw or a draw is there twice, or two checkpoints have not the same draws.
    """
    lines = [read_line(path, name) for path in paths]
    refuse_different(paths, lines, but=DRAW)
    bundles: dict[str, dict[Any, Surface]] = {}
    for path, line in zip(paths, lines, strict=True):
        bundle = bundles.setdefault(str(line.attributes.get("checkpoint_sha256")), {})
        try:
            draw = draw_of(line)
        except ValueError as error:
            raise ValueError(f"{path}: {error}; draw it alone") from error
        if draw in bundle:
            raise ValueError(
                f"{path}: a second line with --seed {draw[0]} --idx {draw[1]}; name one of them"
            )
        bundle[draw] = line
    first = next(iter(bundles.values()))
    for bundle in bundles.values():
        alone = set(first) ^ set(bundle)
        if alone:
            seeds = ", ".join(f"--seed {seed} --idx {idx}" for seed, idx in sorted(alone)[:3])
            raise ValueError(
                f"{title(bundle[next(iter(bundle))])}: its directions are not those of "
                f"{title(first[next(iter(first))])} ({seeds}); compute these for both, "
                "or draw each alone"
            )
    return [[bundle[draw] for draw in sorted(first)] for bundle in bundles.values()]


def draw_bundle(axes: Axes, lines: Sequence[Surface], name: str, number: int, text: str) -> None:
    """Draw each line thinly, their median, and a band that holds the middle 80 % of them."""
    style = line_style(number)
    values = np.stack([line.values[name].clip(-LARGEST, LARGEST) for line in lines])
    x = lines[0].x
    axes.plot(x, values.T, color=style["color"], lw=0.5, alpha=0.35)
    low, middle, high = np.percentile(values, [BAND[0], 50, BAND[1]], axis=0)
    axes.fill_between(x, low, high, color=style["color"], alpha=0.18, lw=0)
    axes.plot(x, middle, color=style["color"], ls=style["linestyle"], lw=2, label=text)


def draw_bands(
    paths: Sequence[Path],
    name: str,
    output: Path,
    radius: float | None = None,
    show: bool = False,
    **look: Any,
) -> list[Path]:
    """Draw lines along several directions, a band for each checkpoint; print how flat they are.

    Args:
        paths: the lines, of one or several checkpoints.
        name: which of their values.
        output: the picture.
        radius: of the rise; the largest that the lines have on both sides if not given.
        show: open a window, too.
        look: see ``set_scale``.

    Raises:
        FileNotFoundError: no such surface.
        ValueError: see ``read_bundles`` and ``flatness.flatness``.
    """
    bundles = read_bundles(paths, name)
    radius = largest_radius([line for b in bundles for line in b]) if radius is None else radius
    figures = [flatness(bundle, name, radius) for bundle in bundles] if radius else []
    labels = [title(bundle[0]) for bundle in bundles]
    for line in report(labels, figures):
        print(line)
    figure = new_figure((7, 4.6), show)
    axes = figure.add_subplot()
    for i, (bundle, label) in enumerate(zip(bundles, labels, strict=True)):
        text = label + (f"\nrise at {radius:g}: {figures[i]}".replace("+-", "±") if figures else "")
        draw_bundle(axes, bundle, name, i, text)
    axes.set_xlabel("position along each direction (0 is the checkpoint)")
    axes.set_ylabel(NAMES.get(name, name))
    axes.set_title(f"{len(bundles[0])} random directions: median, middle {BAND[1] - BAND[0]} %")
    axes.legend(fontsize=8)
    set_scale(axes, [line.values[name] for bundle in bundles for line in bundle], **look)
    pictures = [save_picture(figure, output)]
    if show:
        pyplot.show()
    return pictures


def report(labels: Sequence[str], figures: Sequence[Flatness]) -> list[str]:
    """The rise of each checkpoint, and by how much each differs from the first's.

    The difference is taken direction by direction, since all have the same draws.
    """
    if not figures:
        return ["no rise of the loss: the lines have no 0 with the same points on both sides"]
    n, radius = len(figures[0].rises), figures[0].radius
    lines = [f"mean rise of the loss at {radius:g}, with 95 % intervals over the directions alone"]
    lines += [f"  {text}: {f}" for text, f in zip(labels, figures, strict=True)]
    for text, figure in zip(labels[1:], figures[1:], strict=True):
        gaps = figure.rises - figures[0].rises
        interval = f" +- {float(half_width(gaps)):#.2g}" if n > 1 else ""
        lines.append(f"  {text}, less {labels[0]}: {gaps.mean():+.3g}{interval}")
    return lines


def set_scale(
    axes: Axes,
    values: Sequence[np.ndarray],
    log: bool | None = None,
    xmin: float | None = None,
    xmax: float | None = None,
    loss_max: float | None = None,
) -> None:
    """Set the ends of both axes, and whether that of ``values`` is logarithmic.

    Args:
        axes: what holds the values.
        values: all that are drawn.
        log: if not given, where they are above 0 and their middle 98 % span more than a decade.
        xmin: left end, as far as there are values if not given.
        xmax: right end, likewise.
        loss_max: upper end, likewise.

    Raises:
        ValueError: ``log``, and a value is not above 0; or ends that leave nothing between them.
    """
    finite = np.concatenate([v[np.isfinite(v)] for v in values])
    low, high = float(finite.min()), float(np.percentile(finite, 98))
    if log and low <= 0:
        raise ValueError(f"--log: the values go down to {low:g}, which has no logarithm")
    if low > 1 / LARGEST and (high > DECADE * low if log is None else log):
        axes.set_yscale("log")
    if loss_max is not None:
        if loss_max <= low:
            raise ValueError(f"--loss_max {loss_max:g}: not above the lowest value, {low:g}")
        axes.set_ylim(top=loss_max)
    left, right = axes.get_xlim()
    left, right = left if xmin is None else xmin, right if xmax is None else xmax
    if left >= right:
        raise ValueError(f"--xmin, --xmax: nothing lies between {left:g} and {right:g}")
    axes.set_xlim(left, right)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--surf_file", "-f", type=Path, nargs="+", required=True, help="the lines (.h5)"
    )
    parser.add_argument("--surf_name", default="train_loss", help="which values to draw")
    parser.add_argument(
        "--log",
        action=argparse.BooleanOptionalAction,
        help="logarithmic; if not given, where the values span more than a decade",
    )
    parser.add_argument("--xmin", type=finite_float, help="left end")
    parser.add_argument("--xmax", type=finite_float, help="right end")
    parser.add_argument("--loss_max", type=finite_float, help="upper end")
    parser.add_argument(
        "--radius", type=positive_float, help="of the rise; the largest there is if not given"
    )
    parser.add_argument("--output", type=picture_path, help="picture (needed for several lines)")
    add_show_flag(parser)
    parser.add_argument("--out_dir", type=Path, default=ROOT, help="folder that holds plots/")
    args = parser.parse_args(argv)
    if len(args.surf_file) > 1 and args.output is None:
        raise ValueError("several --surf_file need --output, the picture's name")
    if len(args.surf_file) == 1 and (args.output or args.radius):
        raise ValueError("--output, --radius: are for several --surf_file, which make a band")
    return args


def main(argv: Sequence[str] | None = None) -> list[Path]:
    """Draw as the command line says; return the picture's path."""
    args = parse_args(argv)
    look = {key: getattr(args, key) for key in ("show", "log", "xmin", "xmax", "loss_max")}
    if len(args.surf_file) > 1:
        pictures = draw_bands(args.surf_file, args.surf_name, args.output, args.radius, **look)
    else:
        pictures = draw(args.surf_file[0], args.surf_name, args.out_dir, **look)
    report_files(pictures)
    return pictures


if __name__ == "__main__":
    run(main)
