"""Text tables of numbers, comma between columns, read with numpy; an error names file and row.

A byte order mark, line ends of any system, spaces around numbers, blank lines after the last row
and a last row without a line end are let pass.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np


def read_whole_numbers(
    path: Path, columns: int | None = None, positional: bool = True
) -> np.ndarray:
    """(rows, columns) int64; written as 1 or 1.0.

    Args:
        path: of the file.
        columns: how many there have to be, or None for any number.
        positional: as ``read_table`` takes it.

    Raises:
        ValueError: as ``read_table``; or a number that isn't whole.
    """
    table = read_table(path, positional)
    if not table.size:
        return np.empty((0, columns or 0), np.int64)
    if columns is not None and table.shape[1] != columns:
        raise ValueError(f"{path}: row 1: {table.shape[1]} columns, {columns} expected")
    broken = (np.abs(table) >= 2**53) | (table != np.floor(table))
    refuse_row(path, np.any(broken, axis=1), "{} is not a whole number", table)
    return table.astype(np.int64)


def read_table(path: Path, positional: bool = True) -> np.ndarray:
    """(rows, columns) float64, all finite.

    Args:
        path: of the file.
        positional: a row's number says what it is of, so that a blank line between rows is an
            error, and a table without rows too. Else blank lines are no rows.

    Raises:
        ValueError: a cell that is no finite number, or a row that is longer, shorter or missing.
    """
    try:
        with _open(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of an empty file, refused below
            rows = _rows(file, positional)
            table = np.loadtxt(rows, delimiter=",", ndmin=2, comments=None)
    except (ValueError, IndexError, OverflowError) as error:
        raise ValueError(f"{path}: {_first_bad_row(path, positional, error)}") from error
    if positional and not table.size:
        raise ValueError(f"{path}: empty; remove the folder, and the set is downloaded again")
    refuse_row(path, np.any(~np.isfinite(table), axis=1), "{} is not finite", table)
    return table


def refuse_row(path: Path, bad: np.ndarray, what: str, values: np.ndarray) -> None:
    """Raise for the first row that is ``bad`` (rows,); ``what`` may show its ``values``.

    Raises:
        ValueError: there is one; the message names its line in the file.
    """
    if bad.any():
        row = int(bad.argmax())
        shown = ", ".join(str(v) for v in np.atleast_1d(values[row])[:3])
        raise ValueError(f"{path}: row {_line(path, row)}: {what.format(shown)}")


def _open(path: Path) -> TextIO:
    return path.open(encoding="utf-8-sig", errors="replace")


def _rows(lines: Iterable[str], positional: bool) -> Iterator[str]:
    """The lines that aren't blank."""
    gap = False
    for line in lines:
        if line.isspace():
            gap = positional
        elif gap:
            raise ValueError("a blank line between rows")
        else:
            yield line


def _line(path: Path, row: int) -> int:
    """The line, from 1, of the table's ``row``, from 0: blank lines are no rows of the table."""
    with _open(path) as file:
        lines = (number for number, line in enumerate(file, start=1) if line.strip())
        return next(islice(lines, row, None))


def _first_bad_row(path: Path, positional: bool, error: Exception) -> str:
    """Look for the row that numpy stumbled over: its own count leaves out blank lines."""
    width, blank = 0, 0
    with _open(path) as file:
        for row, line in enumerate(file, start=1):
            if not line.strip():
                blank = blank or row
                continue
            if positional and blank:
                return f"row {blank}: blank, and rows follow; a row must be missing"
            cells = line.split(",")
            try:
                [float(cell.replace("_", "?")) for cell in cells]  # numpy takes no 1_000
            except ValueError:
                return f"row {row}: {line.strip()[:40]!r} is not a row of numbers"
            width = width or len(cells)
            if len(cells) != width:
                return f"row {row}: {len(cells)} columns, {width} in the rows before"
    return " ".join(str(error).split())[:120]
