"""Flags that make no sense are one line and exit code 2, before anything is made."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from trainings import my_train_GCN
from utilities import cli


def refusal(
    flags: list[str], out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> str:
    """The line on stderr with which the script refuses ``flags``."""
    argv = ["my_train_GCN.py", *flags, "--data_dir", str(out), "--out_dir", str(out)]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as end:
        cli.run(my_train_GCN.main)
    errors = capsys.readouterr().err
    assert end.value.code == 2
    assert len(errors.splitlines()) == 1 and len(errors) < 400
    assert not os.listdir(out)
    return errors


NUMBERS = ("learning_rate", "rho", "weight_decay", "warmup_epochs", "momentum", "ema_decay")


@pytest.mark.parametrize("flag", NUMBERS)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "1e999", "", "one"])
def test_numbers_out_of_range(flag, value, tmp_path, monkeypatch, capsys) -> None:
    errors = refusal([f"--{flag}={value}"], tmp_path, monkeypatch, capsys)
    assert f"--{flag}" in errors and repr(value) in errors


@pytest.mark.parametrize("flag", ["epochs", "batch_size", "every", "train_samples"])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "nan", "1e3", str(10**30)])
def test_counts_out_of_range(flag, value, tmp_path, monkeypatch, capsys) -> None:
    errors = refusal([f"--{flag}={value}"], tmp_path, monkeypatch, capsys)
    assert f"--{flag}" in errors and repr(value) in errors


@pytest.mark.parametrize(
    "name",
    ["../x", "a/b", "a\nb", "<script>alert(1)</script>", "a" * 300, "a b", "$HOME", "\u00fc", ".."],
)
def test_a_tag_is_a_safe_part_of_a_files_name(name, tmp_path, monkeypatch, capsys) -> None:
    errors = refusal(["--tag", name], tmp_path, monkeypatch, capsys)
    assert "--tag" in errors and "at most 50 letters, digits, - and _" in errors


@pytest.mark.parametrize("name", ["../x", "a\nb", "<script>", "a" * 300])
def test_a_data_sets_name_is_safe_too(name, tmp_path, monkeypatch, capsys) -> None:
    assert "TUDataset" in refusal(["--dataset", name], tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--class_weights", "--balanced_sampling"], "each balances alone; choose one"),
        (["--balance_sqrt"], "says how to balance; add --balanced_sampling"),
        (["--average=swa", "--swa_start=1"], "leaves no epoch to average"),
        (["--ascent_fraction=0"], "no sample would climb"),
        (["--looksam_alpha=0.5"], "add --every 5"),
        (["--resume", "--overwrite"], "the one keeps what the other drops"),
        (["--tag=last"], "ends as the names of states or kept epochs do"),
        (["--tag=my_last"], "ends as the names of states or kept epochs do"),
    ],
)
def test_flags_that_exclude_each_other(flags, message, tmp_path, monkeypatch, capsys) -> None:
    assert message in refusal(flags, tmp_path, monkeypatch, capsys)


def test_a_good_tag_names_the_files(tmp_path: Path) -> None:
    args = my_train_GCN.parse_args(["--tag", "Run-2_b", "--out_dir", str(tmp_path)])
    assert args.run.history.name == "my_train_GCN_ADAM_0.0_Run-2_b.dat"
    assert args.run.last.name == "model_GCN_ADAM_rho0.0_Run-2_b_last.pt"
