"""The flags that say what a surface is of, and what measures it, in this process or in others."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from loss_landscape.directions import Direction, coordinates
from loss_landscape.evaluation import Visits, loss_and_accuracy, value_names
from loss_landscape.forward_pass.batch_norm import batch_norms, recalibrating, said
from loss_landscape.points.fast_evaluation import PLAIN, AtPoint, FastVisits, Task, faster
from loss_landscape.restore import Restored
from loss_landscape.surface_file import Surface
from utilities.cli import non_negative_int, positive_float, positive_int
from utilities.files import sha256_of


def add_measure_flags(group: Any) -> None:
    """Add the flags to a parser or a group of one."""
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
    _add_speed_flags(group)


def _add_speed_flags(group: Any) -> None:
    """Add the flags that trade time for rounding, precision or interpolation."""
    group.add_argument(
        "--fast",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="look for a faster way that gives the same losses, such as folded layers; it is "
        "chosen by timing, so that two surfaces may differ in rounding",
    )
    group.add_argument(
        "--precision",
        choices=["fp32", "bf16", "auto"],
        default="fp32",
        help="bf16: the centre and one point of ten are measured in fp32 too, and the file holds "
        "how far bf16 is off; auto: bf16 where the hardware is fast in it",
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


def check_measure_flags(args: argparse.Namespace) -> None:
    """Refuse flags that can't be right together, before anything is read.

    Raises:
        ValueError: names them.
    """
    if args.split_idx >= args.data_split:
        raise ValueError(
            f"--split_idx {args.split_idx}: --data_split {args.data_split} gives parts 0 to "
            f"{args.data_split - 1}"
        )
    if args.precision != "fp32" and not args.fast:
        raise ValueError(f"--precision {args.precision}: is one of the faster ways; drop --no-fast")
    if args.bn == "recalibrate" and args.dir_type == "states":
        raise ValueError(
            "--bn recalibrate: would replace the statistics that --dir_type states moves; take "
            "--dir_type weights"
        )


def make_task(
    args: argparse.Namespace, restored: Restored, directions: Sequence[Direction]
) -> Task:
    """What the flags ask to be measured at each point.

    Raises:
        ValueError: ``--bn recalibrate`` without a batch norm, or ``--data_split`` without samples.
    """
    splits = ("train", "test") if args.test else ("train",)
    parts = {"train": (args.split_idx, args.data_split), "test": (0, 1)}
    batches = {s: restored.batches(s, args.samples, args.batch_size, parts[s]) for s in splits}
    at_point: AtPoint = partial(loss_and_accuracy, restored, batches)
    around: Callable[[AtPoint], AtPoint] = _as_it_is
    if args.bn == "recalibrate":
        if not batch_norms(restored.model):
            raise ValueError(f"--bn recalibrate: {args.model_file}'s model has no batch norm")
        around = partial(recalibrating, restored.model, batches["train"], restored.forward)
    weights = list(coordinates(restored.model, args.dir_type).values())
    names = value_names(splits, restored, args.samples)
    plain = Visits(weights, directions, names, around(at_point))
    return Task(restored, batches, plain, around)


def make_measure(
    args: argparse.Namespace, task: Task, surface: Surface, way: str | None = None
) -> FastVisits:
    """What measures it.

    Args:
        args: the flags.
        task: what is measured.
        surface: its points.
        way: in which its points are measured already, "" for one that doesn't say; None for a new
            surface, whose way is found by trying.

    Raises:
        ValueError: the way can't be gone here.
    """
    if way is None and not args.fast:
        way = str(PLAIN)
    return faster(task, surface, args.precision, way)


def _as_it_is(at_point: AtPoint) -> AtPoint:
    return at_point


def grid_of(args: argparse.Namespace) -> Surface:
    """The surface's points, with nothing measured."""
    return Surface(args.x.points(), args.y.points() if args.y else None, {})


def source(args: argparse.Namespace, restored: Restored) -> dict[str, Any]:
    """Which checkpoint, data and loss the values are of, in whichever process."""
    sha256 = sha256_of(args.model_file)
    return {"checkpoint_sha256": sha256, **restored.settings}


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What else makes two surfaces the same, of the flags above."""
    return {
        "samples": args.samples or 0,
        "test": args.test,
        "bn": said(args),
        "data_split": f"{args.split_idx} of {args.data_split}",
        "adaptive": args.adaptive or 0.0,
        "precision": args.precision,
    }
