"""What becomes of a run: a loss that ends it, the epoch that is best, what is said at its end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from trainings.files import RunFiles
from trainings.state import TrainingState
from utilities.cli import report_files
from utilities.log import Log
from utilities.metrics import class_report


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
        kept = f"the best epoch so far, {state.best['epoch']}, is in {files.args.best}"
    raise ValueError(
        f"epoch {state.epoch + 1}, batch {batch} (step {step}): the loss is not finite; lower "
        f"--learning_rate or --rho ({kept})"
    )


def better(new: dict[str, float], old: dict[str, float], by: str) -> bool:
    """By ``--select`` on validation; a small set gives ties, which the loss decides.

    An epoch whose loss is NaN or infinite is never better than one whose isn't: its accuracy may
    be, as argmax calls every NaN the first class.
    """
    if not old or not math.isfinite(old["val_loss"]):
        return True
    if not math.isfinite(new["val_loss"]):
        return False
    if by == "loss":
        return new["val_loss"] < old["val_loss"]
    key = f"val_{by}"
    return (new[key], -new["val_loss"]) > (old[key], -old["val_loss"])


def report(best: dict[str, Any], state: TrainingState, log: Log) -> None:
    """Say what came out, class by class, and which files hold it."""
    m, args = best["metrics"], state.args
    log.say(f"best epoch on validation: {best['epoch']} of {args.epochs}; with its weights")
    for part, name in (("val", "validation"), ("test", "test")):
        acc, f1, loss = (m[f"{part}_{key}"] for key in ("acc", "f1", "loss"))
        log.say(f"{name:>10}: {acc:.2f} %, macro F1 {f1:.2f} %, loss {loss:.4f}")
    log.say("test by class, in percent:")
    log.say(class_report(best["test_confusion"], getattr(state.dataset, "class_names", None)))
    skipped = state.optimizer.skipped
    if skipped:
        log.say(f"{skipped} steps were left out: their gradient was not finite")
    if state.ranks.writer:
        report_files([*log.files, args.best, args.last])
