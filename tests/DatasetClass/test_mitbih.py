"""The heartbeats as a data set: sources, splits, and the real records' counts."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import DatasetClass
from DatasetClass.patients import (
    DS1,
    DS2,
)


@pytest.mark.parametrize("label", [-1, 5, 2**60])
def test_a_cache_with_an_impossible_label_is_named(label: int, record: Path) -> None:
    folder = record.parents[1]
    DatasetClass.load("mitbih", folder)
    cache = next((folder / "cache").rglob("labels.npy"))
    np.load(cache, mmap_mode="r+")[0] = label
    with pytest.raises(ValueError, match=r"cache: damaged, a label out of range; remove it"):
        DatasetClass.load("mitbih", folder)
    shutil.rmtree(folder / "cache")
    DatasetClass.load("mitbih", folder)


def test_a_split_by_patient_needs_the_records(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs --source physionet"):
        DatasetClass.load("mitbih", data_dir, source="kaggle", split="inter_patient")
    with pytest.raises(ValueError, match="'half'"):
        DatasetClass.load("mitbih", data_dir, split="half")
    copies = {"100": 100, "101": 101, "201": 201, "202": 202, "208": 208, "102": 102}
    make_records(data_dir / "mitdb", tmp_path / "mitdb", list(copies))
    dataset = DatasetClass.load("mitbih", tmp_path, split="inter_patient")
    members = {
        part: dataset.record_of[getattr(dataset, part).indices].unique().tolist()
        for part in ("train", "val", "test")
    }
    assert members == {"train": [208], "val": [101], "test": [100, 202]}
    assert dataset.data_args["split"] == "inter_patient"
    assert "split by patient" in dataset.describe()


def make_records(source: Path, folder: Path, names: list[str]) -> None:
    """The fixture's record under other names."""
    folder.mkdir()
    for name in names:
        for file in source.glob("100.*"):
            raw = file.read_bytes()
            if file.suffix == ".hea":
                raw = raw.replace(b"100", name.encode())
            (folder / file.name.replace("100", name)).write_bytes(raw)
    (folder / "RECORDS").write_text("\n".join(names))


@pytest.mark.real
def test_real_class_counts_are_the_published_ones(real_records: Path) -> None:
    dataset = DatasetClass.load("mitbih", real_records)
    assert dataset.labels.bincount().tolist() == [90589, 2779, 7236, 803, 8039]
    assert (dataset.test.samples, dataset.train.samples + dataset.val.samples) == (21892, 87554)


@pytest.mark.real
def test_real_patients_are_apart_and_counts_are_de_chazals(real_records: Path) -> None:
    dataset = DatasetClass.load("mitbih", real_records, split="inter_patient")
    headers = {
        n: (real_records / "mitdb" / f"{n}.hea").read_text().splitlines()[3] for n in DS1 + DS2
    }
    people = {
        part: {headers[int(n)] for n in dataset.record_of[getattr(dataset, part).indices].unique()}
        for part in ("train", "val", "test")
    }
    assert headers[201] == headers[202]  # age, sex and recorders: one man
    assert not people["train"] & people["test"]
    assert not people["train"] & people["val"]
    assert not people["val"] & people["test"]
    counts = {p: dataset.labels[getattr(dataset, p).indices].bincount() for p in people}
    assert counts["val"].tolist() == [8008, 110, 591, 30, 2]  # all five classes
