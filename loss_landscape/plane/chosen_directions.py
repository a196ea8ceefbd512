"""Directions that a model itself points to: its Hessian's eigenvectors, its gradient, its past.

Two random directions out of thousands nearly miss all of a few sharp ones (Ghorbani et al. 2019,
arXiv:1901.10159); these show them. All have length 1, so that a step is a distance in weight space
and the loss along an eigenvector bends as much as the eigenvalue says.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from loss_landscape.directions import Direction
from loss_landscape.my_pyhessian.lanczos import extreme_eigenvalues
from loss_landscape.my_pyhessian.operators import CurvatureOperator, HessianOperator
from loss_landscape.my_pyhessian.stochastic import rademacher
from loss_landscape.plane.direction_flags import directions_from_flags, directions_of
from loss_landscape.plane.trajectory import (
    kept_beside,
    principal_directions,
    project,
    read_trajectory,
)
from loss_landscape.restore import Restored
from loss_landscape.surface_file import read_surface
from utilities import checkpoint

DESCRIBED = ("xdirection_is", "ydirection_is")
MOST_PRODUCTS = 400
TOLERANCE = 1e-3  # residual over the largest eigenvalue


def directions_and_kind(
    args: argparse.Namespace,
    restored: Restored,
    weights: dict[str, Tensor],
    path: Path,
    part: tuple[int, int] = (0, 1),
) -> tuple[list[Direction], dict[str, str]]:
    """The directions that the flags mean, x first, and what a surface says of ``--directions``.

    A surface that is gone on with keeps its own: made anew, they would differ in rounding.

    Args:
        args: the flags.
        restored: the checkpoint, its loss and data.
        weights: what the directions are to move, by name.
        path: where the surface is, or is to be.
        part: of the training samples, as ``Restored.batches`` takes it.

    Raises:
        FileNotFoundError: a file that the flags name isn't there.
        ValueError: the checkpoint has no such directions; see below.
    """
    if args.directions == "random":
        return directions_from_flags(args, weights, restored.read_weights), {}
    count = 2 if args.y else 1
    if path.exists() and path.stat().st_size and not args.overwrite:
        said = read_surface(path).attributes
        if said.get("directions") == args.directions:
            names = ("directions", "norm", *DESCRIBED[:count])
            kept = {name: str(said.get(name, "")) for name in names}
            return directions_of(path, list(weights.values()), count), kept
    chosen = choose(args, restored, weights, count, part)
    described = dict(zip(DESCRIBED, chosen.described, strict=False))
    return chosen.directions, {"directions": args.directions, "norm": "unit unit", **described}


def choose(
    args: argparse.Namespace,
    restored: Restored,
    weights: dict[str, Tensor],
    count: int,
    part: tuple[int, int],
) -> Chosen:
    """``count`` directions of the kind ``--directions``.

    The second of the gradient is what the Hessian's first eigenvector has beside it.
    """
    if args.directions == "pca":
        return principal(args.model_file, weights, args.dir_type, count)
    batches = restored.batches("train", args.samples, args.batch_size, part)
    operator = HessianOperator(restored.model, restored.loss, batches, restored.forward)
    if args.directions == "eigenvectors":
        return eigenvectors(operator, weights, count, args.seed)
    first = gradient(operator, weights)
    if count == 1:
        return first
    (sharp,), (said,) = eigenvectors(operator, weights, 1, args.seed)
    second = orthogonal(sharp, first.directions[0])
    return Chosen(
        [*first.directions, second], [*first.described, f"{said}, without what lies along x"]
    )


def orthogonal(direction: Direction, other: Direction) -> Direction:
    """What ``direction`` has beside the unit vector ``other``, with length 1.

    Raises:
        ValueError: all but nothing.
    """
    products = [(d * o).sum(dtype=torch.float64) for d, o in zip(direction, other, strict=True)]
    along = float(sum(products))
    rest = [d - along * o for d, o in zip(direction, other, strict=True)]
    length = sum(float(r.square().sum(dtype=torch.float64)) for r in rest) ** 0.5
    if length < 1e-3:
        raise ValueError(
            "the gradient lies along the first eigenvector, so that the two span no plane; leave "
            "--y out, or take --directions eigenvectors"
        )
    return [r / length for r in rest]


class Chosen(NamedTuple):
    """Directions, x first, and what each is, in a reader's words."""

    directions: list[Direction]
    described: list[str]


def eigenvectors(
    operator: HessianOperator, weights: dict[str, Tensor], count: int, seed: int
) -> Chosen:
    """Eigenvectors of the eigenvalues of largest magnitude; each one's largest entry is positive.

    Args:
        operator: of the model that has ``weights``.
        weights: what the directions are to move, by name; other than parameters they leave alone.
        count: how many.
        seed: of the vector that Lanczos' algorithm starts from.

    Raises:
        ValueError: the Hessian is zero, or smaller than ``count``.
    """
    like = operator.flat
    if like.numel() < count:
        raise ValueError(f"{like.numel()} parameters have no {count} directions")
    start = rademacher(like.numel(), like, torch.Generator().manual_seed(seed))
    pairs = extreme_eigenvalues(operator, start, count, MOST_PRODUCTS, TOLERANCE)
    if not pairs.values.any():
        raise ValueError("the Hessian is zero at the checkpoint: it has no direction of its own")
    found, said = [], []
    for value, vector, residual in zip(pairs.values, pairs.vectors, pairs.residuals, strict=True):
        vector = vector / vector.norm()
        vector = vector * vector[vector.abs().argmax()].sign()
        found.append(as_direction(operator, vector, weights))
        said.append(f"eigenvector of eigenvalue {value:.4g}, residual {residual:.1g}")
    return Chosen(found, said)


def gradient(operator: CurvatureOperator, weights: dict[str, Tensor]) -> Chosen:
    """The direction in which the mean loss rises most, as the model is evaluated.

    Raises:
        ValueError: the gradient is zero, NaN or infinite.
    """
    slope = operator.gradient()
    length = float(slope.norm(dtype=torch.float64))
    if not 0 < length < float("inf"):
        raise ValueError(f"the gradient has length {length} at the checkpoint: it points nowhere")
    return Chosen(
        [as_direction(operator, slope / length, weights)], [f"gradient, of length {length:.4g}"]
    )


def as_direction(
    operator: CurvatureOperator, vector: Tensor, weights: dict[str, Tensor]
) -> Direction:
    """A vector (P,) over an operator's parameters as a direction: zero where it has no entry."""
    parts = {id(p): part for p, part in zip(operator.params, operator.split(vector), strict=True)}
    names = {name: parts.get(id(p)) for name, p in operator.model.named_parameters()}
    pieces = [(names.get(name), w) for name, w in weights.items()]
    return [torch.zeros_like(w) if piece is None else piece.to(w) for piece, w in pieces]


def principal(model_file: Path, weights: dict[str, Tensor], dir_type: str, count: int) -> Chosen:
    """The principal components of the epochs that the checkpoint's run kept.

    Raises:
        ValueError: it kept none, or they lie in fewer dimensions.
    """
    files = kept_beside(model_file, checkpoint.load(model_file))
    trajectory = read_trajectory(list(files.values()), model_file, dir_type)
    origin = [w.cpu() for w in weights.values()]
    directions = principal_directions(trajectory.points, origin, count)
    shares = project(trajectory.points, origin, directions).shares
    epochs = f"{len(files)} epochs from {trajectory.epochs[0]} to {trajectory.epochs[-1]}"
    said = [
        f"principal component {i} of {epochs}, {100 * share:.1f} % of their variance"
        for i, share in enumerate(shares, 1)
    ]
    placed = [
        [t.to(w) for t, w in zip(direction, weights.values(), strict=True)]
        for direction in directions
    ]
    return Chosen(placed, said)
