"""Draw loss and accuracy along one direction.

    python plot_1D.py --surf_file ../to_plot/line.h5

writes ``plots/<surface>_1d.png``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from loss_landscape.plot_2D import NAMES, title
from loss_landscape.surface_file import ACCURACY, read_surface
from utilities.cli import Parser, report_files, run
from utilities.files import ROOT, atomic_write


def draw(path: Path, name: str, out_dir: Path) -> list[Path]:
    """Draw a 1D surface file; return the picture's path in a list, as plot_2D.draw does.

    Raises:
        FileNotFoundError: no such surface.
        ValueError: damaged, of two dimensions, or without ``name``.
    """
    surface = read_surface(path)
    if surface.y is not None:
        raise ValueError(f"{path}: a surface in 2D; use plot_2D.py")
    if name not in surface.values:
        raise ValueError(f"--surf_name {name}: not in {path} ({', '.join(surface.values)})")
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    left = figure.add_subplot()
    left.plot(surface.x, surface.values[name], color="tab:blue", marker=".")
    left.set_xlabel("position along the direction (0 is the checkpoint)")
    left.set_ylabel(NAMES.get(name, name), color="tab:blue")
    left.set_title(title(surface))
    accuracy = ACCURACY.get(name)
    if accuracy in surface.values:
        right = left.twinx()
        right.plot(surface.x, surface.values[accuracy], color="tab:red", ls="--")
        right.set_ylabel(NAMES[accuracy], color="tab:red")
        right.set_ylim(0, 101)
    picture = out_dir / "plots" / f"{path.name}_1d.png"
    with atomic_write(picture) as part:
        figure.savefig(part, dpi=150)
    return [picture]


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
