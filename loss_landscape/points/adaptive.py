"""A surface of which only the points are measured that interpolation can't give well enough.

Grids are refined by halves, from a coarse one to that of the file, and the first two are measured
whole. At each measured point it is seen how far the interpolation of the coarser grid was off. A
point of the next grid is measured where that, near it, lets an error above the wanted one be
expected, and interpolated elsewhere. What is chosen depends on measured values alone, so that a run
which is killed and gone on with chooses the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy.interpolate import Akima1DInterpolator
from scipy.ndimage import distance_transform_edt, maximum_filter

from loss_landscape.evaluation import Measure, measure_cells, resume
from loss_landscape.surface_file import Surface, done, read_surface, write_interpolated

COARSEST = 6  # intervals of an axis at least
# How much smaller the error is expected to be on a grid twice as fine. Of a smooth function it
# would be an eighth and less; networks with ReLU have kinks, of which it is a half. With 0.35, 98 %
# of what is interpolated was within the wanted 2 % on surfaces of seven trained networks.
DECAY = 0.35
CHECKED = 32  # at most, of interpolated points measured in the end, to see how far off they are
Grid = list[np.ndarray]  # for each axis, as the file has them, the indices of its lines
Values = dict[str, np.ndarray]  # by name, of the surface's shape


def compute_adaptively(path: Path, surface: Surface, measure: Measure, error: float) -> str:
    """Measure and interpolate all of a surface; return a line on how far the latter is off.

    Args:
        path: the file, with the names that ``measure`` gives.
        surface: its grid.
        measure: is handed blocks of points, more in each of several rounds.
        error: wanted, relative; see ``deviation``.

    Raises:
        ValueError: see ``resume``.
    """
    resume(path, measure)

    def values_at(cells: np.ndarray) -> Values:
        measure_cells(path, surface, measure, np.argwhere(cells & ~done(path)))
        return read_surface(path).values

    everywhere = np.argwhere(np.ones(surface.shape, dtype=bool))
    checkpoint = (surface.points(everywhere) == 0).all(axis=1).reshape(surface.shape)
    measured, values = refined(checkpoint, error, values_at)
    rest = np.flatnonzero(~measured)
    count = min(CHECKED, math.ceil(len(rest) / 10))
    chosen = np.random.default_rng(0).permutation(rest)[:count]
    checked = np.zeros(surface.shape, dtype=bool)
    checked.flat[chosen] = True
    off = deviation(values, values_at(checked), measured | checked)[checked]
    if not off.size:
        return (
            f"measured all points: so few, or so rough, that none could be interpolated to {error}"
        )
    found = (float(np.median(off)), float(off.max()))
    write_interpolated(path, ~(measured | checked), values, found)
    share = (measured | checked).mean()
    return (
        f"measured {share:.1%} of {measured.size:,} points; at "
        f"{off.size} others, measured too, interpolation is off by {found[0]:.2%} in the median "
        f"and {found[1]:.2%} at most"
    )


def refined(
    always: np.ndarray, error: float, values_at: Callable[[np.ndarray], Values]
) -> tuple[np.ndarray, Values]:
    """Choose what to measure, from grid to grid, and interpolate the rest.

    Args:
        always: bool of the surface's shape, what is to be measured in any case.
        error: wanted, relative.
        values_at: gives the values, of the surface's shape, measured where its argument is true.

    Returns:
        Which cells were measured, and the values at all cells, by name.
    """
    shape, grids = always.shape, levels(always.shape)
    measured = mask(shape, grids[0])
    values = {name: np.where(measured, v, np.nan) for name, v in values_at(measured).items()}
    off = np.full(shape, np.inf)  # of the last grid's new points
    for coarse, fine in pairwise(grids):
        reach = [2 * int(np.diff(lines).max(initial=0)) + 1 for lines in coarse]
        expected = DECAY * maximum_filter(off, size=reach, mode="nearest")
        new = mask(shape, fine) & ~mask(shape, coarse)
        chosen = new & ((expected > error) | always)
        predicted = {name: interpolated(v, name, coarse, fine) for name, v in values.items()}
        found = values_at(chosen)
        off = np.where(new, expected, 0.0)
        off[chosen] = deviation(predicted, found, measured | chosen)[chosen]
        for name, value in values.items():
            value[new] = np.where(chosen, found[name], predicted[name])[new]
        measured = measured | chosen
        unknown = [measured & ~np.isfinite(v) for n, v in values.items() if n.endswith("_loss")]
        off[np.any(unknown, axis=0)] = np.inf  # all around it is measured
    return measured, values


def levels(shape: Sequence[int]) -> list[Grid]:
    """Grids from the coarsest to the whole: each halves the gaps of the one before it."""
    grid = [coarsest(n) for n in shape]
    grids = [grid]
    while any(len(lines) < n for lines, n in zip(grid, shape, strict=True)):
        grid = [np.union1d(lines, (lines[:-1] + lines[1:]) // 2) for lines in grid]
        grids.append(grid)
    return grids


def coarsest(size: int) -> np.ndarray:
    """Indices of an axis of ``size`` whose gaps, of 2 or more, differ by one at most."""
    halvings = max(int(np.log2(max((size - 1) / COARSEST, 1))), 0)
    gaps = math.ceil((size - 1) / 2**halvings)
    return np.unique(np.linspace(0, size - 1, gaps + 1).round().astype(int))


def mask(shape: Sequence[int], grid: Grid) -> np.ndarray:
    """Which cells of the surface are points of ``grid``."""
    cells = np.zeros(shape, dtype=bool)
    cells[np.ix_(*grid)] = True
    return cells


def interpolated(values: np.ndarray, name: str, coarse: Grid, fine: Grid) -> np.ndarray:
    """``values`` with those of ``fine`` interpolated from ``coarse``, in the surface's shape.

    Along one axis after the other, by modified Akima splines, which don't overshoot at cliffs.
    Losses that are positive are interpolated by their logarithms; what is no loss stays within its
    range. A value that isn't finite counts as the nearest that is.
    """
    known = values[np.ix_(*coarse)]
    finite = np.isfinite(known)
    result = np.full(values.shape, np.nan)
    if not finite.any() or name.endswith("_deviation"):  # which is of measured points alone
        return result
    nearest = distance_transform_edt(~finite, return_distances=False, return_indices=True)
    known = known[tuple(nearest)]
    low, high = known.min(), known.max()
    logarithmic = name.endswith("_loss") and low > 0
    known = np.log(known) if logarithmic else known
    for axis, (old, new) in enumerate(zip(coarse, fine, strict=True)):
        if len(old) < len(new):
            known = Akima1DInterpolator(old, known, axis=axis, method="makima")(new)
    known = np.exp(known) if logarithmic else known
    result[np.ix_(*fine)] = known if name.endswith("_loss") else known.clip(low, high)
    return result


def deviation(predicted: Values, found: Values, measured: np.ndarray) -> np.ndarray:
    """How far predicted losses are off, relative to the found ones; the worst of several losses.

    Where not all measured losses are positive it is relative to their range. Infinite where what
    is found isn't finite.
    """
    off = np.zeros(measured.shape)
    for name in (name for name in found if name.endswith("_loss")):
        known = found[name][measured & np.isfinite(found[name])]
        positive = known.size and known.min() > 0
        scale = np.abs(found[name]) if positive else max(np.ptp(known), 1e-300) if known.size else 1
        with np.errstate(invalid="ignore"):
            worse = np.abs(predicted[name] - found[name]) / scale
        off = np.maximum(off, np.where(np.isfinite(worse), worse, np.inf))
    return off
