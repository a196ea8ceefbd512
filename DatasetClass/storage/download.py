"""Bring files from the network, whole or not at all.

``download`` takes https alone, checks the certificate and the SHA-256, and gives the file its name
only when it is whole. pooch's downloader (requests underneath) does the transfer; it has neither
retries after a wrong hash nor a word about what to do by hand, so these are here.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pooch

from DatasetClass.storage.damaged import set_aside
from utilities.files import atomic_write
from utilities.progress import Progress

TIMEOUT = 30.0  # seconds without a byte after which a transfer counts as stalled
PAUSES = (1.0, 3.0)  # seconds before the second and the third try
CHUNK = 2**18  # bytes
GIVEN_UP = (401, 403, 404, 410)  # answers that a second try doesn't change


class _RefusedError(ValueError):
    """What must not be taken; the message says why."""


def download(url: str, path: Path, sha256: str | None, what: str) -> Path:
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
        FileNotFoundError: it can't be had; the message says what to do by hand.
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
            return _transfer(url, path, sha256, what)
        except (requests.RequestException, _RefusedError) as error:
            answer = getattr(error, "response", None)
            if pause is None or (answer is not None and answer.status_code in GIVEN_UP):
                raise _failure(url, path, what, error) from error
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def _refuse_http(url: str) -> None:
    if not url.lower().startswith("https://"):
        raise _RefusedError(f"{url}: only https is taken; anyone on the way can change plain http")


def _failure(url: str, path: Path, what: str, error: Exception) -> Exception:
    if isinstance(error, _RefusedError):
        return ValueError(f"{path}: {what} not downloaded: {error}")
    reason = " ".join(str(error).split())[:200]
    return FileNotFoundError(
        f"{path}: no {what} there, and the download failed ({type(error).__name__}: {reason}); "
        f"get {url} by other means and put it there under this name"
    )


def _transfer(url: str, path: Path, sha256: str | None, what: str) -> Path:
    with (
        atomic_write(path) as part,
        Progress(f"downloading {what} from {url}", size=True) as progress,
    ):
        # requests raises on an error page, and urllib3 where fewer bytes come than announced.
        downloader = pooch.HTTPDownloader(
            progressbar=progress,  # type: ignore[arg-type]
            chunk_size=CHUNK,
            timeout=TIMEOUT,
            hooks={"response": _check_redirect},
            headers={"Accept-Encoding": "identity"},
        )
        downloader(url, part, None)
        if sha256 is not None and (got := pooch.file_hash(str(part))) != sha256:
            raise _RefusedError(f"{url} has SHA-256 {got}, expected {sha256}")
    return path


def _check_redirect(response: Any, **_: Any) -> None:
    if response.is_redirect:
        _refuse_http(urljoin(response.url, response.headers["location"]))
