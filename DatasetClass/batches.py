"""What every data set is made of: splits that are iterated batch by batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Batch = tuple[Any, Tensor]  # (inputs, targets): inputs a Tensor or a torch_geometric Batch
Fetch = Callable[[Tensor], Batch]  # sample indices (batch,) int64 on the CPU -> a batch


class Batches:
    """Iterate over ``indices`` in batches, in fixed order or shuffled by ``generator``.

    Attributes:
        samples: number of samples that one iteration yields.
        generator: CPU generator that every iteration draws from, or None for fixed order.
    """

    def __init__(
        self,
        fetch: Fetch,
        indices: Tensor,
        batch_size: int,
        generator: torch.Generator | None = None,
    ) -> None:
        self.fetch, self.indices, self.batch_size = fetch, indices, batch_size
        self.generator = generator
        self.samples = len(indices)

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        order = self.indices
        if self.generator is not None:
            order = order[torch.randperm(self.samples, generator=self.generator)]
        return map(self.fetch, order.split(self.batch_size))


class Dataset:
    """Three splits of one data set.

    Subclasses set ``name``, ``num_classes``, ``model_args`` (the model's arguments that follow
    from the data), ``data_args`` (what rebuilds the same splits), and call ``make_splits``.

    Attributes:
        train: shuffled and augmented batches.
        val, test: batches in fixed order without augmentation.
    """

    name: str
    num_classes: int
    model_args: dict[str, int]
    data_args: dict[str, Any]
    train: Batches
    val: Batches
    test: Batches

    def make_splits(
        self, splits: dict[str, Tensor], batch_size: int, seed: int, train_samples: int | None
    ) -> None:
        """Set ``train``, ``val`` and ``test`` from sample indices.

        Raises:
            ValueError: a split is empty.
        """
        if train_samples is not None:
            splits = {**splits, "train": subset(splits["train"], train_samples)}
        for split, indices in splits.items():
            if len(indices) == 0:
                raise ValueError(f"{self.name}: its {split} split is empty; the set is too small")
        generator = torch.Generator().manual_seed(seed)
        self.generator = generator
        self.train = Batches(self.fetch_augmented, splits["train"], batch_size, generator)
        self.val = Batches(self.fetch, splits["val"], batch_size)
        self.test = Batches(self.fetch, splits["test"], batch_size)

    def fetch(self, indices: Tensor) -> Batch:
        """The batch of these samples, without augmentation."""
        raise NotImplementedError

    def fetch_augmented(self, indices: Tensor) -> Batch:
        """The batch of these samples as the training sees it."""
        return self.fetch(indices)

    def fixed(self, split: str, batch_size: int, samples: int | None = None) -> list[Batch]:
        """``split`` as batches on the device, without augmentation and in fixed order.

        Args:
            split: "train", "val" or "test".
            batch_size: samples a batch.
            samples: draw this many (always the same ones); None or more than there are: all.
        """
        indices = subset(getattr(self, split).indices, samples)
        return list(Batches(self.fetch, indices, batch_size))

    def describe(self) -> str:
        """One line for the log: name, shapes, classes and sizes of the splits."""
        sizes = ", ".join(f"{getattr(self, s).samples:,} {s}" for s in ("train", "val", "test"))
        return f"{self.name}: {self.num_classes} classes; {sizes}"


def first_part(batch: Batch, share: float) -> Batch:
    """The first samples of a batch, ``share`` of them rounded up; the batch itself for share 1."""
    inputs, targets = batch
    count = math.ceil(share * len(targets))
    if count == len(targets):
        return batch
    if isinstance(inputs, Tensor):
        return inputs[:count], targets[:count]
    from DatasetClass.graphs import first_graphs  # PyTorch Geometric takes seconds to load

    return first_graphs(inputs, count), targets[:count]


def subset(indices: Tensor, samples: int | None) -> Tensor:
    """Draw ``samples`` of ``indices`` without replacement, always the same, in rising order."""
    if samples is None or samples >= len(indices):
        return indices
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(indices), generator=generator)[:samples]
    return indices[chosen.sort().values]


def stratified_split(labels: Tensor, fractions: dict[str, float], seed: int) -> dict[str, Tensor]:
    """Split sample indices at random so that every part has the classes in equal proportion.

    Args:
        labels: (samples,) int64.
        fractions: share of each named part; the first part takes what rounding leaves over.
        seed: of the draw.

    Returns:
        For each name the sample indices in rising order; together they are all, each once.
    """
    generator = torch.Generator().manual_seed(seed)
    first, *others = fractions
    parts: dict[str, list[Tensor]] = {name: [] for name in fractions}
    for label in labels.unique():
        members = torch.nonzero(labels == label).flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        start = 0
        for name in others:
            stop = start + round(fractions[name] * len(members))
            parts[name].append(members[start:stop])
            start = stop
        parts[first].append(members[start:])
    return {name: torch.cat(part).sort().values for name, part in parts.items()}
