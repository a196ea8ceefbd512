"""The one training loop, for every model, data set and optimizer."""

from __future__ import annotations

import argparse
import random
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from DatasetClass.batches import Batch, Dataset, first_part
from models.smooth_crossentropy import Loss, smooth_crossentropy
from sam import SAM
from trainings.options import (
    Defaults,
    make_optimizer,
    make_scheduler,
    refuse_other_run,
    settings,
)
from utilities import checkpoint
from utilities.cli import report_files
from utilities.log import Log


def set_seed(seed: int) -> None:
    """Seed every generator that a training may draw from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def fit(
    args: argparse.Namespace,
    defaults: Defaults,
    dataset: Dataset,
    model: nn.Module,
    model_args: dict[str, Any],
) -> dict[str, float]:
    """Train, keep the best epoch on validation and the last, test the best one once.

    Returns:
        Metrics of the best epoch: losses, accuracies in percent, the test's too.

    Raises:
        ValueError: the files to write hold another run, or the loss became NaN or infinite.
        OSError: results can't be written.
    """
    train_args = settings(args, defaults)
    refuse_other_run(args, train_args)
    optimizer = make_optimizer(args, model, len(dataset.train))
    scheduler = make_scheduler(args, optimizer)
    loss_function = partial(smooth_crossentropy, smoothing=args.label_smoothing)
    content = {
        "model": defaults.name,
        "model_args": model_args,
        "dataset": dataset.name,
        "data_args": dataset.data_args,
        "train_args": train_args,
    }
    best: dict[str, Any] = {}
    print(dataset.describe())
    with Log(args.history, train_args, args.epochs) as log:
        for epoch in range(1, args.epochs + 1):
            start, rate = time.monotonic(), optimizer.param_groups[0]["lr"]
            share = args.ascent_fraction
            metrics = train_epoch(model, dataset, optimizer, loss_function, share)
            metrics |= evaluate(model, dataset.val, loss_function, "val")
            scheduler.step()
            seconds = time.monotonic() - start
            log(epoch=epoch, learning_rate=rate, **metrics, seconds=round(seconds, 3))
            state = {**content, "epoch": epoch, "metrics": metrics}
            state["state_dict"] = model.state_dict()
            _refuse_nonfinite(state, args.best)
            if _better(metrics, best.get("metrics")):
                best = state
                checkpoint.save(args.best, state)
    checkpoint.save(args.last, state)
    best = checkpoint.load(args.best)
    checkpoint.load_weights(model, best, args.best)
    best["metrics"] |= evaluate(model, dataset.test, loss_function, "test")
    checkpoint.save(args.best, best)
    _report(best, args)
    return best["metrics"]


def train_epoch(
    model: nn.Module,
    dataset: Dataset,
    optimizer: SAM,
    loss_function: Loss,
    ascent_fraction: float = 1.0,
) -> dict[str, float]:
    """One pass over ``dataset.train``; loss and accuracy are those that the steps saw.

    SAM climbs along the gradient of ``ascent_fraction`` of each batch.
    """
    model.train()
    total = _Total()
    for batch in dataset.train:
        ascent = first_part(batch, ascent_fraction) if optimizer.passes == 2 else batch
        coming = [batch, ascent]  # of one step: SAM makes two passes, the first at the weights
        passes: list[tuple[Tensor, Tensor, Tensor]] = []
        optimizer.step(partial(_forward_backward, model, optimizer, loss_function, coming, passes))
        total.add(*passes[0])
    return total.metrics("train")


def _forward_backward(
    model: nn.Module,
    optimizer: SAM,
    loss_function: Loss,
    coming: list[Batch],
    passes: list[tuple[Tensor, Tensor, Tensor]],
) -> Tensor:
    inputs, targets = coming.pop()
    optimizer.zero_grad()
    logits = model(inputs)
    losses = loss_function(logits, targets)
    loss = losses.mean()
    loss.backward()
    passes.append((logits.detach(), losses.detach(), targets))
    return loss.detach()


@torch.no_grad()
def evaluate(model: nn.Module, batches: Any, loss_function: Loss, name: str) -> dict[str, float]:
    """Mean loss and accuracy in percent over ``batches``, in eval mode, as ``<name>_loss/_acc``."""
    model.eval()
    total = _Total()
    for inputs, targets in batches:
        logits = model(inputs)
        total.add(logits, loss_function(logits, targets), targets)
    return total.metrics(name)


class _Total:
    """Sums on the device: the host waits for them once an epoch."""

    def __init__(self) -> None:
        self.loss: Tensor | float = 0.0
        self.correct: Tensor | float = 0.0
        self.samples = 0

    def add(self, logits: Tensor, losses: Tensor, targets: Tensor) -> None:
        self.loss = self.loss + losses.sum(dtype=torch.float64)
        self.correct = self.correct + (logits.argmax(dim=1) == targets).sum()
        self.samples += len(targets)

    def metrics(self, name: str) -> dict[str, float]:
        loss, correct = float(self.loss), float(self.correct)
        return {f"{name}_loss": loss / self.samples, f"{name}_acc": 100 * correct / self.samples}


def _better(new: dict[str, float], old: dict[str, float] | None) -> bool:
    """By accuracy on validation; a small set gives ties, which the loss decides."""
    return old is None or (new["val_acc"], -new["val_loss"]) > (old["val_acc"], -old["val_loss"])


def _refuse_nonfinite(state: dict[str, Any], best: Path) -> None:
    if not all(np.isfinite(value) for value in state["metrics"].values()):
        raise ValueError(
            f"epoch {state['epoch']}: the loss is not finite; lower --learning_rate or --rho "
            f"(the best epoch before it, if any, is in {best})"
        )


def _report(best: dict[str, Any], args: argparse.Namespace) -> None:
    m = best["metrics"]
    print(
        f"best epoch {best['epoch']}: validation {m['val_acc']:.2f} %, loss {m['val_loss']:.4f}; "
        f"test {m['test_acc']:.2f} %, loss {m['test_loss']:.4f}"
    )
    report_files([args.history, args.best, args.last])
