"""Batch norm's statistics at a point that no training has been at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from loss_landscape.my_pyhessian.batches import Forward, count_samples, forward_pair


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The batch norms of ``model`` that keep statistics."""
    found = (module for module in model.modules() if isinstance(module, _BatchNorm))
    return [module for module in found if module.track_running_stats]


@contextmanager
def recalibrated(
    model: nn.Module, batches: Sequence[Any], forward: Forward = forward_pair
) -> Iterator[None]:
    """Within, batch norm's statistics are those of ``batches`` at the model's present weights.

    Each is the mean of the batches' statistics, weighted by their samples (Izmailov et al. 2018,
    arXiv:1803.05407, section 3.2). A batch of one sample has no variance and is left out.
    Everything else stays in eval mode. Afterwards the statistics are what they were, bit for bit.

    Raises:
        ValueError: no batch has two samples.
    """
    counts = [_samples(batch) for batch in batches]
    if max(counts) < 2:
        raise ValueError("--bn recalibrate: no batch has two samples; raise --batch_size")
    layers = batch_norms(model.eval())
    before = [({k: v.clone() for k, v in m.state_dict().items()}, m.momentum) for m in layers]
    try:
        for layer in layers:
            layer.train()
        seen = 0
        for batch, count in zip(batches, counts, strict=True):
            if count > 1:
                seen += count
                for layer in layers:
                    layer.momentum = count / seen  # 1 at first: nothing of the old is left
                with torch.no_grad():
                    forward(model, batch)
        model.eval()
        yield
    finally:
        model.eval()
        for layer, (state, momentum) in zip(layers, before, strict=True):
            layer.load_state_dict(state)
            layer.momentum = momentum


def _samples(batch: Any) -> int:
    return count_samples(batch[1] if isinstance(batch, tuple | list) else batch)


def recalibrating(
    model: nn.Module,
    batches: Sequence[Any],
    forward: Forward,
    at_point: Callable[[], dict[str, float]],
) -> Callable[[], dict[str, float]]:
    """``at_point`` with batch norm's statistics taken from ``batches`` where the model stands."""

    def measured() -> dict[str, float]:
        with recalibrated(model, batches, forward):
            return at_point()

    return measured
