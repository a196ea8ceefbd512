"""A model at the points of a grid, and what is measured there.

``compute`` fills a surface's file from a ``Measure``, which is handed several points at once.
``Visits`` is the plain one; a faster one gives the same values.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from loss_landscape.directions import Direction
from loss_landscape.restore import Restored
from loss_landscape.surface_file import Surface, done, read_surface, with_zero, write_cells
from utilities.progress import Progress

PAUSE = 1.0  # seconds between two writes: a point may take milliseconds
SAME = 1e-3  # relative; other machines round otherwise
MOST_POINTS = 100_000  # of an axis


class Axis(NamedTuple):
    """``num`` coordinates from ``low`` to ``high``, both included."""

    low: float
    high: float
    num: int

    def points(self) -> np.ndarray:
        return with_zero(np.linspace(self.low, self.high, self.num))


def axis(text: str) -> Axis:
    """Read ``min:max:num``.

    Raises:
        argparse.ArgumentTypeError: not of that form, too many points, or points that the numbers
            of a computer can't tell apart.
    """
    try:
        low, high, num = text.split(":")
        read = Axis(float(low), float(high), int(num))
    except ValueError:
        read = Axis(math.nan, math.nan, 0)
    rising = read.low < read.high or (read.num == 1 and read.low == read.high)
    if not (math.isfinite(read.high - read.low) and 1 <= read.num <= MOST_POINTS and rising):
        raise argparse.ArgumentTypeError(
            f"{text[:60]!r} is not min:max:num with min below max and num from 1 to "
            f"{MOST_POINTS:,}, such as -1:1:51"
        )
    if not (np.diff(read.points()) > 0).all():
        raise argparse.ArgumentTypeError(f"{text[:60]!r}: so many points between are not distinct")
    return read


@contextmanager
def moved(
    weights: Direction, directions: Sequence[Direction], steps: Sequence[float]
) -> Iterator[None]:
    """Within, the live ``weights`` stand at w + sum of steps times directions, in place.

    Afterwards they are what they were, bit for bit, also on an exception.
    """
    before = [w.clone() for w in weights]
    try:
        for direction, step in zip(directions, steps, strict=True):
            for w, d in zip(weights, direction, strict=True):
                w.add_(d, alpha=step)
        yield
    finally:
        for w, old in zip(weights, before, strict=True):
            w.copy_(old)


class Measure(Protocol):
    """What is measured at points of the space that the directions span.

    A point's values never depend on the other points of a call, nor on earlier calls: a surface
    that was stopped and gone on with is the same one, bit for bit.

    Attributes:
        names: of the values, as they are called in the file.
        block: how many points one call takes best. More of them are lost if it is killed.
    """

    names: tuple[str, ...]
    block: int

    def __call__(self, points: np.ndarray) -> dict[str, np.ndarray]:
        """The values (k,) by name at ``points`` (k, axes): steps along the directions, x first."""


class Visits:
    """A ``Measure`` that goes to its points one after the other, the reference for faster ones.

    Args:
        weights: the live ones.
        directions: one for each axis.
        names: of the values.
        at_point: measures them where the weights stand at the moment.
    """

    block = 1

    def __init__(
        self,
        weights: Direction,
        directions: Sequence[Direction],
        names: tuple[str, ...],
        at_point: Callable[[], dict[str, float]],
    ) -> None:
        self.weights, self.directions, self.names = weights, directions, names
        self.at_point = at_point

    def __call__(self, points: np.ndarray) -> dict[str, np.ndarray]:
        visited = []
        for steps in points.tolist():
            with moved(self.weights, self.directions, steps):
                visited.append(self.at_point())
        return {name: np.array([values[name] for values in visited]) for name in self.names}


def value_names(splits: Sequence[str], restored: Restored, samples: int | None) -> tuple[str, ...]:
    """Names of a surface's values: loss, accuracy and, of a part of the samples, the loss's error.

    ``<split>_loss_se`` is the standard error of the mean loss over samples: how far the mean over
    another draw of them would be off. All samples leave nothing to be drawn, so they have none. A
    model that doesn't classify has no accuracy.
    """
    values = ["loss"] + ["acc"] * (restored.correct is not None) + ["loss_se"] * bool(samples)
    return tuple(f"{split}_{value}" for split in splits for value in values)


@torch.no_grad()
def loss_and_accuracy(restored: Restored, batches: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    """Mean loss, its standard error and accuracy in percent of each split, where the model stands.

    Args:
        restored: model, loss and what is right.
        batches: of each split.

    Raises:
        ValueError: there are no samples, or a loss isn't one a sample.
    """
    found = {}
    for split, part in batches.items():
        losses, right = [], []
        for batch in part:
            outputs, targets = restored.forward(restored.model, batch)
            losses.append(restored.loss(outputs, targets))
            if restored.correct is not None:
                right.append(restored.correct(outputs, targets))
        each = torch.cat(losses).double()
        # Summed as ``Total`` does, so that the centre is the checkpoint's metric to the last bit.
        sums = torch.stack([batch.sum(dtype=torch.float64) for batch in losses])
        found[f"{split}_loss"] = float(sums.sum()) / len(each)
        found[f"{split}_loss_se"] = standard_error(each)
        if right:
            found[f"{split}_acc"] = 100 * float(torch.cat(right).double().sum()) / len(each)
    return found


def standard_error(losses: Tensor) -> float:
    """Standard error of the mean of ``losses`` (samples,); NaN for one sample."""
    return float(losses.double().std() / len(losses) ** 0.5) if len(losses) > 1 else math.nan


def compute(path: Path, surface: Surface, measure: Measure) -> None:
    """Measure at each point that is not done yet; what is measured is soon on disk.

    Args:
        path: the file, with the names that ``measure`` gives.
        surface: its grid.
        measure: is handed blocks of the points that are not done.

    Raises:
        ValueError: see ``resume``.
    """
    resume(path, measure)
    measure_cells(path, surface, measure, np.argwhere(~done(path)))


def resume(path: Path, measure: Measure) -> None:
    """Say what is there already, and see whether it can be gone on with.

    Raises:
        ValueError: a point that is done has another value now.
    """
    finished = done(path)
    if finished.any():
        print(f"{path}: {finished.sum():,} of {finished.size:,} points are there already")
    if finished.any() and not finished.all():
        refuse_changed(path, measure)


def measure_cells(path: Path, surface: Surface, measure: Measure, cells: np.ndarray) -> None:
    """Measure at ``cells`` (k, axes), and write that at least each second.

    It is written before an exception or Ctrl-C leaves, too. At most one block of points is lost
    where one takes longer.
    """
    if not len(cells):
        return
    values = {name: np.full(surface.shape, np.nan) for name in measure.names}
    fresh = np.zeros(surface.shape, dtype=bool)  # measured, but not on disk
    written = time.monotonic()
    try:
        with Progress("points of the surface", len(cells)) as progress:
            for start in range(0, len(cells), measure.block):
                block = cells[start : start + measure.block]
                measured = measure(surface.points(block))
                here = tuple(block.T)
                for name in measure.names:
                    values[name][here] = measured[name]
                fresh[here] = True
                if time.monotonic() - written >= PAUSE:
                    write_cells(path, fresh, values)
                    fresh[:], written = False, time.monotonic()
                progress.update(len(block))
    finally:
        write_cells(path, fresh, values)


def refuse_changed(path: Path, measure: Measure) -> None:
    """Measure once more the point of a surface that is done and lies nearest to the checkpoint.

    The file says which checkpoint and settings it is of, but not what the data were.

    Raises:
        ValueError: a loss there isn't what it was, beyond what another machine's rounding makes.
    """
    surface = read_surface(path)
    cells = np.argwhere(done(path))
    points = surface.points(cells)
    nearest = np.square(points).sum(axis=1).argmin()
    now = measure(points[nearest, None])
    here = tuple(cells[nearest])
    before = {name: surface.values[name][here][None] for name in measure.names}
    if not same_values(before, now):
        raise ValueError(
            f"{path}: at {points[nearest].tolist()} the losses were {_losses(before)} and are "
            f"{_losses(now)} now, so data or code have changed, or are random; name another "
            "--surf_file or replace this one with --overwrite"
        )


def same_values(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    """Whether all losses are equal, up to what another machine's rounding makes."""
    return all(
        np.allclose(one[name], other[name], rtol=SAME, atol=SAME**2, equal_nan=True)
        for name in one
        if name.endswith("_loss")
    )


def _losses(values: Mapping[str, np.ndarray]) -> str:
    losses = (float(value[0]) for name, value in values.items() if name.endswith("_loss"))
    return ", ".join(f"{loss:.6g}" for loss in losses)
