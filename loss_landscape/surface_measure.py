"""The flags that say what a surface is of, and what measures it, in this process or in others."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from loss_landscape.batch_norm import batch_norms, recalibrating
from loss_landscape.directions import Direction, coordinates
from loss_landscape.evaluation import Measure, Visits, loss_and_accuracy, value_names
from loss_landscape.restore import Restored
from utilities.cli import non_negative_int, positive_float, positive_int


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
    if args.bn == "recalibrate" and args.dir_type == "states":
        raise ValueError(
            "--bn recalibrate: would replace the statistics that --dir_type states moves; take "
            "--dir_type weights"
        )


def make_measure(
    args: argparse.Namespace, restored: Restored, directions: Sequence[Direction]
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
    weights = list(coordinates(restored.model, args.dir_type).values())
    return Visits(weights, directions, value_names(splits, restored, args.samples), at_point)


def source(args: argparse.Namespace, restored: Restored) -> dict[str, Any]:
    """Which checkpoint, data and loss the values are of, in whichever process."""
    sha256 = hashlib.sha256(args.model_file.read_bytes()).hexdigest()
    return {"checkpoint_sha256": sha256, **restored.settings}


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What else makes two surfaces the same, of the flags above."""
    return {
        "samples": args.samples or 0,
        "test": args.test,
        "bn": args.bn if args.bn == "eval" else f"{args.bn}, batches of {args.batch_size}",
        "data_split": f"{args.split_idx} of {args.data_split}",
        "adaptive": args.adaptive or 0.0,
    }
