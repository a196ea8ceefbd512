"""The runs of a study as one CSV, a row a run: written whole, and read with care.

Cells of what was not measured, or isn't finite, are empty. Columns ``sharpness:<name>`` and
``sharpness_se:<name>`` are there for each measure that the study has.
"""

from __future__ import annotations

import csv
import io
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from utilities.files import atomic_write

WORDS = ("study", "stage", "data", "optimizer", "base", "seed", "fold", "chosen")
MEASURED = ("lambda_max", "lambda_5", "trace", "trace_standard_error")
NUMBERS = (
    *("epochs", "passes", "val_acc", "val_f1", "test_acc", "test_f1", "test_loss"),
    *("train_acc", "train_loss", "best_epoch", "seconds", *MEASURED),
)
ORIGIN = ("checkpoint", "sha256", "command", "sharpness_command")
COLUMNS = (*WORDS, *NUMBERS, *ORIGIN)
# What tables of older versions don't have: on what a run was trained, and what its settings were,
# defaults of the scripts too.
MACHINE = ("processor", "torch", "threads")
DIGESTS = ("settings_digest", "sharpness_settings_digest")
LATER = (*MACHINE, *DIGESTS)
LAMBDA_MAX_ERROR = "sharpness_se:lambda_max"  # its standard error over draws of samples
SHARPNESS = re.compile(r"sharpness(_se)?:[ -~]{1,60}", re.ASCII)
STAGES = ("trial", "run")
MAX_BYTES = 64 * 2**20
LONGEST = {"study": 255, "data": 60, "optimizer": 60}  # characters; a study names a folder
PERCENT = ("val_acc", "val_f1", "test_acc", "test_f1", "train_acc")


class NoRunsError(ValueError):
    """A table without a row, as of a study whose first run isn't finished."""


@dataclass(frozen=True)
class TrainedRun:
    """One row.

    Attributes:
        study, data, optimizer: names of the study's table.
        stage: "trial", by which a value was chosen, or "run", which is compared.
        base: the optimizer that it is compared to; "" for that one itself.
        seed: of the run.
        fold: of a cross-validation, or None.
        chosen: the tuned value, such as "rho=0.05".
        numbers: by column, those that were measured.
        checkpoint, sha256, command: where its weights lie, what they are, and what made them.
        sharpness_command: what measured their sharpness; "" if nothing did.
        processor, torch, threads: what it was trained on; "" where that was not recorded.
        settings_digest, sharpness_settings_digest: of all settings of the two commands, those that
            they leave to their script too; "" where that was not recorded.
    """

    study: str
    stage: str
    data: str
    optimizer: str
    base: str
    seed: int
    fold: int | None
    chosen: str
    numbers: dict[str, float]
    checkpoint: str
    sha256: str
    command: str
    sharpness_command: str
    processor: str = ""
    torch: str = ""
    threads: str = ""
    settings_digest: str = ""
    sharpness_settings_digest: str = ""

    @property
    def pair(self) -> tuple[int, int | None]:
        """Seed and fold: runs of two optimizers that agree in them are a pair."""
        return self.seed, self.fold

    @property
    def identity(self) -> tuple[object, ...]:
        """Two rows that agree in it are of the same run, whatever a study calls it."""
        return (self.stage, self.settings_digest) if self.settings_digest else self.command_identity

    @property
    def command_identity(self) -> tuple[object, ...]:
        """The same for rows that don't record it: the command line, whose defaults may change."""
        names = (self.data, self.optimizer, self.chosen, self.pair)
        return self.stage, flags_of(self.command) if self.command else names


def flags_of(command: str) -> frozenset[tuple[str, ...]]:
    """The flags of a command line with their values, in whatever order; --threads left out.

    Two that have the same ones make the same result, as long as the scripts have the same defaults.
    """
    try:
        words = shlex.split(command)
    except ValueError:  # of quotes, in a table that people have changed
        words = command.split()
    starts = [i for i, word in enumerate(words) if word.startswith("--")]
    flags = (tuple(words[i:j]) for i, j in pairwise([*starts, len(words)]))
    script = tuple(words[: starts[0]] if starts else words)
    return frozenset([script, *(flag for flag in flags if not flag[0].startswith("--threads="))])


def write_runs(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows, by column; what a row has not is left empty.

    So is what isn't finite, as the test loss of a training that diverged in its last step, so that
    what is written can be read. Measures of sharpness that any of them has are columns.

    Raises:
        OSError: it can't be written.
    """
    measures = dict.fromkeys(n for row in rows for n in row if n not in (*COLUMNS, *LATER))
    text = io.StringIO(newline="")
    header = [*WORDS, *NUMBERS, *measures, *ORIGIN, *LATER]
    writer = csv.DictWriter(text, header, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        infinite = {k for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)}
        writer.writerow({**row, **dict.fromkeys(infinite, "")})
    with atomic_write(path) as part:
        part.write_text(text.getvalue(), encoding="utf-8")


def read_runs(path: Path) -> list[TrainedRun]:
    """Read the CSV.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another header, a row that is cut short, or a cell that can't be; the message
            names file, row and column. A NoRunsError if there is no row.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; run the study first, which writes it")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: over {MAX_BYTES >> 20} MB, so no table of a study's runs")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not text, so no table of runs") from error
    if text and not text.endswith("\n"):
        raise ValueError(f"{path}: its last row is cut short; let the study write it again")
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}: no CSV ({error}); let the study write it again") from error
    if len(rows) < 2:
        raise NoRunsError(f"{path}: no runs in it yet; run the study, or wait for its first")
    header = rows[0]
    _check_header(path, header)
    runs = [_run(f"{path}, row {n}", header, row) for n, row in enumerate(rows[1:], start=2)]
    _refuse_twins(path, runs)
    return runs


def _check_header(path: Path, header: list[str]) -> None:
    missing = [name for name in COLUMNS if name not in header]
    known = (*COLUMNS, *LATER)
    unknown = [name for name in header if name not in known and not SHARPNESS.fullmatch(name)]
    twice = [name for name in header if header.count(name) > 1]
    for names, problem in ((missing, "is missing"), (unknown, "is unknown"), (twice, "is twice")):
        if names:
            raise ValueError(f"{path}: the column {names[0][:60]!r} {problem} in its header")


def _run(where: str, header: list[str], row: list[str]) -> TrainedRun:
    if len(row) != len(header):
        raise ValueError(f"{where}: {len(row)} cells, expected {len(header)}; was it cut short?")
    cells = dict(zip(header, row, strict=True))
    names = [name for name in header if name not in (*WORDS, *ORIGIN, *LATER)]
    numbers = {name: _number(where, name, cells[name]) for name in names if cells[name]}
    for name, longest in LONGEST.items():
        if not cells[name].isprintable() or not cells[name].strip() or len(cells[name]) > longest:
            raise ValueError(f"{where}, {name}: {cells[name][:60]!r} is no name")
    if cells["stage"] not in STAGES:
        raise ValueError(f"{where}, stage: {cells['stage'][:60]!r} is none of {', '.join(STAGES)}")
    fold = _whole(where, "fold", cells["fold"]) if cells["fold"] else None
    own = [name for name in (*WORDS, *ORIGIN) if name not in ("seed", "fold")]
    return TrainedRun(
        **{name: cells[name] for name in own},
        **{name: cells.get(name, "") for name in LATER},
        seed=_whole(where, "seed", cells["seed"]),
        fold=fold,
        numbers=numbers,
    )


def _whole(where: str, name: str, cell: str) -> int:
    if not re.fullmatch(r"\d{1,18}", cell, re.ASCII):
        raise ValueError(f"{where}, {name}: {cell[:60]!r} is no whole number")
    return int(cell)


def _number(where: str, name: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(
            f"{where}, {name}: {cell[:60]!r} is no finite number; a cell of what was not measured "
            "is empty"
        )
    if name in PERCENT and not 0 <= value <= 100:
        raise ValueError(f"{where}, {name}: {cell[:60]!r} is no percentage from 0 to 100")
    return value


def _refuse_twins(path: Path, runs: list[TrainedRun]) -> None:
    seen: dict[tuple[object, ...], int] = {}
    for number, run in enumerate(runs, start=2):
        value = run.chosen if run.stage == "trial" else ""
        key = (run.study, run.stage, run.data, run.optimizer, run.pair, value)
        if key in seen:
            raise ValueError(f"{path}: rows {seen[key]} and {number} are of one and the same run")
        seen[key] = number
    if len({run.study for run in runs}) > 1:
        raise ValueError(f"{path}: runs of several studies; a report is of one")
