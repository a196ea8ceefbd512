"""The .h5 file of a loss surface, readable by tomgoldstein/loss-landscape's tools.

Datasets ``xcoordinates``, ``ycoordinates`` (absent in 1D), ``train_loss``, ``train_acc`` and, if
asked for, ``test_loss``, ``test_acc``, of shape (y, x), or (x,) in 1D; of a part of the samples
also ``train_loss_se``, the standard error of the loss over samples; in bf16 at some points
``train_loss_deviation``, how far the loss is from fp32's; of plot_hessian_eigen.py ``min_eig``,
``max_eig``, their residuals and ``eig_ratio``. Cells not yet computed hold -1, and the
boolean ``done`` tells them from finished ones. Of a surface that is refined where needed,
``interpolated`` tells what was not measured, and ``deviation`` how far off that is. ``dir_file``
names the file itself, which holds the directions in the groups ``xdirection`` and ``ydirection``, a
dataset a tensor. Attributes say what was computed; a file is only continued where they agree.

A projection file holds a training's path: ``proj_xcoord``, ``proj_ycoord``, ``epochs`` and the
directions, so that it is a ``--dir_file`` too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from loss_landscape.directions import Direction
from utilities.files import atomic_write, sync

GROUPS = ("xdirection", "ydirection")
# Ends of the values' names.
VALUES = ("_loss", "_acc", "_loss_se", "_loss_deviation", "_eig", "_eig_residual", "eig_ratio")
PROJECTED = ("proj_xcoord", "proj_ycoord")
ACCURACY = {"train_loss": "train_acc", "test_loss": "test_acc"}


@dataclass
class Surface:
    """Values on a grid.

    Attributes:
        x, y: coordinates (nx,) and (ny,); ``y`` is None in 1D.
        values: by name, (ny, nx) or (nx,); cells not computed are NaN.
        attributes: what was computed, plain values.
        interpolated: which values are not measured, of the surface's shape; None if all are.
        deviation: median and largest relative error of those, at some that were measured too.
    """

    x: np.ndarray
    y: np.ndarray | None
    values: dict[str, np.ndarray]
    attributes: dict[str, Any] = field(default_factory=dict)
    interpolated: np.ndarray | None = None
    deviation: tuple[float, float] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.x),) if self.y is None else (len(self.y), len(self.x))

    @property
    def settings(self) -> dict[str, Any]:
        """What makes two surfaces the same, and what is said of them: grid and attributes."""
        axes = [axis.tolist() for axis in (self.x, self.y) if axis is not None]
        return {"grid": axes, **self.attributes}

    @property
    def interpolation(self) -> str:
        """For people: which share isn't measured, and how far that is off; "" if all is."""
        if self.interpolated is None or not self.interpolated.any() or self.deviation is None:
            return ""
        return (
            f"{self.interpolated.mean():.0%} interpolated, off by {self.deviation[0]:.2%} in the "
            f"median, {self.deviation[1]:.1%} at most"
        )

    def points(self, cells: np.ndarray) -> np.ndarray:
        """Coordinates (k, axes), x first as directions are, of ``cells`` (k, axes), row first."""
        axes = [self.x] if self.y is None else [self.x, self.y]
        return np.stack([axis[i] for axis, i in zip(axes, cells.T[::-1], strict=True)], axis=1)


@dataclass
class PathOnPlane:
    """A training's path as a projection file has it, which also holds the plane's directions.

    Attributes:
        steps: (T, 2), x and y of each point.
        epochs: (T,); numbers from 0 in a file of loss-landscape, which has none.
        attributes: what was projected, plain values.
    """

    steps: np.ndarray
    epochs: np.ndarray
    attributes: dict[str, Any] = field(default_factory=dict)


# What h5py raises on damaged files; a false size may be too large to allocate.
_DAMAGE = (OSError, LookupError, RuntimeError, TypeError, AttributeError, ValueError, MemoryError)
DEFLATE = 1032  # bytes that one compressed byte can become at most


@contextmanager
def _open(
    path: Path,
    mode: str,
    kind: str = "surface",
    script: str = "plot_surface.py",
    flag: str = "--surf_file",
) -> Iterator[h5py.File]:
    """Open ``path``; whatever HDF5 raises on a damaged file becomes one line with its name.

    Without HDF5's file lock, which many cluster file systems don't offer.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such {kind}; {script} writes it")
    try:
        with h5py.File(path, mode, locking=False) as file:
            yield file
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(
            f"{path}: not a {kind}, or a damaged one ({reason}); remove it or name another with "
            f"{flag}"
        ) from error


def create(
    path: Path,
    surface: Surface,
    directions: list[Direction],
    names: tuple[str, ...],
    adaptive: bool = False,
) -> None:
    """Write a new surface with no cell done.

    Args:
        path: the file; a surface that it holds is replaced.
        surface: grid and attributes.
        directions: one for each axis.
        names: the values' names.
        adaptive: some of them will be interpolated.

    Raises:
        ValueError: the file is there and no surface: a checkpoint, say.
        OSError: it can't be written.
    """
    _refuse_foreign(path, "surface", "--surf_file")
    with atomic_write(path) as part, h5py.File(part, "w", locking=False) as file:
        file["dir_file"] = path.name
        file["xcoordinates"] = surface.x
        if surface.y is not None:
            file["ycoordinates"] = surface.y
        for name in names:
            file[name] = np.full(surface.shape, -1.0)
        file["done"] = np.zeros(surface.shape, dtype=bool)
        if adaptive:  # made here: a kill while a dataset is added can leave no readable file
            file["interpolated"] = np.zeros(surface.shape, dtype=bool)
            file["deviation"] = np.full(2, np.nan)
        _write_directions(file, directions)
        for name, value in surface.attributes.items():
            _set_attribute(file, name, value)


def _write_directions(file: h5py.File, directions: list[Direction]) -> None:
    for group, direction in zip(GROUPS, directions, strict=False):
        for i, tensor in enumerate(direction):
            file[f"{group}/{i}"] = tensor.cpu().numpy()


def _refuse_foreign(path: Path, kind: str, flag: str) -> None:
    if path.exists() and path.stat().st_size and not h5py.is_hdf5(path):
        raise ValueError(f"{path}: is there and no {kind}; remove it or name another {flag}")


def _set_attribute(file: h5py.File, name: str, value: Any) -> None:
    """Write text with a fixed length: HDF5 can loop for ever in a damaged heap of free ones."""
    if isinstance(value, str):
        kind = h5py.string_dtype("utf-8", max(len(value.encode()), 1))
        file.attrs.create(name, value.encode(), dtype=kind)
    else:
        file.attrs[name] = value


def _attribute(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def write_cells(path: Path, cells: np.ndarray, values: dict[str, np.ndarray]) -> None:
    """Write some cells of a surface and mark them done; the others stay as they are.

    Args:
        path: a surface that ``create`` made.
        cells: bool of the surface's shape, which ones.
        values: by name, of the surface's shape; only those of ``cells`` are read.
    """
    _write(path, cells, values, "done")


def write_interpolated(
    path: Path,
    cells: np.ndarray,
    values: dict[str, np.ndarray],
    deviation: tuple[float, float],
) -> None:
    """Write some cells of a surface that ``create`` made ``adaptive``, and mark them interpolated.

    Args:
        path: the surface.
        cells: bool of its shape, which ones.
        values: by name, of its shape.
        deviation: median and largest relative error of such values.
    """
    with _open(path, "r+") as file:
        file["deviation"][:] = deviation
    _write(path, cells, values, "interpolated")


def _write(path: Path, cells: np.ndarray, values: dict[str, np.ndarray], mark: str) -> None:
    if not cells.any():
        return
    with _open(path, "r+") as file:
        for name, value in values.items():
            file[name][cells] = value[cells]
        # First the values, then the claim that they are there, also on a disk that loses power.
        file.flush()
        sync(path)
        file[mark][cells] = True


def done(path: Path) -> np.ndarray:
    """Which cells are finished, in the surface's shape; NaN is a legal finished value."""
    with _open(path, "r") as file:
        return np.array(_array(file, "done"), dtype=bool)


def read_surface(path: Path) -> Surface:
    """Read a surface of ours or of loss-landscape.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or no surface.
    """
    with _open(path, "r") as file:
        # First the masks, then the values: a cell that is written meanwhile is not done here.
        masks = {n: _array(file, n).astype(bool) for n in ("done", "interpolated") if n in file}
        deviation = _numbers(file, "deviation") if "interpolated" in file else None
        x = _coordinates(file, "xcoordinates")
        y = _coordinates(file, "ycoordinates") if "ycoordinates" in file else None
        names = [n for n in file if n.endswith(VALUES)]
        values = {name: _numbers(file, name) for name in names}
        attributes = {name: _attribute(value) for name, value in file.attrs.items()}
    surface = Surface(x, y, values, attributes)
    if not masks and y is not None and len(x) != len(y):
        # loss-landscape fills row after row of (y, x) into an array that it makes as (x, y).
        turned = [n for n, value in values.items() if value.shape == surface.shape[::-1]]
        values |= {name: values[name].reshape(surface.shape) for name in turned}
    for name, array in {**values, **masks}.items():
        if array.shape != surface.shape:
            raise ValueError(f"{path}: {name} is {array.shape} on a grid of {surface.shape}")
    if "interpolated" in masks and deviation is not None:
        if deviation.shape != (2,):
            raise ValueError(f"{path}: deviation is {deviation.shape}, not two numbers")
        surface.interpolated = masks["interpolated"] & ~masks["done"]
        surface.deviation = (float(deviation[0]), float(deviation[1]))
    there = np.any(list(masks.values()), axis=0)
    for name, value in values.items():
        # loss-landscape has no mask: its -1 is the only sign.
        values[name] = np.where(there if masks else value != -1, value, np.nan)
    return surface


def write_path(path: Path, content: PathOnPlane, directions: list[Direction]) -> None:
    """Write a projection file, ``proj_xcoord`` and ``proj_ycoord``, with its directions.

    Raises:
        ValueError: the file is there and none of HDF5: a checkpoint, say.
        OSError: it can't be written.
    """
    _refuse_foreign(path, "projection", "--proj_file")
    with atomic_write(path) as part, h5py.File(part, "w", locking=False) as file:
        for name, steps in zip(PROJECTED, content.steps.T, strict=True):
            file[name] = steps
        file["epochs"] = content.epochs
        _write_directions(file, directions)
        for name, value in content.attributes.items():
            _set_attribute(file, name, value)


def read_path(path: Path) -> PathOnPlane:
    """Read a projection file of ours or of loss-landscape.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or none.
    """
    with _open(path, "r", "projection", "plot_trajectory.py", "--proj_file") as file:
        x, y = (_numbers(file, name) for name in PROJECTED)
        if x.ndim != 1 or x.shape != y.shape or not np.isfinite([x, y]).all():
            raise ValueError(f"{' and '.join(PROJECTED)} are not as many finite numbers each")
        epochs = _numbers(file, "epochs") if "epochs" in file else np.arange(len(x))
        attributes = {name: _attribute(value) for name, value in file.attrs.items()}
    return PathOnPlane(np.stack([x, y], axis=1), epochs.astype(int), attributes)


def read_directions(path: Path) -> list[Direction]:
    """The directions that a file holds, one or two."""
    with _open(path, "r") as file:
        return [
            [torch.from_numpy(_array(file, f"{g}/{i}")) for i in range(len(file[g]))]
            for g in GROUPS
            if g in file
        ]


def with_zero(points: np.ndarray) -> np.ndarray:
    """``points`` (n,) with the one that only rounding keeps from 0 at 0: there is the checkpoint.

    Of the 23 points from -0.1 to 0.1 numpy puts the middle one at 1.4e-17. The ends stay as given.
    """
    inner = slice(1, -1)
    near = np.abs(points[inner]) < 1e-9 * np.ptp(points)
    points = points.copy()
    points[inner][near] = 0.0
    return points


def _coordinates(file: h5py.File, name: str) -> np.ndarray:
    """Coordinates (n,): a picture of any others would be one of another surface."""
    points = _numbers(file, name)
    steps = np.diff(points)
    if points.ndim != 1 or not len(points) or not np.isfinite(points).all():
        raise ValueError(f"{name} are not one or more finite numbers")
    if not ((steps > 0).all() or (steps < 0).all()):
        raise ValueError(f"{name} neither rise nor fall from each to the next")
    return with_zero(points)


def _numbers(file: h5py.File, name: str) -> np.ndarray:
    array = _array(file, name)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} are {array.dtype}, not numbers")
    return array.astype(float)


def _array(file: h5py.File, name: str) -> np.ndarray:
    """Read a dataset that lies in this very file: a link could name any file of the reader."""
    parts = name.split("/")
    for depth in range(1, len(parts) + 1):
        link = file.get("/".join(parts[:depth]), getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise KeyError(f"{name} is a link or absent")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        raise KeyError(f"{name} is no dataset of this file")
    if dataset.nbytes > DEFLATE * file.id.get_filesize():
        raise ValueError(f"{name} would be {dataset.nbytes:,} bytes, a false size")
    return np.asarray(dataset[()])
