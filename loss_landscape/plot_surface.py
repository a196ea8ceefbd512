r"""Compute the loss surface around a checkpoint along random or chosen directions.

    python plot_surface.py --model GCN --dataset MUTAG --x=-1:1:20 --y=-1:1:20 \
        --model_file ../to_plot/model_GCN_SAM_rho0.05.pt --dir_type weights \
        --xnorm filter --xignore biasbn --ynorm filter --yignore biasbn --plot
    python plot_surface.py --x=0:1:51 --model_file A.pt --model_file2 B.pt --plot   # from A to B

The surface goes to ``to_plot/<checkpoint>.h5``; ``--plot`` draws it. A run that was stopped goes on
where it was. Two models of one architecture and the same ``--seed`` get the same Gaussians, each
scaled to its own filters (Li et al. 2018, arXiv:1712.09913).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from loss_landscape import plot_1D, plot_2D
from loss_landscape.directions import Direction, coordinates, cosine, fingerprint, with_counters
from loss_landscape.evaluation import Measure, axis, compute
from loss_landscape.pictures.path_picture import draw_on, path_on
from loss_landscape.pictures.picture_flags import add_scale_flags, add_show_flag, check_scale_flags
from loss_landscape.plane.chosen_directions import directions_and_kind
from loss_landscape.plane.direction_flags import add_direction_flags, check_directions, described
from loss_landscape.points.adaptive import compute_adaptively
from loss_landscape.points.fast_evaluation import PLAIN, FastVisits, Task, Way
from loss_landscape.points.foreign_flags import add_foreign_flags
from loss_landscape.points.on_ray import handed_out
from loss_landscape.points.surface_measure import (
    add_measure_flags,
    check_measure_flags,
    grid_of,
    make_measure,
    make_task,
    settings,
    source,
)
from loss_landscape.restore import Restored, add_restore_flags, restore
from loss_landscape.surface_file import Surface, create, read_surface
from utilities.cli import Parser, add_run_flags, report_files, run
from utilities.files import locked, remove_parts
from utilities.ranks import refuse_several
from utilities.ray_cluster import add_ray_flag, check_ray_flag
from utilities.runs import refuse_other

MOST_CELLS = 10_000_000
REMEDY = "name this one with --surf_file or replace that with --overwrite"
# What surfaces of older versions don't say of themselves.
LATER = {"bn": "eval", "data_split": "0 of 1", "adaptive": 0.0, "precision": "fp32"}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    add_restore_flags(parser, batch_size=128)
    group = parser.add_argument_group("grid and directions")
    group.add_argument("--x", type=axis, default="-1:1:51", help="min:max:num (write --x=-1:1:51)")
    group.add_argument("--y", type=axis, help="the same for the second direction; none: 1D")
    add_direction_flags(group)
    add_measure_flags(parser.add_argument_group("what is measured"))
    _add_result_flags(parser.add_argument_group("results"))
    add_run_flags(parser, seed=123)
    add_ray_flag(parser, "the points")
    add_foreign_flags(parser)
    args = parser.parse_args(argv)
    check_directions(args)
    check_measure_flags(args)
    check_scale_flags(args)
    _check(args)
    check_ray_flag(args)
    return args


def _add_result_flags(group: Any) -> None:
    group.add_argument("--surf_file", type=Path, help="surface (default: the checkpoint's name)")
    group.add_argument(
        "--overwrite",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="replace another surface of that name",
    )
    group.add_argument(
        "--plot", action=argparse.BooleanOptionalAction, default=False, help="draw the surface"
    )
    group.add_argument(
        "--proj_file", type=Path, help="draw this path on it too, which plot_trajectory.py made"
    )
    add_scale_flags(group)
    add_show_flag(group)


def _check(args: argparse.Namespace) -> None:
    """Refuse a grid or flags that can't be right, before anything is read."""
    if args.proj_file and not (args.plot and args.y):
        raise ValueError("--proj_file: is drawn on a surface in 2D; add --plot and --y")
    if args.y and args.x.num * args.y.num > MOST_CELLS:
        raise ValueError(f"--x, --y: {args.x.num * args.y.num:,} points; {MOST_CELLS:,} at most")
    looks = ("show", "log", "vmin", "vmax", "vlevel")
    given = [f"--{n}" for n in looks if not (vars(args)[n] is None or vars(args)[n] is False)]
    if given and not args.plot:
        raise ValueError(f"{given[0]}: says how the surface is drawn; add --plot")
    if not args.y and (args.vmin is not None or args.vlevel is not None):
        raise ValueError("--vmin, --vlevel: are of surfaces in 2D; leave them out, or add --y")
    if args.plot and args.y and min(args.x.num, args.y.num) == 1:
        raise ValueError(
            f"--plot: a grid of {args.y.num} x {args.x.num} can't be drawn; leave --plot or --y out"
        )


def main(argv: Sequence[str] | None = None) -> Path:
    """Compute a surface as the command line says; return its path."""
    args = parse_args(argv)
    refuse_several()
    restored = restore(args)
    weights = coordinates(restored.model, args.dir_type)
    path = args.surf_file or args.out_dir / "to_plot" / f"{args.model_file.stem}.h5"
    part = (args.split_idx, args.data_split)
    directions, kind = directions_and_kind(args, restored, weights, path, part)
    if len(directions) == 2:
        print(f"cosine of the angle between the directions: {cosine(*directions):.4f}")
    task = make_task(args, restored, directions)
    surface = grid_of(args)
    surface.attributes = {**_attributes(args, restored, directions), **kind}
    held = directions
    if args.dir_type == "states":
        held = [with_counters(restored.model, direction) for direction in directions]
    with locked(path, "name this surface with --surf_file"):
        remove_parts(path)
        found = begin(args, path, surface, task, held)
        if args.proj_file:
            path_on(path, args.proj_file)  # or stop now
        shared: AbstractContextManager[Measure] = nullcontext(found)
        if args.ray is not None:
            shared = handed_out(args, directions, found, source(args, restored))
        with shared as measure:
            if args.adaptive:
                print(compute_adaptively(path, surface, measure, args.adaptive))
            else:
                compute(path, surface, measure)
        print("\n".join(summary(read_surface(path))))
        pictures = draw(args, path) if args.plot else []
        if args.proj_file:
            pictures.append(draw_on(path, args.proj_file, "train_loss", args.out_dir))
    report_files([path, *pictures])
    return path


def draw(args: argparse.Namespace, path: Path) -> list[Path]:
    """Draw the surface as the flags say; return the pictures' paths."""
    if not args.y:
        return plot_1D.draw(
            path, "train_loss", args.out_dir, args.show, log=args.log, loss_max=args.vmax
        )
    scale = (args.vmin, args.vmax, args.vlevel, args.log)
    return plot_2D.draw(path, "train_loss", args.out_dir, *scale, show=args.show)


def begin(
    args: argparse.Namespace, path: Path, surface: Surface, task: Task, directions: list[Direction]
) -> FastVisits:
    """Make the file, or see whether it is gone on with; return what measures its points.

    Raises:
        ValueError: there is another surface.
    """
    if not path.exists() or not path.stat().st_size or args.overwrite:
        measure = make_measure(args, task, surface)
        surface.attributes["way"] = str(measure.way)
        create(path, surface, directions, measure.names, adaptive=bool(args.adaptive))
        return measure
    way = str(refuse_another(path, surface, task.plain.names).attributes.get("way", ""))
    if not args.fast and way and Way.read(way) != PLAIN:
        raise ValueError(
            f"{path}: was begun in a faster way ({way}); leave --no-fast out, or {REMEDY}"
        )
    return make_measure(args, task, surface, way)


def refuse_another(path: Path, surface: Surface, names: Sequence[str]) -> Surface:
    """Stop before another surface than ``surface`` is gone on with; return the one that is there.

    Raises:
        ValueError: it is another one, or has no room for the values ``names``.
    """
    held = read_surface(path)
    new = surface.settings  # what is said of the result beyond these is no setting
    old = {name: value for name, value in {**LATER, **held.settings}.items() if name in new}
    refuse_other(path, old, new, "surface", REMEDY)
    missing = [name for name in names if name not in held.values]
    if missing:
        raise ValueError(f"{path}: holds a surface without {', '.join(missing)}; {REMEDY}")
    return held


def _attributes(
    args: argparse.Namespace, restored: Restored, directions: list[Direction]
) -> dict[str, Any]:
    """What makes two surfaces the same; ``arguments`` and the rest are for the record."""
    plain = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    return {
        **source(args, restored),
        "directions_sha256": fingerprint(directions),
        "dir_type": args.dir_type,
        "norm": f"{args.xnorm} {args.ynorm}",
        "seed": args.seed,
        **settings(args),
        **described(args),
        "title": restored.run.title,
        "arguments": json.dumps(plain, default=str),
    }


def summary(surface: Surface) -> list[str]:
    """For each loss a line: its range, and its value at the checkpoint."""
    lines = []
    for name in (name for name in surface.values if name.endswith("_loss")):
        value = surface.values[name]
        finite = value[np.isfinite(value)]
        line = f"{name}: {finite.min():.4f} to {finite.max():.4f}" if finite.size else f"{name}: -"
        at = [np.flatnonzero(axis == 0) for axis in (surface.y, surface.x) if axis is not None]
        if all(map(len, at)):
            line += f", {value[tuple(i[0] for i in at)]:.4f} at the checkpoint"
        if finite.size < value.size:
            line += f"; not finite at {value.size - finite.size:,} of {value.size:,} points"
        lines.append(line)
    for name in (name for name in surface.values if name.endswith("_loss_deviation")):
        off = np.abs(surface.values[name][np.isfinite(surface.values[name])])
        if off.size:
            lines.append(
                f"{name}: {off.max():.2g} at most at {off.size:,} points measured in fp32 too"
            )
    return lines


if __name__ == "__main__":
    run(main)
