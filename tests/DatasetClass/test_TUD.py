"""TUDataset: features, splits and folds, archives, and the real sets' known counts."""

from __future__ import annotations

import shutil
import stat
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_tudataset

import DatasetClass
from trainings.my_train_GCN import main
from utilities.cli import run


def test_graphs_without_labels_get_degrees_and_edgeless_ones_work(data_dir: Path) -> None:
    dataset = DatasetClass.load("TINY", data_dir)
    ring, path, single = dataset.graphs[0], dataset.graphs[1], dataset.graphs[-1]
    assert ring.x.argmax(dim=1).unique().tolist() == [2]
    assert path.x.argmax(dim=1).tolist() == [1, 2, 2, 2, 2, 1]
    assert single.num_nodes == 1
    assert single.x.argmax(dim=1).tolist() == [0]


def write_raw(data_dir: Path, name: str, **files: str) -> None:
    raw = data_dir / "TUDataset" / name / "raw"
    raw.mkdir(parents=True)
    for part, text in files.items():
        (raw / f"{name}_{part}.txt").write_text(text)


def test_very_high_degrees_become_one_number(tmp_path: Path) -> None:
    leaves = range(2, 1003)  # a star of 1,001 leaves, and nine single nodes
    write_raw(
        tmp_path,
        "STAR",
        A="".join(f"1,{i}\n{i},1\n" for i in leaves),
        graph_indicator="1\n" * 1002 + "".join(f"{i}\n" for i in range(2, 11)),
        graph_labels="1\n0\n" * 5,
    )
    star = DatasetClass.load("STAR", tmp_path, fold=0, folds=5).graphs[0]
    assert star.x.shape == (1002, 1)
    np.testing.assert_allclose(star.x[:2, 0], np.log([1002, 2]), rtol=1e-6)


def test_node_attributes_stand_before_the_labels(tmp_path: Path) -> None:
    write_raw(
        tmp_path,
        "BOTH",
        A="1,2\n2,1\n",
        graph_indicator="".join(f"{(i + 2) // 2}\n" for i in range(40)),
        graph_labels="3\n7\n" * 10,
        node_labels="5\n6\n" * 20,
        node_attributes="0.5, 2\n" * 40,
    )
    with_both = DatasetClass.load("BOTH", tmp_path, node_attributes=True)
    assert with_both.graphs[0].x.tolist() == [[0.5, 2, 1, 0], [0.5, 2, 0, 1]]
    assert DatasetClass.load("BOTH", tmp_path).graphs[0].x.tolist() == [[1, 0], [0, 1]]
    assert with_both.labels[:2].tolist() == [0, 1]


def test_mutag_needs_no_network(tmp_path: Path) -> None:
    dataset = DatasetClass.load("MUTAG", tmp_path)
    assert dataset.labels.bincount().tolist() == [63, 125]
    everything = dataset.graphs.batch(torch.arange(188))
    assert everything.num_nodes == 3371
    assert everything.edge_index.size(1) == 7442
    assert not list(tmp_path.rglob("*.pt"))


# --- folds ----------------------------------------------------------------------------------------
def test_data_args_rebuild_a_fold(data_dir: Path) -> None:
    one = DatasetClass.load("TINY", data_dir, fold=3, folds=4)
    two = DatasetClass.load("TINY", data_dir, **one.data_args)
    for part in ("train", "val", "test"):
        assert torch.equal(getattr(one, part).indices, getattr(two, part).indices)
    other = DatasetClass.load("TINY", data_dir, fold=2, folds=4)
    assert not set(one.test.indices.tolist()) & set(other.test.indices.tolist())
    assert one.describe().endswith("fold 3 of 0 to 3")


@pytest.mark.parametrize(
    ("fold", "folds", "message"),
    [
        (10, 10, "--fold 10: with --folds 10 it goes from 0 to 9"),
        (0, 1, "--folds 1"),
        (0, 99, "99"),
    ],
)
def test_impossible_folds_are_named(fold: int, folds: int, message: str, data_dir: Path) -> None:
    with pytest.raises(ValueError, match=message):
        DatasetClass.load("TINY", data_dir, fold=fold, folds=folds)


# --- names and archives ---------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["../MUTAG", "a/b", "", "MUTAG\n", "..", "C:x", "x" * 5 + "\0"])
def test_a_name_cannot_leave_the_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a name"):
        DatasetClass.load(name, tmp_path)


def put_archive(data_dir: Path, members: list[tuple[zipfile.ZipInfo | str, str]]) -> None:
    (data_dir / "TUDataset").mkdir()
    with zipfile.ZipFile(data_dir / "TUDataset" / "OWN.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in members:
            file.writestr(name, text)


def test_an_archive_put_there_by_hand_is_used(tmp_path: Path, data_dir: Path) -> None:
    make_tudataset(tmp_path / "made", "OWN")
    raw = tmp_path / "made" / "TUDataset" / "OWN" / "raw"
    put_archive(tmp_path, [(f"OWN/{path.name}", path.read_text()) for path in raw.iterdir()])
    dataset = DatasetClass.load("OWN", tmp_path)
    assert torch.equal(dataset.labels, DatasetClass.load("TINY", data_dir).labels)


def test_archives_that_climb_out_or_burst_are_refused(tmp_path: Path, monkeypatch) -> None:
    link = zipfile.ZipInfo("OWN/OWN_A.txt")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    monkeypatch.setattr("DatasetClass.TUD.UNPACKED_LIMIT", 10_000)
    for number, members in enumerate(
        [[("../OWN_A.txt", "1, 2\n")], [(link, "/etc/passwd")], [("OWN/OWN_A.txt", "1" * 10_001)]]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        put_archive(folder, members)
        with pytest.raises(ValueError, match=r"OWN\.zip: .*kept as OWN\.zip\.damaged"):
            DatasetClass.load("OWN", folder)
        assert [p.name for p in folder.rglob("*.txt")] == []
        assert not (folder / "TUDataset" / "OWN" / "raw").exists()
        assert (folder / "TUDataset" / "OWN.zip.damaged").is_file()
        assert not (folder / "TUDataset" / "OWN.zip").exists()
    assert [p.name for p in tmp_path.glob("*.txt")] == []


def test_damage_is_one_line_and_exit_code_2(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(data_dir / "TUDataset", tmp_path / "TUDataset")
    path = tmp_path / "TUDataset" / "TINY" / "raw" / "TINY_A.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:8], "7, oh", *lines[9:]]))
    folders = ["--data_dir", str(tmp_path), "--out_dir", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["my_train_GCN.py", "--dataset", "TINY", *folders])
    with pytest.raises(SystemExit) as stop:
        run(main)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1
    assert f"{path}: row 9: '7, oh' is not a row of numbers" in error
    assert not (tmp_path / "out").exists()


# --- the real sets --------------------------------------------------------------------------------
@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "counts", "features"),
    [
        ("MUTAG", [63, 125], 7),
        ("PROTEINS", [663, 450], 3),
        ("NCI1", [2053, 2057], 37),
        ("ENZYMES", [100] * 6, 3),
    ],
)
def test_real_class_counts(name: str, counts: list[int], features: int, real_data: Path) -> None:
    dataset = DatasetClass.load(name, real_data, fold=0)
    assert dataset.labels.bincount().tolist() == counts
    assert dataset.model_args == {"in_channels": features, "num_classes": len(counts)}
    assert "adjacency" in dataset.graphs.batch(torch.arange(2))  # an undirected set
    assert abs(dataset.test.samples - sum(counts) / 10) < 1
