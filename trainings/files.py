"""The files of a run: locked while it lasts, never another run's, saved so that it can go on."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import nn

from trainings.state import TrainingState
from utilities import checkpoint
from utilities.files import locked, remove_parts
from utilities.metrics import Total
from utilities.ranks import Ranks, launcher, rank_and_world
from utilities.runs import EPOCH, Run, differing, refuse_other, run_settings

REMEDY = "name this one with --tag, or replace that with --overwrite"


class RunFiles:
    """The checkpoints of one run, as a context that holds their lock.

    ``run.last`` holds the last state, from which ``--resume`` goes on, and is a checkpoint too;
    ``run.best`` the best epoch's weights. Both are saved together, the best one first, so that a
    kill between the two leaves a state from which the best is found again. A state is saved before
    the first step too: from then on no older run's is there to be taken for this one's. Weights of
    epochs that are kept are written as soon as there are any, and so before the state of that
    epoch: whatever a kill leaves, a resumed run writes what is missing.

    Args:
        run: names the files.
        content: what both checkpoints hold, all but epoch, metrics and weights.
        ranks: the processes, of which the first writes.
        save_seconds: how often to save the state, in s.
        keep_epochs: keep the weights of each such epoch, from epoch 0 on; None keeps none.
    """

    def __init__(
        self,
        run: Run,
        content: dict[str, Any],
        ranks: Ranks,
        save_seconds: float,
        keep_epochs: int | None = None,
    ) -> None:
        self.run, self.content, self.ranks = run, content, ranks
        self.epochs, self.save_seconds = content["train_args"]["epochs"], save_seconds
        self.keep_epochs = keep_epochs
        self.lock = ExitStack()
        self.saved = time.monotonic()
        self.best: dict[str, Any] | None = None  # not on disk yet

    def __enter__(self) -> RunFiles:
        """Lock the run's names.

        Raises:
            ValueError: another process trains it.
            OSError: the folder can't be written.
        """
        self.ranks.from_writer(self._lock)
        return self

    def _lock(self) -> None:
        lock = locked(self.run.best, "name this one with --tag", doing="training this run")
        self.lock.enter_context(lock)
        remove_parts(self.run.best, numbered=EPOCH)  # of a killed run
        for path in (self.run.last, self.run.history):
            remove_parts(path)

    def __exit__(self, *error: object) -> None:
        self.lock.close()

    def saved_state(self, resume: bool, overwrite: bool) -> dict[str, Any] | None:
        """The state to go on from, None to begin; a run that is there is never lost unasked.

        Args:
            resume: go on with the run of these settings.
            overwrite: whatever is there is to be replaced.

        Raises:
            ValueError: the files hold another run, an unfinished one without ``resume``, or
                are damaged.
        """
        if overwrite:
            return None
        old = self.ranks.from_writer(lambda: self._find(resume))
        if old is None:
            return None
        self.content["record"] = old["record"]
        if self.ranks.writer:
            done = "is finished" if old["epoch"] == self.epochs else "goes on"
            print(f"{self.run.last}: {done}, {old['epoch']} of {self.epochs} epochs are done")
            if self.keep_epochs and old["resume"]["steps"]:
                self._say_missing(range(0, old["epoch"] + 1, self.keep_epochs))
        return old["resume"]

    def _say_missing(self, epochs: range) -> None:
        missing = sorted(set(epochs) - set(self.run.kept_epochs()))
        if missing:
            print(
                f"note: {len(missing)} of the epochs that --keep_epochs asks for are over and were "
                f"not kept: {', '.join(map(str, missing[:3]))}{' ...' if missing[3:] else ''}"
            )

    def _find(self, resume: bool) -> dict[str, Any] | None:
        """The last checkpoint, if it is there and of this run, and is to be gone on with."""
        last, settings = self.run.last, run_settings(self.content)
        old = checkpoint.load(last) if last.exists() else None
        if old is not None and not old.get("resume", {}).get("steps", 1):  # no step was made
            old = None if differing(run_settings(old), settings) else old  # nothing to lose
        if old is None:
            self._check_stateless(resume)
            return None
        best = checkpoint.load(self.run.best) if self.run.best.exists() else None
        refuse_other(last, run_settings(old), settings, "run", REMEDY, values=True)
        if resume:
            return self._whole(old, best)
        if old["epoch"] < self.epochs or (best and "test_confusion" not in best):
            raise ValueError(
                f"{last}: this run was stopped after {old['epoch']} of {self.epochs} epochs; "
                "add --resume to go on, or --overwrite to start anew"
            )
        return None

    def _whole(self, old: dict[str, Any], best: dict[str, Any] | None) -> dict[str, Any]:
        """``old``, if it is a state and its best epoch's weights are there."""
        if "resume" not in old:
            raise ValueError(
                f"{self.run.last}: holds no state to go on from; start anew with --overwrite"
            )
        if old["resume"]["best"] and (best is None or best.get("record") != old["record"]):
            raise ValueError(
                f"{self.run.best}: not there, or of another run than {self.run.last}, whose "
                "best epoch it held; restore it, or start anew with --overwrite"
            )
        return old

    def _check_stateless(self, resume: bool) -> None:
        """See that a best checkpoint or kept epochs may be replaced where there is no state."""
        for path in (self.run.best, *list(self.run.kept_epochs().values())[:1]):
            if not path.exists():
                continue
            old, settings = run_settings(checkpoint.load(path)), run_settings(self.content)
            refuse_other(path, old, settings, "run", REMEDY, values=True)
            if resume:
                raise ValueError(
                    f"{path}: holds no state to go on from; start anew with --overwrite"
                )
        if resume:
            print(f"note: {self.run.last} is not there; starting from the beginning")

    def begin(self, state: TrainingState) -> None:
        """Save the state before the first step, and replace epochs that an older run kept.

        The older run's epochs go when its state is gone, not before: a full disk leaves both.
        """
        self.save(state)
        self.ranks.from_writer(self._remove_kept)
        self.keep_epoch(0, {}, state.average.evaluated())

    def _remove_kept(self) -> None:
        for path in self.run.kept_epochs().values():
            path.unlink()

    def keep_epoch(self, epoch: int, metrics: dict[str, float], model: nn.Module) -> None:
        """Write the weights if they are of an epoch to keep; every process must call it.

        Raises:
            OSError: the disk is full or the folder can't be written.
        """
        if self.keep_epochs and epoch % self.keep_epochs == 0:
            weights = {"state_dict": model.state_dict(), "kept": True}
            content = {**self.content, "epoch": epoch, "metrics": metrics, **weights}
            self.ranks.from_writer(lambda: checkpoint.save(self.run.kept(epoch), content))

    def keep_best(
        self, epoch: int, metrics: dict[str, float], model: nn.Module, validated: Total
    ) -> None:
        """Remember the best epoch and its confusion on validation; ``save`` writes it."""
        weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.best = {**self.content, "epoch": epoch, "metrics": metrics, "state_dict": weights}
        self.best["val_confusion"] = validated.confusion.tolist()

    def due(self) -> bool:
        """Whether it is time to save again."""
        return time.monotonic() - self.saved >= self.save_seconds

    def save(self, state: TrainingState) -> None:
        """Write the best checkpoint, if there is a new one, and then the state.

        Raises:
            OSError: the disk is full or the folder can't be written; the old files stay.
        """
        content = {
            **self.content,
            "epoch": state.epoch,
            "metrics": state.metrics,
            "state_dict": state.average.evaluated().state_dict(),
            "resume": state.state_dict(),
        }
        self.save_best()
        self.ranks.from_writer(lambda: checkpoint.save(self.run.last, content))
        self.saved = time.monotonic()

    def save_best(self) -> None:
        """Write the best checkpoint if there is a new one; every process must call it."""
        best, self.best = self.best, None
        if best is not None:
            self.ranks.from_writer(lambda: checkpoint.save(self.run.best, best))

    def finish(self, model: nn.Module, test: Callable[[nn.Module], Total]) -> dict[str, Any]:
        """Test the best epoch's weights, once, and write the result into its checkpoint.

        ``model`` is left with those weights.
        """
        best = self.ranks.from_writer(lambda: checkpoint.load(self.run.best))
        checkpoint.load_weights(model, best, self.run.best)
        total = test(model)
        best["metrics"] |= total.metrics("test")
        best["test_confusion"] = total.confusion.tolist()
        self.ranks.from_writer(lambda: checkpoint.save(self.run.best, best))
        return best


def provenance(argv: list[str]) -> dict[str, str]:
    """What says where a result comes from: command, git commit, versions, machine and time."""
    return {
        "command": command(argv),
        "commit": checkpoint.commit(),
        **checkpoint.versions(),
        "processes": str(rank_and_world()[1]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def command(argv: list[str], *more: str) -> str:
    """The command line as one can type it again, with flags added."""
    added = [flag for flag in more if flag not in argv]
    if "--resume" in more:  # what excludes it was meant for the start
        argv = [flag for flag in argv if flag != "--overwrite"]
    return shlex.join([*launcher(), sys.argv[0], *argv, *added])
