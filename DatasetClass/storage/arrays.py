"""Careful readers of .npy and .npz.

numpy allocates what a header asks for before it looks at the file, so that 128 bytes can ask for
32 GiB. Here the header has to fit the file's size first, and no pickle is ever read.
"""

from __future__ import annotations

import io
import math
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

Arrays = dict[str, np.ndarray]
HEAD = 2**14  # bytes of a .npy that may be header; numpy itself reads no more than 10,000
LIMIT = 2**32  # bytes that the arrays of one .npz may unpack to
DEFLATE = 1032  # bytes that one compressed byte can become at most


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
