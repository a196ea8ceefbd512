"""The surface's file: what is written is read, by loss-landscape too; what is wrong is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from loss_landscape import plot_2D, plot_surface, surface_file
from loss_landscape.surface_file import (
    Surface,
    create,
    done,
    read_directions,
    read_surface,
    write_cells,
)
from utilities.runs import refuse_other


def make_surface(path: Path, nx: int = 3, ny: int = 7) -> Surface:
    surface = Surface(np.linspace(-1, 1, nx), np.linspace(0, 6, ny), {}, {"seed": 1})
    create(path, surface, [[torch.ones(2)], [torch.arange(3.0)]], ("train_loss", "train_acc"))
    return surface


def row(surface: Surface, number: int, line: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which cells row ``number`` has, and a grid that holds ``line`` there."""
    cells, values = np.zeros(surface.shape, dtype=bool), np.full(surface.shape, np.inf)
    cells[number], values[number] = True, line
    return cells, values


def test_values_are_y_x_and_readable_as_loss_landscape_does(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    surface = make_surface(path)
    x, y = np.meshgrid(surface.x, surface.y)
    write_cells(path, np.ones(surface.shape, bool), {"train_loss": x + 10 * y, "train_acc": 0 * x})
    with h5py.File(path) as file:  # as their plot_2D reads it
        assert np.array_equal(file["train_loss"][:], x + 10 * y)
        assert file["dir_file"][()].decode() == "s.h5"
        assert sorted(file["ydirection"]) == ["0"]
    assert torch.equal(read_directions(path)[1][0], torch.arange(3.0))


def test_unfinished_cells_are_nan_and_nan_is_a_finished_value(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    surface = make_surface(path)
    values = np.array([1.0, np.nan, -1.0])
    cells, grid = row(surface, 2, values)
    write_cells(path, cells, {"train_loss": grid, "train_acc": grid})
    assert done(path).sum(axis=1).tolist() == [0, 0, 3, 0, 0, 0, 0]
    read = read_surface(path).values["train_loss"]
    np.testing.assert_array_equal(read[2], values)
    assert np.isnan(np.delete(read, 2, axis=0)).all()


def test_loss_landscapes_steps_read_ours(tmp_path: Path) -> None:
    """What its plot_2D, h52vtp, scheduler and net_plotter take from a file, step by step."""
    path = tmp_path / "s.h5"
    surface = make_surface(path)
    x, y = np.meshgrid(surface.x, surface.y)
    cells, z = y < 4, 1 + x**2 + 10 * y
    write_cells(path, cells, {"train_loss": z, "train_acc": 0 * z + 50})
    with h5py.File(path, "r") as file:
        keys = list(file.keys())
        assert {"xcoordinates", "ycoordinates", "train_loss", "train_acc", "dir_file"} <= set(keys)
        xs, ys = np.array(file["xcoordinates"][:]), np.array(file["ycoordinates"][:])
        mesh_x, mesh_y = np.meshgrid(xs, ys)
        loss = np.array(file["train_loss"][:])
        assert loss.shape == mesh_x.shape == mesh_y.shape  # else its contour stops
        assert ((100 - np.array(file["train_acc"][:]))[cells] == 50).all()
        unfinished = np.arange(loss.size)[loss.ravel() <= 0]  # what it would still compute
        assert unfinished.tolist() == np.flatnonzero(~cells).tolist()
        corner = np.c_[mesh_x.ravel(), mesh_y.ravel()][loss[cells].argmin()]
        assert corner.tolist() == [0.0, 0.0]
        for group, expected in (("xdirection", torch.ones(2)), ("ydirection", torch.arange(3.0))):
            tensors = [file[group][str(i)] for i in range(len(file[group]))]
            assert torch.equal(torch.tensor(tensors[0][()]), expected)


@pytest.mark.parametrize("nx", [3, 7])
def test_values_that_loss_landscape_scrambles_are_put_right(nx: int, tmp_path: Path) -> None:
    """It counts the points of (y, x) row by row, into an array that it makes as (x, y)."""
    x, y = np.linspace(-1, 1, nx), np.linspace(0, 6, 5)
    mesh_x, mesh_y = np.meshgrid(x, y)
    points = np.c_[mesh_x.ravel(), mesh_y.ravel()]
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        file["xcoordinates"], file["ycoordinates"] = x, y
        losses = -np.ones((len(x), len(y)))
        for index in range(2, losses.size):
            losses.ravel()[index] = 7 + points[index] @ [1, 10]
        file["train_loss"] = losses
    read = read_surface(tmp_path / "theirs.h5").values["train_loss"]
    expected = 7 + mesh_x + 10 * mesh_y
    expected[0, :2] = np.nan
    np.testing.assert_allclose(read, expected)


def test_files_of_loss_landscape_are_read(tmp_path: Path) -> None:
    path = tmp_path / "theirs.h5"
    with h5py.File(path, "w") as file:
        file["dir_file"] = "d.h5"
        file["xcoordinates"] = file["ycoordinates"] = np.linspace(-1, 1, 4)
        loss = np.arange(1.0, 17).reshape(4, 4)
        loss[0, 0] = -1  # not computed
        file["train_loss"] = loss
    surface = read_surface(path)
    assert np.isnan(surface.values["train_loss"][0, 0])
    assert len(plot_2D.draw(path, "train_loss", tmp_path)) == 4


def test_another_surface_is_never_continued(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    surface = make_surface(path)

    def check(new: Surface) -> None:
        old = read_surface(path).settings
        refuse_other(path, old, new.settings, "surface", plot_surface.REMEDY)

    check(surface)
    with pytest.raises(ValueError, match=r"differs in grid.*--surf_file.*--overwrite"):
        check(Surface(surface.x, surface.y + 1, {}, {"seed": 1}))
    with pytest.raises(ValueError, match="differs in seed"):
        check(Surface(surface.x, surface.y, {}, {"seed": 2}))


def test_truncated_files_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    make_surface(path)
    whole = path.read_bytes()
    for percent in range(0, 100, 3):
        path.write_bytes(whole[: len(whole) * percent // 100])
        with pytest.raises(ValueError, match=r"s\.h5") as error:
            read_surface(path)
        assert "\n" not in str(error.value)


def test_external_links_are_refused(tmp_path: Path) -> None:
    path, other = tmp_path / "s.h5", tmp_path / "other.h5"
    make_surface(path)
    shutil.copy(path, other)
    with h5py.File(path, "r+") as file:
        del file["train_loss"]
        file["train_loss"] = h5py.ExternalLink("other.h5", "train_loss")
    with pytest.raises(ValueError, match="link"):
        read_surface(path)


def test_text_in_a_surface_has_a_fixed_length_and_comes_back(tmp_path: Path) -> None:
    """HDF5 can loop for ever in a damaged heap, where text of free length lies."""
    attributes = {"seed": 3, "norm": "filter", "arguments": "--x=-1:1:3 é", "empty": ""}
    surface = Surface(np.linspace(-1, 1, 3), None, {}, attributes)
    create(tmp_path / "a.h5", surface, [[torch.ones(2)]], ("train_loss",))
    assert read_surface(tmp_path / "a.h5").attributes == attributes
    with h5py.File(tmp_path / "a.h5") as file:
        kinds = [h5py.check_string_dtype(file.attrs.get_id(n).dtype) for n in ("norm", "empty")]
        assert [kind.length for kind in kinds] == [6, 1]


def test_a_surface_that_asks_for_too_much_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["xcoordinates"] = np.arange(3.0)
        # 8 TB, none of it there
        file.create_dataset("train_loss", (10**6, 10**6), "f8", chunks=(10, 10))
    with pytest.raises(ValueError, match="false size"):
        read_surface(tmp_path / "a.h5")


@pytest.mark.parametrize("shape", [(3, 7), (1, 4), (5, 1), (6,)])
def test_any_cells_are_written_and_no_others(shape: tuple[int, ...], tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    x, y = np.arange(float(shape[-1])), np.arange(float(shape[0])) if len(shape) == 2 else None
    create(path, Surface(x, y, {}), [], ("train_loss", "train_acc"))
    rng = np.random.default_rng(0)
    expected, finished = np.full(shape, np.nan), np.zeros(shape, bool)
    for _ in range(4):
        cells, values = rng.random(shape) < 0.3, rng.normal(size=shape)
        write_cells(path, cells, {"train_loss": values, "train_acc": 2 * values})
        expected[cells], finished[cells] = values[cells], True
        read = read_surface(path).values
        np.testing.assert_array_equal(read["train_loss"], expected)
        np.testing.assert_array_equal(read["train_acc"], 2 * expected)
        np.testing.assert_array_equal(done(path), finished)


def test_a_cell_that_is_written_while_the_file_is_read_is_not_done(tmp_path, monkeypatch) -> None:
    """The kind: a reader beside a writer; -1, which holds an empty cell's place, is no value."""
    path = tmp_path / "s.h5"
    surface = make_surface(path, 2, 2)
    everywhere, ones = np.ones((2, 2), bool), np.ones((2, 2))
    whole = surface_file._array
    held: list[bool] = []

    def written_after_the_first(file: h5py.File, name: str) -> np.ndarray:
        array = whole(file, name)
        if not held:  # another process writes all cells after the first thing that is read
            held.append(True)
            file.close()
            write_cells(path, everywhere, {"train_loss": ones, "train_acc": ones})
            file.__init__(path, "r", locking=False)
        return array

    monkeypatch.setattr(surface_file, "_array", written_after_the_first)
    read = read_surface(path).values["train_loss"]
    assert np.isnan(read).all() or (read == 1).all()
    assert surface.shape == read.shape


@pytest.mark.parametrize("name", ["xcoordinates", "ycoordinates", "train_loss", "done"])
@pytest.mark.parametrize(
    "wrong",
    [
        np.array([0.0, np.nan, 1.0]),
        np.array([0.0, np.inf, 1.0]),
        np.array([0.0, 0.0, 1.0]),
        np.array([0.0, 1.0, 0.5]),
        np.array([]),
        np.array(1.0),
        np.ones((3, 3, 1)),
        np.array([b"a", b"b", b"c"]),
        np.array([0j, 1j, 2j]),
    ],
    ids=["nan", "inf", "twice", "back", "none", "scalar", "cube", "text", "complex"],
)
def test_numbers_that_make_no_grid_are_refused(name: str, wrong, tmp_path: Path) -> None:
    """The kind: numbers from a file, checked where they enter."""
    path = tmp_path / "s.h5"
    make_surface(path, 3, 3)
    with h5py.File(path, "r+") as file:
        del file[name]
        file[name] = wrong
    with pytest.raises(ValueError, match=r"s\.h5") as error:
        read_surface(path)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_surface_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"PK weights")
    with pytest.raises(ValueError, match=r"model\.pt: is there and no surface.*--surf_file"):
        make_surface(path)
    assert path.read_bytes() == b"PK weights"
