"""Whether a job of a study is done: its result is there, whole, and of just these settings."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loss_landscape.my_pyhessian.spectrum_file import read_spectrum, spectrum_paths
from loss_landscape.sharpness_file import read_sharpness, sharpness_path
from loss_landscape.surface_file import done, read_surface
from studies.plan import TRAINING, Job, Plan
from trainings.options import settings
from utilities import checkpoint
from utilities.files import sha256_of
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
    return _measured(plan, job, args)


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


def _measured(plan: Plan, job: Job, args: argparse.Namespace) -> bool:
    run = plan.run_of(job)
    path = measure_file(job.kind, run)
    try:
        sha256 = sha256_of(run.best)
        record = read_measure(job.kind, path)
    except (OSError, ValueError):
        return False
    if record is None or not set(getattr(args, "measures", ())) <= set(record.get("measures", ())):
        return False
    asked, known = _plain(vars(args)), record["arguments"]
    # What the table doesn't ask for and the file doesn't say is as a newer script has it.
    names = [k for k in asked if k in known or k in plan.measures[job.kind].flags]
    ours = {k: asked[k] for k in names if k != "measures"}
    theirs = {k: known.get(k) for k in ours}
    for each in (ours, theirs):  # without that flag it is the training's
        each["loss_name"] = each.get("loss_name") or TRAINING_LOSS
    ours["checkpoint_sha256"], theirs["checkpoint_sha256"] = sha256, record["checkpoint_sha256"]
    refuse_other(path, theirs, ours, job.kind, REMEDY)
    return True


def measure_file(kind: str, run: Run) -> Path:
    """The file with which a measure of the run's minimum is complete."""
    if kind == "surface":
        return run.surface
    return spectrum_paths(run.spectrum)[-1] if kind == "spectrum" else sharpness_path(run.spectrum)


def read_measure(kind: str, path: Path) -> dict[str, Any] | None:
    """A measure's record, with "checkpoint_sha256" and "arguments"; None if it isn't whole yet.

    Raises:
        OSError: not there.
        ValueError: damaged.
    """
    if kind == "spectrum":
        return read_spectrum(path).record
    if kind == "sharpness":
        return read_sharpness(path)
    record = dict(read_surface(path).attributes)
    return {**record, "arguments": json.loads(record["arguments"])} if done(path).all() else None


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as a file holds them; folders, which are no settings, left out."""
    without = {k: v for k, v in values.items() if not isinstance(v, Path)}
    return json.loads(json.dumps(without, default=str))
