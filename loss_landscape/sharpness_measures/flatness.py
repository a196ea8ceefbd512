"""How flat a minimum is, over random directions: the mean loss rise at a radius, with its interval.

One plane of two random directions out of as many as there are weights proves nothing. So several
lines are taken, each along a direction of its own, and the figure is an average over them.

For a direction d, rescaled as ``norm`` says, and the radius r, in multiples of d's length, the rise
is (L(w + r d) + L(w - r d)) / 2 - L(w), in units of the loss (nats for cross-entropy). For small r
it is r^2 d'Hd / 2, for r as large as it is usually chosen it is what the picture shows. A
filter-normalised d is about as long as the weights that it moves, so that r = 0.5 moves each filter
by half its norm.

The figure is the mean rise over n directions. Its interval, of 95 % by Student's t, is over the
draw of directions alone: another n of them around this one checkpoint would give another mean. It
says nothing on another training run, on the samples of which L is the mean, or on directions that
were not drawn at random. Rises are skewed, so with few directions the interval is a rough one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loss_landscape.surface_file import Surface
from utilities.statistics import half_width

SAME_POINT = 1e-9  # of two coordinates, over the larger


@dataclass(frozen=True)
class Flatness:
    """The mean rise of the loss at ``radius``, and its interval over directions.

    Attributes:
        radius: in multiples of a direction's length.
        rises: (n,), of each direction, in units of the loss.
    """

    radius: float
    rises: np.ndarray

    @property
    def mean(self) -> float:
        return float(self.rises.mean())

    @property
    def half_width(self) -> float:
        """Half the interval's width; NaN for one direction, which tells of no other."""
        return float(half_width(self.rises))

    def __str__(self) -> str:
        """Mean, half the interval's width, and over how many directions."""
        interval = "" if math.isnan(self.half_width) else f" +- {self.half_width:#.2g}"
        plural = "s" if len(self.rises) > 1 else ""
        return f"{self.mean:.3g}{interval} over {len(self.rises)} direction{plural}"


def flatness(lines: Sequence[Surface], name: str, radius: float) -> Flatness:
    """The figure of one checkpoint from lines along several directions.

    Raises:
        ValueError: a line lacks 0, ``radius`` or ``-radius``, or a value there is interpolated or
            not finite: a mean without it would be one over the tame directions.
    """
    rises = []
    for line in lines:
        middle, above, below = (value_at(line, name, r) for r in (0.0, radius, -radius))
        rises.append((above + below) / 2 - middle)
    return Flatness(radius, np.array(rises))


def value_at(line: Surface, name: str, position: float) -> float:
    """The value at one of the line's points.

    Raises:
        ValueError: there is no such point, or the value is not finite or not measured.
    """
    nearest = int(np.abs(line.x - position).argmin())
    if abs(line.x[nearest] - position) > SAME_POINT * max(abs(line.x[0]), abs(line.x[-1])):
        raise ValueError(
            f"--radius: a line has no point at {position:g}, the nearest is {line.x[nearest]:g}; "
            f"choose another radius, or lines with it (--x=-1:1:21 has 0, 0.1, 0.2 ...)"
        )
    value = float(line.values[name][nearest])
    if not math.isfinite(value):
        raise ValueError(
            f"--radius: {name} at {position:g} of a line is {value:g}: not computed yet, or the "
            "loss has none there; choose a smaller radius"
        )
    if line.interpolated is not None and line.interpolated[nearest]:
        raise ValueError(
            f"--radius: {name} at {position:g} of a line is interpolated, not measured; choose "
            "another radius, or compute the lines without --adaptive"
        )
    return value


def largest_radius(lines: Sequence[Surface]) -> float | None:
    """The largest radius that all lines have on both sides of a 0; None if there is none."""
    common = None
    for line in lines:
        digits = [float(f"{x:.9g}") for x in line.x]
        both = {x for x in digits if x > 0 and -x in digits} if 0.0 in digits else set()
        common = both if common is None else common & both
    return max(common) if common else None
