"""Runs that a table of runs has, so that a study goes on where their checkpoints aren't any more.

Such as on another machine: ``runs.csv`` of a report is all that is left of the runs before.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from studies.plan import Job, Plan, words
from studies.runs_file import MEASURED, NUMBERS, TrainedRun, flags_of, read_runs
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
        whole: whether a row counts without what is still to be measured of its minimum, too: for
            a table or a report of what there is, not for what is to be done.

    Raises:
        FileNotFoundError, ValueError: see ``read_runs``; or it is another study's.
    """

    def __init__(self, plan: Plan, path: Path | None, whole: bool = False) -> None:
        self.plan, self.whole = plan, whole
        runs = [] if path is None else read_runs(path)
        if runs and runs[0].study != plan.study.name:
            raise ValueError(
                f"{path}: runs of the study {runs[0].study!r}, not of {plan.study.name!r}"
            )
        self.rows = {(run.stage, flags_of(run.command)): run for run in runs}

    def row(self, training: Job) -> TrainedRun | None:
        """The row of a training, if nothing is to be done for which its checkpoint is needed.

        A measure that has files of its own, such as a surface, needs it.
        """
        flags = flags_of(training_command(self.plan, training))
        row = self.rows.get((STAGE[training.stage], flags))
        if row is None or not {self.plan.study.trials.select, "test_acc"} <= row.numbers.keys():
            return None
        kinds = [job.kind for job in self.plan.measures_of(training)]
        return row if self.whole or all(self.measured(row, kind) for kind in kinds) else None

    def measured(self, row: TrainedRun, kind: str) -> bool:
        """Whether a row has what was measured, with the study's settings."""
        asked = sharpness_command(self.plan, row.checkpoint)
        same = flags_of(row.sharpness_command) == flags_of(asked)
        return kind == SHARPNESS and bool(asked) and same

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
