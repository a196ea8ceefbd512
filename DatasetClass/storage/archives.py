"""Unpack archives, all or none: no member leaves its folder, and all stop at a size."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import os
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

CHUNK = 2**18  # bytes
Select = Callable[[str], "str | None"]  # a member's name -> its path below the folder, or None
Members = Iterator[tuple[str, int, IO[bytes]]]  # name, bytes declared, content


class _RefusedError(ValueError):
    """An archive that must not be unpacked; the message says why."""


def unpack(archive: Path, folder: Path, select: Select, limit: int = 2**31) -> None:
    """Unpack a zip or a tar, compressed or not, into a new ``folder``, all or none.

    Args:
        archive: the file.
        folder: made here; where it is there already (another process), it stays as it is.
        select: gives for a member's name its path below ``folder``, or None to leave it out.
        limit: bytes that all may unpack to, counted while unpacking: headers can lie.

    Raises:
        FileNotFoundError: no such archive.
        ValueError: damaged, too large, without a selected file, or with a member that is a link or
            a device or would lie outside ``folder``.
        OSError: ``folder`` can't be written.
    """
    if not archive.is_file():
        raise FileNotFoundError(f"{archive}: no such archive")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpack", dir=folder.parent) as part:
        whole = Path(part) / "whole"
        whole.mkdir()
        try:
            _unpack(archive, whole, select, limit)
        except _RefusedError as error:
            raise ValueError(f"{archive}: {error}; nothing was unpacked") from error
        except Exception as error:  # the readers of archives raise nearly anything
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise
            reason = " ".join(str(error).split())[:120]
            raise ValueError(f"{archive}: damaged ({reason}); nothing was unpacked") from error
        try:
            whole.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise


def _unpack(archive: Path, whole: Path, select: Select, limit: int) -> None:
    left, any_selected = limit, False
    reader = _zip_members if zipfile.is_zipfile(archive) else _tar_members
    for name, size, source in reader(archive, whole, limit):
        _refuse_outside(name)
        target = select(name)
        if target is None:
            continue
        _refuse_outside(target)
        left -= max(_copy(source, whole / target, min(left, size)), 512)  # empty files count too
        any_selected = True
        if left < 0:
            raise _RefusedError(f"unpacks to more than {limit:,} bytes")
    if not any_selected:
        raise _RefusedError("holds none of the files looked for")


def _refuse_outside(name: str) -> None:
    """Refuse what leaves the folder on any system: Windows' separators and drives as well."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name or "\0" in name or not path.parts:
        raise _RefusedError(f"has a member outside the folder, {name[:100]!r}")


def _copy(source: IO[bytes], target: Path, most: int) -> int:
    """Copy and sync; stop just past ``most`` bytes. Returns the bytes written."""
    if target.exists():
        raise _RefusedError(f"holds {target.name} twice")
    target.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with target.open("wb") as file:
        while count <= most and (chunk := source.read(CHUNK)):
            count += file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    if count > most:
        raise _RefusedError(f"{target.name} unpacks to more than {most:,} bytes")
    return count


def _zip_members(archive: Path, whole: Path, limit: int) -> Members:
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _RefusedError(f"has a link or a device, {member.filename[:100]!r}")
            _refuse_outside(member.filename)
            if not member.is_dir():
                with file.open(member) as source:
                    yield member.filename, member.file_size, source


def _tar_members(archive: Path, whole: Path, limit: int) -> Members:
    check = getattr(tarfile, "data_filter", None)  # not in the first releases of Python 3.10
    with _decompress(archive) as stream:
        counted: Any = _Counted(stream, limit)
        with tarfile.open(fileobj=counted, mode="r:") as file:
            for member in file:
                if not (member.isreg() or member.isdir()):
                    raise _RefusedError(f"has a link or a device, {member.name[:100]!r}")
                _refuse_outside(member.name)
                if check is not None:
                    check(member, str(whole))
                source = file.extractfile(member)
                if source is not None:
                    yield member.name, member.size, source


def _decompress(archive: Path) -> Any:
    with archive.open("rb") as file:
        head = file.read(6)
    for magic, opener in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ", lzma.open)):
        if head.startswith(magic):
            return opener(archive, "rb")  # type: ignore[operator]
    return archive.open("rb")


class _Counted(io.RawIOBase):
    """A stream that stops where it has given too much, also for members that nobody wants."""

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        self.stream, self.limit = stream, limit

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= 2**26:  # tarfile asks for more than this only for a false header
            raise _RefusedError("has a header that is too long")
        return self.stream.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence == 0 and offset > self.limit + 2**20:
            raise _RefusedError(f"unpacks to more than {self.limit:,} bytes")
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        return self.stream.tell()
