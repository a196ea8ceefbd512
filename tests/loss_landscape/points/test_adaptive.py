"""Surfaces refined where needed: the right cells measured, the others right, kill or no kill."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loss_landscape.points.adaptive import compute_adaptively, levels, mask, refined
from loss_landscape.surface_file import Surface, create, done, read_surface


class Hill:
    """A measure of z(x, y) that may stop after so many points."""

    names = ("train_loss", "train_acc")
    block = 7

    def __init__(self, height: Callable, stop_after: int | None = None) -> None:
        self.height, self.stop_after, self.count = height, stop_after, 0

    def __call__(self, points: np.ndarray) -> dict[str, np.ndarray]:
        if self.stop_after is not None and self.count >= self.stop_after:
            raise KeyboardInterrupt
        self.count += len(points)
        loss = self.height(*(points.T if points.shape[1] == 2 else (points[:, 0], 0.0)))
        return {"train_loss": loss, "train_acc": 100 / (1 + np.abs(loss))}


def bowl(x, y):
    return 0.3 + x**2 + 2 * y**2 + 0.1 * np.sin(3 * x)


def cliff(x, y):
    return np.where(x + 0.37 * y > 0.2, 40.0, 0.5 + 0.1 * x**2) + 0 * y


def negative(x, y):
    return np.sin(2 * x) * np.cos(y)


def hole(x, y):
    return np.where(x**2 + y**2 < 0.1, np.nan, bowl(x, y))


def new(path: Path, nx: int = 51, ny: int | None = 51) -> Surface:
    y = None if ny is None else np.linspace(-1, 1, ny)
    surface = Surface(np.linspace(-1, 1, nx), y, {})
    create(path, surface, [], Hill.names, adaptive=True)
    return surface


@settings(max_examples=60, deadline=None)
@given(nx=st.integers(1, 130), ny=st.integers(1, 130))
def test_grids_go_from_coarse_to_whole_and_keep_their_lines(nx: int, ny: int) -> None:
    grids = levels((ny, nx))
    assert mask((ny, nx), grids[-1]).all()
    for coarse, fine in pairwise(grids):
        assert (mask((ny, nx), fine) >= mask((ny, nx), coarse)).all()
    for lines, size in zip(grids[0], (ny, nx), strict=True):
        assert lines[0] == 0 and lines[-1] == size - 1
        assert len(lines) == size or 7 <= len(lines) <= 13
        assert size == 1 or np.ptp(np.diff(lines)) <= 1


@pytest.mark.parametrize(("nx", "ny"), [(51, 51), (80, 33), (101, None), (40, 1)])
@pytest.mark.parametrize(("height", "most"), [(bowl, 0.2), (negative, 0.2), (cliff, 0.6)])
def test_a_part_is_measured_and_the_rest_right(height, most, nx, ny, tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    surface, hill = new(path, nx, ny), Hill(height)
    compute_adaptively(path, surface, hill, 0.02)
    x, y = np.meshgrid(surface.x, np.zeros(1) if surface.y is None else surface.y)
    true = height(x, y).reshape(surface.shape)
    read = read_surface(path)
    measured = done(path)
    assert hill.count == measured.sum() < (most * true.size if ny == 51 else true.size)
    np.testing.assert_array_equal(read.interpolated, ~measured)
    assert measured.reshape(x.shape)[(x == 0) & (y == 0)].all()  # the checkpoint
    np.testing.assert_array_equal(read.values["train_loss"][measured], true[measured])
    scale = np.ptp(true) if height is negative else true
    off = (np.abs(read.values["train_loss"] - true) / scale)[~measured]
    assert np.median(off) < 0.01
    assert (off < 0.02).mean() > 0.97
    assert 0 <= read.deviation[0] <= read.deviation[1] < (np.inf if height is cliff else 0.05)
    accuracy = read.values["train_acc"]
    assert accuracy.min() >= 0 and accuracy.max() <= 100


def test_a_cliff_is_measured_and_the_plain_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    surface = new(path)
    compute_adaptively(path, surface, Hill(cliff), 0.02)
    x, y = np.meshgrid(surface.x, surface.y)
    distance = np.abs(x + 0.37 * y - 0.2)
    measured = done(path)
    assert measured[distance < 0.04].mean() > 0.95
    assert measured[distance > 0.8].mean() < 0.2


def test_what_is_not_finite_is_not_interpolated(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    surface = new(path)
    compute_adaptively(path, surface, Hill(hole), 0.02)
    x, y = np.meshgrid(surface.x, surface.y)
    true = hole(x, y)
    np.testing.assert_array_equal(np.isnan(read_surface(path).values["train_loss"]), np.isnan(true))
    assert done(path)[np.isnan(true)].all()


@pytest.mark.parametrize("value", [np.nan, 0.0, 2.0, -1.0])
def test_a_surface_of_one_value_has_it_everywhere(value: float, tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    surface = new(path)
    compute_adaptively(path, surface, Hill(lambda x, y: 0 * x + 0 * y + value), 0.02)
    found = read_surface(path).values["train_loss"]
    np.testing.assert_allclose(found, np.full((51, 51), value), rtol=1e-12)


@pytest.mark.parametrize("stop_after", [1, 64, 100, 196, 230, 280])
def test_a_stopped_run_measures_the_same_cells(stop_after: int, tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.h5", tmp_path / "s.h5"
    compute_adaptively(whole, new(whole), Hill(cliff), 0.02)
    surface = new(path)
    with pytest.raises(KeyboardInterrupt):
        compute_adaptively(path, surface, Hill(cliff, stop_after), 0.02)
    assert not read_surface(path).interpolated.any()
    compute_adaptively(path, surface, Hill(cliff), 0.02)
    compute_adaptively(path, surface, Hill(cliff), 0.02)  # and once more, when all is there
    a, b = read_surface(whole), read_surface(path)
    assert a.deviation == b.deviation
    np.testing.assert_array_equal(a.interpolated, b.interpolated)
    for name, values in a.values.items():
        np.testing.assert_array_equal(values, b.values[name])


def test_noise_is_measured_wholly() -> None:
    loss = np.random.default_rng(0).uniform(1, 2, (20, 30))
    nowhere = np.zeros(loss.shape, dtype=bool)
    measured, values = refined(nowhere, 1e-9, lambda cells: {"train_loss": loss.copy()})
    assert measured.all()
    np.testing.assert_array_equal(values["train_loss"], loss)
