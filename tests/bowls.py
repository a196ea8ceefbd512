"""A measure without a network, and the process that fills a surface with it until it is killed."""

from __future__ import annotations

import importlib
import os
import time
from pathlib import Path

import numpy as np

from loss_landscape import evaluation
from loss_landscape.evaluation import compute
from loss_landscape.surface_file import Surface, create


class Bowl:
    """z = x + 10 y, some points at a time; NaN and -1 are accuracies as any other.

    Attributes:
        measured: the points so far.
    """

    names = ("train_loss", "train_acc")

    def __init__(
        self,
        stop_after: int | None = None,
        error: type[BaseException] = OSError,
        block: int = 1,
        seconds: float = 0.0,
    ) -> None:
        self.measured: list[tuple[float, ...]] = []
        self.stop_after, self.error = stop_after, error
        self.block, self.seconds = block, seconds

    def __call__(self, points: np.ndarray) -> dict[str, np.ndarray]:
        if self.stop_after is not None and len(self.measured) + len(points) > self.stop_after:
            raise self.error
        time.sleep(self.seconds)
        self.measured += map(tuple, points.tolist())
        x, y = points[:, 0], points[:, 1] if points.shape[1] == 2 else 0.0
        return {"train_loss": x + 10 * y, "train_acc": np.where(x == 0, np.nan, -1.0)}


def surface_of(shape: tuple[int, ...]) -> Surface:
    """A grid (ny, nx) or (nx,) around the origin."""
    y = np.linspace(0, 6, shape[0]) if len(shape) == 2 else None
    return Surface(np.linspace(-1, 1, shape[-1]), y, {})


def new_surface(shape: tuple[int, ...], path: Path) -> Surface:
    surface = surface_of(shape)
    create(path, surface, [], Bowl.names)
    return surface


def fill(path: Path, shape: tuple[int, ...], pause: float) -> None:
    """Make the surface if it isn't there, and measure what isn't done; to be run as a process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    evaluation.PAUSE = pause
    surface = surface_of(shape) if path.exists() else new_surface(shape, path)
    compute(path, surface, Bowl(block=3, seconds=0.0005))


def run_surface(argv: list[str]) -> None:
    """Run plot_surface.py, which writes each block at once; to be run as a process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    evaluation.PAUSE = 0.0
    importlib.import_module("loss_landscape.plot_surface").main(argv)
