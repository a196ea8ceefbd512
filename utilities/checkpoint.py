"""Checkpoints: plain dicts of tensors, numbers, strings and lists that describe themselves.

``save`` writes one whole or not at all; ``load`` reads it with ``weights_only=True``, so that a
file from a stranger never runs code, and checks that nothing is missing. ``task`` names the run's
files, ``model`` is what ``models.build`` makes, so that a user's own model can have a checkpoint.

Format 1 had no ``sha256``; 1 and 2 had no ``task``, which was the model's name.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from utilities.files import ROOT, atomic_write
from utilities.machine import processor

FORMAT = 3
KEYS = {
    "format": int,
    "task": str,
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
    """Write a checkpoint; ``format``, ``versions``, ``commit`` and ``sha256`` are added here.

    Args:
        path: the file.
        content: all the other keys of ``KEYS``, and whatever else is to be kept.

    Raises:
        OSError: the file can't be written; an older file of that name stays as it was.
    """
    content = {**content, "format": FORMAT, "versions": versions(), "commit": commit()}
    content["sha256"] = digest(content)
    with atomic_write(path) as part:
        try:
            torch.save(content, part)
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
        raise FileNotFoundError(f"{path}: no such checkpoint; train one first (docs/training.md)")
    content = read(path)
    _check(path, content)
    if content["format"] > 1 and content.pop("sha256", None) != digest(content):
        raise ValueError(f"{path}: damaged, its SHA-256 is wrong; make it again")
    return {"task": content["model"], **content}


def read(path: Path) -> Any:
    """Whatever ``torch.save`` wrote, onto the CPU, without running code from the file.

    Raises:
        ValueError: damaged, or more than tensors, numbers, strings and lists.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: refused, damaged or holds more than tensors, numbers, strings and lists"
        ) from error
    # torch's readers raise nearly anything on a damaged file, none of it with the file's name.
    except Exception as error:
        raise ValueError(f"{path}: not a checkpoint, or a damaged one; make it again") from error


def digest(content: Any) -> str:
    """SHA-256 of a checkpoint's content: of all names, numbers and tensors, in their order."""
    state = hashlib.sha256()
    _feed(state, content)
    return state.hexdigest()


def _feed(state: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        state.update(f"{value.dtype}{tuple(value.shape)}".encode())
        state.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    elif isinstance(value, dict):
        for key, item in value.items():
            state.update(f"{key!r}:".encode())
            _feed(state, item)
    elif isinstance(value, list | tuple):
        state.update(b"[")
        for item in value:
            _feed(state, item)
    else:
        state.update(f"{type(value).__name__}{value!r},".encode())


def _check(path: Path, content: Any) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a checkpoint of this project (no dict)")
    before_task = isinstance(content.get("format"), int) and content["format"] < 3
    keys = {**KEYS, "task": object} if before_task else KEYS
    wrong = [key for key, kind in keys.items() if not isinstance(content.get(key), kind)]
    if wrong:
        raise ValueError(f"{path}: not a checkpoint of this project (missing {', '.join(wrong)})")
    if not 1 <= content["format"] <= FORMAT:
        raise ValueError(
            f"{path}: checkpoint format {content['format']}, this version reads up to {FORMAT}"
        )


def load_weights(
    model: torch.nn.Module, content: dict[str, Any], path: str | os.PathLike[str]
) -> None:
    """Put a checkpoint's ``state_dict`` into ``model``.

    Raises:
        ValueError: the names or shapes don't fit; the message lists what differs.
    """
    check_weights(model.state_dict(), content["state_dict"], path)
    model.load_state_dict(content["state_dict"])


def check_weights(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], path: str | os.PathLike[str]
) -> None:
    """Compare a model's state dict with that of the file at ``path``.

    Raises:
        ValueError: the names or shapes don't fit; the message lists what differs.
    """
    different = [f"{key} is missing" for key in ours if key not in theirs]
    different += [f"{key} is unknown" for key in theirs if key not in ours]
    different += [
        f"{key} is {tuple(theirs[key].shape)} for {tuple(ours[key].shape)}"
        for key in ours
        if key in theirs and theirs[key].shape != ours[key].shape
    ]
    if different:
        more = f" and {len(different) - 3} more" if len(different) > 3 else ""
        shown = " ".join("; ".join(each[:200] for each in different[:3]).split())  # on one line
        raise ValueError(f"{path}: its weights don't fit the model: {shown}{more}")


def versions() -> dict[str, str]:
    """Versions of Python and torch, the system and the processor, for the record."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "platform": platform.platform(),
        "processor": processor(),
    }


def origin(content: Mapping[str, Any]) -> dict[str, str]:
    """Versions, machine and commit of a training, as its checkpoint has them.

    Where it began under others than it ended, as on another machine, both are said; what was
    between them isn't known.
    """
    ended = {**content["versions"], "commit": content["commit"]}
    begun = content.get("record", {})
    both = {name: dict.fromkeys((begun.get(name, value), value)) for name, value in ended.items()}
    return {name: ", then ".join(map(str, values)) for name, values in both.items()}


@functools.cache
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
