"""Surfaces for ParaView, read back with a VTK reader that isn't ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vtkio.reader import read_vtkxml_data

from loss_landscape import h52vtp
from loss_landscape.surface_file import Surface, create, write_cells

X, Y = np.linspace(-1, 1, 9), np.linspace(-0.5, 1.5, 5)


def values(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A cubic, which a cubic spline keeps."""
    return 3 + x + x**2 * y[:, None] - y[:, None] ** 3


def surface_file(path: Path, x: np.ndarray, y: np.ndarray | None, z: np.ndarray) -> Path:
    create(path, Surface(x, y, {}), [], ("train_loss", "train_acc"))
    write_cells(path, np.ones(z.shape, bool), {"train_loss": z, "train_acc": z})
    return path


def read_back(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Points (n, 3), quadrilaterals (m, 4), values at the points and in the quadrilaterals."""
    data: Any = read_vtkxml_data(str(path))
    offsets = np.asarray(data.polys.offsets)
    assert (np.diff(offsets, prepend=0) == 4).all()
    quads = np.asarray(data.polys.connectivity).reshape(-1, 4)
    named = dict(data.point_data.items()), dict(data.cell_data.items())
    return np.asarray(data.points), quads, named[0]["zvalue"], named[1]["averaged zvalue"]


def area(points: np.ndarray, quads: np.ndarray) -> float:
    """Of the quadrilaterals seen from above, positive if they run counterclockwise."""
    x, y = points[quads][:, :, 0], points[quads][:, :, 1]
    return float((x * np.roll(y, -1, 1) - y * np.roll(x, -1, 1)).sum() / 2)


@pytest.mark.parametrize("turned", [False, True])
def test_points_and_quadrilaterals_are_the_surfaces(turned: bool, tmp_path: Path) -> None:
    """Theirs took the root of the number of points for both sides of the grid."""
    x, y = (X[::-1], Y[::-1]) if turned else (X, Y)
    path = surface_file(tmp_path / "a.h5", x, y, values(x, y))
    output = h52vtp.main(["--surf_file", str(path), "--out_dir", str(tmp_path)])
    assert output == tmp_path / "plots" / "a.h5_train_loss.vtp"
    points, quads, heights, means = read_back(output)
    assert len(points) == 45 and len(quads) == 32
    expected = 3 + points[:, 0] + points[:, 0] ** 2 * points[:, 1] - points[:, 1] ** 3
    np.testing.assert_array_equal(heights, points[:, 2])
    np.testing.assert_allclose(heights, expected, atol=1e-12)
    np.testing.assert_allclose(means, heights[quads].mean(axis=1))
    assert area(points, quads) == pytest.approx(2 * 2)  # all of the range, none twice


def test_points_without_a_value_are_left_out(tmp_path: Path) -> None:
    z = values(X, Y)
    z[2, 3], z[0, 0] = np.nan, np.inf
    path = surface_file(tmp_path / "a.h5", X, Y, z)
    points, quads, _, _ = read_back(h52vtp.convert(path, "train_loss", tmp_path))
    assert len(points) == 43 and np.isfinite(points).all()
    assert len(quads) == 32 - 4 - 1 and quads.max() < 43
    assert area(points, quads) == pytest.approx(4 * 27 / 32)


def test_zmax_and_log_are_theirs(tmp_path: Path) -> None:
    path = surface_file(tmp_path / "a.h5", X, Y, values(X, Y) + 1)
    flags = ["-f", str(path), "--out_dir", str(tmp_path), "--zmax", "3.5", "--log"]
    output = h52vtp.main([*flags, "--surf_name", "train_acc"])
    assert output.name == "a.h5_train_acc_zmax=3.5_log.vtp"
    _, _, heights, _ = read_back(output)
    np.testing.assert_allclose(heights, np.log(np.minimum(values(X, Y) + 1, 3.5) + 0.1).ravel())


def test_interpolation_is_cubic(tmp_path: Path) -> None:
    path = surface_file(tmp_path / "a.h5", X, Y, values(X, Y))
    points, quads, heights, _ = read_back(h52vtp.convert(path, "train_loss", tmp_path, interp=31))
    assert len(points) == 31**2 and len(quads) == 30**2
    expected = 3 + points[:, 0] + points[:, 0] ** 2 * points[:, 1] - points[:, 1] ** 3
    np.testing.assert_allclose(heights, expected, atol=1e-9)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--zmax", "-9"], "--zmax -9: not above the lowest value, -"),
        (["--zmax", "nan"], "--zmax: 'nan' is not a finite number"),
        (["--log"], "--log: takes the logarithm of value + 0.1, and the lowest value is -"),
        (["--interp", "1"], "--interp: '1' is not a whole number of 2 or more"),
        (["--interp", "100000"], "--interp 100000: 4000 at most"),
        (["--interp", "9"], "--interp: a cubic spline takes 4 x 4 or more points, all finite"),
        (["--surf_name", "test_loss"], "--surf_name test_loss: not in the surface"),
    ],
)
def test_what_leaves_no_surface_is_one_line(flags, message, tmp_path, run_here) -> None:
    z = values(X, Y) - 2.525
    z[0, 0] = np.nan
    path = surface_file(tmp_path / "a.h5", X, Y, z)
    result = run_here(h52vtp.main, "--surf_file", path, "--out_dir", tmp_path, *flags)
    assert result.returncode == 2 and message in result.stderr, result.stderr
    assert len(result.stderr.splitlines()) == 1 and not (tmp_path / "plots").exists()


def test_a_line_is_no_surface(tmp_path: Path, run_here) -> None:
    path = surface_file(tmp_path / "a.h5", X, None, X**2)
    result = run_here(h52vtp.main, "--surf_file", path, "--out_dir", tmp_path)
    assert result.returncode == 2 and "can't be drawn in 2D" in result.stderr
