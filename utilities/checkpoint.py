"""Checkpoints: plain dicts of tensors, numbers, strings and lists that describe themselves.

``save`` writes one whole or not at all; ``load`` reads it with ``weights_only=True``, so that a
file from a stranger never runs code, and checks that nothing is missing.
"""

from __future__ import annotations

import os
import pickle
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from utilities.files import ROOT, atomic_write

FORMAT = 1
KEYS = {
    "format": int,
    "model": str,
    "model_args": dict,
    "dataset": str,
    "data_args": dict,
    "train_args": dict,
    "epoch": int,
    "metrics": dict,
    "state_dict": dict,
    "versions": dict,
    "commit": str,
}


def save(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    """Write a checkpoint; ``format``, ``versions`` and ``commit`` are added here.

    Raises:
        OSError: the file can't be written; an older file of that name stays as it was.
    """
    extra = {"format": FORMAT, "versions": versions(), "commit": commit()}
    with atomic_write(path) as part:
        try:
            torch.save({**content, **extra}, part)
        except RuntimeError as error:  # torch's zip writer reports a full disk as a RuntimeError
            raise OSError(f"{path}: can't be written ({str(error).splitlines()[0]})") from error


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, not a checkpoint of this project, or of another format.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint; train one first (README, Train)")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: refused, damaged or holds more than tensors, numbers, strings and lists"
        ) from error
    # torch's readers raise nearly anything on a damaged file, none of it with the file's name.
    except Exception as error:
        raise ValueError(f"{path}: not a checkpoint, or a damaged one; make it again") from error
    _check(path, content)
    return content


def _check(path: Path, content: Any) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a checkpoint of this project (no dict)")
    wrong = [key for key, kind in KEYS.items() if not isinstance(content.get(key), kind)]
    if wrong:
        raise ValueError(f"{path}: not a checkpoint of this project (missing {', '.join(wrong)})")
    if content["format"] != FORMAT:
        raise ValueError(
            f"{path}: checkpoint format {content['format']}, this version reads {FORMAT}"
        )


def load_weights(
    model: torch.nn.Module, content: dict[str, Any], path: str | os.PathLike[str]
) -> None:
    """Put a checkpoint's ``state_dict`` into ``model``.

    Raises:
        ValueError: the names or shapes don't fit; the message lists what differs.
    """
    ours, theirs = model.state_dict(), content["state_dict"]
    different = [f"{key} is missing" for key in ours if key not in theirs]
    different += [f"{key} is unknown" for key in theirs if key not in ours]
    different += [
        f"{key} is {tuple(theirs[key].shape)} for {tuple(ours[key].shape)}"
        for key in ours
        if key in theirs and theirs[key].shape != ours[key].shape
    ]
    if different:
        more = f" and {len(different) - 3} more" if len(different) > 3 else ""
        raise ValueError(
            f"{path}: its weights don't fit the model: {'; '.join(different[:3])}{more}"
        )
    model.load_state_dict(theirs)


def versions() -> dict[str, str]:
    """Versions of Python and torch, and the machine, for the record."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "platform": platform.platform(),
    }


def commit() -> str:
    """The project's git commit, or "unknown" where it is no git checkout."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"
