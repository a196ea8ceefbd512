"""The files of CIFAR-10 and CIFAR-100: ``<name>.npz``, or the official archive, read with care.

The official batches are pickles, which can run any code when they are loaded. Here a file's hash
has to be the known one before it is opened, and then an unpickler that calls nothing but two
classes of this file reads it.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np

from DatasetClass.archives import unpack
from DatasetClass.arrays import Arrays, read_npz
from DatasetClass.cache import cached
from DatasetClass.download import fetch

SIZE = 32  # pixels a side
CLASSES = {"cifar10": 10, "cifar100": 100}
TITLE = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
URL = "https://www.cs.toronto.edu/~kriz/{}"
# Also those of keras (keras.datasets.cifar10 and cifar100, file_hash).
SHA256 = {
    "cifar10": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    "cifar100": "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
}
LABELS = {"cifar10": b"labels", "cifar100": b"fine_labels"}
KEYS = ("x_train", "y_train", "x_test", "y_test")
UNPACKED_LIMIT = 2**28  # bytes; both sets unpack to 186 MB
CHUNK = 2**18  # pixels at a time
VERSION = "1"  # of the cache


def read(name: str, data_dir: Path) -> Arrays:
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
        arrays[f"y_{part}"] = _check(f"{path}: ", part, images, labels, CLASSES[name])
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
    for start in range(0, len(pixels), CHUNK):
        values = pixels[start : start + CHUNK].astype(np.float64)  # sums of integers: exact
        total += values.sum(axis=0)
        squares += np.einsum("pc,pc->c", values, values)
    mean = total / len(pixels)
    variance = squares / len(pixels) - mean**2
    if variance.min() < 1e-6:
        raise ValueError(f"{path}: x_train has a channel of one value in all images; remove it")
    return {**arrays, "mean": mean / 255, "std": np.sqrt(variance) / 255}


def _check(
    where: str, part: str, images: np.ndarray, labels: np.ndarray, classes: int
) -> np.ndarray:
    """The labels as int64.

    Raises:
        ValueError: wrong shapes or types, or a label out of range; the message begins ``where``.
    """
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels):
        raise ValueError(f"{where}y_{part} is not (samples,) of whole numbers; remove it")
    if images.dtype != np.uint8 or images.shape != (len(labels), SIZE, SIZE, 3):
        raise ValueError(
            f"{where}x_{part} is not ({len(labels)}, {SIZE}, {SIZE}, 3) of uint8; remove it"
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise ValueError(
            f"{where}y_{part}, row {wrong[0]}: label {labels[wrong[0]]} is outside 0 to "
            f"{classes - 1}; remove it"
        )
    return labels.astype(np.int64)


# --- official batches -----------------------------------------------------------------------------
def read_official(name: str, data_dir: Path) -> Arrays:
    """Read the batches of torchvision's folder, or else those of the archive.

    Raises:
        FileNotFoundError: neither is there, and the download failed.
        ValueError: a file is damaged or isn't the official one.
    """
    from torchvision import datasets

    source: Any = getattr(datasets, name.upper())
    parts = {"train": source.train_list, "test": source.test_list}  # names and MD5s
    if (data_dir / source.base_folder).is_dir():
        return _read_parts(name, data_dir / source.base_folder, parts)
    archive = data_dir / source.filename
    fetch(URL.format(source.filename), archive, SHA256[name], TITLE[name])
    names = [file for part in parts.values() for file, _ in part]
    with tempfile.TemporaryDirectory(prefix=f".{name}", dir=data_dir) as temporary:
        folder = Path(temporary) / source.base_folder
        unpack(archive, folder, lambda member: _wanted(member, names), UNPACKED_LIMIT)
        return _read_parts(name, folder, parts)


def _wanted(member: str, names: list[str]) -> str | None:
    last = PurePosixPath(member).name
    return last if last in names else None


def _read_parts(name: str, folder: Path, parts: dict[str, list[list[str]]]) -> Arrays:
    arrays = {}
    for part, files in parts.items():
        batches = [_read_checked(folder / file, md5, name) for file, md5 in files]
        arrays[f"x_{part}"] = np.concatenate([images for images, _ in batches])
        arrays[f"y_{part}"] = np.concatenate([labels for _, labels in batches])
    return arrays


def _read_checked(path: Path, md5: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; remove {path.parent}, and it is made again")
    content = path.read_bytes() if path.stat().st_size <= UNPACKED_LIMIT else b""
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise ValueError(
            f"{path}: wrong MD5, damaged or not {TITLE[name]}'s, and not opened; "
            f"remove {path.parent}, and it is made again"
        )
    return parse_batch(content, path, name)


def parse_batch(content: bytes, path: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Parse one official batch: images (N, 32, 32, 3) uint8 and labels (N,) int64.

    Args:
        content: of the file.
        path: for messages.
        name: "cifar10" or "cifar100".

    Raises:
        ValueError: it is damaged, or would load anything but numpy arrays and plain values.
    """
    try:
        batch = ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
        planes = batch[b"data"].array  # (N, 3 * 32 * 32), one plane of 1024 a channel
        images = np.ascontiguousarray(planes.reshape(-1, 3, SIZE, SIZE).transpose(0, 2, 3, 1))
        labels = np.asarray(batch[LABELS[name]])
    except Exception as error:  # a damaged pickle raises nearly anything
        reason = " ".join(str(error).split())[:150]
        raise ValueError(f"{path}: not a batch of {TITLE[name]} ({reason}); remove it") from error
    return images, _check(f"{path}: ", "batch", images, labels, CLASSES[name])


class _PickledType:
    """Takes the place of ``numpy.dtype``."""

    def __init__(self, code: bytes, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Byte order and the like, which single bytes have none of."""


class _PickledArray:
    """Takes the place of a numpy array while it is loaded; ``array`` is the array of bytes."""

    array: np.ndarray

    def __init__(self, *_: object) -> None:
        """What numpy's own begins with: an empty array."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, raw = state
        if kind.code != b"u1":
            raise ValueError(f"an array of {kind.code!r}, not of bytes")
        self.array = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


class ArrayUnpickler(pickle.Unpickler):
    """Loads arrays of bytes and plain values; a pickle that names anything else is refused."""

    allowed: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
        ("numpy", "ndarray"): _PickledArray,
        ("numpy", "dtype"): _PickledType,
    }

    def find_class(self, module: str, name: str) -> Any:
        """What takes the place of ``module.name``.

        Raises:
            pickle.UnpicklingError: it isn't a part of a numpy array.
        """
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"asks for {module}.{name}, which is never loaded")
        return self.allowed[module, name]
