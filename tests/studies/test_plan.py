"""A study's jobs: in which order, and as which command lines."""

from __future__ import annotations

import importlib
import itertools
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import SMALL, write

from studies import runner
from studies.choice import choose
from studies.collect import passes_a_step
from studies.other_values import other_values
from studies.plan import Job, Plan
from studies.table import Optimizer, read_study
from trainings import my_train_GCN
from trainings.optimizers import make_optimizer


def plan_of(tmp_path: Path, text: str = SMALL, **changes: object) -> Plan:
    study = read_study(write(tmp_path, text), changes)  # type: ignore[arg-type]
    return Plan(study, tmp_path / "out", tmp_path / "data")


# --- order ----------------------------------------------------------------------------------------
def test_trials_come_first_and_each_seed_is_finished_before_the_next(tmp_path: Path) -> None:
    jobs = list(plan_of(tmp_path).jobs())
    stages = [
        (stage, {job.seed for job in group})
        for stage, group in itertools.groupby(jobs, lambda job: (job.stage, job.seed)[0])
    ]
    assert stages == [("trials", {100}), ("runs", {1}), ("measures", {1}), ("runs", {2})]
    first = [(job.fold, job.optimizer) for job in jobs if (job.stage, job.seed) == ("runs", 1)]
    names = ["ADAM", "ADAM, twice the epochs", "SAM"]
    assert first == [(fold, name) for fold in (0, 1) for name in names]
    measured = [(job.kind, job.fold) for job in jobs if job.stage == "measures"]
    assert measured == [
        *([("spectrum", 1)] * 3 + [("sharpness", 0)] * 3 + [("surface", 0)]),
        *([("kept_epochs", 1), ("along_training", 1)] * 2),
    ]


# --- command lines --------------------------------------------------------------------------------
def test_a_run_is_the_scripts_own_command_line(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    run = Job("runs", "training", "MUTAG", "ADAM, twice the epochs", 1, 0, 0.01)
    args = plan.args(run)
    assert (args.epochs, args.learning_rate, args.seed, args.fold) == (8, 0.01, 1, 0)
    assert args.resume and args.threads == 1 and args.out_dir == tmp_path / "out"
    assert args.run.best.name == (
        "model_GCN_ADAM_rho0.0_fold0_seed1_ADAM-twice-the-epochs_lr0p01.pt"
    )
    assert plan.label(run) == "MUTAG, ADAM, twice the epochs, learning_rate 0.01, seed 1, fold 0"
    surface = Job("measures", "surface", "MUTAG", "SAM", 1, 0, 0.05)
    assert plan.args(surface).model_file == plan.args(plan.training_of(surface)).run.best


def test_a_training_that_keeps_epochs_is_not_run_once_more(tmp_path: Path) -> None:
    """Others are, with the same flags and names in a folder of their own."""
    keeps = SMALL.replace('{ optimizer = "SAM" }', '{ optimizer = "SAM", keep_epochs = 1 }')
    plan = plan_of(tmp_path, keeps)
    jobs = [job for job in plan.jobs() if job.kind in ("kept_epochs", "along_training")]
    assert [(job.kind, job.optimizer) for job in jobs] == [
        *(("kept_epochs", "ADAM"), ("along_training", "ADAM"), ("along_training", "SAM"))
    ]
    again, adam, sam = (replace(job, value=0.01) for job in jobs)
    assert plan.needs(again) is None and plan.needs(adam) == again
    assert plan.needs(sam) == plan.training_of(sam)
    files = [path.relative_to(tmp_path).as_posix() for path in plan.args(sam).model_file]
    stem = "model_GCN_SAM_rho0.01_fold1_seed1"
    assert files == [f"out/to_plot/{stem}_epoch{k}.pt" for k in (0, 1, 2, 3, 4)]
    ours, run = vars(plan.args(again)), vars(plan.args(plan.training_of(again)))
    different = {name for name in run if ours[name] != run[name]}
    assert different == {"keep_epochs", "out_dir", "argv"} and ours["keep_epochs"] == 2
    assert ours["run"].best.name == run["run"].best.name
    kept = [path.relative_to(tmp_path / "out/kept_epochs") for path in plan.args(adam).model_file]
    stem = ours["run"].best.stem
    assert kept == [Path("to_plot", f"{stem}_epoch{k}.pt") for k in (0, 2, 4)]


def test_what_set_changes_goes_above_all_else(tmp_path: Path) -> None:
    text = SMALL.replace(
        "folds = [0]\n[measures", "folds = [0]\nflags = { epochs = 2 }\n[measures", 1
    )
    trial = Job("trials", "training", "MUTAG", "SAM", 100, 0, 0.05)
    twice = Job("runs", "training", "MUTAG", "ADAM, twice the epochs", 1, 0, 0.01)
    assert plan_of(tmp_path, text).args(trial).epochs == 2
    changed = plan_of(tmp_path, text, epochs=1)
    assert changed.args(trial).epochs == 1
    assert changed.args(twice).epochs == 2  # still twice as many


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "epochs = 4,",
            "epochz = 4,",
            "MUTAG, ADAM, learning_rate 0.003.*unrecognized arguments: --epochz=4",
        ),
        ("epochs = 4,", 'epochs = "x",', "argument --epochs: 'x' is not a whole number"),
        ("tune = { learning_rate", "tune = { rho", "--rho 0.003 has no effect on ADAM"),
        ("probes = 1,", "probez = 1,", "spectrum: unrecognized arguments: --probez=1"),
        ("epochs = 4,", 'epochs = 4, precision = "auto",', "ADAM.*precision auto is bf16 on some"),
        (
            "[optimizers.SAM]",
            '[optimizers."ADAM; twice the epochs"]\nflags = { optimizer = "ADAM" }\n'
            "tune = { learning_rate = [0.003, 0.01] }\n[optimizers.SAM]",
            "would write the same model_GCN_ADAM_rho0.0_fold0_seed1_ADAM-twice-the-epochs_lr0p003",
        ),
    ],
)
def test_what_a_script_would_refuse_is_refused_at_once(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    plan = plan_of(tmp_path, SMALL.replace(old, new, 1))
    with pytest.raises(ValueError, match=message) as raised:
        plan.check()
    assert str(plan.study.path) in str(raised.value) and "\n" not in str(raised.value)


def test_printed_lines_are_taken_by_their_scripts(tmp_path: Path, run_here) -> None:
    table, out = write(tmp_path), tmp_path / "out"
    printed = run_here(runner.main, table, "--print", "--out_dir", out)
    assert printed.returncode == 0 and not out.exists()  # nothing is done
    lines = printed.stdout.splitlines()
    commands = [line for line in lines if not line.startswith("#")]
    assert len(commands) == 4 and lines[:4] == commands  # the trials; all else waits for them
    assert len(lines) == 4 + 12 + 11
    for line in commands:
        python, script, *flags = shlex.split(line)
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        assert python == "python" and module.parse_args(flags).epochs == 4
    waits = [line for line in lines if line.startswith("# waits for the choice of rho by SAM's")]
    assert len(waits) == 4 + 1 + 1 + 1 + 2
    only = run_here(
        runner.main, table, "--print", "--stage=runs", "--only=SAM, seed 2", "--out_dir", out
    )
    assert len(only.stdout.splitlines()) == 2
    flags = ("--print", "--stage=runs", "--out_dir", out)
    none = run_here(runner.main, table, *flags, "--only=SAM, rho 0.05, seed 2")
    assert none.returncode == 2 and "fits no name, such as 'MUTAG, SAM, seed" in none.stderr


# --- counts and choices ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    "flags",
    [
        ["--optimizer=ADAM"],
        ["--optimizer=SAM"],
        ["--optimizer=SAM", "--rho=0"],
        ["--optimizer=ASAM", "--every=5"],
        ["--optimizer=SAM", "--msam"],
        ["--optimizer=SAM", "--sam_start=0.5", "--every=2"],
    ],
    ids=" ".join,
)
def test_passes_are_those_that_the_optimizer_asks_for(flags: list[str]) -> None:
    """Counted in the closure of 100 steps."""
    args = my_train_GCN.parse_args([*flags, "--epochs=10"])
    model = torch.nn.Linear(2, 1)
    optimizer = make_optimizer(args, model, epoch_steps=10)
    calls = []

    def closure() -> torch.Tensor:
        calls.append(1)
        optimizer.zero_grad()
        loss = model(torch.ones(1, 2)).square().mean()
        loss.backward()
        return loss

    for _ in range(100):
        optimizer.step(closure)
    assert len(calls) / 100 == pytest.approx(passes_a_step(args), abs=0.011)


def test_a_part_of_the_batch_counts_as_that_part() -> None:
    args = my_train_GCN.parse_args(["--optimizer=SAM", "--ascent_fraction=0.25"])
    assert passes_a_step(args) == 1.25


def test_a_rate_that_is_not_the_one_chosen_for_the_base_is_named(tmp_path: Path) -> None:
    """By hand for two sets; what tunes its own rate, or is the base for longer, has the right."""
    text = SMALL.replace(
        '{ dataset = "MUTAG" }',
        '{ dataset = "MUTAG", learning_rate = 0.03 }\n[data.NCI1]\n'
        'flags = { dataset = "NCI1", learning_rate = 0.003 }',
    )
    plan = plan_of(tmp_path, text)
    nci1 = {("NCI1", "ADAM"): 0.003}
    assert other_values(plan, {("MUTAG", "ADAM"): 0.03, **nci1}) == []
    (line,) = other_values(plan, {("MUTAG", "ADAM"): 0.01, **nci1})
    assert line.startswith("on MUTAG, SAM: learning_rate 0.03, where ADAM trains at 0.01, so")
    assert other_values(plan, {}) == []
    whole = SMALL.replace("learning_rate = [0.003, 0.01]", "batch_size = [16, 32]")
    (line,) = other_values(plan_of(tmp_path, whole), {("MUTAG", "ADAM"): 16})
    assert line.startswith("on MUTAG, SAM: batch_size 64, where ADAM trains at 16, so")


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=2), min_size=2, max_size=4))
def test_the_best_mean_is_chosen_and_of_equal_ones_the_smallest(results: list[list[int]]) -> None:
    values = tuple(0.1 * (i + 1) for i in range(len(results)))
    optimizer = Optimizer("SAM", {}, "rho", values, "SAM")
    choice = choose("MUTAG", optimizer, dict(zip(values, results, strict=True)))
    sums = [sum(each) for each in results]  # in whole numbers, so that ties are exact
    assert choice.value == values[sums.index(max(sums))]
    assert choice.at_edge == (choice.value in (values[0], values[-1]))
