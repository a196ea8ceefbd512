"""Give rare classes more say, in the loss or in the drawing of samples; use one, not both."""

from __future__ import annotations

import torch
from torch import Tensor


def class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Weights inverse to the classes' frequencies; their mean over the samples is 1.

    So the weighted loss has the scale of the plain one, and a learning rate or rho keeps its
    meaning. Where all classes occur these are scikit-learn's "balanced" weights.

    Args:
        labels: (samples,) int64, of the training split.
        num_classes: may be more than occur.

    Returns:
        (classes,) float32 on the labels' device; 0 for a class without samples.

    Raises:
        ValueError: no samples.
    """
    if len(labels) == 0:
        raise ValueError("class weights of no samples")
    counts = labels.bincount(minlength=num_classes).float()
    present = counts > 0
    return torch.where(present, len(labels) / (present.sum() * counts.clamp(min=1)), 0.0)


def balanced_indices(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Draw as many samples as there are, with replacement, each class that occurs equally likely.

    Args:
        labels: (samples,) int64 on the CPU.
        generator: on the CPU; what it draws.

    Returns:
        (samples,) int64, positions in ``labels``.

    Raises:
        ValueError: no samples.
    """
    if len(labels) == 0:
        raise ValueError("a balanced draw from no samples")
    members = labels.argsort(stable=True)  # positions, class after class
    counts = labels.unique(return_counts=True)[1]
    starts = counts.cumsum(0) - counts
    drawn = torch.randint(len(counts), (len(labels),), generator=generator)
    share = torch.rand(len(labels), generator=generator, dtype=torch.float64)  # 0 <= share < 1
    return members[starts[drawn] + (share * counts[drawn]).long()]
