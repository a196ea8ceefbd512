"""Draw loss and accuracy along one direction.

    python plot_1D.py --surf_file ../to_plot/line.h5

writes ``plots/<surface>_1d.png``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from loss_landscape.plot_2D import LARGEST, NAMES, title
from loss_landscape.surface_file import ACCURACY, read_surface
from utilities.cli import Parser, report_files, run
from utilities.files import ROOT
from utilities.pictures import COLOURS, save_picture


def draw(path: Path, name: str, out_dir: Path) -> list[Path]:
    """Draw a 1D surface file; return the picture's path in a list, as plot_2D.draw does.

    Raises:
        FileNotFoundError: no such surface.
        ValueError: damaged, of two dimensions, without ``name``, or without a finite value.
    """
    surface = read_surface(path)
    if surface.y is not None:
        raise ValueError(f"{path}: a surface in 2D; use plot_2D.py")
    if name not in surface.values:
        raise ValueError(f"--surf_name {name}: not in {path} ({', '.join(surface.values)})")
    values = surface.values[name]
    if not np.isfinite(values).any():
        raise ValueError(f"{path}: {name} has no finite value to draw")
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    left = figure.add_subplot()
    left.plot(surface.x, values.clip(-LARGEST, LARGEST), color=COLOURS[0], marker=".")
    left.set_xlabel("position along the direction (0 is the checkpoint)")
    left.set_ylabel(NAMES.get(name, name), color=COLOURS[0])
    left.set_title(title(surface))
    accuracy = ACCURACY.get(name)
    if accuracy in surface.values:
        right = left.twinx()
        right.plot(surface.x, surface.values[accuracy], color=COLOURS[1], ls="--")
        right.set_ylabel(NAMES[accuracy], color=COLOURS[1])
        right.set_ylim(0, 101)
    return [save_picture(figure, out_dir / "plots" / f"{path.name}_1d.png")]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("--surf_file", "-f", type=Path, required=True, help="the surface (.h5)")
    parser.add_argument("--surf_name", default="train_loss", help="which values to draw")
    parser.add_argument("--out_dir", type=Path, default=ROOT, help="folder that holds plots/")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> list[Path]:
    """Draw as the command line says; return the picture's path."""
    args = parse_args(argv)
    pictures = draw(args.surf_file, args.surf_name, args.out_dir)
    report_files(pictures)
    return pictures


if __name__ == "__main__":
    run(main)
