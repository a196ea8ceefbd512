"""What a picture of a surface shows: its levels, its heights, its title and its axes."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from loss_landscape.pictures.scale import make_scale
from loss_landscape.pictures.surface_picture import draw_surface, finer, full_title, label
from loss_landscape.surface_file import Surface

X = np.linspace(-1, 1, 5)
R = X[:, None] ** 2 + X**2


def test_levels_lie_where_vlevel_says() -> None:
    """They were twelve, whatever it said: only the colours followed."""
    surface = Surface(X, X, {"train_loss": R})
    scale = make_scale([R], 0.25, 1.75, vlevel=0.5)
    for filled in (True, False):
        drawn = draw_surface(Figure().subplots(), surface, "train_loss", scale, filled)
        np.testing.assert_allclose(drawn.levels, [0.25, 0.75, 1.25, 1.75])


def test_a_surface_in_3d_keeps_the_grids_values_however_it_runs() -> None:
    """Non-square, falling axes, and a hole; between the points it is bilinear."""
    x, y = np.array([1.0, 0.5, -1.0]), np.array([-1.0, 0.0, 0.25, 2.0])
    values = 1 + x + 2 * y[:, None] + x * y[:, None]
    surface = Surface(x, y, {"train_loss": values})
    columns, rows, between = finer(surface, values)
    np.testing.assert_allclose(between, 1 + columns + 2 * rows + columns * rows, atol=1e-12)
    for i, row in enumerate(y):
        for j, column in enumerate(x):
            assert values[i, j] in between[(rows == row) & (columns == column)].round(12)
    values[1, 1] = np.nan
    _, _, between = finer(surface, values)
    assert np.isnan(between).any() and np.isfinite(between[-1]).all()


def test_a_title_says_what_was_interpolated() -> None:
    guessed = np.array([[True, False], [False, False]])
    axis = np.array([0.0, 1.0])
    values = {"train_loss": np.arange(4.0).reshape(2, 2)}
    surface = Surface(axis, axis, values, {"title": "GCN"}, guessed, (0.0024, 0.05))
    expected = "25% interpolated, off by 0.24% in the median, 5.0% at most"
    assert full_title(surface) == f"GCN\n{expected}"
    surface.interpolated = None
    assert full_title(surface) == "GCN"


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("drawn with seed 1, idx 0; norm filter, ignore biasbn", "direction x (filter-normalised)"),
        ("from a.pt to b.pt", "direction x"),
        ("taken from plane.h5", "direction x"),
    ],
)
def test_only_a_drawn_direction_is_called_filter_normalised(how: str, expected: str) -> None:
    """The flag's default is filter, whether or not a direction is rescaled by it."""
    axis = np.array([0.0, 1.0])
    said = {"norm": "filter filter", "xdirection_is": how}
    axes = Figure().add_subplot()
    label(axes, Surface(axis, axis, {}, said))
    assert axes.get_xlabel() == expected and axes.get_ylabel() == "direction y (filter-normalised)"
