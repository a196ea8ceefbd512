"""A training's path as a picture: on a plane alone, or on the loss there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import AbstractPathEffect, withStroke

from loss_landscape.directions import fingerprint
from loss_landscape.pictures.scale import make_scale
from loss_landscape.pictures.surface_picture import (
    NAMES,
    add_colour_bar,
    draw_surface,
    full_title,
    grid,
)
from loss_landscape.surface_file import (
    PathOnPlane,
    Surface,
    read_directions,
    read_path,
    read_surface,
)
from utilities.pictures import MARK, save_picture

PCA = "principal components"  # how such a plane's description begins


def draw_path(axes: Axes, steps: np.ndarray, epochs: Sequence[int]) -> None:
    """Draw a path into axes of a plane: a dot an epoch, the first and the last with their number.

    Args:
        axes: of a plot, or of a surface's contours.
        steps: (T, 2) coordinates.
        epochs: (T,).
    """
    halo: list[AbstractPathEffect] = [withStroke(linewidth=3, foreground="white")]
    axes.plot(*steps.T, "-", color=MARK, lw=1.4, path_effects=halo, zorder=3)
    axes.plot(*steps.T, "o", color=MARK, ms=4, mec="white", mew=0.6, zorder=4)
    if not axes.collections:  # nothing below the path says how far the axes go
        axes.margins(0.12)
    middle, low = np.mean(axes.get_xlim()), steps[:, 1].mean()
    for i in (0, -1):  # beside the path, towards the middle of the axes
        side = -1 if steps[i, 0] > middle else 1
        text = axes.annotate(
            f"epoch {epochs[i]}",
            steps[i],
            (6 * side, 6 if steps[i, 1] > low else -14),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            fontsize=8,
            zorder=5,
        )
        text.set_path_effects(halo)


def draw(path: PathOnPlane, picture: Path, surface: Surface | None, name: str) -> Path:
    """Draw a path, on the values ``name`` of a surface if there is one; return the picture's path.

    Raises:
        ValueError: the surface has no such values, or no two dimensions.
    """
    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    axes = figure.add_subplot()
    title = str(path.attributes.get("title", ""))
    if surface is not None:
        scale = make_scale([grid(surface, name).filled(np.nan)])
        draw_surface(axes, surface, name, scale)
        add_colour_bar(figure, scale, axes, NAMES.get(name, name))
        title = full_title(surface)
    draw_path(axes, path.steps, path.epochs.tolist())
    pca = str(path.attributes.get("plane")).startswith(PCA)
    names = [f"principal component {i}" if pca else f"direction {'xy'[i - 1]}" for i in (1, 2)]
    if "explained_variance_ratio" in path.attributes:  # loss-landscape's files don't say it
        shares = path.attributes["explained_variance_ratio"]
        names = [f"{n} ({100 * s:.1f} % of the path)" for n, s in zip(names, shares, strict=True)]
    axes.set(xlabel=names[0], ylabel=names[1], title=title)
    return save_picture(figure, picture)


def path_on(surface_file: Path, proj_file: Path) -> PathOnPlane:
    """The path of a projection file, if it can be drawn on a surface.

    Raises:
        FileNotFoundError: one of the files isn't there.
        ValueError: the path lies on another plane, or around another checkpoint.
    """
    planes = [
        [[t for t in direction if t.ndim] for direction in read_directions(file)]  # no counters
        for file in (surface_file, proj_file)
    ]
    surface, path = read_surface(surface_file), read_path(proj_file)
    origins = {at.attributes.get("checkpoint_sha256") for at in (surface, path)} - {None}
    # A projection file of loss-landscape says of neither.
    other = "plane" if planes[1] and fingerprint(planes[0]) != fingerprint(planes[1]) else ""
    other = other or ("checkpoint" if len(origins) > 1 else "")
    if other:
        raise ValueError(
            f"--proj_file {proj_file}: its path is of another {other} than {surface_file}; project "
            "it on that with plot_trajectory.py --surf_file"
        )
    return path


def draw_on(surface_file: Path, proj_file: Path, name: str, out_dir: Path) -> Path:
    """Draw the path of a projection file on a surface; return the picture's path.

    Raises:
        ValueError: see ``path_on`` and ``draw``.
    """
    picture = out_dir / "plots" / f"{surface_file.name}_path.png"
    return draw(path_on(surface_file, proj_file), picture, read_surface(surface_file), name)
