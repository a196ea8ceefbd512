"""Which surfaces may stand in one picture: those that were taken in one way."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loss_landscape.surface_file import Surface
from utilities.runs import flag_differences

# What makes two surfaces comparable, by flag, with the value of files that don't say it.
SETTINGS: dict[str, Any] = {
    "dataset": None,
    "dir_type": "weights",
    "norm": None,
    "seed": None,
    "samples": 0,
    "loss_name": None,
    "bn": "eval",
    "data_split": "0 of 1",
    "precision": "fp32",
}
# Those that only the record of the command line has.
RECORDED: dict[str, Any] = {
    "xignore": None,
    "yignore": None,
    "idx": 0,
    "same_dir": False,
    "directions": "random",
    "model_file2": None,
    "model_file3": None,
    "dir_file": None,
}
DRAW = ("seed", "idx")  # which of the random directions


def settings(surface: Surface) -> dict[str, Any]:
    """How a surface was taken, by flag."""
    recorded = json.loads(str(surface.attributes.get("arguments", "{}")))
    said = {key: surface.attributes.get(key, value) for key, value in SETTINGS.items()}
    said |= {key: recorded.get(key, value) for key, value in RECORDED.items()}
    if surface.y is None:  # flags of a second direction that there isn't
        said["norm"] = str(said["norm"]).split()[:1]
        said = {key: value for key, value in said.items() if key not in ("yignore", "same_dir")}
    return {key: value.item() if hasattr(value, "item") else value for key, value in said.items()}


def refuse_different(
    paths: Sequence[Path], surfaces: Sequence[Surface], but: Collection[str] = ()
) -> None:
    """Refuse surfaces that differ in how they were taken, or on which grid.

    Args:
        paths: the surfaces' files.
        surfaces: what they hold.
        but: flags in which they may differ.

    Raises:
        ValueError: names two that differ, and the flags.
    """
    first, *others = [
        {key: value for key, value in settings(surface).items() if key not in but}
        for surface in surfaces
    ]
    for path, surface, other in zip(paths[1:], surfaces[1:], others, strict=True):
        different = flag_differences(first, other)
        different += [
            f"--{name}"
            for name in "xy"
            if not _same_axis(getattr(surface, name), getattr(surfaces[0], name))
        ]
        if different:
            raise ValueError(
                f"{path}: differs from {paths[0]} in {', '.join(different)}, so one picture of "
                "both would mislead; compute one of them anew as the other"
            )


def _same_axis(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None:
        return one is other
    return len(one) == len(other) and np.allclose(one, other, rtol=0, atol=1e-9 * np.ptp(one))


def draw_of(surface: Surface) -> tuple[Any, ...]:
    """Which random draw gave a surface its directions: seed and repetition.

    Raises:
        ValueError: none did: they lead to another checkpoint, or come from a file.
    """
    said = settings(surface)
    given = [f"--{key}" for key in ("model_file2", "model_file3", "dir_file") if said[key]]
    if said["directions"] != "random":
        given.append(f"--directions {said['directions']}")
    if given or said["seed"] is None:
        reason = f"its directions come from {given[0]}" if given else "it doesn't say its seed"
        raise ValueError(f"{reason}, so it is no random draw")
    return tuple(said[key] for key in DRAW)
