"""Batches as a curvature operator takes them: what they are, where they lie, what each weighs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

Pair = tuple[Any, Any]  # (outputs, targets)
Loss = Callable[[Any, Any], Tensor]  # (outputs, targets) -> the mean or the sum
Forward = Callable[[nn.Module, Any], Pair]  # (model, batch) -> (outputs, targets)
HALF = (torch.float16, torch.bfloat16)
TOLERANCE = 1e-4  # of the largest entry: far above float32's rounding, below one sample's weight
KINDS = "ignore_index, class weights, token losses or a loss of pairs?"
REMEDY = (
    'take reduction="sum" and denominator=, a function of the targets (their number that count), '
    'or reduction="none"'
)


def moved(batches: Any, device: torch.device | None) -> Iterator[Any]:
    """Each batch on ``device``; copied where an iterator may fill one buffer again and again."""
    once = isinstance(batches, Iterator)

    def move(value: Any) -> Any:
        if once and hasattr(value, "clone"):
            value = value.clone()
        return value if device is None or not hasattr(value, "to") else value.to(device)

    with torch.random.fork_rng(devices=[]):  # a DataLoader draws from the global generator
        yield from (tree_map(move, batch) for batch in batches)


def forward_pair(model: nn.Module, batch: Any) -> Pair:
    """Outputs and targets of a batch (inputs, targets); see ``pair_of``."""
    inputs, targets = pair_of(batch)
    return model(inputs), targets


def pair_of(batch: Any) -> Pair:
    """A batch that is (inputs, targets).

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        parts = f" of {len(batch)}" if isinstance(batch, tuple | list | dict) else ""
        raise ValueError(
            f"a batch is a {type(batch).__name__}{parts}, not a pair (inputs, targets); say how "
            "the model takes it with forward= (--forward), a function of (model, batch) that gives "
            "(outputs, targets)"
        )
    return batch[0], batch[1]


def count_samples(targets: Any) -> int:
    """Samples of a batch: the first dimension that all its targets share."""
    sizes = {x.shape[0] if x.ndim else 0 for x in tree_leaves(targets) if isinstance(x, Tensor)}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            f"targets of a batch ({type(targets).__name__}) must be tensors whose first dimension "
            f"is the samples, 1 or more; theirs are {sorted(sizes) or 'none'}"
        )
    return sizes.pop()


def check_additive(loss: Loss, one: Pair, two: Pair, sums: bool) -> None:
    """Check that each sample weighs in both batches together what it weighs in its own.

    Compared are the gradients to the outputs, which show it even where all losses are equal.

    Args:
        loss: of a batch.
        one: outputs and targets of a batch.
        two: of another one, or the same.
        sums: the loss is the sum over a batch; else the mean.

    Raises:
        ValueError: it doesn't, or that can't be seen.
    """
    first, second = count_samples(one[1]), count_samples(two[1])
    total, kind = first + second, "mean over two batches is not theirs weighted by samples"
    if sums:
        first = second = total = 1
        kind = "value for two batches is not the sum of theirs"
    try:
        parts = [_gradients(loss, one, first), _gradients(loss, two, second)]
        together = _gradients(loss, _joined(one, two), total)
        separate = [torch.cat(pieces) for pieces in zip(*parts, strict=True)]
        pairs = list(zip(separate, together, strict=True))
        additive = all(bool((a - b).abs().max() <= TOLERANCE * b.abs().max()) for a, b in pairs)
    except (RuntimeError, TypeError, IndexError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"what the samples of several batches weigh can't be seen ({reason}); {REMEDY}"
        ) from error
    if not additive:
        raise ValueError(f"the criterion's {kind} ({KINDS}); {REMEDY}")


def _gradients(loss: Loss, pair: Pair, factor: float) -> list[Tensor]:
    """Gradients of ``factor`` times the loss to the outputs' floating tensors."""
    leaves, structure = tree_flatten(pair[0])
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() if _floating(x) else x for x in leaves]
        scaled = factor * loss(tree_unflatten(leaves, structure), pair[1])
        floats = [x for x in leaves if _floating(x)]
        return list(torch.autograd.grad(scaled, floats, materialize_grads=True))


def _floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _joined(one: Any, two: Any) -> Any:
    (first, structure), (second, _) = tree_flatten(one), tree_flatten(two)
    pairs = zip(first, second, strict=True)
    joined = [torch.cat([a, b]) if isinstance(a, Tensor) else a for a, b in pairs]
    return tree_unflatten(joined, structure)


def steady(compute: Callable[[], Tensor]) -> Tensor:
    """A batch's loss, which a second pass must give again, without parts of half precision.

    Raises:
        ValueError: something is random in eval mode, or has a gradient in half precision.
    """
    losses: list[Tensor] = []
    for watch in (_HalfPrecision(), _HalfPrecision()):
        with torch.enable_grad(), watch:
            losses.append(compute())
        if watch.seen:
            raise ValueError(
                f"the model or the criterion computes in {watch.seen}, in which losses and "
                "curvature are wrong by percents; take float32 within (no autocast, no .half())"
            )
    if not torch.allclose(losses[0], losses[1], rtol=1e-4, atol=1e-6, equal_nan=True):
        raise ValueError(
            f"the loss of one batch is {float(losses[0]):.6g}, then {float(losses[1]):.6g}: "
            "something is random in eval mode (F.dropout without training=self.training?)"
        )
    return losses[0]


class _HalfPrecision(TorchFunctionMode):
    """Remembers the first half precise type of a result that has a gradient."""

    seen: torch.dtype | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype in HALF and result.requires_grad:
            self.seen = self.seen or result.dtype
        return result
