"""Runs that a table of runs has, so that a study goes on where their checkpoints aren't any more.

Such as on another machine: ``runs.csv`` of a report is all that is left of the runs before.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shlex
from functools import cached_property
from pathlib import Path
from typing import Any

from studies.finished import plain
from studies.plan import Command, Job, Plan, words
from studies.runs_file import MEASURED, NUMBERS, TrainedRun, flags_of, read_runs
from studies.table import SCRIPTS
from utilities.cli import Parser
from utilities.runs import OFF, identity

STAGE = {"trials": "trial", "runs": "run"}
SHARPNESS = "sharpness"
WHOLE = ("epochs", "best_epoch")
DIGITS = 16  # of a digest: enough for a table's few thousand runs
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


def settings_digest(args: argparse.Namespace) -> str:
    """Of all the settings that make a result this one, defaults of its script too.

    Those that are off are left out, so that a flag which a later version has changes nothing there.
    """
    settings = {k: v for k, v in identity(plain(vars(args))).items() if f"{v}" not in OFF}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:DIGITS]


class KnownRuns:
    """The rows of a table of runs, by what made them.

    Args:
        plan: the study's.
        path: of the table; None for no rows.
        whole: whether a row counts without what is still to be measured of its minimum, too: for
            a table or a report of what there is, not for what is to be done.

    Attributes:
        rows: by ``TrainedRun.identity``.
        by_command: the same by ``TrainedRun.command_identity``.
        outdated: identities of rows that are not taken, or not with their sharpness, because the
            study's command lines made them when the scripts had other defaults.

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
        self.rows = {run.identity: run for run in runs}
        self.by_command = {run.command_identity: run for run in runs}
        self.outdated: set[tuple[object, ...]] = set()

    def row(self, training: Job) -> TrainedRun | None:
        """The row of a training, if nothing is to be done for which its checkpoint is needed.

        A measure that has files of its own, such as a surface, needs it.
        """
        stage = STAGE[training.stage]
        written = self.by_command.get((stage, flags_of(training_command(self.plan, training))))
        if written is not None and not written.settings_digest:
            row: TrainedRun | None = written
        else:
            row = self.rows.get((stage, settings_digest(self.plan.args(training))))
            self.outdated |= {written.identity} if written and row is None else set()
        if row is None or not {self.plan.study.trials.select, "test_acc"} <= row.numbers.keys():
            return None
        kinds = [job.kind for job in self.plan.measures_of(training)]
        return row if self.whole or all(self.measured(row, kind) for kind in kinds) else None

    def measured(self, row: TrainedRun, kind: str) -> bool:
        """Whether a row has what was measured, with the study's settings."""
        asked = sharpness_command(self.plan, row.checkpoint)
        if kind != SHARPNESS or not asked or not row.sharpness_command:
            return False
        same = flags_of(row.sharpness_command) == flags_of(asked)
        if row.sharpness_settings_digest in ("", self.sharpness_digest):
            return same or bool(row.sharpness_settings_digest)
        self.outdated |= {row.identity} if same else set()
        return False

    @cached_property
    def sharpness_digest(self) -> str:
        """Of how the study measures sharpness, which it must do."""
        flags = words({"model_file": "any.pt", **self.plan.measures[SHARPNESS].flags})
        return settings_digest(Command(SCRIPTS[SHARPNESS], tuple(flags), ()).parse())

    def notes(self) -> list[str]:
        """What is to be known of the rows that were not taken, for people."""
        if not self.outdated:
            return []
        return [
            f"note: {len(self.outdated)} of the known runs are not taken, or not with their "
            "sharpness: the same command lines made them when the scripts had other defaults"
        ]

    def cells(self, row: TrainedRun) -> dict[str, Any]:
        """A row as it was read, to be written again.

        Without what was measured with other settings than the study's, which would stand among
        values of those.
        """
        numbers = {k: int(v) if k in WHOLE else v for k, v in row.numbers.items()}
        origin = {k: v for k, v in vars(row).items() if k != "numbers"}
        if self.measured(row, SHARPNESS):
            origin["sharpness_settings_digest"] = self.sharpness_digest
        else:
            numbers = {k: v for k, v in numbers.items() if k in NUMBERS and k not in MEASURED}
            origin |= {"sharpness_command": "", "sharpness_settings_digest": ""}
        return {**origin, **numbers}


def add_known_flag(parser: Parser) -> None:
    parser.add_argument(
        "--known",
        type=Path,
        metavar="CSV",
        help="a table of runs, such as studies/reports/gcn/runs.csv: what it has, of the same "
        "settings, counts as done",
    )
