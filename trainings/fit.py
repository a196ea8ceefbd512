"""The one training loop, for every model, data set and optimizer."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from DatasetClass.batches import RANK_SEED, Batch, Dataset, first_part
from models.smooth_crossentropy import Loss, smooth_crossentropy
from trainings.files import RunFiles, command, provenance
from trainings.options import Defaults, settings
from trainings.state import TrainingState, better
from utilities.interrupt import Interrupted, Interruption
from utilities.log import Log
from utilities.metrics import Total, evaluate
from utilities.precision import autocast
from utilities.ranks import Ranks
from utilities.runs import EPOCH

STEPS_BETWEEN = 10  # after so many steps several processes see whether one has to save or to stop
Pass = tuple[Tensor, Tensor, Tensor]  # logits (B, classes), losses (B,), targets (B,)


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
    # What the run does to the data set and to torch's generator: a part of each batch, how often
    # each sample comes, and dropout's masks, which neither processes nor neighbouring seeds share.
    dataset.share(ranks.rank, ranks.world)
    if args.balanced_sampling:
        dataset.balance(exponent=0.5 if args.balance_sqrt else 1.0)
    torch.manual_seed(args.seed + RANK_SEED * ranks.rank)
    state = TrainingState(args, dataset, model, ranks)
    content = {
        "task": defaults.task,
        "model": defaults.model,
        "model_args": model_args,
        "dataset": dataset.name,
        "data_args": dataset.data_args,
        "train_args": settings(args, state.precision),
        "record": provenance(args.argv),
    }
    loss = partial(smooth_crossentropy, smoothing=args.label_smoothing)
    with (
        RunFiles(args.run, content, ranks, args.save_seconds, args.keep_epochs) as files,
        Interruption(ranks) as interruption,
    ):
        saved = files.saved_state(args.resume, args.overwrite)
        if saved is not None:
            state.load_state_dict(saved)  # the data set's order and all generators with it
        if not state.steps:
            files.begin(state)
        with make_log(files, state, args.tensorboard) as log:
            log.say(dataset.describe())
            while state.epoch < args.epochs:
                run_epoch(state, loss, files, log, interruption)
        best = files.finish(model, lambda model: measure(state, model, dataset.test, loss))
    written = [args.run.best, args.run.last]
    if args.keep_epochs:
        count = len(args.run.kept_epochs())
        log.say(f"weights of {count} epochs are kept: {args.run.best.stem}{EPOCH}<k>.pt")
    log.report(best, dataset.class_names, state.optimizer.skipped, written)
    ranks.close()
    return best["metrics"]


def make_log(files: RunFiles, state: TrainingState, tensorboard: bool) -> Log:
    described = {**files.content["train_args"], **files.content["record"]}
    quiet = not state.ranks.writer
    return Log(files.run.history, described, files.epochs, state.rows, tensorboard, quiet)


def run_epoch(
    state: TrainingState, loss: Loss, files: RunFiles, log: Log, interruption: Interruption
) -> None:
    """Train an epoch, or what is left of it, validate, log and save."""
    started = time.monotonic()
    rate = state.schedule.rate(state.epoch * len(state.dataset.train))
    train_epoch(state, loss, partial(pause, state, files, interruption))
    refuse_bad_loss(state, state.ranks.gather(state.total.first_bad()), files)
    state.end_epoch()
    model = state.average.evaluated()
    metrics = state.total.over(state.ranks).metrics("train")
    validated = measure(state, model, state.dataset.val, loss)
    metrics |= validated.metrics("val")
    log(epoch=state.epoch, learning_rate=rate, **metrics, seconds=time.monotonic() - started)
    if better(metrics, state.best, state.args.select):
        state.best = {**metrics, "epoch": state.epoch}
        files.keep_best(state.epoch, metrics, model, validated)
    files.keep_epoch(state.epoch, metrics, model)
    state.metrics, state.total = metrics, state.new_total()
    if state.ranks.from_writer(lambda: files.due() or state.epoch == state.args.epochs):
        files.save(state)


def train_epoch(state: TrainingState, loss: Loss, after_step: Callable[[], None]) -> None:
    """One pass over ``dataset.train``; ``state.total`` sums up what the steps saw."""
    state.network.train()
    for batch in state.dataset.train:
        # SAM climbs along a part of the batch and steps along all of it; a plain step takes all.
        part = first_part(batch, state.args.ascent_fraction)
        batches = iter([part, batch][-state.optimizer.passes :])
        seen: list[Pass] = []
        state.step(partial(forward_backward, state, loss, batches, seen))
        state.total.add(*seen[0])  # of the first pass, at the weights
        after_step()


def forward_backward(
    state: TrainingState, loss_function: Loss, batches: Iterator[Batch], seen: list[Pass]
) -> Tensor:
    """The closure of a step: one forward and backward pass of the next of ``batches``."""
    inputs, targets = next(batches)
    state.optimizer.zero_grad()
    with autocast(state.precision, state.ranks.device):
        logits = state.network(inputs)
    logits = logits.float() if logits.dtype.itemsize < 4 else logits
    losses = loss_function(logits, targets)
    weighted = losses if state.class_weights is None else state.class_weights[targets] * losses
    state.scaler.scale(weighted.mean()).backward()
    seen.append((logits.detach(), losses.detach(), targets))
    return losses.detach().mean()


def measure(state: TrainingState, model: nn.Module, batches: Iterable[Batch], loss: Loss) -> Total:
    """Loss and confusion over ``batches``, in eval mode and fp32, over all processes."""
    classes, ranks = state.dataset.num_classes, state.ranks
    return evaluate(model, batches, loss, classes, ranks.device).over(ranks)


def pause(state: TrainingState, files: RunFiles, interruption: Interruption) -> None:
    """After a step, of several processes each STEPS_BETWEEN-th: save if it is time, or leave.

    Raises:
        Interrupted: after a signal; all is saved.
        ValueError: the loss is not finite.
    """
    since = 1 if state.ranks.world == 1 else STEPS_BETWEEN
    if state.steps % since:
        return
    # Reading a loss is free on a CPU; elsewhere the host would have to wait.
    bad = state.total.first_bad(since) if state.ranks.device.type == "cpu" else None
    gathered = state.ranks.gather((bad, interruption.number, files.due()))
    bad_batches, signals, due = zip(*gathered, strict=True)
    refuse_bad_loss(state, bad_batches, files)
    if any(signals) or any(due):
        files.save(state)
    if any(signals):
        again = command(state.args.argv, "--resume")
        raise Interrupted(
            max(signals), f"stopped in epoch {state.epoch + 1}, saved; go on with: {again}"
        )


def refuse_bad_loss(state: TrainingState, batches: Sequence[int | None], files: RunFiles) -> None:
    """Stop if a batch's loss was NaN or infinite: the first one, if any, of each process.

    Raises:
        ValueError: names the batch and the step, and where the last good weights are.
    """
    if not any(batches):
        return
    batch = min(number for number in batches if number)
    step = state.epoch * len(state.dataset.train) + batch
    files.save_best()
    kept = "no epoch was finished"
    if state.best:
        kept = f"the best epoch so far, {state.best['epoch']}, is in {files.run.best}"
    raise ValueError(
        f"epoch {state.epoch + 1}, batch {batch} (step {step}): the loss is not finite; lower "
        f"--learning_rate or --rho ({kept})"
    )
