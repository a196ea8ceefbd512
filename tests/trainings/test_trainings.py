"""The training scripts through their real command lines."""

from __future__ import annotations

import ast
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import SMALL, Run, run_script

import DatasetClass
import models
from models.smooth_crossentropy import smooth_crossentropy
from trainings import my_train_cifar, my_train_mitbih, optimizers
from trainings.my_train_cifar import DEFAULTS as CIFAR
from trainings.my_train_GCN import DEFAULTS as GCN
from trainings.my_train_GCN import main as train_gcn
from trainings.my_train_mitbih import DEFAULTS as MITBIH
from utilities import checkpoint
from utilities.files import ROOT
from utilities.metrics import evaluate

TASKS = {"cifar": CIFAR, "mitbih": MITBIH, "GCN": GCN}
MAINS = {"cifar": my_train_cifar.main, "mitbih": my_train_mitbih.main, "GCN": train_gcn}


@pytest.mark.parametrize("name", TASKS)
def test_a_run_leaves_checkpoints_and_a_history(name: str, trained, data_dir: Path) -> None:
    path = trained[name]
    content = checkpoint.load(path)
    assert content["model"] == name
    assert content["train_args"]["optimizer"] == "SAM"
    suffix = "_TINY" if name == "GCN" else ""
    history = path.parents[1] / "outputs" / f"my_train_{name}_SAM_0.05{suffix}.dat"
    table = pd.read_table(history, comment="#")
    assert table["epoch"].tolist() == [1, 2]
    best = table.iloc[content["epoch"] - 1]
    assert best["val_loss"] == pytest.approx(content["metrics"]["val_loss"])
    assert "# optimizer: SAM\n" in history.read_text()
    assert checkpoint.load(path.with_name(f"{path.stem}_last.pt"))["epoch"] == 2


@pytest.mark.parametrize("name", TASKS)
def test_the_checkpoint_alone_rebuilds_its_metrics(name: str, trained, data_dir: Path) -> None:
    content = checkpoint.load(trained[name])
    dataset = DatasetClass.load(content["dataset"], data_dir, **content["data_args"])
    model = models.build(content["model"], **content["model_args"])
    checkpoint.load_weights(model, content, trained[name])
    smoothing = content["train_args"]["label_smoothing"]
    for split in ("val", "test"):
        batches = list(getattr(dataset, split))
        targets = torch.cat([target for _, target in batches])
        with torch.no_grad():
            logits = torch.cat([model.eval()(inputs) for inputs, _ in batches])
        losses = models.smooth_crossentropy.smooth_crossentropy(logits, targets, smoothing)
        right = logits.argmax(dim=1) == targets
        metrics = content["metrics"]
        assert metrics[f"{split}_loss"] == pytest.approx(float(losses.mean()), rel=1e-5)
        assert metrics[f"{split}_acc"] == pytest.approx(100 * float(right.float().mean()))
    assert sum(map(sum, content["test_confusion"])) == dataset.test.samples


def test_a_checkpoint_with_rr_intervals_rebuilds_data_and_model(
    data_dir: Path, tmp_path: Path
) -> None:
    flags = ["--rr_intervals", "--before=0.2", "--scale=record", "--epochs=1", "--threads=1"]
    folders = [f"--data_dir={data_dir}", f"--out_dir={tmp_path}"]
    my_train_mitbih.main([*flags, *map(str, SMALL["mitbih"]), *folders])
    path = tmp_path / "to_plot" / "model_mitbih_ADAM_rho0.0.pt"
    content = checkpoint.load(path)
    assert content["model_args"]["features"] == 4 and content["data_args"]["before"] == 0.2
    dataset = DatasetClass.load(content["dataset"], data_dir, **content["data_args"])
    model = models.build(content["model"], **content["model_args"])
    checkpoint.load_weights(model, content, path)
    loss = partial(smooth_crossentropy, smoothing=0.0)
    for split in ("val", "test"):
        total = evaluate(model, dataset.fixed(split, 64), loss, 5)
        assert total.metrics(split).items() <= content["metrics"].items()
        assert total.confusion.tolist() == content[f"{split}_confusion"]
    with pytest.raises(ValueError, match=r"another run, with --rr_intervals True"):
        my_train_mitbih.main([*flags[1:], *map(str, SMALL["mitbih"]), *folders])


def test_cifars_classes_are_reported_by_their_names(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--depth=10", "--width_factor=1", "--epochs=1", "--threads=1", "--train_samples=40"]
    my_train_cifar.main([*flags, f"--data_dir={data_dir}", f"--out_dir={tmp_path}"])
    lines = capsys.readouterr().out.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("class  "))
    names = [line.split()[0] for line in lines[at + 1 : at + 11]]
    assert names[0] == "airplane" and names[3] == "cat" and names[9] == "truck"


def test_sam_on_zero_rho_is_its_base_and_learning_happens(tmp_path: Path) -> None:
    common = ["--data_dir", str(tmp_path), "--epochs=12", "--threads=1", "--dropout=0"]
    plain = train_gcn([*common, "--out_dir", str(tmp_path / "a"), "--optimizer", "ADAM"])
    zero = train_gcn([*common, "--out_dir", str(tmp_path / "b"), "--optimizer=SAM", "--rho=0"])
    assert plain == zero
    table = pd.read_table(tmp_path / "a/outputs/my_train_GCN_ADAM_0.0.dat", comment="#")
    assert table["train_loss"].iloc[-1] < table["train_loss"].iloc[0]


def test_two_runs_with_one_seed_are_bitwise_equal(trained, data_dir: Path, tmp_path: Path) -> None:
    name = "GCN"
    common = ("--data_dir", data_dir, "--out_dir", tmp_path, "--epochs", 2, "--threads", 1)
    script = f"trainings/my_train_{name}.py"
    done = run_script(script, "--optimizer", "SAM", *SMALL[name], *common)
    assert done.returncode == 0, done.stderr
    ours = checkpoint.load(tmp_path / "to_plot" / trained[name].name)["state_dict"]
    theirs = checkpoint.load(trained[name])["state_dict"]
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_another_run_is_never_overwritten(tmp_path: Path) -> None:
    common = ["--data_dir", str(tmp_path), "--out_dir", str(tmp_path), "--threads", "1"]
    train_gcn([*common, "--epochs", "1"])
    train_gcn([*common, "--epochs", "1"])  # the same run again
    with pytest.raises(ValueError, match="--epochs 1; name this one with --tag"):
        train_gcn([*common, "--epochs", "2"])
    train_gcn([*common, "--epochs", "2", "--tag", "longer"])
    train_gcn([*common, "--epochs", "2", "--overwrite"])
    train_gcn([*common, "--epochs", "1", "--seed", "7"])
    names = {path.name for path in (tmp_path / "to_plot").glob("*.pt")}
    assert "model_GCN_ADAM_rho0.0_longer.pt" in names
    assert "model_GCN_ADAM_rho0.0_seed7.pt" in names


@pytest.mark.parametrize("optimizer", optimizers.OPTIMIZERS)
def test_every_optimizer_trains(optimizer: str, tmp_path: Path) -> None:
    flags = ["--optimizer", optimizer, "--epochs", "1", "--threads", "1"]
    flags += ["--data_dir", str(tmp_path), "--out_dir", str(tmp_path)]
    for base in ("SGD", "ADAM"):
        metrics = train_gcn([*flags, "--base_optimizer", base, "--tag", base])
        assert 0 <= metrics["test_acc"] <= 100


def test_a_diverged_run_stops_and_names_the_batch(tmp_path: Path) -> None:
    flags = ["--optimizer=SGD", "--learning_rate=1e30", "--epochs=3", "--threads=1"]
    with pytest.raises(ValueError, match=r"epoch 1, batch \d .step \d.: the loss is not finite"):
        train_gcn([*flags, "--data_dir", str(tmp_path), "--out_dir", str(tmp_path)])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rho", "nan"], "'nan' is not a finite number"),
        (["--rho", "-1"], "-1"),
        (["--learning_rate", "inf"], "'inf' is not a finite number above 0"),
        (["--epochs", "0"], "'0' is not a whole number of 1 or more"),
        (["--optim", "SAM"], "--optim"),
        (["--optimizer", "ADAGRAD"], "ADAGRAD"),
        (["--device", "cuda:99"], "try --device cpu"),
        (["--tag", "../x"], "letters, digits"),
        (["--dataset", "../x"], "not a name of TUDataset"),
    ],
)
def test_bad_flags_are_one_line_and_code_2(
    flags, message: str, tmp_path: Path, run_here: Run
) -> None:
    done = run_here(train_gcn, *flags, "--out_dir", tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["cifar", "mitbih"])
def test_damaged_data_are_one_line_and_code_2(
    name: str, data_dir: Path, tmp_path: Path, run_here: Run
) -> None:
    files = {"cifar": ["cifar10.npz"], "mitbih": ["mitbih_train.csv", "mitbih_test.csv"]}[name]
    for file in files:
        whole = (data_dir / file).read_bytes()
        (tmp_path / file).write_bytes(whole[: len(whole) // 3])
    done = run_here(MAINS[name], "--data_dir", tmp_path, "--epochs", 1)
    assert done.returncode == 2
    assert files[0] in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_file_in_the_folders_way_is_found_before_training(tmp_path: Path, run_here: Run) -> None:
    (tmp_path / "outputs").write_text("in the way")
    done = run_here(train_gcn, "--data_dir", tmp_path, "--out_dir", tmp_path)
    assert done.returncode == 2
    assert "outputs" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", TASKS)
def test_help_shows_the_defaults_that_are_used(name: str, run_here: Run) -> None:
    done = run_here(MAINS[name], "--help")
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    defaults = TASKS[name]
    for flag in ("optimizer", "epochs", "batch_size", "learning_rate", "schedule", "seed"):
        assert f"(default: {getattr(defaults, flag)})" in text
    assert "0.05 for SAM, 0.5 for ASAM" in text
    assert optimizers.RHO == {"SAM": 0.05, "ASAM": 0.5}


def test_no_script_asks_which_optimizer_it_has() -> None:
    for path in [*(ROOT / "trainings").glob("my_train_*.py"), ROOT / "trainings" / "fit.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.If | ast.IfExp):
                assert "optimizer" not in ast.unparse(node.test), path
