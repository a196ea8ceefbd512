"""Trainings of two processes: the same as one, and as hard to kill."""

from __future__ import annotations

import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from forks import await_saves
from processes import (
    Prepare,
    best_of,
    equal,
    flags,
    history,
    last_of,
    printed,
    start,
    train,
    unchanged,
    wait,
)

import DatasetClass
import models
from DatasetClass.mitbih import MitBih
from models.smooth_crossentropy import smooth_crossentropy
from trainings import files, my_train_mitbih, state
from utilities import checkpoint
from utilities.metrics import Total


def keep_weights(out: Path, rank: int) -> None:
    """Let each process save its own weights and buffers at each epoch's end."""
    whole = state.TrainingState.end_epoch

    def end_epoch(self: state.TrainingState) -> None:
        whole(self)
        torch.save(self.model.state_dict(), out / f"rank{rank}.pt")

    state.TrainingState.end_epoch = end_epoch


# --- equal to one process -------------------------------------------------------------------------
def in_float64(rank: int) -> None:
    torch.set_default_dtype(torch.float64)
    fetch = MitBih.fetch

    def double(self: MitBih, indices: torch.Tensor):
        beats, labels = fetch(self, indices)
        return beats.double(), labels

    MitBih.fetch = MitBih.fetch_augmented = double


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("GCN", ["--optimizer=SAM", "--batch_size=8"]),  # 28 graphs: the last batch has 4
        ("GCN", ["--optimizer=ASAM", "--batch_size=14", "--average=ema", "--class_weights"]),
        ("mitbih", ["--optimizer=SAM", "--batch_size=16", "--gsam_alpha=0.3", "--every=2"]),
        ("mitbih", ["--optimizer=SAM", "--batch_size=16", "--msam", "--balanced_sampling"]),
    ],
)
def test_two_processes_equal_one(
    name: str, options: list[str], data_dir: Path, tmp_path: Path
) -> None:
    for world in (1, 2):
        out = tmp_path / str(world)
        argv = flags(name, data_dir, out, *options, "--dropout=0", "--epochs=3")
        train(name, argv, out, world, prepare=in_float64)
    one, two = last_of(tmp_path / "1"), last_of(tmp_path / "2")
    assert one["resume"]["steps"] == two["resume"]["steps"]
    for key, value in one["state_dict"].items():
        assert value.dtype == torch.float64
        assert (value - two["state_dict"][key]).abs().max() < 1e-9  # issue: 1e-6
    a, b = history(tmp_path / "1"), history(tmp_path / "2")
    assert (a - b).abs().to_numpy().max() < 1e-9
    assert best_of(tmp_path / "1")["test_confusion"] == best_of(tmp_path / "2")["test_confusion"]


def test_ascent_along_each_own_gradient_is_another_training_with_one_result(
    data_dir: Path, tmp_path: Path
) -> None:
    weights = {}
    for sync in ("--ascent_sync", "--no-ascent_sync"):
        out = tmp_path / sync
        argv = flags("cifar", data_dir, out, "--optimizer=SAM", "--epochs=2", "--batch_size=60")
        out.mkdir()
        train("cifar", [*argv, sync], out, prepare=partial(keep_weights, out))
        first, second = (torch.load(out / f"rank{rank}.pt") for rank in (0, 1))
        assert equal(first, second)  # batch norm's running statistics too
        weights[sync] = first
    assert not equal(*weights.values())


@pytest.mark.parametrize("average", ["none", "ema", "swa"])
def test_the_checkpoint_alone_gives_the_metrics_of_two_processes(
    average: str, data_dir: Path, tmp_path: Path
) -> None:
    more = ("--epochs=2", "--batch_size=60", "--average", average, "--swa_start=0")
    train("cifar", flags("cifar", data_dir, tmp_path, *more, "--ema_decay=0.5"), tmp_path)
    content = best_of(tmp_path)
    dataset = DatasetClass.load("cifar10", data_dir, **content["data_args"])
    model = models.build("cifar", **content["model_args"]).eval()
    model.load_state_dict(content["state_dict"])
    total = Total(10)
    with torch.no_grad():
        for inputs, targets in dataset.val:
            logits = model(inputs)
            total.add(logits, smooth_crossentropy(logits, targets, smoothing=0.1), targets)
    assert total.metrics("val")["val_loss"] == pytest.approx(content["metrics"]["val_loss"], 1e-5)


# --- bad input: one line, and no process left waiting ---------------------------------------------
def nan_on_the_second(rank: int) -> None:
    if rank == 1:
        fetch, calls = MitBih.fetch_augmented, []

        def broken(self: MitBih, indices: torch.Tensor):
            beats, labels = fetch(self, indices)
            calls.append(1)
            return (beats * float("nan") if len(calls) == 3 else beats), labels

        MitBih.fetch_augmented = broken


def full_disk(rank: int) -> None:
    def save(path: Path, content: dict) -> None:
        raise OSError(28, "No space left on device", str(path))

    checkpoint.save = save


@pytest.mark.parametrize(
    ("more", "prepare", "message"),
    [
        (["--batch_size=15"], unchanged, "not a multiple of the 2 processes"),
        (["--train_samples=1"], unchanged, "1 training samples for 2 processes"),
        (["--sync_batch_norm"], unchanged, "torch has it on GPUs only"),
        (["--optimizer=SGD"], unchanged, "holds another run, with --learning_rate"),
        (["--overwrite", "--optimizer=SAM"], nan_on_the_second, "epoch 1, batch 3 (step 3)"),
        (["--overwrite"], full_disk, "No space left"),
    ],
)
def test_bad_input_ends_all_processes_with_one_line(
    more: list[str], prepare: Prepare, message: str, data_dir: Path, tmp_path: Path
) -> None:
    argv = flags("mitbih", data_dir, tmp_path, "--batch_size=16", "--epochs=2")
    if "--optimizer=SGD" in more:
        my_train_mitbih.main([*argv, *more, "--learning_rate=0.5"])
    codes = wait(start("mitbih", [*argv, *more], tmp_path, prepare=prepare))
    texts = printed(tmp_path)
    assert codes == [2, 2], texts
    errors = [line for line in texts[0].splitlines() if "error:" in line]
    assert len(errors) == 1 and message in errors[0]
    assert "Traceback" not in texts[0] + texts[1]


# --- killed, stopped and resumed ------------------------------------------------------------------
def test_a_run_of_two_killed_and_stopped_ends_bit_for_bit_as_one_never_stopped(
    data_dir: Path, tmp_path: Path
) -> None:
    options = ["--optimizer=SAM", "--no-ascent_sync", "--fsam_sigma=1", "--average=ema"]
    options += ["--batch_size=4", "--save_seconds=0", "--epochs=4", "--dropout=0.3"]
    train("mitbih", flags("mitbih", data_dir, tmp_path / "a", *options), tmp_path / "a")
    out = tmp_path / "b"
    argv = flags("mitbih", data_dir, out, *options, "--resume")
    draw = random.Random(3)
    for victims in ([0, 1], [1], [0]):  # both at once, or one, which the other must not survive
        children = start("mitbih", argv, out)
        await_saves(out, draw.randint(1, 3), children)
        time.sleep(draw.uniform(0, 0.02))  # at any moment of a step
        for victim in victims:
            children[victim].kill()
        assert wait(children)[victims[0]] == -signal.SIGKILL
    within_an_epoch = None
    while within_an_epoch is None:  # it may stop at the end of one
        children = start("mitbih", argv, out)
        await_saves(out, 1, children)
        for child in children:
            child.terminate()
        assert wait(children) == [143, 143]
        assert "torchrun --nproc_per_node=2 trainings/my_train_mitbih.py" in printed(out)[0]
        assert not printed(out)[1]
        within_an_epoch = last_of(out)["resume"]["train"]["order"]
    assert wait(start("mitbih", argv, out, world=1)) == [2]
    assert "within an epoch by 2 processes, not 1" in printed(out)[0]
    train("mitbih", argv, out)
    for load in (best_of, last_of):
        assert equal(load(tmp_path / "a")["state_dict"], load(out)["state_dict"])
    assert history(tmp_path / "a").equals(history(out))


def stop_after_second(rank: int) -> None:
    save = files.RunFiles.save

    def last_save(self: files.RunFiles, now: state.TrainingState) -> None:
        save(self, now)
        if now.epoch == 2:
            raise KeyboardInterrupt

    files.RunFiles.save = last_save


def test_another_number_of_processes_goes_on_after_an_epoch(data_dir: Path, tmp_path: Path) -> None:
    more = ("--save_seconds=0", "--epochs=4", "--batch_size=9", "--optimizer=SAM")  # 28 graphs
    argv = flags("GCN", data_dir, tmp_path, *more, "--resume")
    assert wait(start("GCN", argv, tmp_path, world=3, prepare=stop_after_second)) == [130] * 3
    assert last_of(tmp_path)["resume"]["steps"] == 2 * 3  # the 28th graph was left out
    train("GCN", argv, tmp_path, world=1)
    assert last_of(tmp_path)["resume"]["steps"] == 4 * 4
    assert history(tmp_path)["epoch"].tolist() == [1, 2, 3, 4]
