"""Arrays on disk: caches that are mapped instead of read, and careful readers of .npy and .npz.

numpy allocates what a header asks for before it looks at the file, so that 128 bytes can ask for
32 GiB. Here the header has to fit the file's size first, and no pickle is ever read.
"""

from __future__ import annotations

import io
import json
import math
import os
import secrets
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from filelock import FileLock, Timeout
from numpy.lib import format as npy

Arrays = dict[str, np.ndarray]
HEAD = 2**14  # bytes of a .npy that may be header; numpy itself reads no more than 10,000
LIMIT = 2**32  # bytes that the arrays of one .npz may unpack to
DEFLATE = 1032  # bytes that one compressed byte can become at most
MANIFEST = "manifest.json"  # written last: a cache without it isn't whole


# --- the cache ------------------------------------------------------------------------------------
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


class _UnwritableError(Exception):
    """The folder takes no cache."""

    arrays: Arrays | None = None


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
        raise _UnwritableError(str(error)) from error
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
        failure = _UnwritableError(str(error))
        failure.arrays = arrays
        raise failure from error


def _read(home: Path) -> Arrays:
    manifest = home / MANIFEST
    try:
        listed = json.loads(manifest.read_text())
        wanted = {name: (np.dtype(kind), tuple(shape)) for name, (kind, shape) in listed.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{manifest}: damaged") from error
    if not all(name.isidentifier() for name in wanted):
        raise ValueError(f"{manifest}: damaged, a name is none")
    arrays = {name: read_npy(home / f"{name}.npy") for name in wanted}
    for name, array in arrays.items():
        if (array.dtype, array.shape) != wanted[name]:
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


# --- careful readers ------------------------------------------------------------------------------
def read_npy(path: Path, mmap: bool = True) -> np.ndarray:
    """Read one array; nothing is allocated before the header fits the file's size.

    Args:
        path: a .npy of numbers.
        mmap: map it read-only instead of reading it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or no plain numbers.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with _named(path), path.open("rb") as file:
        shape, fortran, dtype, start = _read_header(file.read(HEAD))
        size, count = path.stat().st_size, math.prod(map(int, shape))
        if size != start + count * dtype.itemsize:
            raise ValueError(f"{size:,} bytes don't hold {dtype} of {shape}")
        order = "F" if fortran else "C"
        if mmap and count:
            return np.memmap(file, dtype, "r", start, shape, order)  # type: ignore[call-overload]
        file.seek(start)
        flat = np.fromfile(file, dtype, count=count)
        return flat.reshape(shape, order=order)  # type: ignore[call-overload]


def read_npz(path: Path, keys: Iterable[str]) -> Arrays:
    """Read the arrays ``keys`` of a .npz; a member that unpacks to more than it can is refused.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, no plain numbers, a key is missing, or more than 4 GiB unpacked.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    arrays, left = {}, LIMIT
    with _named(path), zipfile.ZipFile(path) as archive:
        for key in keys:
            if f"{key}.npy" not in archive.namelist():
                raise ValueError(f"no array {key}")
            member = archive.getinfo(f"{key}.npy")
            left -= member.file_size
            packed = min(member.compress_size, path.stat().st_size)
            if left < 0 or member.file_size > DEFLATE * (packed + 64):
                raise ValueError(f"{key} unpacks to {member.file_size:,} bytes, a false size")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{key} is packed in a way that numpy doesn't write")
            with archive.open(member) as file:
                arrays[key] = _read_member(file, key, member.file_size)
    return arrays


def _read_member(file: IO[bytes], key: str, size: int) -> np.ndarray:
    head = file.read(HEAD)
    shape, fortran, dtype, start = _read_header(head)
    count = math.prod(map(int, shape))
    if size != start + count * dtype.itemsize:
        raise ValueError(f"{key}: {size:,} bytes don't hold {dtype} of {shape}")
    flat = np.empty(count, dtype)
    raw = flat.view(np.uint8).data
    filled = len(head) - start
    raw[:filled] = head[start:]
    while filled < len(raw) and (chunk := file.read(min(2**20, len(raw) - filled))):
        raw[filled : filled + len(chunk)] = chunk
        filled += len(chunk)
    if filled != len(raw) or file.read(1):  # the last read has zipfile check the CRC
        raise ValueError(f"{key}: cut")
    return flat.reshape(shape, order="F" if fortran else "C")


def _read_header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, Fortran order, type and the data's start of a .npy from its first bytes."""
    file = io.BytesIO(head)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(file)
    if version not in readers:
        raise ValueError(f"format {version} of .npy, this version reads 1.0 and 2.0")
    with warnings.catch_warnings():  # of Python, about escapes in a damaged header
        warnings.simplefilter("ignore")
        shape, fortran, dtype = readers[version](file)
    if dtype.kind not in "biufc":
        raise ValueError(f"holds {dtype}, not plain numbers")
    if any(isinstance(n, bool) or not 0 <= n < 2**62 for n in shape):
        raise ValueError(f"shape {shape} is impossible")
    return shape, fortran, dtype, file.tell()


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Whatever numpy and zipfile raise on a damaged file becomes one line with its name."""
    try:
        yield
    except PermissionError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:150]
        raise ValueError(f"{path}: damaged or of a wrong kind ({reason}); remove it") from error
