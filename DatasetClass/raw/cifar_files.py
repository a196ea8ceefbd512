"""The files of CIFAR-10 and CIFAR-100: ``<name>.npz``, or the official archive, read with care.

The official batches are pickles, which can run any code when they are loaded. Here a file's hash
has to be the known one before it is opened, and then ``cifar_batches.py`` parses it.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path, PurePosixPath

import numpy as np

from DatasetClass.raw.cifar_batches import check_labels, parse_batch
from DatasetClass.raw.cifar_official import OFFICIAL, URL
from DatasetClass.storage.archives import unpack
from DatasetClass.storage.arrays import Arrays, read_npz
from DatasetClass.storage.cache import cached
from DatasetClass.storage.download import download

KEYS = ("x_train", "y_train", "x_test", "y_test")
UNPACKED_LIMIT = 2**28  # bytes; both sets unpack to 186 MB
PIXELS = 2**18  # pixels at a time
VERSION = "1"  # of the reading; it names the cache


def read_cifar(name: str, data_dir: Path) -> Arrays:
    """Images (N, 32, 32, 3) uint8 and labels (N,) int64 as x_train, y_train, x_test, y_test.

    And for CIFAR-100, whose figures aren't in the source, ``mean`` and ``std`` of x_train.

    From ``<name>.npz`` in ``data_dir``; else from torchvision's folder of official batches or
    their archive there, which is downloaded where it is absent, and from then on a cache.

    Raises:
        FileNotFoundError: the data are neither there nor to be downloaded.
        ValueError: a file is damaged or holds something else; the message names it.
    """
    path = data_dir / f"{name}.npz"
    if path.is_file():
        arrays = read_npz(path, KEYS)
    else:
        path = data_dir / "cache" / name
        arrays = cached(path, VERSION, lambda: with_statistics(read_official(name, data_dir), path))
    for part in ("train", "test"):
        images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
        arrays[f"y_{part}"] = check_labels(f"{path}: ", part, images, labels, name)
    return arrays if name == "cifar10" or "mean" in arrays else with_statistics(arrays, path)


def with_statistics(arrays: Arrays, path: Path) -> Arrays:
    """Add ``mean`` and ``std``, (3,) float64: of x_train's channels, in units of 0 to 1.

    Args:
        arrays: with x_train, (N, 32, 32, 3) uint8.
        path: where they come from, for the message.

    Raises:
        ValueError: a channel has one value throughout, so that nothing can be divided by it.
    """
    pixels = arrays["x_train"].reshape(-1, 3)
    total, squares = np.zeros(3), np.zeros(3)
    for start in range(0, len(pixels), PIXELS):
        values = pixels[start : start + PIXELS].astype(np.float64)  # sums of integers: exact
        total += values.sum(axis=0)
        squares += np.einsum("pc,pc->c", values, values)
    mean = total / len(pixels)
    variance = squares / len(pixels) - mean**2
    if variance.min() < 1e-6:
        raise ValueError(f"{path}: x_train has a channel of one value in all images; remove it")
    return {**arrays, "mean": mean / 255, "std": np.sqrt(variance) / 255}


# --- official batches -----------------------------------------------------------------------------
def read_official(name: str, data_dir: Path) -> Arrays:
    """Read the batches of torchvision's folder, or else those of the archive.

    Raises:
        FileNotFoundError: neither is there, and the download failed.
        ValueError: a file is damaged or isn't the official one.
    """
    official = OFFICIAL[name]
    folder, archive = data_dir / official.folder, data_dir / official.archive
    if folder.is_dir():
        return _read_parts(name, folder)
    download(URL.format(official.archive), archive, official.sha256, official.title)
    files = [file for part in (official.train, official.test) for file in part]

    def select(member: str) -> str | None:
        last = PurePosixPath(member).name
        return last if last in files else None

    with tempfile.TemporaryDirectory(prefix=f".{name}", dir=data_dir) as temporary:
        unpacked = Path(temporary) / official.folder
        unpack(archive, unpacked, select, UNPACKED_LIMIT)
        return _read_parts(name, unpacked)


def _read_parts(name: str, folder: Path) -> Arrays:
    arrays = {}
    for part in ("train", "test"):
        files: dict[str, str] = getattr(OFFICIAL[name], part)
        batches = [_read_checked(folder / file, md5, name) for file, md5 in files.items()]
        arrays[f"x_{part}"] = np.concatenate([images for images, _ in batches])
        arrays[f"y_{part}"] = np.concatenate([labels for _, labels in batches])
    return arrays


def _read_checked(path: Path, md5: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; remove {path.parent}, and it is made again")
    content = path.read_bytes() if path.stat().st_size <= UNPACKED_LIMIT else b""
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise ValueError(
            f"{path}: wrong MD5, damaged or not {OFFICIAL[name].title}'s, and not opened; "
            f"remove {path.parent}, and it is made again"
        )
    return parse_batch(content, path, name)
