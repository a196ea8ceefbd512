"""Whether a job of a study is done: its result is there, whole, and of just these settings."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loss_landscape.my_pyhessian.spectrum_file import read_spectrum, spectrum_paths
from loss_landscape.sharpness_measures.epoch_sharpness import epochs_path, read_edge, read_epochs
from loss_landscape.sharpness_measures.sharpness_file import read_sharpness, sharpness_path
from loss_landscape.surface_file import done, read_surface
from studies.plan import KEPT, TRAINING, Job, Plan
from studies.table import ALONG
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
    if job.kind == KEPT:
        there = all(path.is_file() for path in plan.kept_files(job).values())
        return there and result(args) is not None
    return _followed(plan, job, args) if job.kind == ALONG else _measured(plan, job, args)


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
    old, ours = content["train_args"], settings(args, args.precision)
    refuse_other(path, old, ours, "run", REMEDY, values=True)
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
    said = {**record["arguments"], "checkpoint_sha256": record["checkpoint_sha256"]}
    _refuse_other(plan, job, path, said, {**vars(args), "checkpoint_sha256": sha256})
    return True


def _followed(plan: Plan, job: Job, args: argparse.Namespace) -> bool:
    """Whether each kept epoch is measured, and the edge is known."""
    path, files = measure_file(job.kind, plan.run_of(job)), plan.kept_files(job)
    try:
        ours = {epoch: sha256_of(kept) for epoch, kept in files.items()}
        settings, rows = read_epochs(path)
        read_edge(path)
    except (OSError, ValueError):
        return False
    if not ours.keys() <= rows.keys():
        return False
    theirs = {epoch: rows[epoch]["checkpoint_sha256"] for epoch in ours}
    flags = [name for name in settings if name.startswith("--")]  # others say what it is of
    said = {name.removeprefix("--"): settings[name] for name in flags}
    said["checkpoint_sha256"] = theirs
    _refuse_other(plan, job, path, said, {**vars(args), "checkpoint_sha256": ours})
    return True


def _refuse_other(
    plan: Plan, job: Job, path: Path, said: Mapping[str, Any], args: Mapping[str, Any]
) -> None:
    """Refuse a measure of other weights, or with other arguments, than the study's."""
    asked, said = plain(args), plain(said)
    # What the table doesn't ask for and the file doesn't say is as a newer script has it.
    names = [k for k in asked if k in said or k in plan.measures[job.kind].flags]
    ours = {k: asked[k] for k in names if k != "measures"}
    theirs = {k: said.get(k) for k in ours}
    for each in (ours, theirs):  # without that flag it is the training's
        each["loss_name"] = each.get("loss_name") or TRAINING_LOSS
    refuse_other(path, theirs, ours, job.kind, REMEDY)


def measure_file(kind: str, run: Run) -> Path:
    """The file with which a measure of the run is complete."""
    if kind == "surface":
        return run.surface
    if kind == ALONG:
        return epochs_path(run.spectrum)
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


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as a file holds them, numbers, text and lists; folders left out."""
    without = {k: v for k, v in values.items() if not isinstance(v, Path)}
    return json.loads(json.dumps(without, default=str))
