"""A user's own task and model: a checkpoint says both, and each script's run has its title."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest
from toy import ALONE, Toy, make_model

from trainings import my_train_cifar, my_train_GCN, my_train_mitbih
from trainings.fit import fit
from trainings.options import Defaults, add_flags, read_args
from utilities import checkpoint
from utilities.cli import Parser
from utilities.runs import Run

OWN = replace(my_train_GCN.DEFAULTS, task="points", model="toy:make_model", dataset="toy")


def read(defaults: Defaults, out: Path) -> argparse.Namespace:
    """The command line of a script that a user wrote as ours are written."""
    parser = Parser("A user's own script.")
    parser.add_argument("--dataset", default=defaults.dataset)
    add_flags(parser, defaults)
    return read_args(parser, defaults, ["--epochs=1", "--batch_size=16", f"--out_dir={out}"])


def test_a_checkpoint_tells_the_task_from_the_model(tmp_path: Path) -> None:
    args = read(OWN, tmp_path)
    assert args.run.best.name == "model_points_ADAM_rho0.0.pt"
    fit(args, OWN, Toy(), make_model(), {}, ALONE)
    for path in (args.run.best, args.run.last):
        content = checkpoint.load(path)
        assert (content["task"], content["model"]) == ("points", "toy:make_model")
        assert content["format"] == checkpoint.FORMAT == 3
        trained = Run.from_checkpoint(content, tmp_path)
        assert replace(trained, is_state=False) == args.run
        assert trained.best == args.run.best and trained.history.is_file()
    assert args.run.title == "make_model on toy, ADAM"
    other = replace(OWN, model="toy:another")
    with pytest.raises(ValueError, match="another run, with --model toy:make_model; name this one"):
        fit(read(other, tmp_path), other, Toy(), make_model(), {}, ALONE)


@pytest.mark.parametrize(
    ("script", "flags", "title"),
    [
        (my_train_cifar, [], "WRN-16-8 on CIFAR-10, SGD"),
        (
            my_train_cifar,
            ["--optimizer=SAM", "--width_factor=2", "--dataset=cifar100"],
            "WRN-16-2 on CIFAR-100, SAM, rho 0.05",
        ),
        (
            my_train_mitbih,
            ["--optimizer=ASAM", "--seed=1"],
            "Transformer on MIT-BIH, ASAM, rho 0.5, seed 1",
        ),
        (my_train_GCN, ["--fold=0", "--tag=a"], "GCN on MUTAG, ADAM, fold 0, a"),
    ],
)
def test_a_command_lines_run_has_a_readers_title(script, flags: list[str], title: str) -> None:
    assert script.parse_args(flags).run.title == title


def test_arguments_are_as_they_were_parsed_when_the_run_ends(tmp_path: Path) -> None:
    args = read(OWN, tmp_path)
    before = dict(vars(args))
    fit(args, OWN, Toy(), make_model(), {}, ALONE)
    assert vars(args) == before
