"""Runs that a table of runs has, so that a study goes on where their checkpoints aren't any more.

Such as on another machine: ``runs.csv`` of a report is all that is left of the runs before.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from studies.plan import Job, Plan, words
from studies.runs_file import TrainedRun, read_runs
from studies.table import SCRIPTS
from utilities.cli import Parser

STAGE = {"trials": "trial", "runs": "run"}
SHARPNESS = "sharpness"
WHOLE = ("epochs", "best_epoch")


def training_command(plan: Plan, job: Job) -> str:
    """A training's command line without folders, by which a table knows it."""
    return shlex.join(["python", plan.study.script, *plan.command(job).flags])


def sharpness_command(plan: Plan, checkpoint: str) -> str:
    """The command line that measures a minimum's sharpness; "" if the study doesn't."""
    if SHARPNESS not in plan.measures:
        return ""
    flags = words({"model_file": checkpoint, **plan.measures[SHARPNESS].flags})
    return shlex.join(["python", SCRIPTS[SHARPNESS], *flags, f"--threads={plan.threads}"])


class KnownRuns:
    """The rows of a table of runs, by what made them.

    Args:
        plan: the study's.
        path: of the table; None for no rows.

    Raises:
        FileNotFoundError, ValueError: see ``read_runs``; or it is another study's.
    """

    def __init__(self, plan: Plan, path: Path | None) -> None:
        self.plan = plan
        runs = [] if path is None else read_runs(path)
        if runs and runs[0].study != plan.study.name:
            raise ValueError(
                f"{path}: runs of the study {runs[0].study!r}, not of {plan.study.name!r}"
            )
        self.rows = {(run.stage, run.command): run for run in runs}

    def row(self, training: Job) -> TrainedRun | None:
        """The row of a training, if it has all that the study asks of it.

        A measure that has files of its own, such as a surface, needs the checkpoint.
        """
        row = self.rows.get((STAGE[training.stage], training_command(self.plan, training)))
        kinds = [job.kind for job in self.plan.measures_of(training)]
        whole = row is not None and all(self.measured(row, kind) for kind in kinds)
        return row if whole else None

    def measured(self, row: TrainedRun, kind: str) -> bool:
        """Whether a row has what was measured, with the study's settings."""
        known = row.sharpness_command == sharpness_command(self.plan, row.checkpoint)
        return kind == SHARPNESS and known


def add_known_flag(parser: Parser) -> None:
    parser.add_argument(
        "--known",
        type=Path,
        metavar="CSV",
        help="a table of runs, such as studies/reports/gcn/runs.csv: what it has, made by the same "
        "command lines, counts as done",
    )


def as_row(run: TrainedRun) -> dict[str, Any]:
    """A row as it was read, to be written again."""
    numbers = {k: int(v) if k in WHOLE else v for k, v in run.numbers.items()}
    own = {k: v for k, v in vars(run).items() if k != "numbers"}
    return {**own, "fold": "" if run.fold is None else run.fold, **numbers}
