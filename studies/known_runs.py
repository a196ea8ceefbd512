"""Runs that a table of runs has, so that a study goes on where their checkpoints aren't any more.

Such as on another machine: ``runs.csv`` of a report is all that is left of the runs before.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from studies.plan import Job, Plan, words
from studies.runs_file import MEASURED, NUMBERS, TrainedRun, read_runs
from studies.table import SCRIPTS
from utilities.cli import Parser

STAGE = {"trials": "trial", "runs": "run"}
SHARPNESS = "sharpness"
WHOLE = ("epochs", "best_epoch")
THREADS = re.compile(r"--threads=\d+")


def training_command(plan: Plan, job: Job, threads: int | None = None) -> str:
    """A training's command line without folders, by which a table knows it.

    Args:
        plan: the study's.
        job: the training.
        threads: that it had, if they may be others than the plan's.
    """
    command = shlex.join(["python", plan.study.script, *plan.command(job).flags])
    return THREADS.sub(f"--threads={threads}", command) if threads else command


def same_commands(one: str, other: str) -> bool:
    """Whether two command lines make the same result: only the number of threads may differ."""
    return THREADS.sub("", one) == THREADS.sub("", other)


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
        self.rows = {(run.stage, THREADS.sub("", run.command)): run for run in runs}

    def row(self, training: Job) -> TrainedRun | None:
        """The row of a training, if it has all that the study asks of it.

        A measure that has files of its own, such as a surface, needs the checkpoint.
        """
        command = THREADS.sub("", training_command(self.plan, training))
        row = self.rows.get((STAGE[training.stage], command))
        if row is None or not {self.plan.study.trials.select, "test_acc"} <= row.numbers.keys():
            return None
        kinds = [job.kind for job in self.plan.measures_of(training)]
        return row if all(self.measured(row, kind) for kind in kinds) else None

    def measured(self, row: TrainedRun, kind: str) -> bool:
        """Whether a row has what was measured, with the study's settings."""
        asked = sharpness_command(self.plan, row.checkpoint)
        return kind == SHARPNESS and bool(asked) and same_commands(row.sharpness_command, asked)

    def cells(self, row: TrainedRun) -> dict[str, Any]:
        """A row as it was read, to be written again.

        Without what was measured with other settings than the study's, which would stand among
        values of those.
        """
        numbers = {k: int(v) if k in WHOLE else v for k, v in row.numbers.items()}
        origin = {k: v for k, v in vars(row).items() if k != "numbers"}
        if not self.measured(row, SHARPNESS):
            numbers = {k: v for k, v in numbers.items() if k in NUMBERS and k not in MEASURED}
            origin["sharpness_command"] = ""
        return {**origin, **numbers}


def add_known_flag(parser: Parser) -> None:
    parser.add_argument(
        "--known",
        type=Path,
        metavar="CSV",
        help="a table of runs, such as studies/reports/gcn/runs.csv: what it has, made by the same "
        "command lines, counts as done",
    )
