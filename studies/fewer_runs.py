"""A table of runs is replaced by one with fewer of them only where that was asked for.

Where checkpoints are gone, such a table is the only place that has the results of their runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from studies.runs_file import NoRunsError, TrainedRun, read_runs, write_runs
from utilities.cli import Parser
from utilities.files import atomic_write


def add_fewer_runs_flag(parser: Parser) -> None:
    parser.add_argument(
        "--fewer_runs",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="replace what has runs, values of them or pictures that the new files lack",
    )


def replace_runs(
    path: Path, rows: Sequence[Mapping[str, Any]], other: str, known: bool = False
) -> None:
    """Write the rows as ``write_runs`` does, unless results would be lost by that.

    Raises:
        OSError: it can't be written.
        ValueError: see ``refuse_fewer_runs``; the old table stays.
    """
    with atomic_write(path) as part:
        write_runs(part, rows)
        refuse_fewer_runs(path, read_runs(part) if rows else [], other, known)


def refuse_fewer_runs(
    path: Path, runs: Sequence[TrainedRun], other: str, known: bool = False
) -> None:
    """Stop before results are lost that nothing but a table of runs may have.

    Args:
        path: the table that is to be replaced; one that isn't there, or is empty, may be.
        runs: of the new one.
        other: the flag that another table's place is given by, such as "--output".
        known: whether ``--known`` is a remedy: it keeps runs whose checkpoints are gone, as long as
            the study still asks for them, but not values of runs whose checkpoints are there.

    Raises:
        ValueError: the old table has runs, or values of runs, that the new one lacks, or can't be
            read.
    """
    if not path.is_file():
        return
    try:
        before = read_runs(path)
    except NoRunsError:
        return
    except ValueError as error:
        raise ValueError(f"{error}; --fewer_runs replaces it, whatever it has") from error
    kept = {key: run.numbers.keys() for run in runs for key in (run.identity, run.command_identity)}
    lost = [run for run in before if not run.numbers.keys() <= kept.get(run.identity, set())]
    if lost:
        gone = [run for run in lost if run.identity not in kept]
        what = f"{len(gone)} of its {len(before)} runs and trials" if gone else "values of runs"
        first = (gone or lost)[0]
        fold = "" if first.fold is None else f", fold {first.fold}"
        keeps = f"--known {path} keeps those that the study has, " if known and gone else ""
        raise ValueError(
            f"{path}: {what} would be lost, such as of {first.data}, {first.optimizer}, "
            f"{first.stage} seed {first.seed}{fold}; {keeps}another {other} keeps them, "
            "--fewer_runs drops them"
        )
