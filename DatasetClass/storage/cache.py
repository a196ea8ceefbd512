"""Arrays that are made once and from then on mapped from disk."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from filelock import FileLock, Timeout

from DatasetClass.storage.arrays import Arrays, read_npy

MANIFEST = "manifest.json"  # written last: a cache without it isn't whole


def cached(folder: Path, version: str, make: Callable[[], Arrays]) -> Arrays:
    """Return the arrays of ``make``, made once and from then on mapped from disk.

    ``folder/version/`` holds a .npy an array and a manifest. Processes that come at once wait for
    the first. Each start compares headers, sizes and manifest, not the contents, so that it takes
    milliseconds; a cache that doesn't fit is made again. When a new one has been made the other
    versions in ``folder`` are removed, so keep one folder a data set and source. Where it can't
    be written a line says so and ``make`` runs at each start.

    Args:
        folder: of this data set's cache alone.
        version: a name that changes with whatever changes the arrays.
        make: prepares the arrays, named by identifiers, of plain numbers.

    Returns:
        Read-only arrays mapped from the files (in memory where nothing could be written).

    Raises:
        ValueError: names or types that can't be kept; and whatever ``make`` raises.
    """
    if not version or Path(version).name != version or version.startswith("."):
        raise ValueError(f"{version!r}: no name for a cache")
    home = folder / version
    try:
        return _read(home)
    except (OSError, ValueError):
        pass  # looked at again below, when no other process can be at work on it
    try:
        with _locked(folder):
            return _read_or_make(home, make)
    except _UnwritableError as error:
        print(f"{folder}: no cache kept ({error}); the data are prepared at each start")
        return error.arrays or make()


def fingerprint(files: list[Path], version: int) -> str:
    """A name that changes with the version and with any file's size or time of change."""
    state = [f"{version}"]
    for file in files:
        stat = file.stat() if file.is_file() else None
        state.append(f"{file.name} {stat and stat.st_size} {stat and stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(state).encode()).hexdigest()[:16]


class _UnwritableError(Exception):
    """The folder takes no cache; ``arrays`` where they have been made already."""

    def __init__(self, error: Exception, arrays: Arrays | None = None) -> None:
        super().__init__(str(error))
        self.arrays = arrays


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, the kernel's: it goes with its process, however that ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"{folder}: waiting for another process that prepares it", flush=True)
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        raise _UnwritableError(error) from error
    try:
        yield
    finally:
        lock.release()


def _read_or_make(home: Path, make: Callable[[], Arrays]) -> Arrays:
    if home.exists():
        try:
            return _read(home)
        except (OSError, ValueError) as error:
            print(f"{error}; the cache is made again")
    arrays = make()
    try:
        _write(home, arrays)
        return _read(home)
    except OSError as error:
        raise _UnwritableError(error, arrays) from error


def _read(home: Path) -> Arrays:
    manifest = home / MANIFEST
    try:
        listed = json.loads(manifest.read_text())
        expected = {name: (np.dtype(kind), tuple(shape)) for name, (kind, shape) in listed.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{manifest}: damaged") from error
    if not all(name.isidentifier() for name in expected):
        raise ValueError(f"{manifest}: damaged, a name is none")
    arrays = {name: read_npy(home / f"{name}.npy") for name in expected}
    for name, array in arrays.items():
        if (array.dtype, array.shape) != expected[name]:
            raise ValueError(f"{home / name}.npy: not the array that {MANIFEST} lists")
    return arrays


def _write(home: Path, arrays: Arrays) -> None:
    """Write a cache under the lock; whatever else lies in its folder is old then."""
    part = home.with_name(f".{home.name}.{secrets.token_hex(4)}.part")
    part.mkdir()
    try:
        for name, array in arrays.items():
            if not name.isidentifier() or array.dtype.kind not in "biufc":
                raise ValueError(f"{home}: {name} of {array.dtype} can't be kept")
            with (part / f"{name}.npy").open("wb") as file:
                np.save(file, array, allow_pickle=False)
                _sync(file)
        with (part / MANIFEST).open("wb") as file:
            listed = {name: (a.dtype.str, a.shape) for name, a in arrays.items()}
            file.write(json.dumps(listed, indent=1).encode())
            _sync(file)
        if home.exists():
            home.rename(home.with_name(f".{home.name}.{secrets.token_hex(4)}.part"))
        part.rename(home)
    finally:
        _remove_others(home)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _remove_others(home: Path) -> None:
    """Remove what crashes left, and other versions once ``home`` is whole."""
    for path in home.parent.iterdir():
        old = path != home and home.is_dir() and (path / MANIFEST).is_file()
        if path.is_dir() and (old or (path.name.startswith(".") and path.suffix == ".part")):
            shutil.rmtree(path, ignore_errors=True)  # Windows keeps what a process has mapped
