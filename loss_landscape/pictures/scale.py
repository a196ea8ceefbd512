"""The scale of a picture of one surface or of several: levels, and from them colours and heights.

Levels lie where the values do: most of them are quantiles, so that each colour covers about as much
of the surfaces as any other. A basin beside a cliff shows its shape, and the colour bar, which has
the levels at equal distances, says what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LARGEST = 1e30  # of a value in a picture: matplotlib computes with powers and differences of them
SMALLEST_SPAN = 1e-9  # of a scale, over its larger end: levels closer than that may coincide
MOST_LEVELS = 200
LEVELS = 13
EVEN = 0.1  # share of evenly spread levels in ours: a plateau's noise is no structure
DECADE = 10.0


@dataclass(frozen=True)
class Scale:
    """Where one colour of a picture ends and the next begins.

    Attributes:
        levels: (n,), two or more that rise, from the scale's bottom to its top.
        log: heights in 3D are logarithms to base 10; then all levels are above 0.
        above, below: whether values lie beyond the top and the bottom.
    """

    levels: np.ndarray
    log: bool
    above: bool
    below: bool

    @property
    def extend(self) -> str:
        """Matplotlib's word for which ends of the colour bar are open."""
        words = {(True, True): "both", (True, False): "max", (False, True): "min"}
        return words.get((self.above, self.below), "neither")

    def position(self, values: np.ndarray) -> np.ndarray:
        """Of values their place on the scale, from 0 to n - 1: level k is at k; cut at both ends.

        NaN stays NaN.
        """
        return np.interp(values, self.levels, np.arange(len(self.levels)))

    def height(self, values: np.ndarray, cut: bool = True) -> np.ndarray:
        """Of values their height in 3D, in units of the loss or its decades.

        Args:
            values: of any shape; NaN stays NaN.
            cut: at the scale's ends; else at its bottom alone, below which a logarithm may lack.
        """
        values = np.clip(values, self.levels[0], self.levels[-1] if cut else None)
        return np.log10(values) if self.log else values

    def ticks(self, count: int = 6) -> np.ndarray:
        """Values (count,) at equal distances in height, for the axis of heights."""
        return spread(self.levels[0], self.levels[-1], count, self.log)


def make_scale(
    values: Sequence[np.ndarray],
    vmin: float | None = None,
    vmax: float | None = None,
    vlevel: float | None = None,
    log: bool | None = None,
) -> Scale:
    """One scale for one or several surfaces.

    Args:
        values: of each surface; what isn't finite is left out.
        vmin: the bottom; the smallest value if not given.
        vmax: the top; if not given the 98th percentile, so that a cliff doesn't flatten the basin.
        vlevel: distance of the levels; if not given they are quantiles.
        log: heights are logarithmic; if not given, where the scale spans more than a decade.

    Raises:
        ValueError: ``vmin`` and ``vmax`` leave nothing between them and the values, ``vlevel``
            makes too many levels or one alone, or ``log`` and the bottom is not above 0.
    """
    finite = np.concatenate([v[np.isfinite(v)].ravel() for v in values])
    finite = finite.clip(-LARGEST, LARGEST) if len(finite) else np.array([0.0, 1.0])
    low, high = _ends(finite, vmin, vmax)
    if log and low <= 0:
        raise ValueError(
            f"--log: the scale begins at {low:g}, which has no logarithm; give a --vmin above 0"
        )
    if log is None:
        log = low > 0 and high > DECADE * max(low, 1 / LARGEST)
    if log:
        low = max(low, 1 / LARGEST)
    if vlevel is None:
        levels = _quantile_levels(finite, low, high, log)
    else:
        levels = _stepped_levels(low, high, vlevel)
    return Scale(levels, log, bool(finite.max() > levels[-1]), bool(finite.min() < levels[0]))


def _ends(finite: np.ndarray, vmin: float | None, vmax: float | None) -> tuple[float, float]:
    low = float(finite.min()) if vmin is None else vmin
    high = float(np.percentile(finite, 98)) if vmax is None else vmax
    if high - low > max(SMALLEST_SPAN * max(abs(low), abs(high)), 1 / LARGEST):
        return low, high
    for flag, given in (("--vmin", vmin), ("--vmax", vmax)):
        if given is not None:
            raise ValueError(
                f"{flag} {given:g}: the colours would go from {low:g} to {high:g}; the values "
                f"go from {finite.min():g} to {finite.max():g}"
            )
    return low, low + max(abs(low), 1.0) * 1e-6  # all values are one


def spread(low: float, high: float, count: int, log: bool) -> np.ndarray:
    """``count`` numbers from ``low`` to ``high`` at equal distances or, with ``log``, ratios."""
    return np.geomspace(low, high, count) if log else np.linspace(low, high, count)


def _quantile_levels(finite: np.ndarray, low: float, high: float, log: bool) -> np.ndarray:
    """Quantiles, drawn a little to evenly spread levels, which keeps them apart."""
    even = spread(low, high, LEVELS, log)
    quantiles = np.quantile(finite.clip(low, high), np.linspace(0, 1, LEVELS))
    if log:
        levels = np.exp(EVEN * np.log(even) + (1 - EVEN) * np.log(quantiles))
    else:
        levels = EVEN * even + (1 - EVEN) * quantiles
    levels[0], levels[-1] = low, high
    return levels


def _stepped_levels(low: float, high: float, vlevel: float) -> np.ndarray:
    steps = (high - low) / vlevel
    if not 1 <= steps <= MOST_LEVELS:
        raise ValueError(
            f"--vlevel {vlevel:g}: {steps:.3g} steps between {low:g} and {high:g}, which are "
            f"from 1 to {MOST_LEVELS}; try {(high - low) / 12:.2g}"
        )
    return low + vlevel * np.arange(int(steps + 1e-9) + 1)


def plain_numbers(values: np.ndarray) -> list[str]:
    """Values as text, with as few digits as tell them apart, and at least three."""
    for digits in range(3, 17):
        texts = [f"{v:#.{digits}g}".removesuffix(".") for v in values]
        if len(set(texts)) == len(texts):
            return texts
    return [repr(float(v)) for v in values]
