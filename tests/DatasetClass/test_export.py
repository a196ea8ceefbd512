"""The export of heartbeats in Kaggle's layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import DatasetClass
from DatasetClass.__main__ import export
from utilities.files import locked


def test_an_export_over_one_file_writes_none(record: Path, tmp_path: Path) -> None:
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "mitbih_test.csv").write_text("Kaggle's")
    with pytest.raises(FileExistsError, match=r"mitbih_test\.csv: is there already"):
        export(["--data_dir", str(record.parents[1]), "--folder", str(tmp_path / "csv")])
    assert [path.name for path in (tmp_path / "csv").iterdir()] == ["mitbih_test.csv"]


def test_a_second_export_into_one_folder_stops_at_once(tmp_path: Path) -> None:
    """The training beats of one seed stood beside the test beats of another."""
    with (
        locked(tmp_path / "mitbih_train.csv", "wait"),
        pytest.raises(ValueError, match=r"mitbih_train\.csv: another process .* another --folder"),
    ):
        export(["--data_dir", str(tmp_path), "--folder", str(tmp_path), "--seed", "7"])
    assert not list(tmp_path.glob("*.csv"))


def test_exported_files_serve_like_the_records(record: Path, tmp_path: Path) -> None:
    flags = ["--data_dir", str(record.parents[1]), "--folder", str(tmp_path / "csv"), "--seed=3"]
    export(flags)
    files = [tmp_path / "csv" / f"mitbih_{part}.csv" for part in ("train", "test")]
    assert [file.name for file in files] == ["mitbih_train.csv", "mitbih_test.csv"]
    cut = DatasetClass.load("mitbih", record.parents[1], seed=3)
    read = DatasetClass.load("mitbih", tmp_path / "csv", seed=3)
    assert (cut.source, read.source) == ("physionet", "kaggle")
    for (beats, labels), (others, kinds) in zip(
        cut.fixed("test", 8), read.fixed("test", 8), strict=True
    ):
        assert torch.equal(beats, others)
        assert torch.equal(labels, kinds)
    assert [cut.train.samples, cut.val.samples] == [read.train.samples, read.val.samples]
