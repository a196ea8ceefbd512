"""One official batch of CIFAR-10 or CIFAR-100: a pickle, parsed without running it.

The unpickler calls nothing but two classes of this file.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from DatasetClass.raw.cifar_official import OFFICIAL

SIZE = 32  # pixels a side


def check_labels(
    where: str, part: str, images: np.ndarray, labels: np.ndarray, name: str
) -> np.ndarray:
    """The labels as int64.

    Raises:
        ValueError: wrong shapes or types, or a label out of range; the message begins ``where``.
    """
    classes = len(OFFICIAL[name].classes)
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
        labels = np.asarray(batch[OFFICIAL[name].labels])
    except Exception as error:  # a damaged pickle raises nearly anything
        reason = " ".join(str(error).split())[:150]
        raise ValueError(
            f"{path}: not a batch of {OFFICIAL[name].title} ({reason}); remove it"
        ) from error
    return images, check_labels(f"{path}: ", "batch", images, labels, name)


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
