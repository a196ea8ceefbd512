"""Bring files from the network and out of archives, whole or not at all.

``fetch`` takes https alone, checks the certificate and the SHA-256, and gives the file its name
only when it is whole. ``unpack`` lets no member out of its folder and stops at a size. pooch's
downloader (requests underneath) does the transfer; it has neither retries after a wrong hash nor
a word about what to do by hand, so these are here.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import os
import stat
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urljoin

import pooch
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

from utilities.files import atomic_write

TIMEOUT = 30.0  # seconds without a byte after which a transfer counts as stalled
PAUSES = (1.0, 3.0)  # seconds before the second and the third try
CHUNK = 2**18  # bytes
GIVEN_UP = (401, 403, 404, 410)  # answers that a second try doesn't change
Wanted = Callable[[str], "str | None"]


class RefusedError(ValueError):
    """An archive that must not be unpacked; the message says why."""


# --- files from the network -----------------------------------------------------------------------
def fetch(url: str, path: Path, sha256: str | None, what: str) -> Path:
    """Download ``url`` to ``path`` unless it is there already.

    Three tries; a file with a wrong hash that lies at ``path`` is set aside first.

    Args:
        url: https only, also after a redirect.
        path: of the file; nothing is left there on failure.
        sha256: in hexadecimal; None checks no more than the length.
        what: the data's name in messages, such as "CIFAR-10".

    Returns:
        ``path``.

    Raises:
        FileNotFoundError: it can't be fetched; the message says what to do by hand.
        ValueError: the URL isn't https, or the hash is wrong each time.
        OSError: the file can't be written.
    """
    import requests

    _refuse_http(url)
    if path.is_file():
        if sha256 is None or pooch.file_hash(str(path)) == sha256:
            return path
        print(f"{path}: wrong SHA-256, damaged; set aside as {set_aside(path).name}")
    for pause in (*PAUSES, None):
        try:
            return _fetch_once(url, path, sha256, what)
        except (requests.RequestException, RefusedError) as error:
            answer = getattr(error, "response", None)
            if pause is None or (answer is not None and answer.status_code in GIVEN_UP):
                raise _failure(url, path, what, error) from error
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def _refuse_http(url: str) -> None:
    if not url.lower().startswith("https://"):
        raise RefusedError(f"{url}: only https is fetched; anyone on the way can change plain http")


def _failure(url: str, path: Path, what: str, error: Exception) -> Exception:
    if isinstance(error, RefusedError):
        return ValueError(f"{path}: {what} not downloaded: {error}")
    reason = " ".join(str(error).split())[:200]
    return FileNotFoundError(
        f"{path}: no {what} there, and the download failed ({type(error).__name__}: {reason}); "
        f"get {url} by other means and put it there under this name"
    )


def _fetch_once(url: str, path: Path, sha256: str | None, what: str) -> Path:
    with atomic_write(path) as part, _Bar(what, url) as bar:
        # requests raises on an error page, and urllib3 where fewer bytes come than announced.
        transfer = pooch.HTTPDownloader(
            progressbar=bar,
            chunk_size=CHUNK,
            timeout=TIMEOUT,
            hooks={"response": _check_redirect},
            headers={"Accept-Encoding": "identity"},
        )
        transfer(url, part, None)
        if sha256 is not None and (got := pooch.file_hash(str(part))) != sha256:
            raise RefusedError(f"{url} has SHA-256 {got}, expected {sha256}")
    return path


def _check_redirect(response: Any, **_: Any) -> None:
    if response.is_redirect:
        _refuse_http(urljoin(response.url, response.headers["location"]))


class _Bar:
    """pooch's progress interface over a rich bar on a terminal, one plain line in a pipe."""

    total = 0  # bytes; pooch sets it

    def __init__(self, what: str, url: str) -> None:
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self.progress = Progress("{task.description}", *columns, disable=not sys.stdout.isatty())
        self.task = self.progress.add_task(f"downloading {what}", total=None)
        if self.progress.disable:
            print(f"downloading {what} from {url}", flush=True)

    def __enter__(self) -> _Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def update(self, count: int) -> None:
        self.progress.update(self.task, total=self.total or None, advance=count)

    def reset(self) -> None:
        self.progress.reset(self.task)

    def close(self) -> None:
        """Nothing: the context closes the bar, also on an error."""


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


# --- files from archives --------------------------------------------------------------------------
def unpack(archive: Path, folder: Path, wanted: Wanted, limit: int = 2**31) -> None:
    """Unpack a zip or a tar, compressed or not, into a new ``folder``, all or none.

    Args:
        archive: the file.
        folder: made here; where it is there already (another process), it stays as it is.
        wanted: gives for a member's name its path below ``folder``, or None to leave it out.
        limit: bytes that all may unpack to, counted while unpacking: headers can lie.

    Raises:
        FileNotFoundError: no such archive.
        ValueError: damaged, too large, without a wanted file, or with a member that is a link or
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
            _unpack(archive, whole, wanted, limit)
        except RefusedError as error:
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


def _unpack(archive: Path, whole: Path, wanted: Wanted, limit: int) -> None:
    left, found = limit, False
    reader = _zip_members if zipfile.is_zipfile(archive) else _tar_members
    for name, size, source in reader(archive, whole, limit):
        _refuse_outside(name)
        target = wanted(name)
        if target is None:
            continue
        _refuse_outside(target)
        left -= max(_copy(source, whole / target, min(left, size)), 512)  # empty files count too
        found = True
        if left < 0:
            raise RefusedError(f"unpacks to more than {limit:,} bytes")
    if not found:
        raise RefusedError("holds none of the files looked for")


def _refuse_outside(name: str) -> None:
    """Refuse what leaves the folder on any system: Windows' separators and drives as well."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name or "\0" in name or not path.parts:
        raise RefusedError(f"has a member outside the folder, {name[:100]!r}")


def _copy(source: IO[bytes], target: Path, most: int) -> int:
    """Copy and sync; stop just past ``most`` bytes. Returns the bytes written."""
    if target.exists():
        raise RefusedError(f"holds {target.name} twice")
    target.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with target.open("wb") as file:
        while count <= most and (chunk := source.read(CHUNK)):
            count += file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    if count > most:
        raise RefusedError(f"{target.name} unpacks to more than {most:,} bytes")
    return count


Members = Iterator[tuple[str, int, IO[bytes]]]  # name, bytes declared, content


def _zip_members(archive: Path, whole: Path, limit: int) -> Members:
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise RefusedError(f"has a link or a device, {member.filename[:100]!r}")
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
                    raise RefusedError(f"has a link or a device, {member.name[:100]!r}")
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
            raise RefusedError("has a header that is too long")
        return self.stream.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence == 0 and offset > self.limit + 2**20:
            raise RefusedError(f"unpacks to more than {self.limit:,} bytes")
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        return self.stream.tell()
