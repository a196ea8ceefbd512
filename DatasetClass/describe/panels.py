"""What the pictures of all kinds of samples share: a row a class, and who is in it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from torch import Tensor

from DatasetClass.batches import Dataset


def choose(dataset: Dataset, label: int, count: int, generator: torch.Generator) -> Tensor:
    """Indices of at most ``count`` random training samples of class ``label``."""
    indices = dataset.train.indices
    labels = dataset.labels.cpu()
    members = indices[labels[indices] == label]
    return members[torch.randperm(len(members), generator=generator)[:count]]


def bare(axes: Axes) -> None:
    """Take ticks and frame away."""
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def label_row(
    axes: Axes, dataset: Dataset, names: Sequence[str], label: int, count: bool = True
) -> None:
    """Write the class's name, and with ``count`` the number of its samples, left of its row."""
    text = names[label]
    if count:
        text += f"\n{int((dataset.labels == label).sum()):,}"
    axes.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=10, labelpad=8)


def head(dataset: Dataset, what: str) -> str:
    """The title: how many ``what`` of how many classes."""
    total = len(dataset.labels)
    return f"{dataset.name}: {total:,} {what}, {dataset.num_classes} classes"
