"""Read and write heartbeats as Kaggle has them (kaggle.com/datasets/shayanfazeli/heartbeat).

``mitbih_train.csv`` and ``mitbih_test.csv``: no header, 188 numbers a row, 187 samples from 0 to 1
and the class's number. Rows are read in blocks, so that a file of 390 MB takes no more memory than
its beats (65 MB) and one block. Cells are numbers or an error: nothing is ever evaluated.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from DatasetClass.raw.heartbeats import CLASSES, LENGTH, Beats
from DatasetClass.storage.arrays import Arrays
from DatasetClass.storage.cache import cached, fingerprint
from utilities.files import atomic_write
from utilities.progress import Progress

PARTS = ("train", "test")
VERSION = 1  # of the reading; it names the cache
COLUMNS = LENGTH + 1
BLOCK = 2048  # rows
ROW = 64 * COLUMNS  # bytes that a row may have; Kaggle's have about 25 a cell
SHORTEST = 2 * COLUMNS - 1  # bytes of a row of digits
LARGEST = float(np.finfo(np.float32).max)


def kaggle_files(data_dir: Path) -> list[Path]:
    """Where the two files belong."""
    return [data_dir / f"mitbih_{part}.csv" for part in PARTS]


def read_both(data_dir: Path) -> Arrays:
    """Both files as ``train_beats``, ``train_labels``, ``test_beats`` and ``test_labels``.

    Parsed once and from then on mapped from disk; errors are those of ``read_kaggle``.
    """
    files = kaggle_files(data_dir)

    def parse() -> Arrays:
        arrays = {}
        for part, file in zip(PARTS, files, strict=True):
            arrays[f"{part}_beats"], arrays[f"{part}_labels"] = read_kaggle(file)
        return arrays

    return cached(data_dir / "cache" / "mitbih_kaggle", fingerprint(files, VERSION), parse)


def read_kaggle(path: Path) -> Beats:
    """Read one file: beats (N, 187) float32 and labels (N,) int64.

    A byte order mark, Windows' line ends, spaces around numbers, blank lines after the last row
    and a last row without a line end are let pass. A blank line between rows is an error.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a wrong number of columns, text, NaN or a label other than 0 to 4, or no rows.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; --source physionet needs none")
    count, end = _extent(path)
    most = min(count, path.stat().st_size // SHORTEST)  # more can't be good: line ends are cheap
    beats = np.empty((most, LENGTH), dtype=np.float32)
    labels = np.empty(most, dtype=np.int64)
    done = 0
    with Progress(f"beats of {path}, read once", count) as progress:
        for lines in _blocks(path, end):
            table = _parse(lines)
            if table is None:
                raise ValueError(_explain(path, lines, done))
            stop = done + len(table)
            beats[done:stop], labels[done:stop] = table[:, :LENGTH], table[:, LENGTH]
            progress.update(len(table))
            done = stop
    if not done:
        raise ValueError(f"{path}: empty")
    return beats[:done], labels[:done]


def _extent(path: Path) -> tuple[int, int]:
    """The number of lines to the last that isn't blank, and the byte where it ends.

    Where all are blank they count, so that the first is named as the error that it is.
    """
    lines, size, count, end = 0, 0, 0, 0
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            if content := chunk.rstrip():
                count, end = lines + content.count(b"\n") + 1, size + len(content)
            lines, size = lines + chunk.count(b"\n"), size + len(chunk)
    return (count, end) if count else (lines, size)


def _blocks(path: Path, end: int) -> Iterator[list[bytes]]:
    """The lines up to the byte ``end``; of what is too long for a row no more than a piece."""
    with path.open("rb") as file:
        if file.read(3) != b"\xef\xbb\xbf":
            file.seek(0)
        while lines := [file.readline(ROW) for _ in range(BLOCK) if file.tell() < end]:
            yield lines


def _parse(lines: list[bytes]) -> np.ndarray | None:
    """(rows, 188) float32, or None where a row is wrong in any way."""
    import pandas as pd

    try:
        with np.errstate(over="ignore"):  # to infinity, which is looked for
            table = pd.read_csv(
                io.BytesIO(b"".join(lines)),
                header=None,
                dtype=np.float32,
                skip_blank_lines=False,
                quoting=csv.QUOTE_NONE,
            ).to_numpy()
    except (ValueError, OverflowError):  # pandas' own errors are ValueErrors
        return None
    good = table.shape == (len(lines), COLUMNS) and np.isfinite(table).all()
    return table if good and np.isin(table[:, LENGTH], range(len(CLASSES))).all() else None


def _explain(path: Path, lines: list[bytes], before: int) -> str:
    """What is wrong with the first bad row of a block; pandas doesn't say."""
    for row, line in enumerate(lines, start=before + 1):
        cells = line.decode(errors="replace").rstrip("\r\n").split(",")
        if len(cells) != COLUMNS:
            return f"{path}, row {row}: {len(cells)} columns, expected {COLUMNS}"
        for column, cell in enumerate(cells, start=1):
            if problem := _problem(cell, column == COLUMNS):
                hint = "; the file must have no header" if row == 1 else ""
                return f"{path}, row {row}, column {column}: {problem}{hint}"
    return f"{path}, rows {before + 1} to {before + len(lines)}: not rows of numbers"


def _problem(cell: str, label: bool) -> str:
    """What is wrong with one cell, or nothing."""
    try:
        number = float(cell)
    except ValueError:
        return f"{cell[:40]!a} is no number"
    if not abs(number) <= LARGEST:
        return f"{cell[:40]!a} is missing or not finite"
    if label and number not in range(len(CLASSES)):
        return f"label {number:g}, expected 0 to {len(CLASSES) - 1}"
    return f"{cell[:40]!a} is no plain number" if "_" in cell else ""


def refuse_existing(path: Path) -> None:
    """Raise FileExistsError if ``path`` is there."""
    if path.exists():
        raise FileExistsError(f"{path}: is there already, perhaps Kaggle's own; move it first")


def write_kaggle(path: Path, beats: np.ndarray, labels: np.ndarray) -> None:
    """Write beats (N, 187) float32 and labels (N,), whole or not at all; they are read bit by bit.

    Raises:
        FileExistsError: it is there: it may be Kaggle's own.
        OSError: it can't be written.
    """
    refuse_existing(path)
    with (
        Progress(f"beats written to {path}", len(beats)) as progress,
        atomic_write(path) as part,
        part.open("w", newline="\n") as file,
    ):
        for start in range(0, len(beats), BLOCK):
            block = slice(start, start + BLOCK)
            rows = np.column_stack([beats[block], labels[block]])
            np.savetxt(file, rows, fmt="%.8e", delimiter=",")  # 9 digits are a float32's all
            progress.update(len(rows))
