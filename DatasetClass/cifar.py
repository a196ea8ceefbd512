"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 60,000 images of 32 x 32 in 10 or 100 classes.

Augmentation is that of davda54's SAM example: random crop after a zero padding of 4, horizontal
flip, cutout of 16 x 16 in half of the images. Where the images come from: ``raw/cifar_files.py``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from DatasetClass.augment import Augmentation, apply, normalise, random_values
from DatasetClass.batches import Batch, Dataset
from DatasetClass.raw.cifar_batches import SIZE
from DatasetClass.raw.cifar_files import read_cifar
from DatasetClass.raw.cifar_official import OFFICIAL
from DatasetClass.splits import stratified_split

# Of CIFAR-10's 50,000 training images, in units of 0 to 1.
MEAN = (0.49140, 0.48216, 0.44653)
STD = (0.24703, 0.24349, 0.26159)
FRACTIONS = {"train": 0.9, "val": 0.1}  # of the training images


class Cifar(Dataset):
    """Images as uint8 on the device; batches are (images (B, 3, 32, 32) normalised, labels (B,)).

    The images of a batch lie in channels_last, which the networks are faster with.

    Args:
        name: "cifar10" or "cifar100".
        data_dir: folder of ``cifar10.npz``, of the official archive, or of torchvision's folder.
        batch_size: images a batch.
        device: where the images lie.
        seed: of the validation split, the order and the augmentation.
        train_samples: use only this many training images.
        augment: crop, flip and cut out the training images.
        pad: "zero" or "reflect", of the frame that crops are cut from.
        crop_padding: its width in pixels.
        cutout: side of the hole in pixels, 0 for none.

    Raises:
        FileNotFoundError: the data are neither there nor to be downloaded.
        ValueError: damaged files, or a value out of range.
    """

    def __init__(
        self,
        name: str,
        data_dir: Path,
        batch_size: int,
        device: torch.device,
        seed: int = 42,
        train_samples: int | None = None,
        augment: bool = True,
        pad: str = "zero",
        crop_padding: int = 4,
        cutout: int = 16,
    ) -> None:
        self.name, self.class_names, self.augment = name, OFFICIAL[name].classes, augment
        self.num_classes = len(self.class_names)
        self.augmentation = Augmentation(crop_padding, pad, cutout)
        self.augmentation.check(SIZE)
        arrays = read_cifar(name, data_dir)
        mean, std = (MEAN, STD) if name == "cifar10" else (arrays["mean"], arrays["std"])
        self.mean, self.std = (
            torch.tensor(np.array(v), dtype=torch.float32, device=device) for v in (mean, std)
        )
        images = np.concatenate([arrays["x_train"], arrays["x_test"]])
        labels = np.concatenate([arrays["y_train"], arrays["y_test"]])
        self.images = torch.from_numpy(images).to(device)  # (N, 32, 32, 3) uint8
        self.labels = torch.from_numpy(labels).to(device)
        self.model_args = {"in_channels": 3, "num_classes": self.num_classes}
        self.data_args = {"seed": seed, "train_samples": train_samples}
        train = len(arrays["y_train"])
        splits = stratified_split(self.labels[:train].cpu(), FRACTIONS, seed)
        splits["test"] = torch.arange(train, len(labels))
        self.make_splits(splits, batch_size, seed, train_samples)

    def fetch(self, indices: Tensor) -> Batch:
        images, labels = self._stored(indices)
        return normalise(images, self.mean, self.std).permute(0, 3, 1, 2), labels

    def fetch_augmented(self, indices: Tensor) -> Batch:
        if not self.augment:
            return self.fetch(indices)
        values = random_values(len(indices), SIZE, self.augmentation, self.generator)
        images, labels = self._stored(indices)
        return apply(images, values, self.augmentation, self.mean, self.std), labels

    def _stored(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        indices = indices.to(self.images.device, non_blocking=True)
        return self.images.index_select(0, indices), self.labels.index_select(0, indices)

    def describe(self) -> str:
        text = "off"
        if self.augment:
            chosen = self.augmentation
            text = f"{chosen.pad} pad {chosen.padding}, crop, flip, cutout {chosen.cutout}"
        return f"{super().describe()}; 3 x 32 x 32; augmentation {text}"
