r"""Draw the eigenvalue spectral density that hessian.py wrote, of one checkpoint or several.

    python loss_landscape/my_pyhessian/density_plot.py --spectrum Eigenvalues/GCN_SAM
    python loss_landscape/my_pyhessian/density_plot.py --spectrum Eigenvalues/GCN_ADAM \
        Eigenvalues/GCN_SAM --output plots/eig_GCN.png

One spectrum goes to ``plots/eig_<name>_<optimizer>.png``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loss_landscape.my_pyhessian.spectrum_file import Spectrum, read_spectrum, stem_of
from utilities.cli import Parser, positive_float, report_files, run
from utilities.files import ROOT
from utilities.pictures import line_style, picture_path, save_picture


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
    for row, values, masses in zip(density_rows, nodes, weights, strict=True):
        bells = np.exp(-0.5 * ((grid[:, None] - values) / sigma) ** 2)
        row[:] = bells @ masses / (sigma * np.sqrt(2 * np.pi))
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

    Raises:
        ValueError: eigenvalues or ``sigma`` are too large, or it is too small, to be drawn.
    """
    usual = bandwidth(spectra)
    sigma = usual if sigma is None else sigma
    low, high = _range(spectra)
    if not (np.isfinite(usual) and 1e-6 <= sigma / usual <= 1e6 and 1e-250 < sigma < 1e250):
        raise ValueError(
            f"the spectrum goes from {low:.3g} to {high:.3g}: no smoothing with sigma = {sigma:.3g}"
            f" can be drawn; leave --sigma out, or compute the spectrum again"
        )
    # A hundredth of the peak of one eigenvalue alone: what lies below is the smoothing's tail.
    parameters = max(int(s.record.get("parameters", 1_000_000)) for s in spectra)
    floor = 0.01 / (parameters * sigma * np.sqrt(2 * np.pi))
    grid = np.linspace(low - 6 * sigma, high + 6 * sigma, 4000)
    # With every node, as a peak narrower than the grid's steps would fall between two of them.
    grid = np.union1d(grid, np.concatenate([s.nodes.ravel() for s in spectra]))
    for i, (spectrum, label) in enumerate(zip(spectra, labels, strict=True)):
        style = line_style(i)
        colour = style["color"]
        rows = density(spectrum.nodes, spectrum.weights, grid, sigma)
        mean = rows.mean(axis=0)
        error = rows.std(axis=0, ddof=1) / np.sqrt(len(rows)) if len(rows) > 1 else 0 * mean
        axes.semilogy(grid, np.maximum(mean, floor), **style, label=label, lw=1.4)
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
        "--spectrum",
        type=Path,
        nargs="+",
        required=True,
        help="names of spectra, with or without _eigen.npy or .json",
    )
    parser.add_argument("--output", type=picture_path, help="picture (needed for several spectra)")
    parser.add_argument("--sigma", type=positive_float, help="smoothing; automatic if not given")
    parser.add_argument("--out_dir", type=Path, default=ROOT, help="folder that holds plots/")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> Path:
    """Draw as the command line says; return the picture's path."""
    args = parse_args(argv)
    stems = list(dict.fromkeys(map(stem_of, args.spectrum)))  # X* names each of them three times
    if args.output is None and len(stems) > 1:
        raise ValueError("several --spectrum need --output, the picture's name")
    output = args.output or args.out_dir / "plots" / f"eig_{stems[0].name}.png"
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    spectra = [read_spectrum(stem) for stem in stems]
    labels = [s.title or stem.name for s, stem in zip(spectra, stems, strict=True)]
    draw_density(figure.subplots(), spectra, labels, args.sigma)
    save_picture(figure, output)
    report_files([output])
    return output


if __name__ == "__main__":
    run(main)
