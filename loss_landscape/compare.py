r"""Put several minima side by side: surfaces on one colour scale, spectra overlaid, a table.

    python loss_landscape/compare.py --model_files to_plot/model_GCN_ADAM_rho0.0.pt \
        to_plot/model_GCN_SAM_rho0.05.pt --output plots/demo_GCN.png

Reads what plot_surface.py and hessian.py wrote for each checkpoint and computes nothing itself.
"""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from loss_landscape.my_pyhessian.density_plot import Spectrum, draw_density, read_spectrum
from loss_landscape.plot_2D import NAMES, add_colour_bar, colour_scale, draw_surface, grid, title
from loss_landscape.surface_file import Surface, read_surface
from utilities import checkpoint
from utilities.cli import Parser, report_files, run
from utilities.files import ROOT
from utilities.pictures import picture_path, save_picture
from utilities.runs import Run

METRICS = ("test_acc", "test_loss", "train_loss")
CURVATURE = ("lambda_max", "trace", "trace_standard_error")


@dataclass
class Minimum:
    """One checkpoint with its surface and its spectrum.

    Attributes:
        label: for people.
        content: the checkpoint's.
        surface, spectrum: what was computed from it.
        numbers: its ``METRICS`` and the ``CURVATURE`` of its spectrum.
    """

    label: str
    content: dict[str, Any]
    surface: Surface
    spectrum: Spectrum
    numbers: dict[str, float]


def read_minimum(model_file: Path, surf_file: Path, out_dir: Path) -> Minimum:
    """Read what belongs to one checkpoint: its surface and, below ``out_dir``, its spectrum.

    Raises:
        FileNotFoundError: no checkpoint, surface or spectrum of it.
        ValueError: one is damaged, or was computed from another checkpoint.
    """
    content = checkpoint.load(model_file)
    surface = read_surface(surf_file)
    stem = Run.from_checkpoint(content, out_dir).spectrum
    spectrum = read_spectrum(stem)
    identity = hashlib.sha256(model_file.read_bytes()).hexdigest()
    for path, settings in ((surf_file, surface.attributes), (stem, spectrum.record)):
        if settings.get("checkpoint_sha256") != identity:
            raise ValueError(
                f"{model_file}: {path} is of another checkpoint, or of this one before it was "
                "trained again; compute it anew"
            )
    numbers = {n: _number(content["metrics"], n, f"{model_file}, metrics") for n in METRICS}
    numbers |= {n: _number(spectrum.record, n, f"{stem}.json") for n in CURVATURE}
    return Minimum(title(surface) or model_file.stem, content, surface, spectrum, numbers)


def _number(values: dict[str, Any], name: str, where: str) -> float:
    """One number of a file; NaN for the standard error of a single sample, which JSON has not."""
    value = values.get(name)
    if value is None and name == "trace_standard_error":
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(
            f"{where}: {name} is {str(value)[:40]!r}, not a number; is the run finished, the "
            "spectrum complete?"
        )
    return float(value)


def draw(minima: Sequence[Minimum]) -> Figure:
    """Surfaces above on one colour scale, spectra below."""
    figure = Figure(figsize=(5.2 * len(minima), 8.6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.15, 1)).tolist()  # type: ignore
    axes = above.subplots(1, len(minima), sharex=True, sharey=True, squeeze=False)[0]
    values = [np.ma.filled(grid(m.surface, "train_loss"), np.nan) for m in minima]
    norm = colour_scale(values)
    for ax, minimum in zip(axes, minima, strict=True):
        draw_surface(ax, minimum.surface, "train_loss", norm)
        numbers = minimum.numbers
        ax.set_title(
            f"{minimum.label}\ntest accuracy {numbers['test_acc']:.1f} %, "
            f"$\\lambda_{{max}}$ {numbers['lambda_max']:.3g}",
            fontsize=11,
        )
        ax.label_outer()
        ax.set_aspect("equal")
    add_colour_bar(above, norm, axes, f"{NAMES['train_loss']} (one scale; + the checkpoint)")
    spectra = [m.spectrum for m in minima]
    draw_density(below.subplots(), spectra, [m.label for m in minima])
    figure.suptitle("Loss surfaces along the same random draws, and spectra of the Hessian")
    return figure


def table(minima: Sequence[Minimum]) -> Table:
    """Test accuracy, losses, largest eigenvalue and trace of each."""
    result = Table(title="One run each: no error bars, so no verdict")
    result.add_column("minimum")
    for name in ("test acc. (%)", "test loss", "running train loss", "lambda_max", "trace +- s.e."):
        result.add_column(name, justify="right", no_wrap=True)
    for minimum in minima:
        numbers = minimum.numbers
        error = numbers["trace_standard_error"]
        result.add_row(
            minimum.label,
            f"{numbers['test_acc']:.2f}",
            f"{numbers['test_loss']:.4f}",
            f"{numbers['train_loss']:.4f}",
            f"{numbers['lambda_max']:.4g}",
            f"{numbers['trace']:.4g}" + ("" if math.isnan(error) else f" +- {error:.2g}"),
        )
    return result


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("--model_files", type=Path, nargs="+", required=True, help="checkpoints")
    parser.add_argument(
        "--surf_files", type=Path, nargs="+", help="their surfaces, if not named as they are"
    )
    parser.add_argument(
        "--output", type=picture_path, required=True, help="the picture (.png, .pdf ...)"
    )
    parser.add_argument(
        "--out_dir", type=Path, default=ROOT, help="folder that holds to_plot/ and Eigenvalues/"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> Path:
    """Compare as the command line says; return the picture's path."""
    args = parse_args(argv)
    folder = args.out_dir / "to_plot"
    surfaces = args.surf_files or [folder / f"{file.stem}.h5" for file in args.model_files]
    if len(surfaces) != len(args.model_files):
        raise ValueError(f"{len(args.model_files)} --model_files but {len(surfaces)} --surf_files")
    minima = [
        read_minimum(model, surface, args.out_dir)
        for model, surface in zip(args.model_files, surfaces, strict=True)
    ]
    save_picture(draw(minima), args.output)
    # A pipe has no width: without one rich would cut the table to 80 columns.
    console = Console()
    (console if console.is_terminal else Console(width=120)).print(table(minima))
    report_files([args.output])
    return args.output


if __name__ == "__main__":
    run(main)
