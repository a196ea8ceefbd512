r"""Draw the eigenvalue spectral density that hessian.py wrote, of one checkpoint or several.

    python loss_landscape/my_pyhessian/density_plot.py --spectrum Eigenvalues/GCN_SAM
    python loss_landscape/my_pyhessian/density_plot.py --spectrum Eigenvalues/GCN_ADAM \
        Eigenvalues/GCN_SAM --output plots/eig_GCN.png

One spectrum goes to ``plots/eig_<name>_<optimizer>.png``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utilities.cli import Parser, positive_float, report_files, run
from utilities.files import ROOT, atomic_write

COLOURS = ("tab:blue", "tab:red", "tab:green", "tab:purple", "tab:orange", "tab:brown")


@dataclass
class Spectrum:
    """A spectrum read back: nodes and weights (probes, steps) float64, and its record."""

    nodes: np.ndarray
    weights: np.ndarray
    record: dict[str, Any]

    @property
    def title(self) -> str:
        return str(self.record.get("title", ""))


def read_spectrum(stem: Path) -> Spectrum:
    """Read ``<stem>_eigen.npy``, ``<stem>_weight.npy`` and ``<stem>.json``.

    Raises:
        FileNotFoundError: one is missing.
        ValueError: one is damaged, or they don't belong together.
    """
    stem = stem.with_suffix("") if stem.suffix == ".json" else stem
    nodes, weights = (
        _read_npy(stem.with_name(f"{stem.name}_{p}.npy")) for p in ("eigen", "weight")
    )
    if nodes.shape != weights.shape:
        raise ValueError(f"{stem}: {nodes.shape} nodes but {weights.shape} weights; compute again")
    path = stem.with_name(f"{stem.name}.json")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); compute the spectrum again") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path}: not a record of a spectrum")
    return Spectrum(nodes, weights, record)


def _read_npy(path: Path) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; hessian.py writes it")
    try:
        # Mapped: a header that asks for more than the file holds is refused, not allocated.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: not a .npy file of numbers, or a damaged one") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype != np.float64:
        raise ValueError(f"{path}: not (probes, steps) of float64")
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"{path}: empty, or has NaN or infinite values")
    return np.array(array)


def density(nodes: np.ndarray, weights: np.ndarray, grid: np.ndarray, sigma: float) -> np.ndarray:
    """Smoothed spectral density (Ghorbani et al. 2019, equation 4).

    Args:
        nodes: (probes, steps), Ritz values.
        weights: (probes, steps), of each probe summing to 1.
        grid: (points,), where to evaluate.
        sigma: standard deviation of the Gaussian, in units of the eigenvalues.

    Returns:
        (probes, points); each row integrates to 1.
    """
    density_rows = np.empty((len(nodes), len(grid)))
    for row, values, shares in zip(density_rows, nodes, weights, strict=True):
        bells = np.exp(-0.5 * ((grid[:, None] - values) / sigma) ** 2)
        row[:] = bells @ shares / (sigma * np.sqrt(2 * np.pi))
    return density_rows


def bandwidth(spectra: Sequence[Spectrum]) -> float:
    """Standard deviation for the smoothing: a hundredth of the width of all spectra together."""
    low, high = _range(spectra)
    return max(high - low, 1e-12 * max(abs(low), abs(high)), 1e-12) / 100


def _range(spectra: Sequence[Spectrum]) -> tuple[float, float]:
    return min(float(s.nodes.min()) for s in spectra), max(float(s.nodes.max()) for s in spectra)


def draw_density(
    axes: Axes, spectra: Sequence[Spectrum], labels: Sequence[str], sigma: float | None = None
) -> None:
    """Overlay the densities on a logarithmic axis, with the probes' standard error as a band.

    Ticks mark the Ritz values; all of them are in the picture.
    """
    sigma = bandwidth(spectra) if sigma is None else sigma
    low, high = _range(spectra)
    # A hundredth of the peak of one eigenvalue alone: what lies below is the smoothing's tail.
    parameters = max(int(s.record.get("parameters", 1_000_000)) for s in spectra)
    floor = 0.01 / (parameters * sigma * np.sqrt(2 * np.pi))
    grid = np.linspace(low - 6 * sigma, high + 6 * sigma, 4000)
    for i, (spectrum, label) in enumerate(zip(spectra, labels, strict=True)):
        colour = COLOURS[i % len(COLOURS)]
        rows = density(spectrum.nodes, spectrum.weights, grid, sigma)
        mean = rows.mean(axis=0)
        error = rows.std(axis=0, ddof=1) / np.sqrt(len(rows)) if len(rows) > 1 else 0 * mean
        axes.semilogy(grid, np.maximum(mean, floor), color=colour, label=label, lw=1.4)
        lower, upper = np.maximum(mean - error, floor), np.maximum(mean + error, floor)
        axes.fill_between(grid, lower, upper, color=colour, alpha=0.25, lw=0)
        rug = np.unique(spectrum.nodes[spectrum.weights > 1e-12])
        height = 0.03 * (i + 1)
        axes.plot(
            rug,
            np.full(len(rug), height),
            "|",
            color=colour,
            ms=5,
            alpha=0.6,
            transform=axes.get_xaxis_transform(),
        )
    axes.set_ylim(floor, None)
    axes.set_xlim(grid[0], grid[-1])
    axes.set_xlabel("eigenvalue of the Hessian")
    axes.set_ylabel("spectral density")
    axes.set_title(f"ticks: Ritz values; smoothed with sigma = {sigma:.2g}", fontsize=9)
    axes.legend()


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--spectrum", type=Path, nargs="+", required=True, help="names without _eigen.npy"
    )
    parser.add_argument("--output", type=Path, help="picture (needed for several spectra)")
    parser.add_argument("--sigma", type=positive_float, help="smoothing; automatic if not given")
    parser.add_argument("--out_dir", type=Path, default=ROOT, help="folder that holds plots/")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> Path:
    """Draw as the command line says; return the picture's path."""
    args = parse_args(argv)
    if args.output is None and len(args.spectrum) > 1:
        raise ValueError("several --spectrum need --output, the picture's name")
    spectra = [read_spectrum(stem) for stem in args.spectrum]
    output = args.output or args.out_dir / "plots" / f"eig_{args.spectrum[0].name}.png"
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    labels = [s.title or stem.name for s, stem in zip(spectra, args.spectrum, strict=True)]
    draw_density(figure.subplots(), spectra, labels, args.sigma)
    with atomic_write(output) as part:
        figure.savefig(part, dpi=150)
    report_files([output])
    return output


if __name__ == "__main__":
    run(main)
