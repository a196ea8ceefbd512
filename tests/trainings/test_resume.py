"""Runs that are killed, stopped, started twice or robbed of their disk lose nothing."""

from __future__ import annotations

import os
import random
import re
import shlex
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import SMALL, Run
from forks import LIMIT, end, killed_after_a_save, script, training
from toy import Toy, killed_at_save, train

from trainings import my_train_cifar, my_train_GCN
from utilities import checkpoint
from utilities.files import ROOT
from utilities.interrupt import Interrupted

KILLS = 10


def flags(name: str, data_dir: Path, out: Path, *more: object) -> list[str]:
    common = ("--data_dir", data_dir, "--out_dir", out, "--threads", 1, "--epochs", 3, *more)
    return [str(flag) for flag in (*SMALL[name], *common)]


def results(out: Path) -> tuple[dict, dict, list]:
    """Weights of the best and the last checkpoint, and the history but for the times."""
    last = next((out / "to_plot").glob("*_last.pt"))
    best = last.with_name(last.name.replace("_last", ""))
    table = pd.read_table(next((out / "outputs").glob("*.dat")), comment="#")
    contents = [checkpoint.load(path) for path in (best, last)]
    weights = [{**c["state_dict"], "epoch": torch.tensor(c["epoch"])} for c in contents]
    return weights[0], weights[1], table.drop(columns="seconds").to_numpy().tolist()


def step_seconds(out: Path) -> float:
    """What a step of a whole run took on average."""
    table = pd.read_table(next((out / "outputs").glob("*.dat")), comment="#")
    last = checkpoint.load(next((out / "to_plot").glob("*_last.pt")))
    return table["seconds"].sum() / last["resume"]["steps"]


def equal(a: tuple[dict, dict, list], b: tuple[dict, dict, list]) -> bool:
    same = [
        x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)
        for x, y in zip(a[:2], b[:2], strict=True)
    ]
    return all(same) and a[2] == b[2]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cifar", ["--optimizer=SAM", "--momentum=0.9", "--average=ema"]),
        ("mitbih", ["--optimizer=SAM", "--every=2", "--looksam_alpha=0.7", "--epochs=12"]),
        ("GCN", ["--optimizer=ADAM", "--average=swa", "--swa_start=0.3", "--epochs=30"]),
    ],
)
def test_a_run_killed_ten_times_ends_bit_for_bit_as_one_never_stopped(
    name: str, options: list[str], data_dir: Path, tmp_path: Path
) -> None:
    # Saved after each step: half of the time goes into writing.
    common = [*options, "--batch_size=8", "--save_seconds=0", "--keep_epochs=1"]
    assert end(training(name, flags(name, data_dir, tmp_path / "a", *common))) == 0
    step = step_seconds(tmp_path / "a")
    argv = flags(name, data_dir, tmp_path / "b", *common, "--resume")
    draw = random.Random(name)
    for kill in range(KILLS):  # two steps or three from one to the next: there are 69 or more
        saves, delay = draw.randint(1, 2), draw.uniform(0, step)
        assert killed_after_a_save(name, argv, tmp_path / "b", saves, delay), f"over: {kill} kills"
        for path in (tmp_path / "b" / "to_plot").glob("model*.pt"):
            checkpoint.load(path)  # readable after every kill
    assert end(training(name, argv)) == 0
    assert equal(results(tmp_path / "a"), results(tmp_path / "b"))
    kept = [{p.name: p for p in tmp_path.glob(f"{run}/to_plot/*_epoch*")} for run in "ab"]
    assert kept[0].keys() == kept[1].keys() and len(kept[0]) > 3
    for name in kept[0]:
        one, other = (checkpoint.load(files[name])["state_dict"] for files in kept)
        assert all(torch.equal(one[key], other[key]) for key in one)
    left = [path.name for path in tmp_path.glob("b/*/.*.part*")]
    assert not left


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_how_to_go_on(
    number: int, data_dir: Path, tmp_path: Path, run_here: Run
) -> None:
    argv = flags("cifar", data_dir, tmp_path, "--optimizer=SAM", "--epochs=200")
    said, deadline = tmp_path / "said", time.monotonic() + LIMIT
    run = script("cifar", argv, said)
    while not (said.is_file() and re.search(r"^ *2 ", said.read_text(), re.MULTILINE)):
        assert run.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)  # until the second epoch is done
    assert run.pid is not None
    os.kill(run.pid, number)
    assert end(run) == 128 + number
    errors = Path(f"{said}.err").read_text()
    assert len(errors.splitlines()) == 1
    again = shlex.split(errors.split("go on with: ")[1])
    assert again[:2] == ["python", str(ROOT / "trainings/my_train_cifar.py")]
    before = checkpoint.load(next((tmp_path / "to_plot").glob("*_last.pt")))
    assert before["resume"]["train"]["order"] is not None  # within an epoch
    refused = run_here(my_train_cifar.main, *again[2:], "--epochs=3")
    assert refused.returncode == 2 and "another run, with --epochs 200" in refused.stderr


def test_an_unfinished_run_is_not_started_over_by_mistake(tmp_path: Path, run_here: Run) -> None:
    argv = ["--data_dir", str(tmp_path), "--out_dir", str(tmp_path), "--threads=1", "--epochs=40"]
    argv += ["--save_seconds=0"]
    assert killed_after_a_save("GCN", argv, tmp_path)
    done = run_here(my_train_GCN.main, *argv)
    assert done.returncode == 2
    assert "of 40 epochs; add --resume to go on, or --overwrite" in done.stderr
    my_train_GCN.main([*argv, "--resume"])
    finished = run_here(my_train_GCN.main, *argv, "--resume")
    assert finished.returncode == 0
    assert "is finished, 40 of 40 epochs" in finished.stdout
    table = pd.read_table(tmp_path / "outputs" / "my_train_GCN_ADAM_0.0.dat", comment="#")
    assert table["epoch"].tolist() == list(range(1, 41))


def test_the_second_of_two_runs_stops_and_a_killed_ones_lock_is_free(
    tmp_path: Path, run_here: Run
) -> None:
    argv = ["--data_dir", str(tmp_path), "--out_dir", str(tmp_path), "--threads=1"]
    first = training("GCN", [*argv, "--epochs=100000"])
    try:
        while not list(tmp_path.glob("outputs/*.dat")) and first.is_alive():
            time.sleep(0.05)
        done = run_here(my_train_GCN.main, *argv, "--epochs=100000")
    finally:
        first.kill()
        assert end(first) == -signal.SIGKILL
    assert done.returncode == 2
    assert "another process is training this run now" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    my_train_GCN.main([*argv, "--epochs=2", "--overwrite"])


def test_a_full_disk_ends_in_one_line_and_keeps_the_last_state(tmp_path: Path) -> None:
    argv = ["--data_dir", str(tmp_path), "--out_dir", str(tmp_path), "--threads=1", "--epochs=2"]
    my_train_GCN.main(argv)
    files = {path: path.read_bytes() for path in tmp_path.glob("to_plot/*.pt")}
    said = tmp_path / "said"
    run = script("GCN", [*argv, "--overwrite"], said, largest=8192)  # the history fits, no model
    assert end(run) == 2
    errors = Path(f"{said}.err").read_text()
    assert len(errors.splitlines()) == 1 and ".pt" in errors
    assert all(path.read_bytes() == old for path, old in files.items())


def test_a_damaged_state_is_named(tmp_path: Path, run_here: Run) -> None:
    argv = ["--data_dir", str(tmp_path), "--out_dir", str(tmp_path), "--threads=1", "--epochs=1"]
    my_train_GCN.main(argv)
    path = next(tmp_path.glob("to_plot/*_last.pt"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    done = run_here(my_train_GCN.main, *argv, "--resume")
    assert done.returncode == 2
    assert path.name in done.stderr and len(done.stderr.splitlines()) == 1


class Stopped(Toy):
    """Toy data that stop the run in its ``at``-th step."""

    at = 0

    def fetch_augmented(self, indices: torch.Tensor):
        batch = super().fetch_augmented(indices)
        if self.fetched == self.at:
            signal.raise_signal(signal.SIGTERM)
        return batch


@pytest.mark.parametrize("step", [1, 4, 7])  # of 16, four an epoch
@pytest.mark.parametrize(
    "options",
    [
        ["--optimizer=SAM", "--balanced_sampling", "--average=ema", "--ema_decay=0.5"],
        ["--optimizer=SAM", "--precision=fp16", "--average=swa", "--swa_start=0"],
        ["--optimizer=ASAM", "--precision=bf16", "--class_weights", "--select=loss"],
        ["--optimizer=SAM", "--fsam_sigma=1", "--same_dropout", "--warmup_epochs=9"],
        ["--optimizer=SAM", "--msam", "--schedule=cosine", "--select=f1"],
        ["--schedule=step", "--optimizer=SGD"],
    ],
)
def test_a_run_stopped_within_an_epoch_goes_on_bit_for_bit(
    options: list[str], step: int, tmp_path: Path
) -> None:
    data = Stopped()
    data.at = step
    options = [*options, "--learning_rate=0.02"]
    train(tmp_path / "a", *options)
    with pytest.raises(Interrupted, match="--resume"):
        train(tmp_path / "b", *options, data=data)
    train(tmp_path / "b", *options, "--resume")
    assert equal(results(tmp_path / "a"), results(tmp_path / "b"))


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("number", [1, 2, 3, 4])  # first state; best, last; best with its test
def test_a_run_that_replaces_another_resumes_from_any_of_its_saves(
    number: int, written: bool, tmp_path: Path
) -> None:
    train(tmp_path / "a", "--learning_rate=0.02")
    train(tmp_path / "b", "--learning_rate=0.5")
    with killed_at_save(number, written):
        train(tmp_path / "b", "--learning_rate=0.02", "--overwrite")
    flag = "--overwrite" if (number, written) == (1, False) else "--resume"  # nothing was replaced
    if (number, written) != (4, True):  # nor is it started over, not having been told to
        with pytest.raises(ValueError, match="--overwrite"):
            train(tmp_path / "b", "--learning_rate=0.02")
    train(tmp_path / "b", "--learning_rate=0.02", flag)
    assert equal(results(tmp_path / "a"), results(tmp_path / "b"))


def test_a_run_of_no_step_keeps_no_other_from_its_name(tmp_path: Path) -> None:
    data = Toy()
    data.poisoned = 1
    with pytest.raises(ValueError, match="no epoch was finished"):
        train(tmp_path, "--optimizer=SGD", data=data)
    data = Stopped()
    data.at = 1
    with pytest.raises(Interrupted):
        train(tmp_path, "--optimizer=SGD", "--learning_rate=0.02", data=data)
    with pytest.raises(ValueError, match=r"another run, with --learning_rate 0\.02"):
        train(tmp_path, "--optimizer=SGD", "--learning_rate=0.03")


def test_a_state_without_its_best_weights_is_refused_before_the_training(tmp_path: Path) -> None:
    args = train(tmp_path)
    args.run.best.unlink()
    with pytest.raises(ValueError, match=r"not there, .* restore it, or start anew"):
        train(tmp_path, "--resume")


def test_the_command_that_resumes_does_not_start_anew(tmp_path: Path) -> None:
    data = Stopped()
    data.at = 6
    with pytest.raises(Interrupted) as end:
        train(tmp_path, "--overwrite", data=data)
    again = shlex.split(str(end.value).split("go on with: ")[1])
    assert "--resume" in again and "--overwrite" not in again
