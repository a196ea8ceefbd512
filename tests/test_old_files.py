"""Files that an older version wrote, with checkpoints of format 2, are still read and gone on with.

They are of a GCN of width 4, trained on MUTAG for one epoch with SAM.
"""

from __future__ import annotations

import hashlib
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import DatasetClass
import models
from loss_landscape import compare, plot_2D
from loss_landscape.my_pyhessian import density_plot
from loss_landscape.surface_file import read_directions, read_surface
from models.smooth_crossentropy import smooth_crossentropy
from trainings import my_train_GCN
from utilities import checkpoint
from utilities.history import read_history
from utilities.metrics import evaluate
from utilities.runs import Run

FILES = Path(__file__).parent / "old_files"
BEST = FILES / "to_plot" / "model_GCN_SAM_rho0.05.pt"
LAST = FILES / "to_plot" / "model_GCN_SAM_rho0.05_last.pt"


def test_a_checkpoint_names_the_files_beside_it_and_has_its_results(tmp_path: Path) -> None:
    content = checkpoint.load(BEST)
    assert content["format"] == 2 and content["task"] == content["model"] == "GCN"
    run = Run.from_checkpoint(content, FILES)
    assert (run.best, run.last) == (BEST, LAST)
    for path in (run.history, run.surface, run.spectrum.with_suffix(".json")):
        assert path.is_file()
    assert run.title == "GCN on MUTAG, SAM, rho 0.05"
    assert Run.from_checkpoint(checkpoint.load(LAST), FILES).is_state
    dataset = DatasetClass.load("MUTAG", tmp_path, **content["data_args"])
    model = models.build(content["model"], **content["model_args"])
    checkpoint.load_weights(model, content, BEST)
    loss = partial(smooth_crossentropy, smoothing=0.0)
    for split in ("val", "test"):
        total = evaluate(model, dataset.fixed(split, 64), loss, 2)
        for name, value in total.metrics(split).items():
            assert value == pytest.approx(content["metrics"][name], rel=1e-4)


def test_a_history_has_its_run_and_its_rows() -> None:
    settings, columns = read_history(FILES / "outputs" / "my_train_GCN_SAM_0.05.dat")
    assert settings["optimizer"] == "SAM" and settings["hidden_channels"] == "4"
    metrics = checkpoint.load(BEST)["metrics"]
    for name in ("train_loss", "train_f1", "val_loss", "val_acc"):
        assert columns[name] == [metrics[name]]


def test_a_surface_has_its_values_and_directions_and_is_drawn(tmp_path: Path) -> None:
    path = BEST.with_suffix(".h5")
    surface = read_surface(path)
    assert surface.x.tolist() == [-1, 0, 1] and surface.values["train_loss"].shape == (3, 3)
    assert surface.values["train_loss"][1, 1] == pytest.approx(0.6757, abs=1e-4)
    assert np.isfinite(surface.values["train_acc"]).all()
    weights = list(checkpoint.load(BEST)["state_dict"].values())
    for direction in read_directions(path):
        assert sorted(d.shape for d in direction) == sorted(w.shape for w in weights)
    assert all(picture.is_file() for picture in plot_2D.draw(path, "train_loss", tmp_path))


def test_a_spectrum_is_read_drawn_and_compared(tmp_path: Path) -> None:
    stem = FILES / "Eigenvalues" / "GCN_SAM"
    spectrum = density_plot.read_spectrum(stem)
    assert spectrum.nodes.shape == spectrum.weights.shape == (2, 3)
    assert spectrum.record["checkpoint_sha256"] == hashlib.sha256(BEST.read_bytes()).hexdigest()
    assert spectrum.record["lambda_max"] == pytest.approx(spectrum.nodes.max())
    assert density_plot.main(["--spectrum", str(stem), "--out_dir", str(tmp_path)]).is_file()
    flags = ["--model_files", str(BEST), "--out_dir", str(FILES)]
    assert compare.main([*flags, "--output", str(tmp_path / "both.png")]).is_file()


def test_a_state_is_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(FILES, tmp_path, dirs_exist_ok=True)
    flags = ["--optimizer=SAM", "--hidden_channels=4", "--epochs=1", "--device=cpu", "--resume"]
    folders = [f"--data_dir={tmp_path}", f"--out_dir={tmp_path}", "--threads=1"]
    with pytest.raises(ValueError, match=r"another run, with --learning_rate 0\.01"):
        my_train_GCN.main([*flags, *folders, "--learning_rate=0.02"])
    metrics = my_train_GCN.main([*flags, *folders])
    assert "is finished, 1 of 1 epochs are done" in capsys.readouterr().out
    assert metrics == pytest.approx(checkpoint.load(BEST)["metrics"], rel=1e-4)
    weights = [
        checkpoint.load(path)["state_dict"] for path in (BEST, tmp_path / "to_plot" / BEST.name)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
