r"""Measure the images a second of the CIFAR loader against torchvision's transforms.

    python benchmarks/data_pipeline.py                          # 2 cores: 1.5 minutes

Each alternative gives the same epoch of augmented batches, in turns: zero padding of 4, random
crop, horizontal flip, normalisation, cutout as davda54's SAM example draws it. torchvision's work
image by image in a DataLoader, without workers and with two that live on between epochs. Ours is
tensor code on whole batches, once on all threads, once on one: beside other work, threads that
wait for each other in each short operation are slower than one. On a GPU the DataLoader's batches
are copied to it. What the augmentations are is tested in ``tests/DatasetClass/test_augment.py``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import DatasetClass
from benchmarks.timing import in_turns, machine, ratio, table
from DatasetClass.cifar import MEAN, STD, Cifar
from utilities.cli import Parser, add_run_flags, positive_int, prepare_device, run


class Cutout:
    """Set a square of half of the images to 0, one image at a time."""

    def __init__(self, size: int = 16, share: float = 0.5) -> None:
        self.size, self.share = size, share

    def __call__(self, image: Tensor) -> Tensor:
        if torch.rand(()).item() >= self.share:
            return image
        top, left = (
            int(torch.randint(-self.size // 2, side - self.size // 2, ()))
            for side in image.shape[1:]
        )
        image[:, max(top, 0) : top + self.size, max(left, 0) : left + self.size] = 0
        return image


class ImageByImage(torch.utils.data.Dataset):
    """The same images as ``torchvision.datasets.CIFAR10`` gives them, through its transforms."""

    def __init__(self, images: np.ndarray, labels: list[int]) -> None:
        from torchvision import transforms

        self.images, self.labels = images, labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
                Cutout(),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def epoch(batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> None:
    """Go over all batches, as a training would."""
    for images, labels in batches:
        images, labels = images.to(device), labels.to(device)
        if images.shape[1:] != (3, 32, 32):
            raise RuntimeError(f"a batch of {tuple(images.shape)}")


def one_thread(call: Callable[[], None]) -> None:
    """Call on one CPU thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        call()
    finally:
        torch.set_num_threads(threads)


def alternatives(dataset: Cifar, batch_size: int) -> dict[str, Callable[[], None]]:
    """By name, what goes over one epoch of the same images."""
    chosen = dataset.train.indices
    usual = ImageByImage(dataset.images[chosen].cpu().numpy(), dataset.labels[chosen].tolist())
    over = partial(epoch, device=dataset.images.device)
    loader = partial(DataLoader, usual, batch_size=batch_size, shuffle=True)
    return {
        "ours": partial(over, dataset.train),
        "ours, one thread": partial(one_thread, partial(over, dataset.train)),
        "torchvision, DataLoader without workers": partial(over, loader()),
        "torchvision, DataLoader with 2 workers": partial(
            over, loader(num_workers=2, persistent_workers=True)
        ),
    }


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("--rounds", type=positive_int, default=15, help="epochs of each")
    parser.add_argument("--images", type=positive_int, default=12_800, help="of an epoch")
    parser.add_argument("--batch_size", type=positive_int, default=128, help="images a batch")
    add_run_flags(parser, seed=0)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    args = parse_args(argv)
    device = prepare_device(args.device, args.threads)
    dataset = DatasetClass.load(
        "cifar10", args.data_dir, args.batch_size, device, seed=args.seed, train_samples=args.images
    )
    if not isinstance(dataset, Cifar):
        raise TypeError("not CIFAR")
    seconds = in_turns(alternatives(dataset, args.batch_size), args.rounds)
    rows = []
    for name, values in seconds.items():
        rate = dataset.train.samples / np.median(values)
        ours = [ratio(values, seconds[own]) for own in ("ours", "ours, one thread")]
        rows.append(
            [name, f"{rate:,.0f}", *(f"{r:.1f} ({low:.1f} to {high:.1f})" for r, low, high in ours)]
        )
    print(f"{machine()}; CIFAR-10, {dataset.train.samples:,} images, {args.rounds} rounds\n")
    header = ["loader", "images/s", "ours is faster by (95 %)", "ours on one thread by (95 %)"]
    print(table(header, rows))


if __name__ == "__main__":
    run(main)
