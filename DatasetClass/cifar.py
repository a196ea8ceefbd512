"""CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test images of 32 x 32 in ten classes.

Read from ``cifar10.npz`` in the data folder, else with torchvision, which downloads the official
archive and checks its MD5. Augmentation is that of davda54's SAM example: random crop after a
zero padding of 4, horizontal flip, cutout of 16 x 16 in half of the images.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from DatasetClass.batches import Batch, Dataset, stratified_split

# Of the 50,000 training images, in units of 0 to 1.
MEAN = (0.49140, 0.48216, 0.44653)
STD = (0.24703, 0.24349, 0.26159)
CLASSES = 10
VALIDATION = 0.1  # share of the training images
PADDING, CUTOUT = 4, 16  # pixels
KEYS = ("x_train", "y_train", "x_test", "y_test")


class Cifar10(Dataset):
    """CIFAR-10 on the device; batches are (images (B, 3, 32, 32) normalised, labels (B,)).

    Args:
        data_dir: folder of ``cifar10.npz`` or of torchvision's ``cifar-10-batches-py``.
        batch_size: images a batch.
        device: where the images lie.
        seed: of the validation split, the order and the augmentation.
        train_samples: use only this many training images.
        augment: crop, flip and cut out the training images.

    Raises:
        FileNotFoundError: the data are neither there nor to be downloaded.
        ValueError: ``cifar10.npz`` is damaged.
    """

    name = "cifar10"
    num_classes = CLASSES

    def __init__(
        self,
        data_dir: Path,
        batch_size: int,
        device: torch.device,
        seed: int = 42,
        train_samples: int | None = None,
        augment: bool = True,
    ) -> None:
        path = data_dir / "cifar10.npz"
        arrays = _read_npz(path) if path.is_file() else _read_torchvision(data_dir)
        images = np.concatenate([arrays["x_train"], arrays["x_test"]])
        labels = np.concatenate([arrays["y_train"], arrays["y_test"]])
        # Stored with a black frame: a crop is then an index, and the middle is the image itself.
        frame = (0, 0, PADDING, PADDING, PADDING, PADDING)
        self.images = F.pad(torch.from_numpy(images).to(device), frame)  # (N, 40, 40, 3) uint8
        self.labels = torch.from_numpy(labels).to(device)
        self.mean = torch.tensor(MEAN, device=device).mul(255)
        self.std = torch.tensor(STD, device=device).mul(255)
        self.augment = augment
        self.model_args = {"in_channels": 3, "num_classes": CLASSES}
        self.data_args = {"seed": seed, "train_samples": train_samples}
        train = len(arrays["y_train"])
        shares = {"train": 1 - VALIDATION, "val": VALIDATION}
        splits = stratified_split(self.labels[:train].cpu(), shares, seed)
        splits["test"] = torch.arange(train, len(labels))
        self.make_splits(splits, batch_size, seed, train_samples)

    def fetch(self, indices: Tensor) -> Batch:
        middle = torch.full((len(indices),), PADDING)
        return self._crop(indices, middle, middle, torch.zeros(len(indices), dtype=torch.bool))

    def fetch_augmented(self, indices: Tensor) -> Batch:
        if not self.augment:
            return self.fetch(indices)
        count, draw = len(indices), self.generator
        top = torch.randint(2 * PADDING + 1, (count,), generator=draw)
        left = torch.randint(2 * PADDING + 1, (count,), generator=draw)
        flip = torch.rand(count, generator=draw) < 0.5
        images, labels = self._crop(indices, top, left, flip)
        return _cutout(images, draw), labels

    def _crop(self, indices: Tensor, top: Tensor, left: Tensor, flip: Tensor) -> Batch:
        size = torch.arange(32)
        rows = top[:, None] + size  # (B, 32)
        columns = left[:, None] + torch.where(flip[:, None], size.flip(0), size)
        device = self.images.device
        indices, rows, columns = indices.to(device), rows.to(device), columns.to(device)
        images = self.images[indices[:, None, None], rows[:, :, None], columns[:, None, :]]
        normalised = (images.float() - self.mean) / self.std  # (B, 32, 32, 3)
        return normalised.permute(0, 3, 1, 2), self.labels[indices]

    def describe(self) -> str:
        return f"{super().describe()}; 3 x 32 x 32; augmentation {'on' if self.augment else 'off'}"


def _cutout(images: Tensor, generator: torch.Generator) -> Tensor:
    """Set a square of each second image to the mean (DeVries & Taylor 2017, as davda54 draws it).

    The square's upper left corner is uniform from -8 to 23, so it may hang over the edge.
    """
    count, _, height, width = images.shape
    half = CUTOUT // 2
    top = torch.randint(-half, height - half, (count, 1), generator=generator)
    left = torch.randint(-half, width - half, (count, 1), generator=generator)
    rows, columns = torch.arange(height), torch.arange(width)
    in_rows = (rows >= top) & (rows < top + CUTOUT)  # (B, H)
    in_columns = (columns >= left) & (columns < left + CUTOUT)
    cut = torch.rand(count, 1, generator=generator) < 0.5
    hole = (in_rows & cut)[:, None, :, None] & in_columns[:, None, None, :]
    return images.masked_fill_(hole.to(images.device), 0.0)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in KEYS}
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: damaged or without {', '.join(KEYS)}; remove it") from error
    for part in ("train", "test"):
        images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if images.dtype != np.uint8 or images.shape != (len(labels), 32, 32, 3):
            raise ValueError(f"{path}: x_{part} is not (samples, 32, 32, 3) of uint8")
        if len(labels) and not (labels.min() >= 0 and labels.max() < CLASSES):
            raise ValueError(f"{path}: y_{part} has a label outside 0 to {CLASSES - 1}")
        arrays[f"y_{part}"] = labels.astype(np.int64)
    return arrays


def _read_torchvision(data_dir: Path) -> dict[str, np.ndarray]:
    from torchvision.datasets import CIFAR10

    arrays = {}
    try:
        for part in ("train", "test"):
            source = CIFAR10(data_dir, train=part == "train", download=True)
            arrays[f"x_{part}"] = source.data
            arrays[f"y_{part}"] = np.asarray(source.targets, dtype=np.int64)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"{data_dir}: no cifar10.npz, and the download failed ({error}); "
            "put cifar-10-python.tar.gz there"
        ) from error
    return arrays
