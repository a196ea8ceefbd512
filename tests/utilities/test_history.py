"""Histories are written so that pandas reads them, and read with care."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from histories import write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from utilities import history
from utilities.history import COLUMNS, read_history, write_history

HEADER = "\t".join(COLUMNS)


def test_what_a_run_writes_is_read_by_us_and_by_pandas_alike(tmp_path: Path, capsys) -> None:
    rows = [{"train_loss": 1e-12, "val_loss": 0.1 + 0.2}, {"train_loss": 3e30, "val_acc": 100.0}]
    path = write(tmp_path / "a.dat", rows, rho=0.05, tag="", note="a: b\nc\rd")
    read, columns = read_history(path)
    assert read["rho"] == "0.05" and read["tag"] == "" and read["note"] == "a: b\\nc\\rd"
    table = pd.read_table(path, comment="#")
    assert list(table.columns) == list(columns) == list(COLUMNS)
    assert columns["epoch"] == [1, 2]
    assert columns["val_loss"] == [0.1 + 0.2, 0.0]  # every digit
    for name in COLUMNS:
        assert table[name].tolist() == pytest.approx(columns[name], rel=1e-14)


numbers = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    texts=st.dictionaries(st.from_regex(r"[a-z_]+", fullmatch=True), st.text(), max_size=4),
    table=st.lists(st.lists(numbers, min_size=8, max_size=8), min_size=1, max_size=3),
)
def test_whatever_is_written_is_read_back(texts, table, tmp_path: Path) -> None:
    path = tmp_path / "r.dat"
    rows = [dict(zip(COLUMNS, (k, *row), strict=True)) for k, row in enumerate(table, start=1)]
    write_history(path, texts, rows)
    read, columns = read_history(path)
    assert columns == {name: [float(row[name]) for row in rows] for name in COLUMNS}
    for name, text in texts.items():
        line = text.replace("\n", "\\n").replace("\r", "\\r")
        assert read[name] == line.encode("utf-8", "backslashreplace").decode().strip()


TOP = "# rho: 0.05\n"
ROW = "\t".join(["1", *"2" * (len(COLUMNS) - 1)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no table in it"),
        (TOP, "no table in it"),
        (f"{TOP}{HEADER}\n", "no epoch in it"),
        (f"{TOP}{HEADER}\n{ROW}", "row 3: cut short"),
        (f"{TOP}{HEADER}\n{ROW[:-4]}\n", f"row 3: {len(COLUMNS) - 2} cells, expected"),
        (f"{TOP}{HEADER}\n{ROW}\t1\n", f"row 3: {len(COLUMNS) + 1} cells, expected"),
        (f"{TOP}{HEADER}\n{ROW.replace('2', 'x', 1)}\n", "row 3, learning_rate: 'x' is not"),
        (f"{TOP}{HEADER}\n{ROW.replace('2', 'nan', 1)}\n", "row 3, learning_rate: 'nan' is not"),
        (f"{TOP}{HEADER}\n{ROW.replace('2', '1e999', 1)}\n", "row 3, learning_rate: '1e999'"),
        (f"{TOP}{HEADER}\n{ROW.replace('2', '1_0', 1)}\n", "row 3, learning_rate: '1_0'"),
        (f"{TOP}{HEADER}\n{ROW.replace('2', '٣', 1)}\n", "row 3, learning_rate"),
        (f"{TOP}{HEADER}\n{ROW}\n{ROW}\n", "row 4: epoch 1, expected 2"),  # doubled
        (f"{TOP}{HEADER}\n{ROW}\n\n", "row 4: 1 cells"),
        (f"{TOP}{ROW}\n", "row 2: no header"),
        (f"{TOP}epoch\tepoch\n1\t1\n", "row 2: no header"),
        (f"{TOP}\0\xff\n", "row 2: no header"),
        (f"{HEADER}\n{'9' * 400}\n", "row 2: 1 cells"),
    ],
)
def test_a_damaged_history_is_one_line_with_file_and_row(
    text: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.dat"
    path.write_bytes(text.encode())
    with pytest.raises(ValueError, match=r"bad\.dat") as error:
        read_history(path)
    assert message in str(error.value) and "\n" not in str(error.value)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damage_anywhere_is_found_or_harmless(data, tmp_path: Path) -> None:
    whole = (TOP + HEADER + "\n" + f"{ROW}\n").encode()
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    path = tmp_path / "f.dat"
    path.write_bytes(whole[:start] + data.draw(st.binary(max_size=40)) + whole[stop:])
    try:
        _, columns = read_history(path)
    except ValueError as error:  # and nothing else
        assert "f.dat" in str(error) and len(str(error).splitlines()) == 1
    else:
        assert all(np.isfinite(values).all() for values in columns.values())


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "big.dat"
    names = "\t".join(["epoch", *(f"c{i}" for i in range(999))])
    cells = "\t1" * 999
    path.write_text(f"{names}\n" + "".join(f"{i}{cells}\n" for i in range(1, 200)))
    assert history.MAX_CELLS == 1_000_000
    monkeypatch.setattr(history, "MAX_CELLS", 100_000)
    tracemalloc.start()
    with pytest.raises(ValueError, match="row 102: over 100,000 cells"):
        read_history(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 100_000  # so at most 100 MB for a million cells
    with path.open("r+b") as file:
        file.truncate(history.MAX_BYTES + 1)
    with pytest.raises(ValueError, match="over 16 MB"):
        read_history(path)
