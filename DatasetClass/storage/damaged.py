"""Files that are not what they should be: kept aside under another name, never removed."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pooch


def check_hash(path: Path, sha256: str) -> None:
    """Set ``path`` aside if its SHA-256 isn't ``sha256`` (hexadecimal).

    Raises:
        ValueError: it was another one.
    """
    if pooch.file_hash(str(path)) == sha256:
        return
    try:
        where = f"kept as {set_aside(path).name}"
    except OSError as error:
        where = f"and can't be set aside ({error.strerror}): remove it"
    raise ValueError(f"{path}: wrong SHA-256, damaged; {where}")


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder to ``<name>.damaged``, or ``<name>.damaged2`` and so on.

    Where another process was faster and ``path`` is gone already, nothing is done.

    Returns:
        The new path.

    Raises:
        OSError: it can't be renamed.
    """
    number = 1
    while True:
        aside = path.with_name(f"{path.name}.damaged{number if number > 1 else ''}")
        number += 1
        if not os.path.lexists(aside):
            with suppress(FileNotFoundError):
                path.rename(aside)
            return aside
