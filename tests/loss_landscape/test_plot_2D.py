"""Pictures of surfaces: every surface that has values, and scales that the flags say."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from loss_landscape import plot_1D, plot_2D
from loss_landscape.surface_file import Surface, create, write_cells
from utilities.files import locked


def test_colour_scales_are_shared_and_survive_flat_and_missing_values() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        norm = plot_2D.colour_scale([np.array([1.0, 2.0]), np.array([0.5, np.nan])])
        assert norm.vmin == 0.5
        for values in (np.ones(3), np.full(3, np.nan), np.array([1e-3, 1e3])):
            levels = plot_2D.contour_levels(plot_2D.colour_scale([values]))
            assert (np.diff(levels) > 0).all()


X = np.linspace(-1, 1, 5)
R = X[:, None] ** 2 + X**2


def surface_of(values: np.ndarray, path: Path) -> Path:
    """A file of a surface with these values, square or a line."""
    y = X if values.ndim == 2 else None
    create(path, Surface(X, y, {}, {"model": "$m$", "dataset": "a"}), [], ("train_loss",))
    write_cells(path, np.ones(values.shape, bool), {"train_loss": values})
    return path


SURFACES = {
    "zero": 0 * R,
    "constant": 0 * R + 1e20,
    "constant, huge": 0 * R + 1e308,
    "constant, tiny": 0 * R + 1e-320,
    "constant but for rounding": 1 + 1e-16 * R,
    "from end to end": (R - 1) * 1.7e308,
    "huge": R * 8e307,
    "hundreds of decades": 1e-300 * 10 ** (300 * R / 2),
    "one finite": np.where(R == 0, 1, np.inf),
    "a cliff": np.where(R == 0, -1e308, 1e308),
    "tiny": R * 1e-320,
}


@pytest.mark.parametrize("name", SURFACES)
def test_every_surface_with_a_value_can_be_drawn(name: str, tmp_path: Path, monkeypatch) -> None:
    """The kind: values that matplotlib's own arithmetic doesn't survive."""
    figures = []
    monkeypatch.setattr(plot_2D, "save_picture", lambda figure, path: figures.append(figure))
    monkeypatch.setattr(plot_1D, "save_picture", lambda figure, path: figures.append(figure))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_2D.draw(surface_of(SURFACES[name], tmp_path / "a.h5"), "train_loss", tmp_path)
        plot_1D.draw(surface_of(SURFACES[name][2], tmp_path / "b.h5"), "train_loss", tmp_path)
        for figure in figures:
            figure.canvas.draw()
    assert len(figures) == 5


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_surface_without_a_value_is_not_drawn(value: float, tmp_path: Path) -> None:
    for values, draw in ((0 * R + value, plot_2D.draw), (0 * X + value, plot_1D.draw)):
        path = surface_of(values, tmp_path / "a.h5")
        with pytest.raises(ValueError, match="no finite value"):
            draw(path, "train_loss", tmp_path)
    assert not (tmp_path / "plots").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--vmin", "nan"], "--vmin: 'nan' is not a finite number"),
        (["--vmin=-inf"], "--vmin: '-inf' is not a finite number"),
        (["--vmax", "inf"], "--vmax: 'inf' is not a finite number"),
        (["--vmax", "1e999"], "--vmax: '1e999' is not a finite number"),
        (["--vmax", "1e308"], "--vmax 1e+308: beyond 1e+30"),
        (["--vmin", "2", "--vmax", "1"], "--vmin 2: not below --vmax 1"),
        (["--vmin", "1", "--vmax", "1"], "--vmin 1: not below --vmax 1"),
        (["--vmin", "1", "--vmax", "1.0000000000000002"], "--vmin 1: the colours would go from"),
        (["--vmin", "5"], "--vmin 5: the colours would go from 5 to 2; the values go from 0 to 2"),
        (["--vmax", "-1"], "--vmax -1: the colours would go from 0 to -1; the values go from"),
        (["--vlevel", "1e-9"], "--vlevel 1e-09: 2e+09 steps between 0 and 2"),
        (["--vlevel", "1e-320"], "steps between 0 and 2"),
        (["--vlevel", "3"], "--vlevel 3: 0.667 steps between 0 and 2"),
        (["--vlevel", "1e308"], "steps between 0 and 2"),
        (["--vlevel", "0"], "--vlevel: '0' is not a finite number above 0"),
        (["--vlevel", "nan"], "--vlevel: 'nan' is not a finite number above 0"),
        (["--surf_name", "test_loss"], "--surf_name test_loss: not in the surface (train_loss)"),
    ],
)
def test_numbers_that_make_no_scale_are_one_line(flags, message, tmp_path, run_here) -> None:
    """The kind: numbers from flags, alone, together and against those of the file."""
    path = surface_of(R, tmp_path / "a.h5")
    result = run_here(plot_2D.main, "--surf_file", path, "--out_dir", tmp_path, *flags)
    assert result.returncode == 2
    assert message in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "plots").exists()


def test_levels_lie_where_vlevel_says() -> None:
    """They were twelve, whatever it said: only the colours followed."""
    surface = Surface(X, X, {"train_loss": R})
    norm = plot_2D.stepped(plot_2D.colour_scale([R], vmin=0.25, vmax=1.75), 0.5)
    expected = [0.25, 0.75, 1.25, 1.75]
    for filled in (True, False):
        drawn = plot_2D.draw_surface(Figure().subplots(), surface, "train_loss", norm, filled)
        np.testing.assert_allclose(drawn.levels, expected)  # type: ignore[attr-defined]
    for span, step, count in ((1.0, 0.1, 11), (0.3, 0.1, 4), (200.0, 1.0, 201), (1.0, 1.0, 2)):
        norm = plot_2D.stepped(plot_2D.colour_scale([R], 0.0, span), step)
        assert len(plot_2D.contour_levels(norm)) == count


def test_two_at_once_do_not_mix_their_scales(tmp_path: Path) -> None:
    path = surface_of(R, tmp_path / "a.h5")
    with (
        locked(tmp_path / "plots" / "a.h5", "wait"),
        pytest.raises(ValueError, match=r"a\.h5: another process .*--out_dir"),
    ):
        plot_2D.draw(path, "train_loss", tmp_path)
    assert len(plot_2D.draw(path, "train_loss", tmp_path)) == 4
