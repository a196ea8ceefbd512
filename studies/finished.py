"""Whether a job of a study is done: its result is there, whole, and of just these settings."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loss_landscape.surface_file import done, read_surface
from studies.plan import TRAINING, Job, Plan
from trainings.options import settings
from utilities import checkpoint
from utilities.runs import Run, refuse_other

TRAINING_LOSS = "smooth_crossentropy"
REMEDY = "give the study another --out_dir, or remove that file"


def finished(plan: Plan, job: Job) -> bool:
    """Whether the job's result is there.

    A damaged one counts as not there: its script says what is wrong with it.

    Raises:
        ValueError: a finished result of that name has other settings.
    """
    args = plan.args(job)
    if job.kind == TRAINING:
        return result(args) is not None
    return _measured(job.kind, plan.run_of(job), args)


def result(args: argparse.Namespace) -> dict[str, Any] | None:
    """The best checkpoint of the finished training that a command line asks for, if it is there.

    Raises:
        ValueError: it has other settings.
    """
    path = args.run.best
    try:
        content = checkpoint.load(path)
    except (OSError, ValueError):
        return None
    if "test_acc" not in content["metrics"]:
        return None  # stopped before its end; --resume goes on
    old = content["train_args"]
    # "auto" is what the machine that trained made of it.
    precision = old.get("precision") if args.precision == "auto" else args.precision
    refuse_other(path, old, settings(args, str(precision)), "run", REMEDY, values=True)
    return content


def _measured(kind: str, run: Run, args: argparse.Namespace) -> bool:
    path = measure_file(kind, run)
    try:
        sha256 = hashlib.sha256(run.best.read_bytes()).hexdigest()
        record = read_measure(kind, path)
    except (OSError, ValueError):
        return False
    if record is None:
        return False
    ours = {**_plain(vars(args)), "checkpoint_sha256": sha256}
    theirs = {**record["arguments"], "checkpoint_sha256": record["checkpoint_sha256"]}
    ours = {key: value for key, value in ours.items() if key in theirs}
    theirs = {key: value for key, value in theirs.items() if key in ours}
    for settings_of in (ours, theirs):  # without the flag it is the training's
        settings_of["loss_name"] = settings_of.get("loss_name") or TRAINING_LOSS
    refuse_other(path, theirs, ours, kind, REMEDY)
    return True


def measure_file(kind: str, run: Run) -> Path:
    """The file with which a measure of the run's minimum is complete."""
    if kind == "surface":
        return run.surface
    ending = ".json" if kind == "spectrum" else f"_{kind}.json"
    return run.spectrum.with_name(run.spectrum.name + ending)


def read_measure(kind: str, path: Path) -> dict[str, Any] | None:
    """A measure's record, with "checkpoint_sha256" and "arguments"; None if it isn't whole yet.

    Raises:
        OSError: not there.
        ValueError: damaged.
    """
    if kind == "surface":
        record = dict(read_surface(path).attributes) if done(path).all() else None
        if record is not None:
            record["arguments"] = json.loads(str(record.get("arguments", "")))
    else:
        record = json.loads(path.read_text("utf-8"))
    if record is None:
        return None
    kinds = (record.get("checkpoint_sha256"), record.get("arguments"))
    if not (isinstance(kinds[0], str) and isinstance(kinds[1], dict)):
        raise ValueError(f"{path}: says not what it was measured of; measure it again")
    return record


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as a file holds them; folders, which are no settings, left out."""
    without = {k: v for k, v in values.items() if not isinstance(v, Path)}
    return json.loads(json.dumps(without, default=str))
