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

    Args:
        model: gives logits (batch, classes).
        batches: pairs (inputs, targets).
        loss: one value a sample, (batch,). Anything else, such as the mean over a batch's tokens or
            its samples that are not ignored, can't be put together from batches.

    Raises:
        ValueError: no samples, or a loss that isn't one value a sample.
    """
    total: Tensor | float = 0.0
    correct: Tensor | float = 0.0
    samples = 0
    for inputs, targets in batches:
        logits = model(inputs)
        losses = loss(logits, targets)
        if losses.shape != (len(targets),):
            raise ValueError(
                f"a loss of shape {tuple(losses.shape)} for {len(targets)} samples, whose mean is "
                'not one over samples; take reduction="none", one value a sample'
            )
        total = total + losses.sum(dtype=torch.float64)
        correct = correct + (logits.argmax(dim=1) == targets).sum()
        samples += len(targets)
    if not samples:
        raise ValueError("no samples to take the loss of")
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
