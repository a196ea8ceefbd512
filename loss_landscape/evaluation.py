"""Loss and accuracy of a model at its weights or at a point beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from DatasetClass.batches import Batch
from loss_landscape.directions import Direction
from models.smooth_crossentropy import Loss


@torch.no_grad()
def evaluate(model: nn.Module, batches: Sequence[Batch], loss: Loss) -> tuple[float, float]:
    """Mean loss and accuracy in percent over all samples, in the mode the model is in.

    Batches count by their samples, so an unequal last one changes nothing.
    """
    total: Tensor | float = 0.0
    correct: Tensor | float = 0.0
    samples = 0
    for inputs, targets in batches:
        logits = model(inputs)
        total = total + loss(logits, targets).sum(dtype=torch.float64)
        correct = correct + (logits.argmax(dim=1) == targets).sum()
        samples += len(targets)
    return float(total) / samples, 100 * float(correct) / samples


@contextmanager
def moved(
    weights: Direction, directions: Sequence[Direction], steps: Sequence[float]
) -> Iterator[None]:
    """Within, the live ``weights`` stand at w + sum of steps times directions, in place.

    Afterwards they are what they were, bit for bit, also on an exception.
    """
    before = [w.clone() for w in weights]
    try:
        for direction, step in zip(directions, steps, strict=True):
            for w, d in zip(weights, direction, strict=True):
                w.add_(d, alpha=step)
        yield
    finally:
        for w, old in zip(weights, before, strict=True):
            w.copy_(old)
