"""plot_sharpness.py through its command line: rows, edges, pictures, and what is refused."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import own_things
import pytest
import torch
from matplotlib.figure import Figure

from loss_landscape import plot_sharpness
from loss_landscape.my_pyhessian import hessian
from loss_landscape.sharpness_measures.edges import sam_edge
from loss_landscape.sharpness_measures.epoch_sharpness import read_edge, read_epochs
from trainings import my_train_GCN
from utilities import checkpoint

PLAIN = ("--momentum=0", "--weight_decay=0", "--dropout=0", "--batch_size=100", "--optimizer")
COMMON = ("--dataset=TINY", "--hidden_channels=8", "--epochs=6", "--keep_epochs=2", "--threads=1")


@pytest.fixture(scope="module")
def run_dir(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of results: full-batch SGD, SAM on it, Adam, and a cosine schedule."""
    out = tmp_path_factory.mktemp("sharpness")
    where = ("--data_dir", str(data_dir), "--out_dir", str(out))
    for flags in (
        (*PLAIN, "SGD"),
        (*PLAIN, "SAM", "--base_optimizer=SGD"),
        ("--optimizer=ADAM",),
        (*PLAIN, "SGD", "--schedule=cosine", "--tag=cosine"),
    ):
        my_train_GCN.main([*COMMON, *flags, *where])
    return out


def kept(run_dir: Path, name: str) -> list[Path]:
    return sorted((run_dir / "to_plot").glob(f"model_GCN_{name}_epoch*.pt"))  # 0, 2, 4, 6


SGD, SAM, ADAM = "SGD_rho0.0_TINY", "SAM_rho0.05_TINY", "ADAM_rho0.0_TINY"


def rows_of(out: Path, name: str) -> dict[int, dict]:
    return read_epochs(out / "Eigenvalues" / f"{name}_sharpness_epochs.json")[1]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    figures: list[Figure] = []
    real = plot_sharpness.save_picture

    def save(figure: Figure, path: Path) -> Path:
        figures.append(figure)
        return real(figure, path)

    monkeypatch.setattr(plot_sharpness, "save_picture", save)
    return figures


def test_rows_are_what_each_checkpoint_has_and_edges_are_drawn(
    run_dir, data_dir, tmp_path: Path, capsys, drawn
) -> None:
    where = ["--data_dir", str(data_dir), "--out_dir", str(tmp_path), "--threads=1"]
    files = [*kept(run_dir, SGD), *kept(run_dir, SAM)]
    both = tmp_path / "both.png"
    plot_sharpness.main([*map(str, reversed(files)), "--output", str(both), *where])
    out = capsys.readouterr().out
    assert both.stat().st_size > 10_000 and "products with the Hessian for 4 epochs" in out
    rate = checkpoint.load(files[0])["train_args"]["learning_rate"]
    for name, files_of in (("GCN_SGD_TINY", SGD), ("GCN_SAM_TINY", SAM)):
        rows = rows_of(tmp_path, name)
        assert list(rows) == [0, 2, 4, 6]
        for file in kept(run_dir, files_of)[1::2]:
            epoch = checkpoint.load(file)["epoch"]
            spectrum = ["--model_file", str(file), "--top_n=3", "--probes=1", "--lanczos_steps=2"]
            hessian.main([*spectrum, "--trace_probes=2", *where])
        for epoch in (2, 6):
            path = tmp_path / "Eigenvalues" / f"{name}_epoch{epoch}.json"
            values = re.search(r'"eigenvalues": \[(.*?)\]', path.read_text(), re.DOTALL)
            largest = max(float(value) for value in values[1].split(","))
            assert rows[epoch]["lambda_max"] == pytest.approx(largest, rel=1e-3)
    axes = drawn[0].axes[0]
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert axes.lines[0].get_color() == axes.lines[1].get_color() != axes.lines[2].get_color()
    assert [line.get_linestyle() for line in axes.lines] == ["-", "--", "-", "--"]
    sam_rows = rows_of(tmp_path, "GCN_SAM_TINY")
    expected = [sam_edge(2 / rate, 0.05, row["gradient_norm"]) for row in sam_rows.values()]
    found = next(y for label, y in lines.items() if "SAM's" in label)
    assert list(found) == pytest.approx(expected)
    written = read_edge(tmp_path / "Eigenvalues" / "GCN_SAM_TINY_sharpness_epochs.json")
    assert list(written.values.values()) == list(found) and list(written.values) == [0, 2, 4, 6]
    assert written.formula == "SAM's, of 2 / lr and |g|" and not written.why
    plain = next(y for label, y in lines.items() if "edge of stability: 2 / lr" in label)
    assert list(plain) == pytest.approx([2 / rate] * 4)
    assert "GCN on TINY, SGD" in lines and not any("epoch" in label for label in lines)


def test_adam_has_no_edge_and_the_reason_is_said(
    run_dir, data_dir, tmp_path, capsys, drawn
) -> None:
    where = ["--data_dir", str(data_dir), "--out_dir", str(tmp_path), "--threads=1"]
    picture = plot_sharpness.main([*map(str, kept(run_dir, ADAM)), *where])
    assert picture == tmp_path / "plots" / "sharpness_GCN_ADAM_TINY.png" and picture.is_file()
    assert "note: Adam's edge is one of the Hessian preconditioned" in capsys.readouterr().out
    labels = [line.get_label() for line in drawn[0].axes[0].lines]
    assert len(labels) == 2 and labels[1].startswith("no edge: Adam's")


def test_a_schedule_moves_the_edge(run_dir, data_dir, tmp_path, capsys, drawn) -> None:
    files = kept(run_dir, "SGD_rho0.0_TINY_cosine")
    where = ["--data_dir", str(data_dir), "--threads=1"]
    plot_sharpness.main([*map(str, files), *where, "--out_dir", str(tmp_path)])
    edges = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]
    values = [float(line.split("|")[5]) for line in edges]
    rate = checkpoint.load(files[0])["train_args"]["learning_rate"]
    assert values[0] == pytest.approx(2 / rate, rel=1e-3)
    assert values == sorted(values) and values[-1] > 5 * values[0]
    assert "learning rate" not in drawn[0].axes[0].lines[1].get_label()
    # Weights that lie elsewhere, without their history.
    moved = [Path(shutil.copy(file, tmp_path)) for file in files]
    plot_sharpness.main([*map(str, moved), *where, "--out_dir", str(tmp_path)])
    assert "no edge without the learning rates" in capsys.readouterr().out
    label = drawn[1].axes[0].lines[1].get_label()
    assert label.startswith("no edge: ") and max(map(len, label.splitlines())) <= 60


def test_epochs_that_are_there_are_not_measured_again(
    run_dir, data_dir, tmp_path, monkeypatch, run_here
) -> None:
    where = ("--data_dir", data_dir, "--out_dir", tmp_path, "--threads=1")
    files = kept(run_dir, SGD)
    assert run_here(plot_sharpness.main, *files[:2], *where).returncode == 0
    done = run_here(plot_sharpness.main, *files, *where)
    assert "2 epochs are there already" in done.stdout
    whole = tmp_path / "whole"
    where_else = (*where[:3], whole, where[4])
    assert run_here(plot_sharpness.main, *files, *where_else).returncode == 0
    name = "GCN_SGD_TINY"
    assert rows_of(tmp_path, name) == rows_of(whole, name)  # bit for bit
    monkeypatch.setattr(plot_sharpness, "largest_eigenvalue", None)
    assert run_here(plot_sharpness.main, *files, *where).returncode == 0
    # One epoch that is drawn anew leaves the others' edges in the file.
    done = run_here(plot_sharpness.main, files[1], *where)
    assert "for 1 epochs" in done.stdout and done.returncode == 0
    path = tmp_path / "Eigenvalues" / f"{name}_sharpness_epochs.json"
    assert list(read_edge(path).values) == list(rows_of(tmp_path, name))
    done = run_here(plot_sharpness.main, *files, *where, "--tol=0.01")
    assert done.returncode == 2 and "differs in --tol" in done.stderr
    other = shutil.copy(files[3], tmp_path / "other.pt")
    content = checkpoint.load(other)
    content["state_dict"]["classifier.bias"] += 1
    checkpoint.save(other, content)
    done = run_here(plot_sharpness.main, *files[:3], other, *where)
    assert done.returncode == 2 and "other weights than those" in done.stderr


def test_a_users_own_state_dicts_have_a_curve_without_an_edge(
    tmp_path, monkeypatch, run_here
) -> None:
    files = []
    for epoch in (10, 2):
        torch.manual_seed(epoch)
        files.append(tmp_path / f"net_epoch{epoch}.pt")
        torch.save(own_things.perceptron().state_dict(), files[-1])
    monkeypatch.chdir(Path(own_things.__file__).parent)
    own = ("--model=own_things:perceptron", "--dataset=own_things:pairs", "--out_dir", tmp_path)
    done = run_here(plot_sharpness.main, *files, *own, "--threads=1")
    assert done.returncode == 0, done.stderr
    assert list(rows_of(tmp_path, "net")) == [2, 10]
    assert (tmp_path / "plots" / "sharpness_net.png").is_file()
    assert "doesn't say by which optimizer" in done.stdout
    torch.save(own_things.perceptron().state_dict(), tmp_path / "net.pt")
    done = run_here(plot_sharpness.main, *files, tmp_path / "net.pt", *own)
    assert done.returncode == 2 and "no number in its name" in done.stderr


def test_what_makes_no_curve_is_refused(run_dir, data_dir, tmp_path, run_here) -> None:
    where = ("--data_dir", data_dir, "--out_dir", tmp_path, "--threads=1")
    sgd, sam = kept(run_dir, SGD), kept(run_dir, SAM)
    copy = shutil.copy(sgd[0], tmp_path / "copy.pt")
    nan = tmp_path / "nan.pt"
    content = checkpoint.load(sgd[1])
    content["state_dict"]["classifier.bias"] *= float("nan")
    checkpoint.save(nan, content)
    for flags, message in (
        ([], "required: model_file"),
        ([sgd[0], sam[0]], "are of 2 runs; name their picture with --output"),
        ([sgd[0], copy], "of epoch 0, as"),
        ([tmp_path / "no.pt"], "no such checkpoint"),
        ([nan], "NaN"),
        ([sgd[0], "--output", "picture.txt"], "no picture's name"),
    ):
        done = run_here(plot_sharpness.main, *flags, *where)
        assert done.returncode == 2 and message in done.stderr, (flags, done.stderr)
        assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("Eigenvalues/*.json"))
