"""A study carried out: skipped, refused, failed; killed, it ends as if it never was stopped."""

from __future__ import annotations

import csv
import json
import multiprocessing.forkserver
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import forks
import numpy as np
import pytest
import torch
from tables import SMALL, write

import study
from loss_landscape.sharpness_measures.epoch_sharpness import read_epochs
from studies import markdown, runner
from studies.collect import rows
from studies.plan import KEPT
from studies.progression import Progression
from studies.runs_file import MACHINE
from studies.table import read_study
from utilities import checkpoint
from utilities.files import ROOT
from utilities.machine import processor

BAD = SMALL.replace(
    "[trials]",
    '[optimizers.wild]\nflags = { optimizer = "SGD" }\n'
    "tune = { learning_rate = [0.01, 1e30] }\n[trials]",
)


@pytest.fixture(scope="module", autouse=True)
def one_server() -> None:
    """Start the server of processes with what all tests need, before a study asks for less."""
    assert forks.SERVER
    multiprocessing.forkserver.ensure_running()


def weights(out: Path) -> dict[str, dict[str, torch.Tensor]]:
    files = sorted(out.rglob("to_plot/*.pt"))
    return {str(p.relative_to(out)): checkpoint.load(p)["state_dict"] for p in files}


def assert_same(out: Path, other: Path) -> None:
    """The same files, and in the checkpoints the same weights, bit for bit."""
    ours, theirs = weights(out), weights(other)
    assert ours.keys() == theirs.keys()
    for name, state in ours.items():
        assert all(torch.equal(state[key], theirs[name][key]) for key in state), name
    tables = [(folder / "choice.json").read_text() for folder in (out, other)]
    assert tables[0] == tables[1]


def test_all_that_the_table_asks_for_is_there(carried_out) -> None:
    _, out = carried_out
    assert len(list(out.glob("to_plot/*_last.pt"))) == 4 + 12
    assert len(list(out.glob("Eigenvalues/*_eigen.npy"))) == 3
    assert len(list(out.glob("Eigenvalues/*_sharpness.json"))) == 3
    assert len(list(out.glob("to_plot/*.h5"))) == 1
    assert len(list(out.glob("logs/*.log"))) == 4 + 12 + 11


def test_a_training_run_once_more_to_keep_epochs_is_the_run_itself(carried_out) -> None:
    _, out = carried_out
    files = sorted(out.glob("Eigenvalues/*_sharpness_epochs.json"))
    assert len(files) == 2 and all(list(read_epochs(path)[1]) == [0, 2, 4] for path in files)
    whole = weights(out)
    again = [n for n in whole if n.startswith("kept_epochs") and "_epoch" not in Path(n).name]
    assert len(again) == 2 * 2  # the best epoch's weights and the last state
    for name in again:
        run = whole[name.removeprefix("kept_epochs/")]
        assert all(torch.equal(whole[name][key], run[key]) for key in run), name


def test_a_training_that_kept_other_epochs_says_what_to_do(carried_out, tmp_path: Path) -> None:
    """Started once more it finds itself finished, and does nothing."""
    _, out = carried_out
    table = write(tmp_path, SMALL.replace("keep_epochs = 2", "keep_epochs = 1"))
    plan = runner.make_plan(table, {}, out, ROOT / "data")
    state = Progression(plan, list(plan.jobs()))
    state.look()
    job = state.next()
    assert job is not None and job.kind == KEPT
    runner.note_end(state, job, 0)
    assert "remove the folder kept_epochs to run it once more" in state.failed[job]


def test_sharpness_is_not_followed_over_fewer_epochs_than_asked(carried_out, tmp_path) -> None:
    """Though it was measured at all: which weights that was of can't be seen any more."""
    table, whole = carried_out
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    next(out.glob(f"{KEPT}/to_plot/*SAM*_epoch2.pt")).unlink()
    plan = runner.make_plan(table, {}, out, ROOT / "data")
    state = Progression(plan, list(plan.jobs()))
    state.look()
    assert [(job.kind, job.optimizer) for job in state.waiting] == [
        *((KEPT, "SAM"), ("along_training", "SAM"))
    ]
    job = state.next()
    assert job is not None and job.kind == KEPT and state.next() is None


def test_values_are_chosen_on_validation_alone(carried_out) -> None:
    """Against the trials' checkpoints, read and compared here."""
    _, out = carried_out
    found: dict[str, dict[float, float]] = {}
    for path in out.glob("to_plot/*seed100*.pt"):
        content = checkpoint.load(path)
        if "resume" not in content:
            args = content["train_args"]
            value = args["rho"] if args["optimizer"] == "SAM" else args["learning_rate"]
            found.setdefault(args["optimizer"], {})[value] = content["metrics"]["val_acc"]
    choices = json.loads((out / "choice.json").read_text())["choices"]
    assert [choice["optimizer"] for choice in choices] == ["ADAM", "SAM"]
    for choice in choices:
        of_values = found[choice["optimizer"]]
        best = max(of_values.values())
        assert choice["value"] == min(v for v, metric in of_values.items() if metric == best)
        assert choice["at_edge"]
        assert [t["mean"] for t in choice["val_acc"]] == [of_values[v] for v in sorted(of_values)]


def test_the_table_of_runs_says_what_the_files_hold(carried_out) -> None:
    table, out = carried_out
    with (out / "runs.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["stage"] for row in read] == ["trial"] * 4 + ["run"] * 12
    assert str(out) not in (out / "runs.csv").read_text()  # no folder of this machine
    for row in read:
        content = checkpoint.load(out / row["checkpoint"])
        assert float(row["test_acc"]) == content["metrics"]["test_acc"]
        assert int(row["seed"]) == content["train_args"]["seed"]
        assert [row[name] for name in MACHINE] == [processor(), torch.__version__, "1"]
        flag, value = row["chosen"].split("=")
        assert float(value) == content["train_args"][flag]
        assert row["base"] == ("" if row["optimizer"] == "ADAM" else "ADAM")
        epochs = 8 if "twice" in row["optimizer"] else 4
        passes = 2 * epochs if row["optimizer"] == "SAM" else epochs
        assert (int(row["epochs"]), float(row["passes"])) == (epochs, passes)
        measured = (row["stage"], row["seed"], row["fold"]) == ("run", "1", "0")
        assert bool(row["lambda_max"]) == bool(row["sharpness:m_sharpness"]) == measured
    sharp = json.loads(next(out.glob("Eigenvalues/GCN_SAM_*sharpness.json")).read_text())[
        "measures"
    ]
    row = next(row for row in read if row["optimizer"] == "SAM" and row["lambda_max"])
    assert float(row["lambda_max"]) == sharp["lambda_max"]["value"]
    assert float(row["sharpness_se:lambda_max"]) == sharp["lambda_max"]["standard_error"] > 0
    ratio = sharp["lambda_max_over_lambda_5"]["value"]
    np.testing.assert_allclose(float(row["lambda_5"]) * ratio, sharp["lambda_max"]["value"])
    assert [r["checkpoint"] for r in rows(read_study(table), out)] == [
        r["checkpoint"] for r in read
    ]


def test_a_run_that_ended_elsewhere_than_it_began_says_both(carried_out, tmp_path: Path) -> None:
    """The record is of its start, the versions of whatever saved last."""
    table, whole = carried_out
    out = tmp_path / "out"
    shutil.copytree(whole / "to_plot", out / "to_plot")
    path = sorted(out.glob("to_plot/*_seed2.pt"))[0]  # whose minimum is not measured
    content = checkpoint.load(path)
    assert checkpoint.origin(content)["processor"] == processor()
    content["record"]["processor"] = "an EPYC"
    checkpoint.save(path, content)
    found = {row["checkpoint"]: row["processor"] for row in rows(read_study(table), out)}
    assert found.pop(f"to_plot/{path.name}") == f"an EPYC, then {processor()}"
    assert set(found.values()) == {processor()}


def test_its_report_is_of_what_is_there(carried_out, tmp_path: Path, run_here) -> None:
    table, out = carried_out
    done = run_here(study.main, "report", table, f"--out_dir={out}", f"--output={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs.csv").read_bytes() == (out / "runs.csv").read_bytes()
    text = (tmp_path / "report.md").read_text("utf-8")
    assert "12 of 12 planned runs are in this report, and 4 of 4 trials" in text
    shown = markdown.text(f"They ran on {processor()}, 1 thread, torch {torch.__version__}.")
    assert shown in text
    assert "SAM's minima" in text or "SAM's lambda" in text
    for kind in ("differences", "minima", "curves", "surfaces", "spectra", "along_training"):
        assert (tmp_path / f"MUTAG_{kind}.png").is_file()
    assert "Files that were left out" not in text
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder, message in ((empty, "no finished run"), (tmp_path / "none", "no such folder")):
        done = run_here(study.main, "report", table, f"--out_dir={folder}")
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_what_is_done_is_left_alone(carried_out, run_here) -> None:
    table, out = carried_out
    files = [path for path in out.rglob("*") if path.suffix in (".pt", ".npy", ".json", ".h5")]
    before = {path: path.stat().st_mtime_ns for path in files if path.name != "choice.json"}
    again = run_here(runner.main, table, f"--out_dir={out}")
    assert again.returncode == 0 and "27 results are there, 0 runs are to be done" in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in before}
    printed = run_here(runner.main, table, "--print", f"--out_dir={out}").stdout.splitlines()
    assert len(printed) == 27 and all(line.startswith("# done: python ") for line in printed)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs = 4,", "epochs = 5,", "holds another run, with --epochs 4"),
        ("lanczos_steps = 4", "lanczos_steps = 5", "another spectrum, which differs in lanczos"),
        ("samples = 32, x", "samples = 31, x", "another surface, which differs in samples"),
        ("32, max_steps", "31, max_steps", "another along_training, which differs in samples"),
    ],
)
def test_a_changed_table_is_refused(old, new, message, carried_out, tmp_path, run_here) -> None:
    _, out = carried_out
    result = run_here(runner.main, write(tmp_path, SMALL.replace(old, new)), f"--out_dir={out}")
    assert result.returncode == 2 and message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_measure_that_is_added_is_taken(carried_out, tmp_path, run_here) -> None:
    _, out = carried_out
    changed = SMALL.replace('"m_sharpness"]', '"m_sharpness", "average_case"]')
    printed = run_here(runner.main, write(tmp_path, changed), "--print", f"--out_dir={out}").stdout
    todo = [line for line in printed.splitlines() if not line.startswith("#")]
    assert len(todo) == 3 and all("sharpness.py" in line for line in todo)


def test_what_fails_is_named_and_the_rest_goes_on(tmp_path: Path, run_here) -> None:
    table, out = write(tmp_path, BAD), tmp_path / "out"
    flags = (f"--out_dir={out}", "--jobs=2", "--only=wild|ADAM, (learning_rate|seed 1)")
    result = run_here(runner.main, table, *flags)
    assert result.returncode == 1
    failed = [line for line in result.stdout.splitlines() if line.startswith("failed: ")]
    assert failed[0] == failed[-1]  # when it happens, and at the end
    assert re.search(
        r"MUTAG, wild, learning_rate 1e\+30, trial seed 100, fold 0: exit code 2: .*"
        r"the loss is not finite.*\(.*_wild_lr1e30\.log\)",
        failed[0],
    ), failed
    waits = [line for line in result.stdout.splitlines() if line.startswith("waits for ")]
    assert waits and all("the choice of learning_rate by wild's trials" in line for line in waits)
    assert "3 of 6 trials, 2 of 16 runs" in result.stdout
    assert (out / "runs.csv").is_file()
    assert run_here(runner.main, table, *flags).returncode == 1  # tried again, failed again


@pytest.mark.parametrize("flag", ["--stage=trials", "--stage=runs", "--only=spectrum"])
def test_a_part_of_a_study_leaves_the_whole_table_of_runs(flag, carried_out, run_here) -> None:
    table, out = carried_out
    before = (out / "runs.csv").read_bytes()
    assert run_here(runner.main, table, flag, f"--out_dir={out}").returncode == 0
    assert (out / "runs.csv").read_bytes() == before


def test_a_second_study_in_one_folder_is_refused(carried_out, run_here) -> None:
    table, out = carried_out
    lock = runner.locked(out / "choice.json", "")
    held = forks.result_of(_refused_while, lock and str(out), str(table))
    assert "another process is carrying out this study now" in held


def _refused_while(out: str, table: str) -> str:
    """In another process: hold the study's lock and start it."""
    with runner.locked(Path(out) / "choice.json", "wait"):
        try:
            runner.main([table, f"--out_dir={out}"])
        except ValueError as error:
            return str(error)
    return "not refused"


# --- killed ---------------------------------------------------------------------------------------
def await_files(out: Path, pattern: str, count: int) -> None:
    deadline = time.monotonic() + forks.LIMIT
    while len(list(out.glob(pattern))) < count:
        assert time.monotonic() < deadline, "the study hangs"
        time.sleep(0.01)


def test_killed_and_started_again_it_ends_as_if_never_stopped(
    carried_out, tmp_path: Path, run_here
) -> None:
    """SIGKILL in one process, SIGTERM in the next, then to the end."""
    table, whole = carried_out
    out = tmp_path / "out"
    flags = [str(table), f"--out_dir={out}", "--jobs=2"]
    killed = forks.start(study.main, flags)
    await_files(out, "to_plot/*_last.pt", 3)
    killed.kill()
    assert forks.end(killed) == -signal.SIGKILL

    def terminate() -> None:
        await_files(out, "to_plot/*seed1_*_last.pt", 3)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate).start()
    stopped = run_here(study.main, *flags)
    assert stopped.returncode == 143
    assert "stopped, all is saved; go on with: python script.py" in stopped.stderr
    ended = run_here(study.main, *flags)
    assert ended.returncode == 0, ended
    assert "4 of 4 trials, 12 of 12 runs, 11 of 11 measures are done, 0 failed" in ended.stdout
    assert_same(out, whole)
