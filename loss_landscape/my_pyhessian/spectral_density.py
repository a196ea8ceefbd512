"""A spectral density from Ritz values and their weights: smoothed, with a band, with an error.

Everything takes nodes and weights, each (probes, nodes) float64, of each probe summing to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utilities.statistics import half_width

WIDTHS = 120  # standard deviations of the kernel from the lowest to the largest eigenvalue


@dataclass(frozen=True)
class Kernel:
    """A Gaussian in asinh(eigenvalue / linear), as wide in all places of an axis drawn so.

    In the eigenvalues' units its standard deviation is ``width * sqrt(x^2 + linear^2)``: small
    within the bulk around 0 and a part of x beyond. ``linear`` inf makes it the same everywhere.

    Attributes:
        linear: the eigenvalue up to which an axis is about linear.
        width: standard deviation; for ``linear`` inf in the eigenvalues' units.
    """

    linear: float
    width: float

    def place(self, x: np.ndarray) -> np.ndarray:
        return x if math.isinf(self.linear) else np.arcsinh(x / self.linear)

    def value(self, u: np.ndarray) -> np.ndarray:
        """The eigenvalue at a place."""
        return u if math.isinf(self.linear) else self.linear * np.sinh(u)

    def slope(self, x: np.ndarray) -> np.ndarray:
        """Derivative of the place to the eigenvalue."""
        return np.ones_like(x) if math.isinf(self.linear) else 1 / np.hypot(x, self.linear)

    def __str__(self) -> str:
        if math.isinf(self.linear):
            return f"sigma = {self.width:.2g}"
        return f"sigma = {self.width:.2g} sqrt(x² + {self.linear:.2g}²)"


def density(nodes: np.ndarray, weights: np.ndarray, grid: np.ndarray, kernel: Kernel) -> np.ndarray:
    """Smoothed density over the eigenvalues (Ghorbani et al. 2019, equation 4).

    Args:
        nodes: (probes, nodes).
        weights: (probes, nodes).
        grid: (points,), eigenvalues.
        kernel: what each node becomes.

    Returns:
        (probes, points); each row integrates to 1.
    """
    rows = np.empty((len(nodes), len(grid)))
    places = kernel.place(grid)
    for row, values, masses in zip(rows, kernel.place(nodes), weights, strict=True):
        used = masses > 0
        bells = np.exp(-0.5 * ((places[:, None] - values[used]) / kernel.width) ** 2)
        row[:] = bells @ masses[used]
    return rows * kernel.slope(grid) / (kernel.width * np.sqrt(2 * np.pi))


def choose_kernel(nodes: Sequence[np.ndarray], weights: Sequence[np.ndarray]) -> Kernel:
    """One for several spectra, chosen from them.

    ``linear`` is the magnitude that nine tenths of the eigenvalues do not reach, within a
    thousandth and a tenth of the largest; ``width`` a 120th of what the axis then shows.

    Args:
        nodes: of each spectrum (probes, nodes).
        weights: of each likewise.
    """
    values = np.concatenate([n.ravel() for n in nodes])
    masses = np.concatenate([w.ravel() / len(w) for w in weights])
    sizes = np.abs(values)
    largest = float(sizes.max())
    if not 0 < largest < 1e150:  # nothing, or what no axis shows
        return Kernel(math.inf, max(largest, 1e-12) / WIDTHS)
    order = np.argsort(sizes)
    share = np.cumsum(masses[order]) / masses.sum()
    usual = float(sizes[order][min(np.searchsorted(share, 0.9), len(order) - 1)])
    linear = min(max(usual, 1e-3 * largest), 0.1 * largest)
    places = np.arcsinh(values / linear)
    return Kernel(linear, max(float(np.ptp(places)), 1.0) / WIDTHS)


@dataclass(frozen=True)
class Band:
    """Mean of the probes' densities (points,), and a band around it: (points,) each.

    The band is pointwise and of Student's t over the probes: of the densities that all probes
    would give on average it holds each point's in 95 of 100 cases. It says nothing of what more
    Lanczos steps would change. One probe has none.
    """

    mean: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


def band(rows: np.ndarray) -> Band:
    """Of densities (probes, points)."""
    mean = rows.mean(axis=0)
    if len(rows) < 2:
        return Band(mean, mean, mean)
    reach = half_width(rows)
    return Band(mean, np.maximum(mean - reach, 0), mean + reach)


def distribution_error(nodes: np.ndarray, weights: np.ndarray) -> float:
    """How far the mean over these probes is expected to be off, relative to the eigenvalues' size.

    The integral, over all eigenvalues, of the standard error of the distribution function (the
    share of eigenvalues up to x), divided by the mean magnitude of an eigenvalue. The integral of
    the distance itself is Wasserstein's distance, expected to be sqrt(2 / pi) = 0.8 of it. What
    more Lanczos steps would change is not in it. NaN for one probe.
    """
    if len(nodes) < 2:
        return math.nan
    points = np.unique(nodes)
    shares = np.zeros((len(nodes), len(points)))
    for row, values, masses in zip(shares, nodes, weights, strict=True):
        np.add.at(row, np.searchsorted(points, values), masses)
    errors = np.cumsum(shares, axis=1).std(axis=0, ddof=1) / math.sqrt(len(nodes))
    size = float((weights * np.abs(nodes)).sum()) / len(nodes)
    return float(errors[:-1] @ np.diff(points)) / size if size else 0.0
