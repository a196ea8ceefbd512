"""Where results go, and how a file is written so that a crash never leaves half of one."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

ROOT = Path(__file__).resolve().parents[1]
HEX = 8  # digits that tell the temporary files of one name apart


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in ``path``'s folder; on success it becomes ``path``.

    The file is synced to disk, renamed over ``path`` and the folder synced, so that at any
    moment ``path`` is the old file or the new one, whole. On an exception the temporary file
    is removed and ``path`` stays as it was. A symbolic link stays one: its target is replaced.

    Raises:
        OSError: ``path`` is a link to nothing or no plain file, the folder can't be made or
            written, or the disk is full.
    """
    path = target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem[:100]}.{secrets.token_hex(HEX // 2)}.part{path.suffix}")
    try:
        yield part
        sync(part)
        os.replace(part, path)
        _sync_folder(path.parent)
    except OSError as error:
        if error.errno and error.filename is None:  # of a write or a sync, which know no name
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        with suppress(FileNotFoundError):
            part.unlink()


def sync(path: Path) -> None:
    """Bring what was written to the file ``path``, through any handle, to the disk."""
    # Windows flushes only handles opened for writing, hence r+b.
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def target(path: str | os.PathLike[str]) -> Path:
    """The file that a result named ``path`` goes to: ``path``, or what it links to.

    Raises:
        OSError: a symbolic link that leads nowhere or in a circle, a folder or a device. A script
            that computes for long asks before it does.
    """
    path = Path(path)
    if path.is_symlink():
        try:
            path = Path(os.path.realpath(path, strict=True))
        except OSError as error:
            raise OSError(
                f"{path}: a symbolic link to {os.readlink(path)}, which is not there or leads back "
                "to the link; make that file, or remove the link"
            ) from error
    if path.exists() and not path.is_file():
        raise OSError(f"{path}: no plain file, so no result can have this name; choose another")
    return path


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, by which results say which checkpoint they are of.

    Raises:
        OSError: it can't be read.
    """
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def locked(path: str | os.PathLike[str], remedy: str, doing: str = "writing it") -> Iterator[None]:
    """Hold the lock of the result ``path``, so that one process at a time writes it.

    The lock is the kernel's, on ``.<name>.lock`` beside the file: it goes with its process, however
    that ends. The empty file stays, since another process may be about to lock it.

    Args:
        path: the result; of several that belong together, one that names them all.
        remedy: how the user writes elsewhere, such as "name this one with --tag".
        doing: what the process that holds the lock does.

    Raises:
        ValueError: another process holds it.
        OSError: see ``atomic_write``.
    """
    path = target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise ValueError(
            f"{path}: another process is {doing} now; wait for it, or {remedy}"
        ) from error
    try:
        yield
    finally:
        lock.release()


def remove_parts(path: Path, numbered: str = "") -> None:
    """Remove what killed writers of ``path`` left; only while no other process writes it.

    Args:
        path: the result.
        numbered: text between the result's name and a number, such as "_epoch", in the names of
            other results that go with it and whose parts are to be removed too.
    """
    path = target(path)
    number = rf"({re.escape(numbered)}\d+)?" if numbered else ""
    name = re.compile(
        rf"\.{re.escape(path.stem[:100])}{number}\.[0-9a-f]{{{HEX}}}\.part{re.escape(path.suffix)}"
    )
    for part in path.parent.glob(".*.part*"):
        if name.fullmatch(part.name):
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
