"""Where results go, and how a file is written so that a crash never leaves half of one."""

from __future__ import annotations

import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in ``path``'s folder; on success it becomes ``path``.

    The file is synced to disk, renamed over ``path`` and the folder synced, so that at any
    moment ``path`` is the old file or the new one, whole. On an exception the temporary file
    is removed and ``path`` stays as it was.

    Raises:
        OSError: the folder can't be made or written, or the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem[:100]}.{secrets.token_hex(4)}.part{path.suffix}")
    try:
        yield part
        # Windows flushes only handles opened for writing, hence r+b.
        with part.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        _sync_folder(path.parent)
    except OSError as error:
        if error.errno and error.filename is None:  # of a write or a sync, which know no name
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        with suppress(FileNotFoundError):
            part.unlink()


def remove_parts(path: Path) -> None:
    """Remove what killed writers of ``path`` left; only while no other process writes it."""
    for part in path.parent.glob(f".{glob.escape(path.stem[:100])}.*.part{path.suffix}"):
        part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable; Windows offers no handle on a folder and needs none."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
