"""The heartbeats as a data set: sources, splits, and the real records' counts."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import wfdb

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


def test_rr_intervals_follow_each_beat_and_leave_the_cache_of_the_beats(record: Path) -> None:
    folder = record.parents[1]
    samples = np.cumsum([144, *([288, 288, 216, 360] * 15)])  # at 360 Hz, the third comes early
    codes = np.array(["N", "N", "A", "V", "F"] * 13)[: len(samples)]
    wfdb.wrann("100", "atr", samples, codes, write_dir=str(record.parent))
    plain = DatasetClass.load("mitbih", folder)
    before = {path: path.stat().st_mtime_ns for path in (folder / "cache").rglob("*")}
    dataset = DatasetClass.load("mitbih", folder, rr_intervals=True)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert torch.equal(dataset.beats[:, :187], plain.beats)
    ratios = 1.25 ** dataset.beats[:, 187:].double()
    previous = torch.tensor([288, 288, 288, 216, *([360, 288, 288, 216] * 14)]) / 288
    torch.testing.assert_close(ratios[:, 0], previous.double(), rtol=1e-6, atol=0)
    assert torch.equal(dataset.beats[:-1, 188], dataset.beats[1:, 187])  # one's next, other's last
    inputs, labels = dataset.fetch(torch.tensor([3]))
    assert inputs.shape == (1, 191) and labels.tolist() == [2]
    assert dataset.model_args == {"length": 187, "num_classes": 5, "features": 4}
    assert dataset.data_args["rr_intervals"] and "with R-R intervals" in dataset.describe()
    again = DatasetClass.load("mitbih", folder, **dataset.data_args)
    assert torch.equal(again.beats, dataset.beats)


def test_beats_that_begin_earlier_have_a_cache_of_their_own(record: Path) -> None:
    folder = record.parents[1]
    plain = DatasetClass.load("mitbih", folder)
    earlier = DatasetClass.load("mitbih", folder, before=0.2)
    assert (earlier.beats[:, 25] > 0.9).all() and (plain.beats[:, 0] > 0.9).all()
    caches = {path.name for path in (folder / "cache").iterdir()}
    assert caches == {"mitbih_physionet", "mitbih_physionet_before25"}
    higher = DatasetClass.load("mitbih", folder, before=0.2, scale="record")
    assert higher.beats.max() > 2 and "scaled by record" in higher.describe()
    assert higher.data_args["scale"] == "record"
    assert earlier.data_args["before"] == 0.2 and "0.2 s before the R peak" in earlier.describe()
    assert set(plain.data_args) == {"seed", "train_samples", "source", "split"}  # as ever


def test_what_kaggles_files_lack_is_refused_and_auto_takes_the_records(data_dir: Path) -> None:
    for asked in ({"rr_intervals": True}, {"before": 0.2}, {"scale": "record"}):
        flag = f"--{next(iter(asked))}"
        with pytest.raises(ValueError, match=f"Kaggle's files .*{flag}( record)? needs --source"):
            DatasetClass.load("mitbih", data_dir, source="kaggle", **asked)
        assert DatasetClass.load("mitbih", data_dir, **asked).source == "physionet"
    assert DatasetClass.load("mitbih", data_dir).source == "kaggle"
    with pytest.raises(ValueError, match="scale 'none' is none of beat, record"):
        DatasetClass.load("mitbih", data_dir, scale="none")
    for before in (-0.1, 0.6, float("nan")):
        with pytest.raises(ValueError, match=f"--before {before:g}: from 0 to 0.5 s"):
            DatasetClass.load("mitbih", data_dir, before=before)


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
