"""The description of the data through its real command line, and what the pictures show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import networkx as nx
import numpy as np
import pytest
import torch
from matplotlib.image import imread

import DatasetClass
from DatasetClass.__main__ import main
from DatasetClass.describe.command import class_names, counts
from DatasetClass.describe.graph_pictures import _label_columns, layout
from DatasetClass.describe.panels import choose
from DatasetClass.describe.pictures import picture_samples
from DatasetClass.describe.sources import SOURCES, source_of
from DatasetClass.mitbih import MitBih
from DatasetClass.raw.cifar_official import OFFICIAL
from DatasetClass.TUD import CLASS_NAMES
from utilities.cli import run
from utilities.files import ROOT


def table(out: str) -> dict[str, list[str]]:
    """The rows below "class", by the name they begin with."""
    rows = out.split("share\n")[1].split("\nfiles written")[0].splitlines()
    return {row.split("  ")[0]: row.replace(",", "").split()[-6:-2] for row in rows}


@pytest.mark.parametrize(
    ("name", "rows", "licence"),
    [
        ("cifar10", {"airplane": ["18", "2", "4", "24"]}, "none stated"),
        ("mitbih", {"N normal": ["18", "2", "8", "28"]}, "Open Data Commons"),
        ("TINY", {"class 0": ["14", "2", "4", "20"]}, "none stated"),
    ],
)
def test_a_data_set_is_described_and_drawn(name, rows, licence, data_dir, tmp_path, capsys) -> None:
    main(["describe", "--dataset", name, "--data_dir", str(data_dir), "--out_dir", str(tmp_path)])
    out = capsys.readouterr().out
    printed = table(out)
    dataset = DatasetClass.load(name, data_dir)
    assert len(printed) == dataset.num_classes + 1
    assert printed["all"][-1] == str(len(dataset.labels))
    for label, row in rows.items():
        assert printed[label] == row
    assert f"licence  {licence}" in out
    picture = tmp_path / "plots" / f"data_{name}.png"
    assert str(picture) in out
    assert list(picture.parent.iterdir()) == [picture]
    pixels = imread(picture)[..., :3]
    assert pixels.shape[0] > 300 and pixels.shape[1] > 300
    assert pixels.std() > 0.05  # not blank


def test_the_printed_command_works(data_dir, tmp_path) -> None:
    folders = ["--data_dir", str(data_dir), "--out_dir", str(tmp_path)]
    command = [sys.executable, "-m", "DatasetClass", "describe", "--dataset", "cifar10", *folders]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"files written:\n  {tmp_path / 'plots' / 'data_cifar10.png'}\n")


def test_flags_of_the_data_set_reach_it_and_name_the_picture(data_dir, tmp_path, capsys) -> None:
    folders = ["--data_dir", str(data_dir), "--out_dir", str(tmp_path)]
    main(["describe", "--dataset", "cifar10", *folders, "--seed", "3", "--train_samples=50"])
    assert table(capsys.readouterr().out)["all"] == ["50", "20", "40", "110"]
    assert (tmp_path / "plots" / "data_cifar10_seed3_train_samples50.png").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--dataset", "cifar10", "--fold", "1"), "--fold: cifar10 takes no such flag"),
        (("--dataset", "cifar10", "--colour", "red"), "unrecognized arguments: --colour red"),
        (("--dataset", "TINY", "--train_samples", "-5"), "--train_samples: '-5' is not"),
        (("--dataset", "TINY", "--train_samples", "many"), "--train_samples: 'many' is not"),
        (("--dataset", "TINY", "--fold", "1.5"), "--fold: '1.5' is not"),
        (("--dataset", "TINY", "--fold", "10"), "--fold 10: with --folds 10 it goes from 0 to 9"),
        (("--dataset", "mitbih", "--source", "nowhere"), "source 'nowhere'"),
        (("--dataset", "../up"), "not a name of TUDataset"),
        ((), "--dataset"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    flags, message, data_dir, tmp_path, monkeypatch, capsys
) -> None:
    folders = ("--data_dir", str(data_dir), "--out_dir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["DatasetClass", "describe", *folders, *flags])
    with pytest.raises(SystemExit) as stop:
        run(main)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_help_and_an_unknown_command(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "describe --dataset mitbih" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["delete"])
    assert stop.value.code == 2
    assert "invalid choice" in capsys.readouterr().err


def test_rr_intervals_are_not_drawn_as_a_part_of_the_beat(data_dir: Path) -> None:
    dataset = DatasetClass.load("mitbih", data_dir, rr_intervals=True)
    figure = picture_samples(dataset, dataset.class_names, 0)
    lines = [line for axes in figure.axes for line in axes.get_lines()]
    assert lines and max(line.get_xdata().max() for line in lines if len(line.get_xdata())) < 1.496


def test_counts_add_up_to_the_labels(data_dir: Path) -> None:
    dataset = DatasetClass.load("mitbih", data_dir)
    together = np.array(counts(dataset)).sum(axis=0)
    assert together.tolist() == dataset.labels.bincount().tolist()


@pytest.mark.parametrize("name", SOURCES)
def test_a_name_for_each_class(name: str) -> None:
    classes = {"cifar10": 10, "cifar100": 100, "mitbih": 5, "MUTAG": 2, "PROTEINS": 2}[name]
    known = {"mitbih": MitBih.class_names, **CLASS_NAMES}
    names = known.get(name) or OFFICIAL[name].classes
    assert len(set(names)) == classes
    assert source_of(name).citation and source_of(name).licence


def test_classes_that_nobody_names_are_numbers_and_cifars_are_not(data_dir: Path) -> None:
    assert class_names(DatasetClass.load("TINY", data_dir)) == ("class 0", "class 1")
    cifar = DatasetClass.load("cifar10", data_dir)
    assert class_names(cifar) == cifar.class_names
    assert cifar.class_names[:2] == ("airplane", "automobile")  # what the log's tables show


def test_chosen_samples_are_training_samples_of_the_class(data_dir: Path) -> None:
    dataset = DatasetClass.load("cifar10", data_dir)
    chosen = choose(dataset, 7, 5, torch.Generator().manual_seed(1))
    assert len(chosen.unique()) == 5
    assert dataset.labels[chosen].tolist() == [7] * 5
    assert set(chosen.tolist()) <= set(dataset.train.indices.tolist())


def test_parts_of_a_graph_do_not_overlap() -> None:
    graph = nx.disjoint_union(nx.cycle_graph(6), nx.path_graph(3))
    graph.add_node(9)
    places = layout(graph)
    assert sorted(places) == list(range(10))
    spans = [[places[i][0] for i in part] for part in (range(6), range(6, 9), [9])]
    assert max(spans[0]) < min(spans[1]) and max(spans[1]) < min(spans[2])


@pytest.mark.real
def test_the_drawn_image_is_the_stored_one(real_data: Path) -> None:
    from DatasetClass.describe.pictures import _visible

    dataset = DatasetClass.load("cifar10", real_data)
    indices = dataset.train.indices[:100]
    stored = np.load(real_data / "cifar10.npz")["x_train"][indices.numpy()] / 255
    np.testing.assert_allclose(_visible(dataset.fetch(indices)[0]), stored, atol=1e-3)


def test_a_nodes_label_is_found_behind_attributes() -> None:
    attributes, labels = torch.rand(6, 2), torch.eye(3).repeat(2, 1)
    graph = SimpleNamespace(x=torch.cat([attributes, labels], dim=1))
    assert _label_columns([graph, graph]).tolist() == [2, 3, 4]
    assert _label_columns([SimpleNamespace(x=attributes)]).tolist() == []
