"""In which order a convolution's channels lie in memory: tried on a batch, not assumed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

SAME = 1e-4  # relative difference that another order of the sums may make


def in_format(batch: Any, memory_format: torch.memory_format) -> Any:
    """A batch whose images, tensors of four dimensions, lie in ``memory_format``."""

    def convert(leaf: Any) -> Any:
        is_image = isinstance(leaf, Tensor) and leaf.ndim == 4
        return leaf.contiguous(memory_format=memory_format) if is_image else leaf

    return tree_map(convert, batch)


def settle_memory_format(
    model: nn.Module, batch: Any, losses: Callable[[Any], Tensor]
) -> torch.memory_format:
    """Move ``model`` to channels_last if it works with it and gives the same; else to the plain.

    A ``view`` after a convolution stops in channels_last, and code that reads memory as it lies is
    wrong in it. CPUs alone are faster with it in float32.

    Args:
        model: on its device.
        batch: to try it on.
        losses: of a batch, (samples,).

    Returns:
        the format that batches must have, too.
    """
    plain, last = torch.contiguous_format, torch.channels_last
    model.to(memory_format=plain)
    convolves = any(isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for m in model.modules())
    if not convolves or next(model.parameters()).device.type != "cpu":
        return plain
    expected = _values(model, in_format(batch, plain), losses)
    model.to(memory_format=last)
    try:
        found = _values(model, in_format(batch, last), losses)
    except Exception:  # of a user's code, which may check its inputs' layout
        found = []
    if len(found) == len(expected) and all(map(_close, found, expected)):
        return last
    print("channels_last gives no losses or others; the model is taken in the plain memory format")
    model.to(memory_format=plain)
    return plain


def _values(model: nn.Module, batch: Any, losses: Callable[[Any], Tensor]) -> list[Tensor]:
    """Losses, and their sum's gradients where it has any."""
    with torch.enable_grad():
        values = losses(batch)
        if not values.requires_grad:
            return [values]
        params = [p for p in model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(values.sum(), params, materialize_grads=True)
    return [values.detach(), *gradients]


def _close(one: Tensor, other: Tensor) -> bool:
    """Whether no entries differ by more than rounding, of the largest; NaN where both have it."""
    scale = float(other.nan_to_num().abs().max())
    return torch.allclose(one, other, rtol=SAME, atol=SAME * scale, equal_nan=True)
