"""The one training loop, for every model, data set and optimizer."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from DatasetClass.batches import Batch, Dataset, first_part
from models.smooth_crossentropy import Loss, smooth_crossentropy
from trainings.files import RunFiles, command, record
from trainings.options import Defaults, settings
from trainings.outcome import better, refuse_bad_loss, report
from trainings.state import TrainingState
from utilities.interrupt import Interrupted, Interruption
from utilities.log import Log
from utilities.precision import autocast
from utilities.ranks import Ranks

TOGETHER = 10  # steps after which several processes see whether one has to save or to stop


def fit(
    args: argparse.Namespace,
    defaults: Defaults,
    dataset: Dataset,
    model: nn.Module,
    model_args: dict[str, Any],
    ranks: Ranks,
) -> dict[str, float]:
    """Train, keep the best epoch on validation and the last, test the best one once.

    Returns:
        Metrics of the best epoch: losses, accuracies and macro F1 in percent, the test's too.

    Raises:
        ValueError: the files to write hold another run, or the loss became NaN or infinite.
        OSError: results can't be written.
        Interrupted: asked to stop; the state is saved.
    """
    content = {
        "task": defaults.name,
        "model": defaults.name,
        "model_args": model_args,
        "dataset": dataset.name,
        "data_args": dataset.data_args,
        "train_args": settings(args, defaults),
        "record": record(args.argv),
    }
    state = TrainingState(args, dataset, model, ranks)
    loss = partial(smooth_crossentropy, smoothing=args.label_smoothing)
    with RunFiles(args, content, ranks) as files, Interruption(ranks) as interruption:
        files.resume(state)
        with Log(args, content, state.rows, quiet=not ranks.writer) as log:
            log.say(dataset.describe())
            while state.epoch < args.epochs:
                run_epoch(state, loss, files, log, interruption)
        best = files.finish(model, lambda model: state.evaluate(model, dataset.test, loss))
    report(best, state, log)
    ranks.close()
    return best["metrics"]


def run_epoch(
    state: TrainingState, loss: Loss, files: RunFiles, log: Log, interruption: Interruption
) -> None:
    """Train an epoch, or what is left of it, validate, log and save."""
    started = time.monotonic()
    rate = state.rate(state.epoch * len(state.dataset.train))
    train_epoch(state, loss, partial(pause, state, files, interruption))
    refuse_bad_loss(state, state.ranks.gather(state.total.first_bad()), files)
    state.end_epoch()
    model = state.average.evaluated()
    metrics = state.total.over(state.ranks).metrics("train")
    metrics |= state.evaluate(model, state.dataset.val, loss).metrics("val")
    log(epoch=state.epoch, learning_rate=rate, **metrics, seconds=time.monotonic() - started)
    if better(metrics, state.best, state.args.select):
        state.best = {**metrics, "epoch": state.epoch}
        files.keep_best(state.epoch, metrics, model)
    state.metrics, state.total = metrics, state.new_total()
    if state.ranks.agree(lambda: files.due() or state.epoch == state.args.epochs):
        files.save(state)


def train_epoch(state: TrainingState, loss: Loss, after_step: Callable[[], None]) -> None:
    """One pass over ``dataset.train``; ``state.total`` sums up what the steps saw."""
    share = state.args.ascent_fraction  # of each batch, which SAM climbs along
    state.network.train()
    for batch in state.dataset.train:
        # Of one step, the last comes first: SAM makes two passes, the first at the weights.
        coming = [batch, first_part(batch, share)][: state.optimizer.passes]
        passes: list[tuple[Tensor, Tensor, Tensor]] = []
        state.step(partial(forward_backward, state, loss, coming, passes))
        state.total.add(*passes[0])
        after_step()


def forward_backward(
    state: TrainingState,
    loss_function: Loss,
    coming: list[Batch],
    passes: list[tuple[Tensor, Tensor, Tensor]],
) -> Tensor:
    """The closure of a step: one forward and backward pass of the next batch in ``coming``."""
    inputs, targets = coming.pop()
    state.optimizer.zero_grad()
    with autocast(state.args.precision, state.ranks.device):
        logits = state.network(inputs)
    logits = logits.float() if logits.dtype.itemsize < 4 else logits
    losses = loss_function(logits, targets)
    weighted = losses if state.class_weights is None else state.class_weights[targets] * losses
    state.scaler.scale(weighted.mean()).backward()
    passes.append((logits.detach(), losses.detach(), targets))
    return losses.detach().mean()


def pause(state: TrainingState, files: RunFiles, interruption: Interruption) -> None:
    """After a step, of several processes each TOGETHER-th: save if it is time, leave if asked to.

    Raises:
        Interrupted: after a signal; all is saved.
        ValueError: the loss is not finite.
    """
    since = 1 if state.ranks.world == 1 else TOGETHER
    if state.steps % since:
        return
    # Reading a loss is free on a CPU; elsewhere the host would have to wait.
    bad = state.total.first_bad(since) if state.ranks.device.type == "cpu" else None
    found = state.ranks.gather((bad, interruption.number, files.due()))
    bad_batches, signals, due = zip(*found, strict=True)
    refuse_bad_loss(state, bad_batches, files)
    if any(signals) or any(due):
        files.save(state)
    if any(signals):
        again = command(state.args.argv, "--resume")
        raise Interrupted(
            max(signals), f"stopped in epoch {state.epoch + 1}, saved; go on with: {again}"
        )
