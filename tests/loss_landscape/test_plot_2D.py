"""Pictures of surfaces: every surface that has values, and scales that the flags say."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d import Axes3D

from loss_landscape import plot_1D, plot_2D
from loss_landscape.pictures.scale import make_scale, plain_numbers
from loss_landscape.surface_file import Surface, create, write_cells
from utilities.files import locked

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
        (["--log"], "--log: the scale begins at 0, which has no logarithm; give a --vmin above 0"),
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


FINE = np.linspace(-1, 1, 41)
STEEP = {
    "an edge": np.exp(8 * np.tanh(12 * (FINE - 0.4)))[None, :] + FINE[:, None] ** 2,
    "a cliff across": 1 / (1 + np.exp(-40 * (FINE[:, None] + FINE))) + 0.1 * FINE**2,
    "a narrow valley": np.abs(FINE[:, None] - FINE) ** 0.2 + 1e-3 * FINE**2,
}


@pytest.mark.parametrize("name", STEEP)
def test_labels_of_contours_never_overlap(name: str) -> None:
    """Matplotlib keeps labels of one level apart only, so that they overlapped at steep edges."""
    surface = Surface(FINE, FINE, {"train_loss": STEEP[name]})
    scale = make_scale([STEEP[name]])
    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    plot_2D.draw_kind("2dcontour", figure, surface, "train_loss", scale)
    figure.draw_without_rendering()
    (axes, _) = figure.axes
    labels = [text for text in axes.texts if text.get_text()]
    boxes = [text.get_window_extent() for text in labels]
    assert len(boxes) >= 2
    assert {text.get_text() for text in labels} <= set(plain_numbers(scale.levels))
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1


@pytest.mark.parametrize("log", [False, True])
def test_height_and_colour_in_3d_have_one_scale(log: bool, monkeypatch) -> None:
    """Colours were logarithmic and heights linear: a basin of two decades was flat."""
    drawn = {}
    monkeypatch.setattr(Axes3D, "plot_surface", lambda self, x, y, z, **k: drawn.update(k, z=z))
    values = 10 ** (2 * R) if log else R
    scale = make_scale([values], vmax=100 if log else 1.5)
    assert scale.log == log
    figure = Figure(layout="constrained")
    surface = Surface(X, X, {"train_loss": values})
    plot_2D.draw_kind("3dsurface", figure, surface, "train_loss", scale)
    axes: Any = figure.axes[0]
    top = 2 if log else 1.5  # R, its own logarithm, goes from 0 to 2
    assert axes.get_zlim() == pytest.approx((0, top))
    assert (drawn["z"].min(), drawn["z"].max()) == pytest.approx((0, top))
    if log:
        texts = [float(text.get_text()) for text in axes.get_zticklabels()]
        np.testing.assert_allclose(np.log10(texts), axes.get_zticks(), atol=3e-3)
    even = np.linspace(0, 1, len(scale.levels))
    for level in scale.levels:
        nearest = np.abs(drawn["z"] - (np.log10(level) if log else level)).argmin()
        height = drawn["z"].flat[nearest]
        shade = colormaps["viridis"](np.interp(10**height if log else height, scale.levels, even))
        np.testing.assert_allclose(drawn["facecolors"].reshape(-1, 4)[nearest], shade, atol=0.01)


def test_a_window_is_refused_where_none_can_be_opened(tmp_path: Path, run_here) -> None:
    path = surface_of(R, tmp_path / "a.h5")
    for script in (plot_2D, plot_1D):
        result = run_here(script.main, "--surf_file", path, "--out_dir", tmp_path, "--show")
        assert result.returncode == 2 and "no window can be opened here" in result.stderr
    assert not (tmp_path / "plots").exists()


def test_a_window_is_opened_with_each_picture(tmp_path: Path, monkeypatch, run_here) -> None:
    from matplotlib import pyplot

    shown = []
    monkeypatch.setattr(pyplot, "get_backend", lambda: "QtAgg")
    monkeypatch.setattr(pyplot, "show", lambda: shown.extend(pyplot.get_fignums()))
    path = surface_of(R, tmp_path / "a.h5")
    result = run_here(plot_2D.main, "--surf_file", path, "--out_dir", tmp_path, "--show")
    pyplot.close("all")
    assert result.returncode == 0 and len(shown) == 4


def test_two_at_once_do_not_mix_their_scales(tmp_path: Path) -> None:
    path = surface_of(R, tmp_path / "a.h5")
    with (
        locked(tmp_path / "plots" / "a.h5", "wait"),
        pytest.raises(ValueError, match=r"a\.h5: another process .*--out_dir"),
    ):
        plot_2D.draw(path, "train_loss", tmp_path)
    assert len(plot_2D.draw(path, "train_loss", tmp_path)) == 4
