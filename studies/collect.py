"""A study's finished trainings as one table, ``runs.csv``, from which its report can be made again.

A row a training, trial or run, with what was measured of its minimum. Where the study measures
sharpness, eigenvalues and trace are those measured there, of every minimum on as many samples; else
those of the spectra. What was not measured is left empty.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from loss_landscape.my_pyhessian.spectrum_file import lambda_max_error
from studies.finished import measure_file, read_measure, result
from studies.known_runs import (
    SHARPNESS,
    STAGE,
    KnownRuns,
    settings_digest,
    sharpness_command,
    training_command,
)
from studies.plan import TRAINING, Job, Plan
from studies.progression import Progression
from studies.runs_file import LAMBDA_MAX_ERROR
from studies.table import Study
from trainings.optimizers import RHO
from utilities import checkpoint
from utilities.files import ROOT, sha256_of
from utilities.history import read_history
from utilities.runs import Run

KINDS = (SHARPNESS, "spectrum")
CURVATURE = {
    "lambda_max": ("lambda_max", LAMBDA_MAX_ERROR),
    "trace": ("trace", "trace_standard_error"),
}
METRICS = ("val_acc", "val_f1", "test_acc", "test_f1", "test_loss", "train_acc", "train_loss")
RUNS_FILE = "runs.csv"
Row = dict[str, Any]


def rows(study: Study, out_dir: Path, known: Path | None = None) -> list[Row]:
    """A row for each finished training of a study, in the study's order.

    Says which known rows were not taken.

    Args:
        study: its table.
        out_dir: folder of its results.
        known: a table of runs, of those that aren't there.

    Raises:
        FileNotFoundError, ValueError: see ``KnownRuns``; or a finished result has other settings
            than the study's.
    """
    plan = Plan(study, out_dir, ROOT / "data")
    state = Progression(plan, list(plan.jobs()), KnownRuns(plan, known, whole=True))
    state.look()
    print("".join(f"{note}\n" for note in state.known.notes()), end="")
    return collected(state)


def collected(state: Progression) -> list[Row]:
    """The same of a study that has been looked at."""
    trainings = (state.valued(job) for job in state.plan.jobs() if job.kind == TRAINING)
    return [row(state, job) for job in trainings if job in state.done]


def row(state: Progression, job: Job) -> Row:
    """What there is of one finished training, under the names that the study has now."""
    study = state.plan.study
    assert job.value is not None, job
    names = {
        "study": study.name,
        "stage": STAGE[job.stage],
        "data": job.data,
        "optimizer": job.optimizer,
        "base": "" if job.optimizer == study.base else study.base,
        "seed": job.seed,
        "fold": "" if job.fold is None else job.fold,
        "chosen": f"{study.optimizer(job.optimizer).tuned}={job.value:g}",
        "settings_digest": settings_digest(state.plan.args(job)),
    }
    known = state.from_table.get(job)
    return {**(_trained(state, job) if known is None else state.known.cells(known)), **names}


def _trained(state: Progression, job: Job) -> Row:
    """What the files of a training hold."""
    plan = state.plan
    args, content = plan.args(job), result(plan.args(job))
    assert content is not None, job
    best, origin = args.run.best, checkpoint.origin(content)
    file = best.relative_to(plan.out_dir).as_posix()
    measure = replace(job, stage="measures", kind=SHARPNESS)
    sharpness = ("", "")
    if measure in state.done:
        sharpness = sharpness_command(plan, file), state.known.sharpness_digest
    metrics = {name: content["metrics"].get(name, "") for name in METRICS}
    return {
        "epochs": args.epochs,
        "passes": round(args.epochs * passes_a_step(args), 6),
        **metrics,
        "best_epoch": content["epoch"],
        "seconds": seconds(args.run),
        **measured(state, job),
        "checkpoint": file,
        "sha256": sha256_of(best),
        "command": training_command(plan, job, content["train_args"].get("threads")),
        "processor": origin.get("processor", ""),
        "torch": origin.get("torch", ""),
        "threads": content["train_args"].get("threads") or "",
        "sharpness_command": sharpness[0],
        "sharpness_settings_digest": sharpness[1],
    }


def passes_a_step(args: argparse.Namespace) -> float:
    """Forward and backward passes that a step makes in the mean, those of the ascent with it."""
    if args.optimizer not in RHO or not args.rho or args.msam:
        return 1.0
    return 1.0 + (1.0 - args.sam_start) * args.ascent_fraction / args.every


def seconds(run: Run) -> float | str:
    """How long the run's epochs took together; "" where its history is not there."""
    try:
        return round(sum(read_history(run.history)[1]["seconds"]), 3)
    except (OSError, ValueError, KeyError):
        return ""


def measured(state: Progression, job: Job) -> Row:
    """Curvature and sharpness of a run's minimum, as far as they were measured."""
    sharpness, spectrum = (
        _record(state, replace(job, stage="measures", kind=kind)) for kind in KINDS
    )
    if "sharpness" not in state.plan.measures:
        return _of_spectrum(spectrum) if spectrum else {}
    found: Row = {}
    for name, measure in sharpness.get("measures", {}).items():
        columns = CURVATURE.get(name, (f"sharpness:{name}", f"sharpness_se:{name}"))
        values = (measure["value"], measure["standard_error"])
        found |= {k: v for k, v in zip(columns, values, strict=False) if v is not None}
    ratio = found.get("sharpness:lambda_max_over_lambda_5")
    if ratio and "lambda_max" in found:
        found["lambda_5"] = found["lambda_max"] / ratio
    return found


def _of_spectrum(record: dict[str, Any]) -> Row:
    largest, error = sorted(record["eigenvalues"], reverse=True), lambda_max_error(record)
    known = {} if error is None else {LAMBDA_MAX_ERROR: error}
    return {
        **known,
        "lambda_max": record["lambda_max"],
        "lambda_5": largest[4] if len(largest) > 4 else "",
        "trace": record["trace"],
        "trace_standard_error": record["trace_standard_error"] or "",
    }


def _record(state: Progression, job: Job) -> dict[str, Any]:
    if job not in state.done:
        return {}
    record = read_measure(job.kind, measure_file(job.kind, state.plan.run_of(job)))
    return record or {}
