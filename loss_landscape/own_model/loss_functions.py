"""Losses a sample for models of any shape of output, and what of a sample is right.

A surface or a Hessian is that of the mean over samples, so a loss gives one value for each of
them. A mean over a batch can't be put together with others: its tokens, weights or ignored targets
may not count alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Any, Any], Tensor]  # (outputs, targets) -> (batch,)
OWN = "--forward package.module:function says how the model takes a batch, and its losses"


@dataclass
class Losses:
    """What a ``--forward`` function gave: a loss a sample, (batch,), in place of outputs."""

    values: Tensor


def logits_of(outputs: Any) -> Tensor:
    """The one tensor among a model's outputs: itself, or what is named ``logits``.

    Raises:
        ValueError: there is no such tensor.
    """
    named = outputs.get("logits") if isinstance(outputs, Mapping) else None
    found = outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", named)
    if not isinstance(found, Tensor):
        raise ValueError(
            f"the model's output is a {type(outputs).__name__}, neither a tensor nor an object "
            f"with .logits; {OWN}"
        )
    return found


def crossentropy(outputs: Any, targets: Tensor) -> Tensor:
    """Cross-entropy in nats, (batch,); of several positions a sample their mean.

    Args:
        outputs: logits (batch, classes, ...), or an object with ``.logits``.
        targets: (batch, ...), whole numbers; ``check_classes`` says which.
    """
    values = F.cross_entropy(logits_of(outputs), targets.long(), reduction="none")
    return values.reshape(len(targets), -1).mean(dim=1)


def mse(outputs: Any, targets: Tensor) -> Tensor:
    """Squared error, (batch,), the mean over a sample's values.

    Args:
        outputs: (batch, ...), or an object with ``.logits``.
        targets: of that shape; ``check_values`` lets dimensions of size 1 differ.
    """
    values = logits_of(outputs)
    differences = values - targets.to(values.dtype).reshape(values.shape)
    return differences.square().reshape(len(targets), -1).mean(dim=1)


def correct(outputs: Any, targets: Tensor) -> Tensor:
    """Share of a sample's positions whose largest logit is the target's, (batch,)."""
    hits = logits_of(outputs).argmax(dim=1) == targets
    return hits.float().reshape(len(targets), -1).mean(dim=1)


def check_classes(outputs: Any, targets: Any) -> None:
    """Refuse what cross-entropy would be silently wrong of, or stop at.

    Raises:
        ValueError: no classes, one class, other shapes, ignored targets; names the remedy.
    """
    logits = logits_of(outputs)
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.is_complex():
        kind = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
        raise ValueError(
            f"targets are {kind}, crossentropy takes numbers of classes; --loss_name mse is for "
            f"values; {OWN}"
        )
    shapes = f"outputs {tuple(logits.shape)} and targets {tuple(targets.shape)}"
    if logits.ndim < 2 or (len(logits), *logits.shape[2:]) != targets.shape:
        raise ValueError(
            f"{shapes}: crossentropy needs logits (batch, classes, ...) and targets (batch, ...); "
            f"{OWN}"
        )
    if logits.ndim > 2 and logits.shape[:-1] == targets.shape:
        raise ValueError(
            f"{shapes}: the second dimension or the last may be the classes, which can't be seen; "
            f"{OWN}"
        )
    classes = logits.shape[1]
    if classes < 2:
        raise ValueError(f"{shapes}: crossentropy of one class is always 0; {OWN}")
    if targets.numel() and not 0 <= int(targets.min()) <= int(targets.max()) < classes:
        raise ValueError(
            f"targets go from {int(targets.min())} to {int(targets.max())} for {classes} classes: "
            f"ignored or wrong ones, so that samples don't count alike; {OWN}"
        )


def check_values(outputs: Any, targets: Any) -> None:
    """Refuse targets that a squared error would be broadcast over.

    Raises:
        ValueError: they are no tensor of the outputs' shape.
    """
    values = logits_of(outputs)
    if not isinstance(targets, Tensor):
        raise ValueError(f"targets are a {type(targets).__name__}, mse takes one tensor; {OWN}")
    shapes = [[size for size in t.shape[1:] if size != 1] for t in (values, targets)]
    if values.shape[:1] != targets.shape[:1] or shapes[0] != shapes[1]:
        raise ValueError(
            f"outputs {tuple(values.shape)} and targets {tuple(targets.shape)}: mse needs one shape"
            f"; {OWN}"
        )


LOSSES: dict[str, tuple[Loss, Callable[[Any, Any], None]]] = {
    "crossentropy": (crossentropy, check_classes),
    "mse": (mse, check_values),
}
