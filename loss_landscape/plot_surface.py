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
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from loss_landscape import plot_1D, plot_2D
from loss_landscape.directions import (
    IGNORES,
    NORMS,
    Direction,
    coordinates,
    cosine,
    difference,
    fingerprint,
    random_direction,
)
from loss_landscape.evaluation import evaluate, moved
from loss_landscape.restore import Restored, add_restore_flags, restore
from loss_landscape.surface_file import (
    Surface,
    create,
    done,
    read_directions,
    read_surface,
    refuse_other,
    write_row,
)
from utilities import checkpoint
from utilities.cli import Parser, add_run_flags, non_negative_int, report_files, run


class Axis(NamedTuple):
    """``num`` coordinates from ``low`` to ``high``, both included."""

    low: float
    high: float
    num: int

    def points(self) -> np.ndarray:
        return np.linspace(self.low, self.high, self.num)


def axis(text: str) -> Axis:
    """Read ``min:max:num``.

    Raises:
        argparse.ArgumentTypeError: not of that form.
    """
    try:
        low, high, num = text.split(":")
        read = Axis(float(low), float(high), int(num))
    except ValueError:
        read = Axis(math.nan, math.nan, 0)
    rising = read.low < read.high or (read.num == 1 and read.low == read.high)
    if not (math.isfinite(read.low) and math.isfinite(read.high) and read.num >= 1 and rising):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not min:max:num with min below max and num 1 or more, such as -1:1:51"
        )
    return read


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    add_restore_flags(parser, batch_size=128)
    group = parser.add_argument_group("grid and directions")
    group.add_argument("--x", type=axis, default="-1:1:51", help="min:max:num (write --x=-1:1:51)")
    group.add_argument("--y", type=axis, help="the same for the second direction; none: 1D")
    group.add_argument(
        "--dir_type",
        choices=["weights", "states"],
        default="weights",
        help="states: batch-norm statistics too",
    )
    for name in "xy":
        group.add_argument(f"--{name}norm", choices=NORMS, default="filter", help="rescaling")
        group.add_argument(
            f"--{name}ignore",
            choices=IGNORES,
            default="biasbn",
            help="biasbn: leave biases and normalisation parameters alone",
        )
    group.add_argument("--model_file2", type=Path, help="x runs from the checkpoint to this one")
    group.add_argument("--model_file3", type=Path, help="y runs from the checkpoint to this one")
    group.add_argument("--dir_file", type=Path, help="take the directions of this surface")
    group.add_argument(
        "--idx", type=non_negative_int, default=0, help="repetition: other directions, one seed"
    )
    group = parser.add_argument_group("results")
    group.add_argument("--surf_file", type=Path, help="surface (default: the checkpoint's name)")
    group.add_argument(
        "--test",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="evaluate the test split too",
    )
    group.add_argument(
        "--overwrite",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="replace another surface of that name",
    )
    group.add_argument(
        "--plot", action=argparse.BooleanOptionalAction, default=False, help="draw the surface"
    )
    add_run_flags(parser, seed=123)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> Path:
    """Compute a surface as the command line says; return its path."""
    args = parse_args(argv)
    restored = restore(args)
    weights = list(coordinates(restored.model, args.dir_type).values())
    directions = make_directions(args, restored, weights)
    if len(directions) == 2:
        print(f"cosine of the angle between the directions: {cosine(*directions):.4f}")
    splits = ("train", "test") if args.test else ("train",)
    surface = Surface(args.x.points(), args.y.points() if args.y else None, {})
    surface.attributes = _attributes(args, restored, directions)
    path = args.surf_file or args.out_dir / "to_plot" / f"{args.model_file.stem}.h5"
    if path.exists() and not args.overwrite:
        refuse_other(path, surface)
    else:
        names = tuple(f"{split}_{value}" for split in splits for value in ("loss", "acc"))
        create(path, surface, directions, names)
    batches = {s: restored.batches(s, args.samples, args.batch_size) for s in splits}
    compute(path, surface, restored, weights, directions, batches)
    _summarise(path)
    pictures = _draw(path, args) if args.plot else []
    report_files([path, *pictures])
    return path


def make_directions(
    args: argparse.Namespace, restored: Restored, weights: Direction
) -> list[Direction]:
    """The directions that the flags ask for, x first.

    Raises:
        ValueError: those of ``--dir_file`` or a second checkpoint don't fit the model.
    """
    if args.dir_file:
        found = read_directions(args.dir_file)
        shapes = [[t.shape for t in d] for d in found]
        wanted = 2 if args.y else 1
        if len(found) < wanted or any(s != [w.shape for w in weights] for s in shapes):
            raise ValueError(f"{args.dir_file}: its directions don't fit {args.model_file}")
        return [[t.to(w) for t, w in zip(d, weights, strict=True)] for d in found[:wanted]]
    # x and y draw from one generator in turn, whether or not x is used.
    generator = torch.Generator().manual_seed(args.seed + 1_000_003 * args.idx)
    directions = []
    options = [(args.xnorm, args.xignore, args.model_file2)]
    if args.y:
        options.append((args.ynorm, args.yignore, args.model_file3))
    for norm, ignore, target in options:
        drawn = random_direction(weights, norm, ignore, generator)
        directions.append(_towards(target, args, restored, weights) if target else drawn)
    return directions


def _towards(
    target: Path, args: argparse.Namespace, restored: Restored, weights: Direction
) -> Direction:
    other = checkpoint.load(target)
    names = coordinates(restored.model, args.dir_type)
    ends = other["state_dict"]
    if any(n not in ends or ends[n].shape != w.shape for n, w in names.items()):
        raise ValueError(f"{target}: its weights don't fit those of {args.model_file}")
    return difference(weights, [ends[name] for name in names])


def compute(
    path: Path,
    surface: Surface,
    restored: Restored,
    weights: Direction,
    directions: list[Direction],
    batches: dict[str, Any],
) -> None:
    """Evaluate what is not done yet, row by row; each finished row is on disk."""
    ys: list[float | None] = [None] if surface.y is None else list(map(float, surface.y))
    finished = [bool(np.all(row)) for row in np.reshape(done(path), (len(ys), -1))]
    rows = [row for row in range(len(ys)) if not finished[row]]
    if len(rows) < len(ys):
        print(f"{path}: {len(ys) - len(rows)} of {len(ys)} rows are there already")
    console = Console()
    shown = rows
    if console.is_terminal:
        shown = track(rows, description="rows of the surface", console=console)  # type: ignore
    started = time.monotonic()
    for count, row in enumerate(shown, start=1):
        values = _row(surface.x, ys[row], restored, weights, directions, batches)
        write_row(path, row, values)
        tenth = max(1, len(rows) // 10)
        if not console.is_terminal and (count % tenth == 0 or count == len(rows)):
            print(f"row {count} of {len(rows)}, {time.monotonic() - started:.0f} s", flush=True)


def _row(
    xs: np.ndarray,
    y: float | None,
    restored: Restored,
    weights: Direction,
    directions: list[Direction],
    batches: dict[str, Any],
) -> dict[str, np.ndarray]:
    values: dict[str, list[float]] = {}
    for x in xs.tolist():
        with moved(weights, directions, [x] if y is None else [x, y]):
            for split, part in batches.items():
                loss, accuracy = evaluate(restored.model, part, restored.loss)
                values.setdefault(f"{split}_loss", []).append(loss)
                values.setdefault(f"{split}_acc", []).append(accuracy)
    return {name: np.array(row) for name, row in values.items()}


def _attributes(
    args: argparse.Namespace, restored: Restored, directions: list[Direction]
) -> dict[str, Any]:
    """What makes two surfaces the same; ``arguments`` and the rest are for the record."""
    train_args = restored.content["train_args"]
    plain = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    return {
        "checkpoint_sha256": hashlib.sha256(args.model_file.read_bytes()).hexdigest(),
        "directions_sha256": fingerprint(directions),
        "dir_type": args.dir_type,
        "norm": f"{args.xnorm} {args.ynorm}",
        "seed": args.seed,
        "samples": args.samples or 0,
        "loss_name": args.loss_name,
        "test": args.test,
        "model": restored.content["model"],
        "dataset": restored.content["dataset"],
        "optimizer": train_args["optimizer"],
        "rho": train_args["rho"],
        "arguments": json.dumps(plain, default=str),
    }


def _summarise(path: Path) -> None:
    surface = read_surface(path)
    for name, value in surface.values.items():
        if not name.endswith("_loss"):
            continue
        line = f"{name}: {np.nanmin(value):.4f} to {np.nanmax(value):.4f}"
        at_x = np.flatnonzero(surface.x == 0)
        at_y = np.flatnonzero(surface.y == 0) if surface.y is not None else at_x
        if len(at_x) and len(at_y):
            centre = value[at_x[0]] if surface.y is None else value[at_y[0], at_x[0]]
            line += f", {centre:.4f} at the checkpoint"
        print(line)


def _draw(path: Path, args: argparse.Namespace) -> list[Path]:
    draw = plot_2D if args.y and args.x.num > 1 and args.y.num > 1 else plot_1D
    if args.y and draw is plot_1D:
        raise ValueError(f"{path}: a grid of one row or column can't be drawn; it is computed")
    return draw.draw(path, "train_loss", args.out_dir)


if __name__ == "__main__":
    run(main)
