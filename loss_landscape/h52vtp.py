"""Write a loss surface as VTK PolyData, which ParaView opens.

    python h52vtp.py --surf_file ../to_plot/model_GCN_SAM_rho0.05.h5 --log --zmax 10 --interp 1000

writes ``plots/<surface>_<values>_zmax=10_log.vtp``: points (x, y, z), quadrilaterals between them,
``zvalue`` at the points and its mean over each quadrilateral, as loss-landscape's h52vtp.py names
them. Points whose value is not finite are left out, and with them the quadrilaterals around.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from scipy.interpolate import RectBivariateSpline

from loss_landscape.pictures.surface_picture import grid
from loss_landscape.surface_file import Surface, read_surface
from utilities.cli import Parser, finite_float, report_files, run, two_or_more
from utilities.files import ROOT, atomic_write

ABOVE_ZERO = 0.1  # is added before the logarithm, as loss-landscape does
CUBIC = 4  # points that a cubic spline needs, each way
MOST_POINTS = 4000  # each way: a file of 16 million points has a gigabyte


def heights(
    surface: Surface, name: str, zmax: float | None, interp: int | None, log: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coordinates and heights, x (nx,), y (ny,), z (ny, nx), both axes rising.

    Args:
        surface: in 2D.
        name: of the values.
        zmax: higher values are cut to it.
        interp: so many points each way by a cubic spline; None keeps the grid.
        log: heights are the natural logarithms of value + 0.1, after the cut.

    Raises:
        ValueError: nothing is left of the surface, the spline lacks points or values, or a
            logarithm lacks.
    """
    z = grid(surface, name).filled(np.nan)
    assert surface.y is not None  # else grid would have refused it
    x, y = surface.x, surface.y
    x, z = (x, z) if x[0] < x[-1] else (x[::-1], z[:, ::-1])
    y, z = (y, z) if y[0] < y[-1] else (y[::-1], z[::-1])
    if interp is not None:
        if min(z.shape) < CUBIC or not np.isfinite(z).all():
            raise ValueError(
                f"--interp: a cubic spline takes {CUBIC} x {CUBIC} or more points, all finite; "
                f"here are {np.isfinite(z).sum()} finite ones of {z.shape[0]} x {z.shape[1]}"
            )
        spline = RectBivariateSpline(y, x, z)  # through the points
        x, y = np.linspace(x[0], x[-1], interp), np.linspace(y[0], y[-1], interp)
        z = spline(y, x)
    low = np.nanmin(z)
    if zmax is not None:
        if zmax <= low:
            raise ValueError(f"--zmax {zmax:g}: not above the lowest value, {low:g}")
        z = np.minimum(z, zmax)
    if log:
        if low + ABOVE_ZERO <= 0:
            raise ValueError(
                f"--log: takes the logarithm of value + {ABOVE_ZERO}, and the lowest value is "
                f"{low:g}; leave it out"
            )
        z = np.log(z + ABOVE_ZERO)
    return x, y, z


def polydata(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> ElementTree.ElementTree:
    """VTK's XML of a surface in quadrilaterals.

    Args:
        x: (nx,).
        y: (ny,).
        z: (ny, nx); NaN where there is no point.
    """
    there = np.isfinite(z)
    columns, rows = np.meshgrid(x, y)
    points = np.stack([columns[there], rows[there], z[there]], axis=1)
    number = np.cumsum(there).reshape(there.shape) - 1  # of each point that is there
    whole = there[:-1, :-1] & there[:-1, 1:] & there[1:, 1:] & there[1:, :-1]
    corners = (number[:-1, :-1], number[:-1, 1:], number[1:, 1:], number[1:, :-1])
    quads = np.stack([corner[whole] for corner in corners], axis=1)
    form = {"version": "1.0", "byte_order": "LittleEndian", "header_type": "UInt64"}
    root = ElementTree.Element("VTKFile", form, type="PolyData")
    counts = {"NumberOfPoints": str(len(points)), "NumberOfPolys": str(len(quads))}
    none = {f"NumberOf{kind}": "0" for kind in ("Verts", "Lines", "Strips")}
    piece = ElementTree.SubElement(ElementTree.SubElement(root, "PolyData"), "Piece", counts | none)
    _add(piece, "PointData", "zvalue", points[:, 2])
    _add(piece, "CellData", "averaged zvalue", points[:, 2][quads].mean(axis=1))
    _add(piece, "Points", "Points", points)
    _add(piece, "Polys", "connectivity", quads)
    _add(piece, "Polys", "offsets", 4 * np.arange(1, len(quads) + 1))
    ElementTree.indent(root)
    return ElementTree.ElementTree(root)


def _add(piece: ElementTree.Element, place: str, name: str, values: np.ndarray) -> None:
    """Add an array as text to the piece's element ``place``, which is made if it isn't there."""
    parent = piece.find(place)
    if parent is None:
        parent = ElementTree.SubElement(piece, place)
    kind = "Float64" if values.dtype.kind == "f" else "Int64"
    array = ElementTree.SubElement(parent, "DataArray", type=kind, Name=name, format="ascii")
    if values.ndim == 2 and place == "Points":
        array.set("NumberOfComponents", "3")
    array.text = " ".join(map(repr, values.ravel().tolist()))


def convert(
    path: Path,
    name: str,
    out_dir: Path,
    zmax: float | None = None,
    interp: int | None = None,
    log: bool = False,
) -> Path:
    """Write a surface below ``out_dir``/plots; return the file's path. See ``heights``."""
    x, y, z = heights(read_surface(path), name, zmax, interp, log)
    ending = ("" if zmax is None else f"_zmax={zmax:g}") + ("_log" if log else "")
    output = out_dir / "plots" / f"{path.name}_{name}{ending}.vtp"
    with atomic_write(output) as part:
        polydata(x, y, z).write(part, encoding="utf-8", xml_declaration=True)
    return output


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--surf_file", "--file", "-f", type=Path, required=True, help="the surface (.h5)"
    )
    parser.add_argument("--surf_name", default="train_loss", help="which values to write")
    parser.add_argument("--zmax", type=finite_float, help="cut higher values")
    parser.add_argument(
        "--interp", type=two_or_more, help="points each way, by a cubic spline; the grid's if none"
    )
    parser.add_argument(
        "--log",
        action=argparse.BooleanOptionalAction,
        default=False,
        help=f"heights are the logarithms of value + {ABOVE_ZERO}",
    )
    parser.add_argument("--out_dir", type=Path, default=ROOT, help="folder that holds plots/")
    args = parser.parse_args(argv)
    if args.interp is not None and args.interp > MOST_POINTS:
        raise ValueError(f"--interp {args.interp}: {MOST_POINTS} at most; 1000 are plenty")
    return args


def main(argv: Sequence[str] | None = None) -> Path:
    """Convert as the command line says; return the file's path."""
    args = parse_args(argv)
    flags = (args.surf_name, args.out_dir, args.zmax, args.interp, args.log)
    output = convert(args.surf_file, *flags)
    report_files([output])
    return output


if __name__ == "__main__":
    run(main)
