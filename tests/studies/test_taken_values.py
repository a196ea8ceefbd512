"""Flags that take what was chosen for another optimizer: waited for, used, refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tables import SMALL, write

from studies import runner
from studies.other_values import other_values
from studies.plan import Job, Plan
from studies.table import read_study
from utilities import checkpoint

SAM = '[optimizers.SAM]\nflags = { optimizer = "SAM" }\ntune = { rho = [0.02, 0.05] }\n'
TAKES = SAM.replace('"SAM" }', '"SAM", learning_rate = "as chosen for ADAM" }')
FIRST = SMALL.replace(SAM, "").replace("[optimizers.ADAM]", f"{TAKES}[optimizers.ADAM]")
WHOLE = SMALL.replace("epochs = 4,", 'epochs = 4, learning_rate = "as chosen for ADAM",')


def plan_of(folder: Path, text: str) -> Plan:
    return Plan(read_study(write(folder, text)), folder / "out", folder / "data")


@pytest.mark.parametrize("text", [FIRST, WHOLE], ids=["of one", "of all that tune another"])
def test_a_run_has_the_value_that_was_chosen_for_another(text: str, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, text)
    plan.check()
    taken = (("learning_rate", 0.03),)
    for stage in ("trials", "runs"):
        args = plan.args(Job(stage, "training", "MUTAG", "SAM", 1, 0, 0.05, taken))
        assert (args.learning_rate, args.rho) == (0.03, 0.05)
    for name in ("ADAM", "ADAM, twice the epochs"):  # which tune it themselves
        args = plan.args(Job("runs", "training", "MUTAG", name, 1, 0, 0.01))
        assert args.learning_rate == 0.01
    assert other_values(plan, {("MUTAG", "ADAM"): 0.03}) == []


def test_a_value_of_yet_another_is_named_beside_the_bases(tmp_path: Path) -> None:
    """Where both are known."""
    wild = '[optimizers.wild]\nflags = { optimizer = "SGD" }\ntune = { learning_rate = [0.1, 1] }\n'
    text = FIRST.replace("chosen for ADAM", "chosen for wild").replace(
        "[trials]", f"{wild}[trials]"
    )
    plan = plan_of(tmp_path, text)
    chosen = {("MUTAG", "ADAM"): 0.01}
    assert other_values(plan, chosen) == []
    (line,) = other_values(plan, {**chosen, ("MUTAG", "wild"): 1.0})
    assert line.startswith("on MUTAG, SAM: learning_rate 1, where ADAM trains at 0.01, so")


def test_trials_wait_for_the_others_choice(tmp_path: Path, run_here) -> None:
    """Carried out and continued, with the one that waits first in the table."""
    out = tmp_path / "out"
    flags = (write(tmp_path, FIRST), f"--out_dir={out}")
    printed = run_here(runner.main, *flags, "--print").stdout.splitlines()
    commands = [line for line in printed if not line.startswith("#")]
    assert len(commands) == 2 and all("--optimizer=ADAM" in line for line in commands)
    waits = [line for line in printed if "# waits for the choice of learning_rate by ADAM" in line]
    assert [line for line in waits if "SAM, rho 0.02, trial seed 100, fold 0" in line]
    done = run_here(runner.main, *flags, "--stage=trials", "--jobs=2")
    assert done.returncode == 0 and "4 of 4 trials" in done.stdout
    choices = json.loads((out / "choice.json").read_text())["choices"]
    chosen = {choice["optimizer"]: choice["value"] for choice in choices}
    trained = [checkpoint.load(path)["train_args"] for path in out.glob("to_plot/*SAM*_seed100.pt")]
    assert [args["learning_rate"] for args in trained] == [chosen["ADAM"]] * 2
    printed = run_here(runner.main, *flags, "--print").stdout.splitlines()
    (line,) = [each for each in printed if re.match(r"python.*_GCN.py.*SAM.*d=2 --fold=0", each)]
    assert f"--learning_rate={chosen['ADAM']} " in line and f"--rho={chosen['SAM']} " in line
    assert sum(line.startswith("# done: ") for line in printed) == 4


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            'learning_rate = "as chosen for ADAN"',
            "'as chosen for ADAN', which is no optimizer here",
        ),
        ('weight_decay = "as chosen for ADAM"', "'as chosen for ADAM', which tunes learning_rate"),
        ('learning_rate = "as chosen for SAM"', "'as chosen for SAM', which tunes rho"),
    ],
)
def test_what_is_not_chosen_for_the_other_is_refused(flag, message, tmp_path, run_here) -> None:
    text = SMALL.replace('{ optimizer = "SAM" }', f'{{ optimizer = "SAM", {flag} }}')
    result = run_here(runner.main, write(tmp_path, text), "--print")
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert f"flags.{flag.partition(' ')[0]}: is for SAM {message}" in result.stderr


def test_a_circle_is_refused(tmp_path: Path, run_here) -> None:
    other = TAKES.replace("for ADAM", "for SAM2") + (
        '[optimizers.SAM2]\nflags = { optimizer = "SAM", rho = "as chosen for SAM" }\n'
        "tune = { learning_rate = [0.01, 0.03] }\n"
    )
    result = run_here(runner.main, write(tmp_path, SMALL.replace(SAM, other)), "--print")
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert "the trials of SAM and SAM2 on MUTAG wait for each other's choices" in result.stderr
    # A value that needs no trials ends it.
    single = other.replace("[0.01, 0.03]", "[0.01]")
    text = SMALL.replace(SAM, single).replace('"val_acc"', '"val_acc"\nunequal_trials = "one"')
    printed = run_here(
        runner.main, write(tmp_path, text), f"--out_dir={tmp_path}", "--print"
    ).stdout
    assert "--optimizer=SAM --learning_rate=0.01 --rho=0.05 --seed=100" in printed
