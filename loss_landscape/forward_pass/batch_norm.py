"""Which statistics batch norm takes: the checkpoint's, those at a point, or each batch's own."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from loss_landscape.my_pyhessian.batches import Forward, count_samples, forward_pair
from loss_landscape.my_pyhessian.lanczos import without_autocast

KINDS = ("eval", "recalibrate", "batch")  # of statistics, for curvature and sharpness


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The batch norms of ``model`` that have statistics.

    Where they have, eval mode takes them, whatever ``track_running_stats`` says by now.
    """
    found = (module for module in model.modules() if isinstance(module, _BatchNorm))
    return [module for module in found if module.running_mean is not None]


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
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in layers]
    how = [(m.momentum, m.track_running_stats) for m in layers]
    try:
        for layer in layers:
            layer.train()
            layer.track_running_stats = True
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
        for layer, state, (momentum, tracks) in zip(layers, before, how, strict=True):
            layer.load_state_dict(state)
            layer.momentum, layer.track_running_stats = momentum, tracks


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


# --- of curvature and sharpness -------------------------------------------------------------------
@dataclass(frozen=True)
class Statistics:
    """Which statistics batch norm takes within ``with statistics(model):``.

    A model's own come back afterwards, the same tensors, and nothing is ever written into them. All
    other layers stay in the mode in which they are.

    Attributes:
        kind: "eval" for the model's own; "recalibrate" for ``values``; "batch" for each batch's, as
            in training, so that a sample's loss hangs on the others of its batch.
        values: mean and variance of each batch norm, in the order of the model's modules.
    """

    kind: str = "eval"
    values: tuple[tuple[Tensor, Tensor], ...] = ()

    @contextmanager
    def __call__(self, model: nn.Module) -> Iterator[None]:
        layers = [] if self.kind == "eval" else batch_norms(model)
        own = [(layer.running_mean, layer.running_var) for layer in layers]
        try:
            # Without running statistics a layer takes the batch's, in eval mode too.
            taken = self.values or [(None, None)] * len(layers)
            for layer, (mean, var) in zip(layers, taken, strict=True):
                layer.running_mean = _like(mean, layer.running_mean)
                layer.running_var = _like(var, layer.running_var)
            yield
        finally:
            for layer, (mean, var) in zip(layers, own, strict=True):
                layer.running_mean, layer.running_var = mean, var


def _like(value: Tensor | None, own: Tensor | None) -> Tensor | None:
    """``value`` in the type and on the device of a layer's own."""
    return value if value is None or own is None else value.to(own)


EVAL = Statistics()


@without_autocast
def statistics_of(
    kind: str, model: nn.Module, batches: Sequence[Any], forward: Forward = forward_pair
) -> Statistics:
    """The statistics of a kind, at the model's present weights, in their precision.

    Args:
        kind: see ``Statistics``.
        model: is left as it is.
        batches: that are recalibrated on, or that are looked at.
        forward: (model, batch) -> (outputs, targets).

    Raises:
        ValueError: the model has no batch norm, or a batch has too few samples.
    """
    if kind == "eval" or not batches:
        return EVAL
    if not batch_norms(model):
        raise ValueError(f"--bn {kind}: the model has no batch norm with statistics of its own")
    if kind == "batch":
        if min(map(_samples, batches)) < 2:
            raise ValueError(
                "--bn batch: a batch of one sample, maybe the last, has no statistics; take "
                "another --batch_size or --samples"
            )
        return Statistics(kind)
    training = [module for module in model.modules() if module.training]
    try:
        with recalibrated(model, batches, forward):
            states = [layer.state_dict() for layer in batch_norms(model)]
            values = [(s["running_mean"].clone(), s["running_var"].clone()) for s in states]
    finally:
        for module in training:
            module.training = True
    return Statistics(kind, tuple(values))


def asked_statistics(
    args: argparse.Namespace, restored: Any, batches: Sequence[Any], convert: Any = list
) -> Statistics:
    """Those that ``--bn`` asks for; recalibrated ones are of training samples whatever the split.

    Args:
        args: with ``bn`` and the flags of the samples.
        restored: model and data.
        batches: of the split.
        convert: makes other batches like these.

    Raises:
        ValueError: see ``statistics_of``.
    """
    if args.bn == "recalibrate" and args.split != "train":
        batches = convert(restored.batches("train", args.samples, args.batch_size))
    return statistics_of(args.bn, restored.model, batches, restored.forward)


def add_bn_flag(group: Any) -> None:
    """Add ``--bn`` of curvature and sharpness."""
    group.add_argument(
        "--bn",
        choices=KINDS,
        default="eval",
        help="batch norm's statistics: the checkpoint's; those that the training samples have at "
        "its weights, held fixed; or each batch's own, as in training, so that the loss hangs on "
        "--batch_size",
    )


def said(args: argparse.Namespace) -> str:
    """What ``--bn`` asks for, as results keep it: with the batches' size where that matters."""
    return "eval" if args.bn == "eval" else f"{args.bn}, batches of {args.batch_size}"
