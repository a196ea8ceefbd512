"""A study that goes on from its table of runs, where the checkpoints are gone."""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from tables import SMALL, write

import study
from loss_landscape import sharpness
from studies import runner
from studies.known_runs import KnownRuns, settings_digest
from studies.progression import Progression
from studies.runs_file import DIGESTS
from trainings import my_train_GCN
from utilities.files import ROOT

# One seed's minima have sharpness alone, so that their rows are all that the study asks of them.
OWN = ("seconds", "sha256")  # which two trainings of the same run don't share


@pytest.fixture
def known(carried_out: tuple[Path, Path]) -> tuple[Path, Path]:
    """A study's table, and the table of its runs, as if nothing else were left."""
    table, out = carried_out
    return table, out / "runs.csv"


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in OWN} for row in csv.DictReader(file)]


def commands(result) -> list[str]:
    assert result.returncode == 0, result.stderr
    return [line for line in result.stdout.splitlines() if not line.startswith("#")]


def test_only_what_needs_a_checkpoint_is_trained_again(known, tmp_path, run_here) -> None:
    """The rest is the table's; the two trainings give the same numbers again."""
    table, runs = known
    flags = (table, f"--known={runs}", f"--out_dir={tmp_path}")
    todo = commands(run_here(runner.main, *flags, "--print"))
    # SAM's fold 0 for its surface, all of fold 1 for their spectra, and two of these once more.
    assert len(todo) == 4 + 2
    assert all("--seed=1" in line and ("--fold=1" in line or "SAM" in line) for line in todo)
    done = run_here(runner.main, *flags)
    assert done.returncode == 0 and f"12 of them only {runs} has, a table of 16" in done.stdout
    assert len(list(tmp_path.glob("to_plot/*_last.pt"))) == 4
    assert read(tmp_path / "runs.csv") == read(runs)
    # And once more, from the table that this made.
    assert not commands(run_here(runner.main, *flags, "--print"))


def test_a_table_that_grew_goes_on(known, tmp_path: Path, run_here) -> None:
    _, runs = known
    table = write(tmp_path, SMALL.replace("seeds = [1, 2]", "seeds = [1, 2, 3]"))
    flags = (table, f"--known={runs}", f"--out_dir={tmp_path}", "--only=seed 3", "--print")
    todo = commands(run_here(runner.main, *flags))
    assert len(todo) == 6 and all("--seed=3" in line for line in todo)


@pytest.mark.parametrize(
    ("old", "new", "left"),
    [
        ("epochs = 4,", "epochs = 5,", 4),  # all: at first the trials
        ('"m_sharpness"], samples = 32', '"m_sharpness"], samples = 31', 8),  # two once more
    ],
)
def test_runs_of_other_settings_are_not_known(old, new, left, known, tmp_path, run_here) -> None:
    """Of sharpness too, whose settings a training's command line doesn't say."""
    _, runs = known
    assert old in SMALL
    table = write(tmp_path, SMALL.replace(old, new))
    flags = (table, f"--known={runs}", f"--out_dir={tmp_path}", "--print")
    assert len(commands(run_here(runner.main, *flags))) == left


def test_other_threads_make_the_same_run(known, tmp_path: Path, run_here) -> None:
    """As where the checkpoints are there; a report knows of no number of threads."""
    table, runs = known
    flags = (table, f"--known={runs}", f"--out_dir={tmp_path}", "--print", "--threads=2")
    assert len(commands(run_here(runner.main, *flags))) == 4 + 2


def without_digests(runs: Path, folder: Path) -> Path:
    """The table as older versions wrote it."""
    with runs.open(newline="") as file:
        rows = list(csv.DictReader(file))
    path = folder / "older.csv"
    with path.open("w", newline="") as file:
        header = [name for name in rows[0] if name not in DIGESTS]
        writer = csv.DictWriter(file, header, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_runs_of_other_defaults_are_not_known(known, tmp_path, run_here, monkeypatch) -> None:
    """Unless the table gives them as flags now: then they are the same runs by other commands."""
    table, runs = known
    assert my_train_GCN.DEFAULTS.weight_decay != 0.01
    changed = replace(my_train_GCN.DEFAULTS, weight_decay=0.01)
    monkeypatch.setattr(my_train_GCN, "DEFAULTS", changed)
    flags = (f"--known={runs}", f"--out_dir={tmp_path}", "--print")
    result = run_here(runner.main, table, *flags)
    todo = commands(result)
    assert len(todo) == 4 and all("--seed=100" in line for line in todo)
    assert result.stdout.endswith(
        "# note: 4 of the known runs are not taken, or not with their sharpness: the same command "
        "lines made them when the scripts had other defaults\n"
    )
    text = SMALL.replace("epochs = 4,", "epochs = 4, weight_decay = 0.0,")
    assert len(commands(run_here(runner.main, write(tmp_path, text), *flags))) == 4 + 2
    # What doesn't record its defaults is taken for made with those that the scripts have.
    older = without_digests(runs, tmp_path)
    flags = (f"--known={older}", *flags[1:])
    assert len(commands(run_here(runner.main, table, *flags))) == 4 + 2


def test_sharpness_of_other_defaults_is_not_known(known, tmp_path, run_here, monkeypatch) -> None:
    """Its two minima that no other measure needs are trained again."""
    table, runs = known
    monkeypatch.setitem(sharpness.WORST_RHO, "linf", 0.003)
    flags = (f"--known={runs}", f"--out_dir={tmp_path}", "--print")
    result = run_here(runner.main, table, *flags)
    assert len(commands(result)) == 8 and "# note: 3 of the known runs are not" in result.stdout


def test_a_table_that_records_no_defaults_does_when_it_is_written_again(
    known, tmp_path: Path, run_here
) -> None:
    table, runs = known
    output = reported(table, without_digests(runs, tmp_path), tmp_path, run_here)
    assert read(output / "runs.csv") == read(runs)
    rows = read(runs)
    assert len({row["settings_digest"] for row in rows}) == 16
    measured = Counter(row["sharpness_settings_digest"] for row in rows)
    assert sorted(measured.values()) == [3, 13] and measured[""] == 13


def test_a_flag_that_is_new_and_off_makes_no_other_run() -> None:
    """Nor do folders and threads; all else does."""
    now = argparse.Namespace(rho=0.05, threads=1, data_dir=Path("a"))
    later = {**vars(now), "threads": 2, "data_dir": Path("b")}
    same = {"new": False, "newer": None, "newest": 0.0}
    assert settings_digest(argparse.Namespace(**later, **same)) == settings_digest(now)
    for other in ({"rho": 0.1}, {"new": True}, {"new": 1.0}):
        assert settings_digest(argparse.Namespace(**{**later, **other})) != settings_digest(now)


@pytest.mark.parametrize("name", ["gcn", "mitbih"])
def test_no_run_of_a_committed_table_is_made_again_for_its_own_sake(name, tmp_path) -> None:
    """Only those whose pictures need a checkpoint, and those that the table lacks."""
    plan = runner.make_plan(ROOT / f"studies/{name}.toml", {}, tmp_path, tmp_path)
    known = KnownRuns(plan, ROOT / f"studies/reports/{name}/runs.csv", whole=True)
    state = Progression(plan, list(plan.jobs()), known)
    state.look()
    assert len(state.from_table) == len(known.rows) and not known.notes()
    assert not any(job.stage == "trials" for job in state.waiting)


def test_what_other_settings_measured_is_left_out(known, tmp_path: Path, run_here) -> None:
    """Of runs whose sharpness the study doesn't ask for, too: it would stand beside the others."""
    _, runs = known
    text = SMALL.replace('"m_sharpness"], samples = 32', '"m_sharpness"], samples = 31')
    text = text.replace("[1]\nfolds = [0]\n[measures.sur", "[2]\nfolds = [1]\n[measures.sur")
    assert text.count("seeds = [1]\nfolds = [0]") == 1  # of the surface
    output = reported(write(tmp_path, text), runs, tmp_path, run_here)
    trained = [row for row in read(output / "runs.csv") if row["stage"] == "run"]
    assert [(row["seed"], row["fold"]) for row in trained].count(("1", "0")) == 3
    for row in trained:
        assert not row["lambda_max"] + row["sharpness_command"] and row["test_acc"]
        assert row["command"] and not any(name.startswith("sharpness:") for name in row)


def test_rows_get_the_names_that_the_study_has_now(known, tmp_path: Path, run_here) -> None:
    """What they are compared to as well."""
    _, runs = known
    text = SMALL.replace('base = "ADAM"', 'base = "SAM"').replace("ADAM, twice", "ADAM; twice")
    output = reported(write(tmp_path, text), runs, tmp_path, run_here)
    bases = {(row["optimizer"], row["base"]) for row in read(output / "runs.csv")}
    assert bases == {("ADAM", "SAM"), ("ADAM; twice the epochs", "SAM"), ("SAM", "")}


def test_a_row_without_results_is_not_known(known, tmp_path: Path, run_here) -> None:
    """Such as one that somebody has emptied: its validation chose a value."""
    table, runs = known
    lines = runs.read_text().splitlines()
    cells = lines[1].split(",")
    cells[lines[0].split(",").index("val_acc")] = ""
    changed = tmp_path / "changed.csv"
    changed.write_text("\n".join([lines[0], ",".join(cells), *lines[2:], ""]))
    flags = (table, f"--known={changed}", f"--out_dir={tmp_path}", "--print")
    todo = commands(run_here(runner.main, *flags))
    assert "--seed=100" in todo[0] and not any("--seed=100" in line for line in todo[1:])


def reported(table: Path, runs: Path, folder: Path, run_here) -> Path:
    """The folder of a report on known runs alone."""
    (folder / "out").mkdir()
    flags = (f"--known={runs}", f"--out_dir={folder / 'out'}", f"--output={folder / 'report'}")
    done = run_here(study.main, "report", table, *flags)
    assert done.returncode == 0, done.stderr
    return folder / "report"


def test_the_report_is_of_known_runs_too(known, tmp_path: Path, run_here) -> None:
    table, runs = known
    text = (reported(table, runs, tmp_path, run_here) / "report.md").read_text("utf-8")
    assert "12 of 12 planned runs are in this report, and 4 of 4 trials" in text
    assert "Of 12 runs the checkpoints are not at hand" in text


def test_another_studys_table_is_refused(known, tmp_path: Path, run_here) -> None:
    _, runs = known
    table = write(tmp_path, SMALL, "other.toml")
    result = run_here(runner.main, table, f"--known={runs}", f"--out_dir={tmp_path}", "--print")
    assert result.returncode == 2 and "runs of the study 'small', not of 'other'" in result.stderr
    result = run_here(runner.main, table, f"--known={tmp_path / 'none.csv'}", "--print")
    assert result.returncode == 2 and "no such file" in result.stderr
    flags = (f"--known={runs}", f"--runs={runs}", f"--out_dir={tmp_path}", f"--output={tmp_path}")
    result = run_here(study.main, "report", table, *flags)
    assert result.returncode == 2 and "--known: has no effect with --runs" in result.stderr
