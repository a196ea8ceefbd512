"""The flags that say along which directions a surface is taken, and what they mean."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from loss_landscape.directions import IGNORES, NORMS, Direction, difference, random_direction
from loss_landscape.surface_file import read_directions
from utilities import checkpoint
from utilities.cli import seed_number

KINDS = ("random", "eigenvectors", "gradient", "pca")
ReadWeights = Callable[[Path], Mapping[str, Tensor]]  # of a checkpoint, by the model's names


def read_checkpoint(path: Path) -> Mapping[str, Tensor]:
    """The weights of a checkpoint of this project."""
    return checkpoint.load(path)["state_dict"]


class Recipe(NamedTuple):
    """How one direction is made: drawn and rescaled, or, with ``end``, towards that checkpoint."""

    norm: str
    ignore: str
    end: Path | None


def add_direction_flags(group: Any) -> None:
    """Add the flags to a parser or a group of one."""
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
    group.add_argument(
        "--directions",
        choices=KINDS,
        default="random",
        help="others have length 1: the Hessian's eigenvectors of the largest eigenvalues, the "
        "gradient (and the first eigenvector as y), or the principal components of the epochs "
        "that --keep_epochs kept",
    )
    group.add_argument("--model_file2", type=Path, help="x runs from the checkpoint to this one")
    group.add_argument("--model_file3", type=Path, help="y runs from the checkpoint to this one")
    group.add_argument(
        "--same_dir",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="y takes the direction of x",
    )
    group.add_argument(
        "--dir_file", type=Path, help="take the directions of this file, loss-landscape's too"
    )
    group.add_argument(
        "--idx", type=seed_number, default=0, help="repetition: other directions, one seed"
    )


def check_directions(args: argparse.Namespace) -> None:
    """Refuse flags that can't be right together, before anything is read.

    Raises:
        ValueError: names them.
    """
    if args.model_file3 and not args.y:
        raise ValueError("--model_file3: y runs to it, but there is no --y")
    ways = ("dir_file", "model_file2", "model_file3", "same_dir")
    given = [f"--{name}" for name in ways if getattr(args, name)]
    if args.directions != "random" and given:
        raise ValueError(
            f"--directions {args.directions}, {given[0]}: both say the directions; leave one out"
        )
    if args.dir_file and (args.model_file2 or args.model_file3):
        raise ValueError("--dir_file, --model_file2 or 3: both say the directions; leave one out")
    if args.same_dir and not args.y:
        raise ValueError("--same_dir: y takes the direction of x, but there is no --y")
    if args.same_dir and (args.dir_file or args.model_file3):
        raise ValueError(
            "--same_dir, --dir_file or --model_file3: both say the direction of y; leave one out"
        )


def directions_from_flags(
    args: argparse.Namespace, weights: dict[str, Tensor], read_weights: ReadWeights
) -> list[Direction]:
    """The directions that the flags mean, x first: two if there is a ``--y``."""
    if args.dir_file:
        return directions_of(args.dir_file, list(weights.values()), 2 if args.y else 1)
    recipes = [Recipe(args.xnorm, args.xignore, args.model_file2)]
    if args.y and not args.same_dir:
        recipes.append(Recipe(args.ynorm, args.yignore, args.model_file3))
    directions = make_directions(weights, recipes, args.seed, args.idx, read_weights)
    return directions * 2 if args.same_dir else directions


def described(args: argparse.Namespace) -> dict[str, str]:
    """How each direction came about, for the record: ``xdirection_is`` and ``ydirection_is``."""
    said, ends = {}, {"x": args.model_file2, "y": args.model_file3}
    for name in "xy" if args.y else "x":
        end = ends[name]
        norm, ignore = getattr(args, f"{name}norm"), getattr(args, f"{name}ignore")
        text = f"drawn with seed {args.seed}, idx {args.idx}; norm {norm}, ignore {ignore}"
        if args.dir_file:
            text = f"taken from {args.dir_file.name}"
        elif end:
            text = f"from {args.model_file.name} to {end.name}"
        said[f"{name}direction_is"] = text
    if args.same_dir:
        said["ydirection_is"] = said["xdirection_is"]
    return said


def directions_of(path: Path, weights: Direction, count: int) -> list[Direction]:
    """The first ``count`` directions of another surface.

    Those along states have a number for each counter of batch norm's, as loss-landscape writes
    them; it is left out, since a counter is no coordinate.

    Raises:
        ValueError: there are fewer, or they don't fit the model's ``weights``.
    """
    found = read_directions(path)[:count]
    if any(len(direction) > len(weights) for direction in found):
        found = [[t for t in direction if t.ndim] for direction in found]
    shapes = [[t.shape for t in direction] for direction in found]
    if len(found) < count or any(s != [w.shape for w in weights] for s in shapes):
        raise ValueError(f"{path}: has no {count} directions that fit the model of --model_file")
    if not all(t.isfinite().all() for direction in found for t in direction):
        raise ValueError(f"{path}: its directions have NaN or infinite values")
    return [[t.to(w) for t, w in zip(d, weights, strict=True)] for d in found]


def make_directions(
    weights: dict[str, Tensor],
    recipes: Sequence[Recipe],
    seed: int,
    idx: int = 0,
    read_weights: ReadWeights = read_checkpoint,
) -> list[Direction]:
    """New directions, x first.

    Args:
        weights: what they are to move, by name.
        recipes: one for each direction.
        seed: of what is drawn; two models of one architecture get the same Gaussians.
        idx: repetition, another draw for each.
        read_weights: of a checkpoint to run to.

    Raises:
        FileNotFoundError: no checkpoint to run to.
        ValueError: its weights don't fit the model.
    """
    generator = torch.Generator().manual_seed(seed + 1_000_003 * idx)
    directions = []
    start = list(weights.values())
    for recipe in recipes:
        # Drawn whether or not it is used, so that y doesn't hang on what x is.
        direction = random_direction(start, recipe.norm, recipe.ignore, generator)
        if recipe.end:
            end = read_weights(recipe.end)
            if any(n not in end or end[n].shape != w.shape for n, w in weights.items()):
                raise ValueError(f"{recipe.end}: its weights don't fit those of --model_file")
            direction = difference(start, [end[name] for name in weights])
        directions.append(direction)
    return directions
