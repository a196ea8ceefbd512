"""A run's history (``outputs/*.dat``): written whole or not at all, and read carefully.

It is a tab-separated table with a header, one row an epoch, below the run's settings as
``# key: value`` lines: ``pandas.read_table(path, comment="#")`` reads it.

A file that is read may come from a stranger or from a disk that filled up: whatever is wrong with
it is one ValueError that names file and row, and no file takes more than some 100 MB of memory.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from utilities.files import atomic_write

Settings = dict[str, str]
Columns = dict[str, list[float]]

COLUMNS = (
    "epoch",
    "learning_rate",
    "train_loss",
    "train_acc",
    "train_f1",
    "val_loss",
    "val_acc",
    "val_f1",
    "seconds",
)
MAX_BYTES = 16 * 2**20
MAX_CELLS = 1_000_000  # 100,000 epochs of what a run writes
NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", re.ASCII)


class NoEpochError(ValueError):
    """A history without a row: its run is in the first epoch, or was stopped there."""


def write_history(
    path: Path, settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Write a run's settings, and a row for each epoch, whose keys are ``COLUMNS``.

    Raises:
        OSError: it can't be written; an older file of that name stays as it was.
    """
    lines = [f"# {k}: {v}".replace("\n", "\\n").replace("\r", "\\r") for k, v in settings.items()]
    lines.append("\t".join(COLUMNS))
    lines += ["\t".join(str(row[name]) for name in COLUMNS) for row in rows]
    with atomic_write(path) as part:
        part.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace")


def read_history(path: str | os.PathLike[str]) -> tuple[Settings, Columns]:
    """Read the settings on top and the table below them.

    Returns:
        The ``# key: value`` lines as text, and each column's numbers, one an epoch.

    Raises:
        FileNotFoundError: no such file.
        ValueError: empty, cut short, damaged, or no history at all; names file and row.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such history; train first (docs/training.md)")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: over {MAX_BYTES >> 20} MB, so no history of a run")
    lines = _lines(path)
    settings: Settings = {}
    for number, line in lines:
        if not line.startswith("#"):
            names = line.split("\t")
            if names[0] != "epoch" or len(set(names)) != len(names) or "" in names:
                raise ValueError(
                    f"{path}, row {number}: no header; expected column names, epoch first, parted "
                    "by tabs"
                )
            return settings, _table(path, names, lines)
        key, _, value = line[1:].partition(":")
        settings[key.strip()] = value.strip()
    raise ValueError(f"{path}: no table in it; was the run stopped before it began?")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Rows from 1, with their numbers, as text without the line's end."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.endswith(b"\n"):
                raise ValueError(f"{path}, row {number}: cut short; restore the file or --resume")
            try:
                yield number, raw.decode("utf-8-sig").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, row {number}: not text, so no history") from error


def _table(path: Path, names: list[str], lines: Iterator[tuple[int, str]]) -> Columns:
    columns: Columns = {name: [] for name in names}
    cells = 0
    for number, line in lines:
        row = line.split("\t")
        cells += len(row)
        if len(row) != len(names):
            raise ValueError(f"{path}, row {number}: {len(row)} cells, expected {len(names)}")
        if cells > MAX_CELLS:
            raise ValueError(f"{path}, row {number}: over {MAX_CELLS:,} cells, so no history")
        for name, cell in zip(names, row, strict=True):
            columns[name].append(_number(f"{path}, row {number}, {name}", cell))
        if columns["epoch"][-1] != len(columns["epoch"]):
            raise ValueError(
                f"{path}, row {number}: epoch {row[0]}, expected {len(columns['epoch'])}"
            )
    if not cells:
        raise NoEpochError(f"{path}: no epoch in it; was the run stopped in its first?")
    return columns


def _number(where: str, cell: str) -> float:
    value = float(cell) if NUMBER.fullmatch(cell) else math.nan
    if not math.isfinite(value):
        shown = cell if len(cell) <= 20 else f"{cell[:20]}..."
        raise ValueError(f"{where}: {shown!r} is not a finite number")
    return value
