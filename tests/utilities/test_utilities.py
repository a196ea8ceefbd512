"""Checkpoints: written whole or not at all, read without running code."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from forks import end, start
from torch import nn

from utilities import checkpoint
from utilities.machine import processor

CONTENT = {
    "task": "mine",
    "model": "GCN",
    "model_args": {"in_channels": 7},
    "dataset": "MUTAG",
    "data_args": {"seed": 1},
    "train_args": {"rho": 0.05, "optimizer": "SAM"},
    "epoch": 3,
    "metrics": {"val_acc": 80.0},
    "state_dict": {"weight": torch.arange(4.0)},
}


def test_checkpoint_round_trip_and_full_description(tmp_path: Path) -> None:
    path = tmp_path / "new" / "model.pt"
    checkpoint.save(path, CONTENT)
    read = checkpoint.load(path)
    assert torch.equal(read["state_dict"]["weight"], CONTENT["state_dict"]["weight"])
    assert {k: read[k] for k in CONTENT if k != "state_dict"} == {
        k: v for k, v in CONTENT.items() if k != "state_dict"
    }
    assert read["versions"]["torch"] == torch.__version__
    assert read["versions"]["processor"] == processor()
    assert read["format"] == checkpoint.FORMAT


@pytest.mark.parametrize("number", [1, 2])
def test_older_formats_are_read_and_their_task_is_the_models_name(
    number: int, tmp_path: Path
) -> None:
    path = tmp_path / "model.pt"
    checkpoint.save(path, CONTENT)
    content = {k: v for k, v in checkpoint.load(path).items() if k != "task"} | {"format": number}
    if number == 2:
        content["sha256"] = checkpoint.digest(content)
    torch.save(content, path)
    assert checkpoint.load(path)["task"] == "GCN"
    torch.save({**content, "format": 3}, path)
    with pytest.raises(ValueError, match="missing task"):
        checkpoint.load(path)


def test_truncated_at_every_percent_is_one_line_with_the_name(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    checkpoint.save(path, CONTENT)
    whole = path.read_bytes()
    for percent in range(100):
        path.write_bytes(whole[: len(whole) * percent // 100])
        with pytest.raises(ValueError, match=r"model\.pt") as error:
            checkpoint.load(path)
        assert "\n" not in str(error.value)


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_payload_never_runs(zipped: bool, tmp_path: Path) -> None:
    path, ran = tmp_path / "evil.pt", tmp_path / "ran"
    if zipped:
        torch.save({**CONTENT, "state_dict": Payload(ran)}, path)
    else:
        path.write_bytes(pickle.dumps(Payload(ran)))
    with pytest.raises(ValueError, match=r"evil\.pt"):
        checkpoint.load(path)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"format": 99}, "format 99"), ({"model": 1}, "missing model"), (None, "no dict")],
)
def test_other_files_of_torch_are_refused(change, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    checkpoint.save(path, CONTENT)
    torch.save([1, 2] if change is None else {**checkpoint.load(path), **change}, path)
    with pytest.raises(ValueError, match=message):
        checkpoint.load(path)


def test_weights_that_do_not_fit_are_listed() -> None:
    content = {"state_dict": {"weight": torch.ones(2, 2), "extra": torch.ones(1)}}
    with pytest.raises(ValueError, match="bias is missing; extra is unknown; weight is") as error:
        checkpoint.load_weights(nn.Linear(3, 2), content, "model.pt")
    assert "(2, 2) for (2, 3)" in str(error.value)


def save_on_a_small_disk(path: Path, content: dict) -> None:
    """In a process of its own, which the limit must not outlive; exits with 7 on an OSError."""
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        checkpoint.save(path, content)
    except OSError:
        os._exit(7)


def test_a_full_disk_is_an_error_and_keeps_the_old_file(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    path = tmp_path / "model.pt"
    checkpoint.save(path, CONTENT)
    big = {**CONTENT, "state_dict": {"weight": torch.zeros(1_000_000)}}
    assert end(start(save_on_a_small_disk, path, big)) == 7
    assert checkpoint.load(path)["epoch"] == 3
    assert os.listdir(tmp_path) == ["model.pt"]
