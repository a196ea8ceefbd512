"""The table of runs is read whole or refused in one line."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from study_runs import SHARPNESS, rows, write

from studies.runs_file import read_runs, write_runs


def test_rows_are_read_with_their_types_and_gaps(tmp_path: Path) -> None:
    made = rows()
    made[0] |= {"fold": "", "test_f1": "", SHARPNESS: ""}
    write(tmp_path, made)
    first, second = read_runs(tmp_path / "runs.csv")[:2]
    assert (first.seed, first.fold, first.pair) == (1, None, (1, None))
    assert "test_f1" not in first.numbers and SHARPNESS not in first.numbers
    assert second.fold == 0 and second.numbers["epochs"] == 20
    assert second.numbers["test_acc"] == pytest.approx(made[1]["test_acc"])
    assert second.optimizer == "ADAM, twice the epochs" and second.base == "ADAM"


def test_a_table_may_say_on_what_was_trained(tmp_path: Path) -> None:
    """Those of older versions don't."""
    made = rows(["MUTAG"])
    write(tmp_path, made)
    assert {run.processor for run in read_runs(tmp_path / "runs.csv")} == {""}
    made[0] |= {"processor": "EPYC, at 2 GHz", "torch": "2.14", "threads": 2}
    write_runs(tmp_path / "runs.csv", made)
    first, second = read_runs(tmp_path / "runs.csv")[:2]
    assert (first.processor, first.torch, first.threads) == ("EPYC, at 2 GHz", "2.14", "2")
    assert second.processor == ""


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("test_acc", "nan", "row 2, test_acc: 'nan' is no finite number"),
        ("lambda_max", "inf", "row 2, lambda_max: 'inf' is no finite number"),
        ("test_acc", "101", "row 2, test_acc: '101' is no percentage"),
        ("seconds", "x" * 90, "row 2, seconds: 'xxx"),
        ("seed", "1.5", "row 2, seed: '1.5' is no whole number"),
        ("seed", "", "row 2, seed: '' is no whole number"),
        ("fold", "-1", "row 2, fold: '-1' is no whole number"),
        ("stage", "runs", "row 2, stage: 'runs' is none of trial, run"),
        ("data", " ", "row 2, data: ' ' is no name"),
        ("optimizer", "a\nb", "row 2, optimizer: 'a\\\\nb' is no name"),
        ("seed", "2", "rows 2 and 11 are of one and the same run"),
        ("study", "other", "runs of several studies"),
    ],
)
def test_a_cell_that_can_t_be_is_named(
    tmp_path: Path, column: str, value: str, message: str
) -> None:
    made = rows(["MUTAG"])
    made[0][column] = value
    write(tmp_path, made)
    with pytest.raises(ValueError, match=message):
        read_runs(tmp_path / "runs.csv")


def test_what_is_not_finite_is_left_empty(tmp_path: Path) -> None:
    """As of a training that diverged in its last step: the other rows can still be read."""
    made = rows(["MUTAG"])
    made[0] |= {"test_loss": math.nan, SHARPNESS: -math.inf}
    write_runs(tmp_path / "runs.csv", made)
    first, second = read_runs(tmp_path / "runs.csv")[:2]
    assert "test_loss" not in first.numbers and SHARPNESS not in first.numbers
    assert first.numbers["test_acc"] == pytest.approx(made[0]["test_acc"])
    assert SHARPNESS in second.numbers


def test_a_study_that_set_names_at_length_can_be_read(tmp_path: Path) -> None:
    """Its name is that of a folder, no longer than the system takes."""
    named = {"study": "small_" + "epochs1_" * 31}
    assert 60 < len(named["study"]) <= 255
    write_runs(tmp_path / "runs.csv", [{**row, **named} for row in rows(["MUTAG"])])
    assert read_runs(tmp_path / "runs.csv")[0].study == named["study"]


def test_trials_of_other_values_are_no_twins(tmp_path: Path) -> None:
    made = [{**row, "stage": "trial"} for row in rows(["MUTAG"])[:1] * 2]
    made[1]["chosen"] = "learning_rate=0.03"
    write(tmp_path, made)
    assert [run.stage for run in read_runs(tmp_path / "runs.csv")] == ["trial", "trial"]


def test_a_file_that_is_cut_or_another_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    with pytest.raises(FileNotFoundError, match="no such file; run the study"):
        read_runs(path)
    write(tmp_path, rows(["MUTAG"]))
    whole = path.read_text()
    header, _, rest = whole.partition("\n")
    lines = rest.splitlines()
    for text, message in (
        (whole[:-9], "last row is cut short"),
        ("", "no runs in it"),
        (f"{header}\n", "no runs in it"),
        (f"{header}\n{lines[0][:-50]}\n", "row 2: .* cells, expected"),
        (whole.replace("val_f1", "f1"), "the column 'val_f1' is missing"),
        (whole.replace("sharpness:", "flatness:"), "the column 'flatness:worst case' is unknown"),
        (whole.replace(header, f"{header},seed"), "the column 'seed' is twice"),
        (whole.replace("sharpness:worst case", "x" * 100), "is unknown"),
        (whole.replace("MUTAG", '"MUTAG'), "no CSV"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_runs(path)
    path.write_bytes(b"\xff\xfe\x00" * 9)
    with pytest.raises(ValueError, match="not text"):
        read_runs(path)
