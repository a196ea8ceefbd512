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
import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from loss_landscape import plot_1D, plot_2D
from loss_landscape.adaptive import compute_adaptively
from loss_landscape.batch_norm import batch_norms, recalibrating
from loss_landscape.chosen_directions import directions_and_kind
from loss_landscape.direction_flags import add_direction_flags, check_directions, described
from loss_landscape.directions import Direction, coordinates, cosine, fingerprint, with_counters
from loss_landscape.evaluation import (
    Measure,
    Visits,
    axis,
    compute,
    loss_and_accuracy,
    value_names,
)
from loss_landscape.on_ray import handed_out, require_ray
from loss_landscape.path_picture import draw_on, path_on
from loss_landscape.restore import Restored, add_restore_flags, restore
from loss_landscape.surface_file import Surface, create, read_surface
from utilities.cli import (
    Parser,
    add_run_flags,
    non_negative_int,
    positive_float,
    positive_int,
    report_files,
    run,
)
from utilities.files import locked, remove_parts
from utilities.runs import refuse_other

MOST_CELLS = 10_000_000
REMEDY = "name this one with --surf_file or replace that with --overwrite"
# What surfaces of older versions don't say of themselves.
LATER = {"bn": "eval", "data_split": "0 of 1", "adaptive": 0.0}
ELSEWHERE = {
    "--mpi": "write --ray, which hands the points to several processes",
    "--cuda": "write --device cuda",
    "--ngpu": "write --device cuda:0 or another; one process takes one GPU",
    "--datapath": "write --data_dir",
    "--model_folder": "write the whole path after --model_file, --model_file2 and --model_file3",
    "--trainloader": "write --dataset package.module:loader",
    "--testloader": "write --dataset package.module:loader",
    "--raw_data": "the model was trained on normalised inputs and means nothing on others; give "
    "inputs of your own with --dataset package.module:loader",
    "--loss_max": "write --vmax",
}


class Elsewhere(argparse.Action):
    """A flag of loss-landscape's that has another name here, or can't be right."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: object,
        values: object,
        flag: str | None = None,
    ) -> None:
        parser.error(f"{flag}: {self.metavar}")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    add_restore_flags(parser, batch_size=128)
    group = parser.add_argument_group("grid and directions")
    group.add_argument("--x", type=axis, default="-1:1:51", help="min:max:num (write --x=-1:1:51)")
    group.add_argument("--y", type=axis, help="the same for the second direction; none: 1D")
    add_direction_flags(group)
    _add_measure_flags(parser.add_argument_group("what is measured"))
    _add_result_flags(parser.add_argument_group("results"))
    add_run_flags(parser, seed=123)
    parser.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="hand the points to the workers of this Ray cluster, each with --threads threads (1 "
        "if not given); without an address to processes of this machine",
    )
    for flag, said in ELSEWHERE.items():
        parser.add_argument(flag, nargs="?", action=Elsewhere, metavar=said, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    check_directions(args)
    _check(args)
    if args.ray is not None:
        require_ray()
        args.threads = args.threads or 1  # as the workers, so that values are the same bits
    return args


def _add_measure_flags(group: Any) -> None:
    group.add_argument(
        "--test",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="evaluate the test split too",
    )
    group.add_argument(
        "--data_split",
        type=positive_int,
        default=1,
        help="deal the training samples out to this many parts and take one of them",
    )
    group.add_argument("--split_idx", type=non_negative_int, default=0, help="which part, from 0")
    group.add_argument(
        "--bn",
        choices=["eval", "recalibrate"],
        default="eval",
        help="batch norm's statistics: the checkpoint's at all points, or those that the training "
        "samples have at each point",
    )

    group.add_argument(
        "--adaptive",
        type=positive_float,
        nargs="?",
        const=0.02,
        metavar="ERROR",
        help="measure a coarse grid, refine it where its interpolation is expected to be off by "
        "more than this part of a loss (0.02 if no number is given), and interpolate the rest",
    )


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


def _check(args: argparse.Namespace) -> None:
    """Refuse a grid or flags that can't be right, before anything is read."""
    if args.proj_file and not (args.plot and args.y):
        raise ValueError("--proj_file: is drawn on a surface in 2D; add --plot and --y")
    if args.y and args.x.num * args.y.num > MOST_CELLS:
        raise ValueError(f"--x, --y: {args.x.num * args.y.num:,} points; {MOST_CELLS:,} at most")
    if args.plot and args.y and min(args.x.num, args.y.num) == 1:
        raise ValueError(
            f"--plot: a grid of {args.y.num} x {args.x.num} can't be drawn; leave --plot or --y out"
        )
    if args.split_idx >= args.data_split:
        raise ValueError(
            f"--split_idx {args.split_idx}: --data_split {args.data_split} gives parts 0 to "
            f"{args.data_split - 1}"
        )
    if args.bn == "recalibrate" and args.dir_type == "states":
        raise ValueError(
            "--bn recalibrate: would replace the statistics that --dir_type states moves; take "
            "--dir_type weights"
        )


class Prepared(NamedTuple):
    """What a process makes of the flags.

    Attributes:
        directions: one for each axis, as the file has them.
        measure: gives the values.
        surface: grid and attributes.
    """

    directions: list[Direction]
    measure: Measure
    surface: Surface


def main(argv: Sequence[str] | None = None) -> Path:
    """Compute a surface as the command line says; return its path."""
    args = parse_args(argv)
    directions, measure, surface = prepare(args)
    if len(directions) == 2:
        print(f"cosine of the angle between the directions: {cosine(*directions):.4f}")
    path = surface_path(args)
    with locked(path, "name this surface with --surf_file"):
        remove_parts(path)
        if path.exists() and path.stat().st_size and not args.overwrite:
            refuse_another(path, surface, measure)
        else:
            create(path, surface, directions, measure.names, adaptive=bool(args.adaptive))
        if args.proj_file:
            path_on(path, args.proj_file)  # or stop now
        shared: AbstractContextManager[Measure] = nullcontext(measure)
        if args.ray is not None:
            # The file is there now: workers take its directions.
            theirs = argparse.Namespace(**{**vars(args), "overwrite": False})
            shared = handed_out(theirs, measure, surface.attributes)
        with shared as measure:
            if args.adaptive:
                print(compute_adaptively(path, surface, measure, args.adaptive))
            else:
                compute(path, surface, measure)
        print("\n".join(summary(read_surface(path))))
        draw = plot_2D.draw if args.y else plot_1D.draw
        pictures = draw(path, "train_loss", args.out_dir) if args.plot else []
        if args.proj_file:
            pictures.append(draw_on(path, args.proj_file, "train_loss", args.out_dir))
    report_files([path, *pictures])
    return path


def surface_path(args: argparse.Namespace) -> Path:
    """Where the surface goes."""
    return args.surf_file or args.out_dir / "to_plot" / f"{args.model_file.stem}.h5"


def prepare(args: argparse.Namespace) -> Prepared:
    """Restore the model, its data and its directions."""
    restored = restore(args)
    weights = coordinates(restored.model, args.dir_type)
    part = (args.split_idx, args.data_split)
    directions, kind = directions_and_kind(args, restored, weights, surface_path(args), part)
    measure = make_measure(args, restored, list(weights.values()), directions)
    surface = Surface(args.x.points(), args.y.points() if args.y else None, {})
    surface.attributes = {**_attributes(args, restored, directions), **kind}
    if args.dir_type == "states":
        directions = [with_counters(restored.model, direction) for direction in directions]
    return Prepared(directions, measure, surface)


def make_measure(
    args: argparse.Namespace,
    restored: Restored,
    weights: Direction,
    directions: list[Direction],
) -> Measure:
    """What gives the values that the flags ask for.

    Raises:
        ValueError: ``--bn recalibrate`` without a batch norm, or ``--data_split`` without samples.
    """
    splits = ("train", "test") if args.test else ("train",)
    parts = {"train": (args.split_idx, args.data_split), "test": (0, 1)}
    batches = {s: restored.batches(s, args.samples, args.batch_size, parts[s]) for s in splits}
    at_point: Callable[[], dict[str, float]] = partial(loss_and_accuracy, restored, batches)
    if args.bn == "recalibrate":
        if not batch_norms(restored.model):
            raise ValueError(f"--bn recalibrate: {args.model_file}'s model has no batch norm")
        at_point = recalibrating(restored.model, batches["train"], restored.forward, at_point)
    return Visits(weights, directions, value_names(splits, restored, args.samples), at_point)


def refuse_another(path: Path, surface: Surface, measure: Measure) -> None:
    """Stop before another surface than ``surface`` is gone on with."""
    held = read_surface(path)
    new = surface.settings  # what is said of the result beyond these is no setting
    old = {name: value for name, value in {**LATER, **held.settings}.items() if name in new}
    refuse_other(path, old, new, "surface", REMEDY)
    missing = [name for name in measure.names if name not in held.values]
    if missing:
        raise ValueError(f"{path}: holds a surface without {', '.join(missing)}; {REMEDY}")


def _attributes(
    args: argparse.Namespace, restored: Restored, directions: list[Direction]
) -> dict[str, Any]:
    """What makes two surfaces the same; ``arguments`` and the rest are for the record."""
    plain = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    return {
        "checkpoint_sha256": hashlib.sha256(args.model_file.read_bytes()).hexdigest(),
        "directions_sha256": fingerprint(directions),
        "dir_type": args.dir_type,
        "norm": f"{args.xnorm} {args.ynorm}",
        "seed": args.seed,
        "samples": args.samples or 0,
        "test": args.test,
        "bn": args.bn if args.bn == "eval" else f"{args.bn}, batches of {args.batch_size}",
        "data_split": f"{args.split_idx} of {args.data_split}",
        "adaptive": args.adaptive or 0.0,
        **described(args),
        "title": restored.run.title,
        **restored.settings,
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
    return lines


if __name__ == "__main__":
    run(main)
