"""Kaggle's files: reading, harmless forms, damage by row, writing."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from DatasetClass.raw import kaggle
from DatasetClass.raw.kaggle import read_kaggle, write_kaggle


def damage_columns(text: str) -> str:
    return "\n".join(line.rsplit(",", 1)[0] for line in text.splitlines())


def replace_row(row: int, change: Callable[[list[str]], list[str]]) -> Callable[[str], str]:
    def damage(text: str) -> str:
        lines = text.splitlines()
        lines[row - 1] = ",".join(change(lines[row - 1].split(",")))
        return "\n".join(lines)

    return damage


def first_cell(cell: str, row: int = 3) -> Callable[[str], str]:
    return replace_row(row, lambda cells: [cell, *cells[1:]])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_columns, "row 1: 187 columns"),
        (lambda text: damage_columns(damage_columns(text)), "row 1: 186 columns"),
        (replace_row(3, lambda cells: [*cells, "1"]), "row 3: 189 columns"),
        (replace_row(3, lambda cells: cells[1:]), "row 3: 187 columns"),
        (replace_row(2, lambda cells: []), "row 2: 1 columns"),
        (first_cell("abc"), "row 3, column 1: 'abc' is no number"),
        (first_cell("=1+1"), "row 3, column 1: '=1\\+1' is no number"),
        (first_cell("@SUM(A1)"), "row 3, column 1: '@SUM"),
        (first_cell('"0.5"'), "row 3, column 1"),
        (first_cell("1_0"), "row 3, column 1"),
        (first_cell("\x1b[2J"), r"row 3, column 1: '\\x1b"),
        (first_cell(""), "row 3, column 1: '' is no number"),
        (first_cell("nan", 4), "row 4, column 1: 'nan' is missing or not finite"),
        (first_cell("1e39", 4), "row 4, column 1: '1e39' is missing or not finite"),
        (replace_row(5, lambda cells: [*cells[:-1], "7"]), "row 5, column 188: label 7"),
        (replace_row(5, lambda cells: [*cells[:-1], "0.5"]), "row 5, column 188: label 0.5"),
        (lambda text: ",".join(map(str, range(188))) + "\n" + text, "row 1.*no header"),
        (lambda text: ",".join(["x"] * 188) + "\n" + text, "row 1.*no header"),
        (lambda text: text[: len(text) // 3 + 7], "row"),
        (lambda text: text.replace("\n", ";"), "row 1"),
        (lambda text: "\0" * 50000, "row 1"),
        (lambda text: "", "empty"),
    ],
)
def test_damaged_kaggle_files_are_named(
    damage: Callable[[str], str],
    message: str,
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kaggle, "BLOCK", 2)  # so that the bad row lies in a later block
    text = (data_dir / "mitbih_train.csv").read_text()
    path = tmp_path / "mitbih_train.csv"
    path.write_text(damage(text))
    with pytest.raises(ValueError, match=message) as error:
        read_kaggle(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


@settings(max_examples=60, deadline=None)
@given(at=st.floats(0, 1), patch=st.binary(max_size=6), cut=st.booleans())
def test_any_damaged_row_is_read_or_named(
    at: float, patch: bytes, cut: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "mitbih_test.csv"
    raw = (",".join(["0.25"] * 187) + ",1.0\n").encode() * 4
    start = round(at * len(raw))
    path.write_bytes(raw[:start] + patch + (b"" if cut else raw[start + len(patch) :]))
    try:
        beats, labels = read_kaggle(path)
    except ValueError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
    else:
        assert np.isfinite(beats).all() and set(labels.tolist()) <= set(range(5))


@pytest.mark.parametrize("block", [2, 40, 2048])  # the blank lines in blocks of their own, or not
@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw + b"\n",
        lambda raw: raw + b"\n\n\n \n\t\n   ",
        lambda raw: raw.replace(b"\n", b"\r\n") + b"\r\n\r\n",
        lambda raw: raw.rstrip(b"\n"),
        lambda raw: raw.rstrip(b"\n") + b"  ",
        lambda raw: raw.replace(b"\n", b"  \n"),
        lambda raw: raw.replace(b"\n", b"\t\n"),
        lambda raw: raw.replace(b",", b" , "),
        lambda raw: b"\xef\xbb\xbf" + raw.replace(b"\n", b"\r\n") + b"\r\n",
    ],
)
def test_what_editors_add_to_a_file_changes_nothing(
    change: Callable[[bytes], bytes],
    block: int,
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kind: white space that text editors and spreadsheets add, which says nothing."""
    monkeypatch.setattr(kaggle, "BLOCK", block)
    raw = (data_dir / "mitbih_test.csv").read_bytes()
    path = tmp_path / "mitbih_test.csv"
    path.write_bytes(change(raw))
    for ours, expected in zip(
        read_kaggle(path), read_kaggle(data_dir / "mitbih_test.csv"), strict=True
    ):
        assert np.array_equal(ours, expected)


def test_a_blank_line_between_rows_is_an_error(data_dir: Path, tmp_path: Path) -> None:
    lines = (data_dir / "mitbih_test.csv").read_text().splitlines()
    path = tmp_path / "mitbih_test.csv"
    for blank in ("", "  "):
        path.write_text("\n".join([*lines[:5], blank, *lines[5:], "", ""]))
        with pytest.raises(ValueError, match="row 6: 1 columns"):
            read_kaggle(path)
    path.write_bytes(b"\xef\xbb\xbf")  # a byte order mark and no row
    with pytest.raises(ValueError, match="empty"):
        read_kaggle(path)


def test_byte_order_mark_and_crlf_are_read(data_dir: Path, tmp_path: Path) -> None:
    text = (data_dir / "mitbih_train.csv").read_text()
    path = tmp_path / "mitbih_train.csv"
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert np.array_equal(read_kaggle(path)[0], read_kaggle(data_dir / "mitbih_train.csv")[0])


def test_reading_agrees_with_numpy(data_dir: Path) -> None:
    path = data_dir / "mitbih_test.csv"
    table = np.loadtxt(path, delimiter=",")
    beats, labels = read_kaggle(path)
    np.testing.assert_array_equal(beats, table[:, :187].astype(np.float32))
    assert labels.tolist() == table[:, 187].tolist()


def test_what_is_written_is_read_bit_by_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    beats = rng.random((300, 187), dtype=np.float32)
    beats[0, :5] = np.float32([0, 1, 1e-38, 1e-7, 1 / 3])
    labels = np.arange(300) % 5
    path = tmp_path / "mitbih_train.csv"
    write_kaggle(path, beats, labels)
    again, kinds = read_kaggle(path)
    assert np.array_equal(again, beats)
    assert np.array_equal(kinds, labels)
    with pytest.raises(FileExistsError, match="move it first"):
        write_kaggle(path, beats, labels)


def test_reading_takes_the_beats_and_one_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kaggle, "BLOCK", 100)
    path = tmp_path / "mitbih_train.csv"
    row = ",".join(["1.000000000000000000e+00"] * 187) + ",0.000000000000000000e+00\n"
    path.write_text(row * 3000)
    read_kaggle(path)  # imports pandas
    tracemalloc.start()
    beats, _ = read_kaggle(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < beats.nbytes + 20 * 100 * len(row) < path.stat().st_size


def test_line_ends_alone_take_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "mitbih_train.csv"
    path.write_bytes(b"\n" * 10**6)  # as rows they would be 756 MB
    tracemalloc.start()
    with pytest.raises(ValueError, match="row 1: 1 columns"):
        read_kaggle(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
