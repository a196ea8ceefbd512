"""The files of a run: locked while it lasts, never another run's, saved so that it can go on."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
from torch import nn

from trainings.state import TrainingState
from utilities import checkpoint
from utilities.files import remove_parts
from utilities.history import MACHINE
from utilities.metrics import Total
from utilities.ranks import Ranks, launcher, place

DESCRIPTION = ("model", "model_args", "dataset", "data_args", "train_args")


class RunFiles:
    """The checkpoints of one run, as a context that holds their lock.

    ``args.last`` holds the last state, from which ``--resume`` goes on, and is a checkpoint too;
    ``args.best`` the best epoch's weights. Both are saved together, the best one first, so that a
    kill between the two leaves a state from which the best is found again. A state is saved before
    the first step too: from then on no older run's is there to be taken for this one's.

    Args:
        args: the command line, with ``best``, ``last`` and ``history``.
        content: what both checkpoints hold, all but epoch, metrics and weights.
    """

    def __init__(self, args: argparse.Namespace, content: dict[str, Any], ranks: Ranks) -> None:
        self.args, self.content, self.ranks = args, content, ranks
        self.lock = filelock.FileLock(args.best.with_name(f".{args.best.stem}.lock"))
        self.saved = time.monotonic()
        self.best: dict[str, Any] | None = None  # not on disk yet

    def __enter__(self) -> RunFiles:
        """Lock the run's names.

        Raises:
            ValueError: another process trains it.
            OSError: the folder can't be written.
        """
        self.ranks.agree(self._lock)
        return self

    def _lock(self) -> None:
        self.args.best.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise ValueError(
                f"{self.args.best}: another process is training this run now; wait for it, or "
                "name this one with --tag"
            ) from error
        for path in (self.args.best, self.args.last, self.args.history):
            remove_parts(path)  # of a killed run

    def __exit__(self, *error: object) -> None:
        self.lock.release()

    def resume(self, state: TrainingState) -> None:
        """Put the saved run of these settings into ``state``, if ``--resume`` asks for it.

        Raises:
            ValueError: the files hold another run, an unfinished one without ``--resume``, or
                are damaged.
            OSError: the disk is full or the folder can't be written; the old files stay.
        """
        old = self.ranks.agree(self._find)
        if old is None:
            self.save(state)
            return
        self.content["record"] = old["record"]
        state.load_state_dict(old["resume"])
        if self.ranks.writer:
            done = "is finished" if state.epoch == self.args.epochs else "goes on"
            print(f"{self.args.last}: {done}, {state.epoch} of {self.args.epochs} epochs are done")

    def _find(self) -> dict[str, Any] | None:
        args = self.args
        if args.overwrite:
            return None
        old = checkpoint.load(args.last) if args.last.exists() else None
        if old and not old.get("resume", {}).get("steps", 1) and differing(old, self.content):
            old = None  # of another run that made no step: nothing to lose
        best = checkpoint.load(args.best) if args.best.exists() else None
        if old is None:
            self._check_stateless(best)
            return None
        refuse_other_run(args.last, old, self.content)
        if args.resume:
            return self._whole(old, best)
        if old["epoch"] < args.epochs or (best and "test_confusion" not in best):
            raise ValueError(
                f"{args.last}: this run was stopped after {old['epoch']} of {args.epochs} epochs; "
                "add --resume to go on, or --overwrite to start anew"
            )
        return None

    def _whole(self, old: dict[str, Any], best: dict[str, Any] | None) -> dict[str, Any]:
        """``old``, if it is a state and its best epoch's weights are there."""
        if "resume" not in old:
            raise ValueError(
                f"{self.args.last}: holds no state to go on from; start anew with --overwrite"
            )
        if old["resume"]["best"] and (best is None or best.get("record") != old["record"]):
            raise ValueError(
                f"{self.args.best}: not there, or of another run than {self.args.last}, whose "
                "best epoch it held; restore it, or start anew with --overwrite"
            )
        return old

    def _check_stateless(self, best: dict[str, Any] | None) -> None:
        if best is not None:
            refuse_other_run(self.args.best, best, self.content)
        if best is not None and self.args.resume:
            raise ValueError(
                f"{self.args.best}: holds no state to go on from; start anew with --overwrite"
            )
        if self.args.resume:
            print(f"note: {self.args.last} is not there; starting from the beginning")

    def keep_best(self, epoch: int, metrics: dict[str, float], model: nn.Module) -> None:
        """Remember the best epoch; ``save`` writes it."""
        weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.best = {**self.content, "epoch": epoch, "metrics": metrics, "state_dict": weights}

    def due(self) -> bool:
        """Whether it is time to save again."""
        return time.monotonic() - self.saved >= self.args.save_seconds

    def save(self, state: TrainingState) -> None:
        """Write the best checkpoint, if there is a new one, and then the state.

        Raises:
            OSError: the disk is full or the folder can't be written; the old files stay.
        """
        weights = state.average.evaluated().state_dict()
        own = {"epoch": state.epoch, "metrics": state.metrics, "state_dict": weights}
        content = {**self.content, **own, "resume": state.state_dict()}
        self.save_best()
        self.ranks.agree(lambda: checkpoint.save(self.args.last, content))
        self.saved = time.monotonic()

    def save_best(self) -> None:
        """Write the best checkpoint if there is a new one; every process must call it."""
        best, self.best = self.best, None
        if best is not None:
            self.ranks.agree(lambda: checkpoint.save(self.args.best, best))

    def finish(self, model: nn.Module, test: Callable[[nn.Module], Total]) -> dict[str, Any]:
        """Test the best epoch's weights, once, and write the result into its checkpoint.

        ``model`` is left with those weights.
        """
        best = self.ranks.agree(lambda: checkpoint.load(self.args.best))
        checkpoint.load_weights(model, best, self.args.best)
        total = test(model)
        best["metrics"] |= total.metrics("test")
        best["test_confusion"] = total.confusion.tolist()
        self.ranks.agree(lambda: checkpoint.save(self.args.best, best))
        return best


def refuse_other_run(path: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Stop before a run with other settings is overwritten or gone on with.

    Raises:
        ValueError: lists the flags that differ.
    """
    flags = ", ".join(f"--{key} {value}" for key, value in differing(old, new)[:4])
    if flags:
        raise ValueError(
            f"{path}: holds another run, with {flags}; name this one with --tag, "
            "or replace that with --overwrite"
        )


def differing(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Any]]:
    """The settings in which two checkpoints' runs differ, with the old one's values."""
    before, now = ({**c["train_args"], **{k: c[k] for k in DESCRIPTION[:-1]}} for c in (old, new))
    keys = [key for key in {**before, **now} if key not in MACHINE]
    return [(key, before.get(key)) for key in keys if before.get(key) != now.get(key)]


def record(argv: list[str]) -> dict[str, str]:
    """What says where a result comes from: command, git commit, versions, machine and time."""
    return {
        "command": command(argv),
        "commit": checkpoint.commit(),
        **checkpoint.versions(),
        "processes": str(place()[1]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def command(argv: list[str], *more: str) -> str:
    """The command line as one can type it again, with flags added."""
    added = [flag for flag in more if flag not in argv]
    if "--resume" in more:  # what excludes it was meant for the start
        argv = [flag for flag in argv if flag != "--overwrite"]
    return shlex.join([*launcher(), sys.argv[0], *argv, *added])
