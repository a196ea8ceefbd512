"""The path of a training: checkpoints of its epochs, and the plane that shows most of it.

All sums go tensor by tensor in float64 over differences to one checkpoint, the origin: memory holds
the checkpoints once, and small steps between large weights keep their digits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import models
from loss_landscape.directions import Direction, coordinates
from loss_landscape.own_model.model import read_weights
from utilities import checkpoint
from utilities.runs import Run, differing, run_settings

ROUNDING = 1e-10  # share of the variance below which a component is none


# --- the points -----------------------------------------------------------------------------------
@dataclass
class Trajectory:
    """Weights of one run at several epochs.

    Attributes:
        files: the checkpoints, by rising epoch.
        epochs: of each.
        points: of each, the weights or states as ``directions.coordinates`` orders them.
        origin: those of the checkpoint at (0, 0).
        model_file: that checkpoint.
        title: what it is of, in a reader's words.
    """

    files: list[Path]
    epochs: list[int]
    points: list[Direction]
    origin: Direction
    model_file: Path
    title: str


def kept_beside(model_file: Path, content: dict[str, Any]) -> dict[int, Path]:
    """The epochs that the run of a checkpoint kept, in the checkpoint's folder, in order.

    Raises:
        ValueError: none.
    """
    files = Run.from_checkpoint(content).kept_epochs(model_file.parent)
    if not files:
        raise ValueError(
            f"{model_file}: its run kept no epochs beside it; train with --keep_epochs 1, or name "
            "checkpoints with plot_trajectory.py --model_files"
        )
    return files


def read_trajectory(
    files: Sequence[Path], model_file: Path | None, dir_type: str, name: str | None = None
) -> Trajectory:
    """Read checkpoints of one run in the order of their epochs.

    Args:
        files: in any order.
        model_file: the one at (0, 0); None takes the last epoch's.
        dir_type: "weights" or "states"; see ``directions.coordinates``.
        name: of the model that they have to be of; None takes any.

    Raises:
        FileNotFoundError: one is not there.
        ValueError: fewer than three, two of one epoch, another run's, or weights that are NaN.
    """
    _refuse_few(files)
    read = sorted([(checkpoint.load(p), p) for p in files], key=lambda pair: pair[0]["epoch"])
    at = (checkpoint.load(model_file), model_file) if model_file else read[-1]
    first, first_path = read[0]
    if name not in (None, first["model"]):
        raise ValueError(f"{first_path}: holds --model {first['model']}, not --model {name}")
    for content, path in (*read, at):
        different = differing(run_settings(first), run_settings(content))
        if different:
            raise ValueError(
                f"{path}: of another run than {first_path}, which differs in "
                f"{', '.join(different)}; one path is that of one run"
            )
    for (one, path), (other, other_path) in pairwise(read):
        if one["epoch"] == other["epoch"]:
            raise ValueError(f"{other_path}: of epoch {one['epoch']}, as {path}; name one")
    model = models.build(first["model"], **first["model_args"])
    points = [point_of(model, content, path, dir_type) for content, path in (*read, at)]
    epochs = [content["epoch"] for content, _ in read]
    title = Run.from_checkpoint(at[0]).title
    return Trajectory([p for _, p in read], epochs, points[:-1], points[-1], at[1], title)


def read_own_trajectory(
    files: Sequence[Path], model_file: Path | None, dir_type: str, model: nn.Module
) -> Trajectory:
    """As ``read_trajectory``, of a user's own model's state dicts.

    The last number in a file's name is taken for its epoch.

    Args:
        files: in any order.
        model_file: the one at (0, 0); None takes the last epoch's.
        dir_type: "weights" or "states".
        model: that they are of; it takes their weights.

    Raises:
        FileNotFoundError: one is not there.
        ValueError: fewer than three, no number in a name or one in two, or weights that don't fit.
    """
    _refuse_few(files)
    numbers = [re.findall(r"\d+", path.stem, re.ASCII) for path in files]
    for path, found in zip(files, numbers, strict=True):
        if not found:
            raise ValueError(f"{path}: no number in its name; end it in its epoch, as in net_5.pt")
    named = {int(found[-1]): path for path, found in zip(files, numbers, strict=True)}
    if len(named) < len(files):
        raise ValueError(
            f"two of {len(files)} checkpoints have one number in their names; rename one"
        )
    epochs = sorted(named)
    origin = model_file or named[epochs[-1]]
    points = [
        point_of(model, {"state_dict": read_weights(path, model)}, path, dir_type)
        for path in (*(named[epoch] for epoch in epochs), origin)
    ]
    title = f"{type(model).__name__}, {origin.stem}"
    return Trajectory([named[e] for e in epochs], epochs, points[:-1], points[-1], origin, title)


def _refuse_few(files: Sequence[Path]) -> None:
    if len(files) < 3:
        raise ValueError(f"{len(files)} checkpoints: a path in a plane takes 3 or more")


def point_of(model: nn.Module, content: dict[str, Any], path: Path, dir_type: str) -> Direction:
    """A checkpoint's weights or states as ``directions.coordinates`` orders them.

    Raises:
        ValueError: they don't fit ``model``, which takes them, or are NaN or infinite.
    """
    checkpoint.load_weights(model, content, path)
    point = [tensor.clone() for tensor in coordinates(model, dir_type).values()]
    if not all(t.isfinite().all() for t in point):
        raise ValueError(f"{path}: its weights are NaN or infinite")
    return point


# --- the plane ------------------------------------------------------------------------------------
class Projection(NamedTuple):
    """Points as they appear on a line or plane.

    Attributes:
        coordinates: (T, axes), steps along the directions to the nearest point.
        shares: (axes,), of the points' variance, what lies along each direction.
        share: of it, what lies on the plane.
    """

    coordinates: np.ndarray
    shares: np.ndarray
    share: float


def principal_directions(
    points: Sequence[Direction], origin: Direction, count: int = 2
) -> list[Direction]:
    """The unit vectors along which points vary most, as in Li et al. 2018, section 7.2.

    They come from the small matrix of the points' inner products (Sirovich 1987). Each goes from
    the last of ``points`` to the side of the first, so that its sign hangs on no library.

    Args:
        points: T of them, ``count`` + 1 or more.
        origin: any point near them.
        count: how many directions.

    Raises:
        ValueError: the points vary in fewer directions.
    """
    gram = sum(rows @ rows.T for rows in _differences(points, origin))
    assert isinstance(gram, Tensor)
    centre = torch.eye(len(points), dtype=torch.float64) - 1 / len(points)
    squares, vectors = torch.linalg.eigh(centre @ gram.cpu() @ centre)
    squares, vectors = squares.flip(0)[:count], centre @ vectors.flip(1)[:, :count]
    if len(squares) < count or squares[-1] <= ROUNDING * float(gram.trace()):
        raise ValueError(f"the checkpoints lie on a line or a point, not in {count} dimensions")
    vectors = vectors / squares.sqrt()
    vectors = vectors * torch.where(vectors[0] < vectors[-1], -1.0, 1.0)
    directions: list[Direction] = [[] for _ in range(count)]
    for rows, like in zip(_differences(points, origin), origin, strict=True):
        for direction, row in zip(directions, vectors.T.to(rows) @ rows, strict=True):
            direction.append(row.view_as(like).to(like))
    return directions


def project(
    points: Sequence[Direction], origin: Direction, directions: Sequence[Direction]
) -> Projection:
    """Steps along ``directions`` from ``origin`` to the points nearest to ``points``.

    That is least squares: for orthogonal directions the inner product over the direction's
    *squared* length, and right for oblique ones too.

    Raises:
        ValueError: a direction is zero, or both are one, or all points are one.
    """
    axes, total = len(directions), 0.0
    products = torch.zeros(len(points), axes, dtype=torch.float64)
    lengths = torch.zeros(axes, axes, dtype=torch.float64)
    pairs = zip(_differences(points, origin), _differences(directions, None), strict=True)
    for rows, basis in pairs:
        products += (rows @ basis.T).cpu()
        lengths += (basis @ basis.T).cpu()
        total += float((rows - rows.mean(dim=0)).square().sum())
    squares = lengths.diagonal()
    cosines = lengths / squares.sqrt().outer(squares.sqrt())
    if not squares.all() or torch.linalg.matrix_rank(cosines, hermitian=True) < axes:
        raise ValueError("the directions span no plane: one is zero, or they are parallel")
    if not total:
        raise ValueError("all checkpoints have the same weights: there is no path")
    steps = torch.linalg.solve(lengths, products.T).T
    centred = products - products.mean(dim=0)
    shares = centred.square().sum(dim=0) / squares / total
    inside = float((centred * torch.linalg.solve(lengths, centred.T).T).sum()) / total
    return Projection(steps.numpy(), shares.numpy(), inside)


def _differences(points: Sequence[Direction], origin: Direction | None) -> Iterator[Tensor]:
    """For each tensor of the points what they add to ``origin``: (T, n) float64."""
    for i, tensors in enumerate(zip(*points, strict=True)):
        rows = torch.stack([t.flatten() for t in tensors]).double()
        yield rows if origin is None else rows - origin[i].flatten().to(rows)
