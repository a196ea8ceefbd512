"""A model at the points of a grid, and what is measured there."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from loss_landscape.directions import Direction
from loss_landscape.surface_file import Surface, done, write_cells
from utilities.progress import Progress

Move = Callable[[Sequence[float]], AbstractContextManager[None]]  # to a point (x, y), and back
Measure = Callable[[], dict[str, float]]  # by the names of the file's values
PAUSE = 1.0  # seconds between two writes: a point may take milliseconds
MOST_POINTS = 100_000  # of an axis


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


def compute(path: Path, surface: Surface, move: Move, measure: Measure) -> None:
    """Measure at each point that is not done yet; what is measured is soon on disk.

    It is written at least each second, and before an exception or Ctrl-C leaves. At most one point
    is lost where one takes longer.

    Args:
        path: the file, with the names that ``measure`` gives.
        surface: its grid.
        move: takes what is measured to a point, x first, for the time of a context.
        measure: values at the point where it is called.
    """
    finished = done(path)
    cells = np.argwhere(~finished)
    if len(cells) < finished.size:
        print(f"{path}: {finished.sum():,} of {finished.size:,} points are there already")
    values: dict[str, np.ndarray] = {}
    fresh = np.zeros_like(finished)  # measured, but not on disk
    written = time.monotonic()
    try:
        with Progress("points of the surface", len(cells)) as progress:
            for cell in map(tuple, cells):
                with move(surface.point(cell)):
                    measured = measure()
                for name, value in measured.items():
                    values.setdefault(name, np.full(surface.shape, np.nan))[cell] = value
                fresh[cell] = True
                if time.monotonic() - written >= PAUSE:
                    write_cells(path, fresh, values)
                    fresh[:], written = False, time.monotonic()
                progress.update()
    finally:
        write_cells(path, fresh, values)
