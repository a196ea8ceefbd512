"""A table of runs that has what nothing else has is not replaced by less of it unasked."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
from tables import SMALL, write

import study
from studies.fewer_runs import replace_runs
from studies.runs_file import DIGESTS, flags_of, read_runs, write_runs

LEFT = "*_seed1*"  # the checkpoints that are left: of one seed, and of the trials, 100


@pytest.fixture
def left(carried_out: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path, Path]:
    """A table, a folder where half of the runs' checkpoints are left, and a report's with all."""
    table, whole = carried_out
    out, report = tmp_path / "out", tmp_path / "report"
    for folder in ("to_plot", "outputs", "Eigenvalues", "kept_epochs/to_plot"):
        (out / folder).mkdir(parents=True)
        for path in (whole / folder).glob(LEFT):
            shutil.copy(path, out / folder)
    report.mkdir()
    for folder in (out, report):
        shutil.copy(whole / "runs.csv", folder)
    return table, out, report


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def count(path: Path) -> int:
    return len(read_rows(path))


def test_a_report_with_fewer_runs_than_before_is_refused(left, run_here) -> None:
    table, out, report = left
    flags = ("report", table, f"--out_dir={out}", f"--output={report}")
    before = (report / "runs.csv").read_bytes()
    done = run_here(study.main, *flags)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    path = report / "runs.csv"
    assert (
        f"{path}: 6 of its 16 runs and trials would be lost, such as of MUTAG, ADAM, run seed 2, "
        f"fold 0; --known {path} keeps those that the study has, another --output keeps them, "
        "--fewer_runs drops them"
    ) in done.stderr
    assert [path.name for path in report.iterdir()] == ["runs.csv"]
    assert (report / "runs.csv").read_bytes() == before
    assert run_here(study.main, *flags, f"--known={report / 'runs.csv'}").returncode == 0
    assert count(report / "runs.csv") == 16
    assert run_here(study.main, *flags, "--fewer_runs").returncode == 0
    assert count(report / "runs.csv") == 10


def test_a_report_on_another_table_of_fewer_runs_is_refused(left, tmp_path, run_here) -> None:
    """And one whose runs have fewer values."""
    table, out, report = left
    lines = (out / "runs.csv").read_text().splitlines(keepends=True)
    fewer = tmp_path / "fewer.csv"
    fewer.write_text("".join(lines[:-1]))
    flags = ("report", table, f"--out_dir={out}", f"--output={report}")
    done = run_here(study.main, *flags, f"--runs={fewer}")
    assert done.returncode == 2 and "1 of its 16 runs and trials would be lost" in done.stderr
    assert "--known" not in done.stderr
    changed = SMALL.replace('"m_sharpness"], samples = 32', '"m_sharpness"], samples = 31')
    shutil.rmtree(out / "to_plot")
    known = f"--known={report / 'runs.csv'}"
    assert run_here(study.main, *flags, known).returncode == 0
    assert count(report / "runs.csv") == 16
    done = run_here(study.main, "report", write(tmp_path, changed), *flags[2:], known)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "values of runs would be lost, such as of MUTAG, ADAM, run seed 1" in done.stderr
    assert count(report / "runs.csv") == 16


def test_a_part_of_a_study_leaves_rows_of_runs_that_are_gone(left, run_here) -> None:
    table, out, _ = left
    before = (out / "runs.csv").read_bytes()
    flags = (table, f"--out_dir={out}", "--stage=trials")
    done = run_here(study.main, *flags)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert f"would be lost, such as of MUTAG, ADAM, run seed 2, fold 0; --known {out}" in (
        done.stderr
    )
    assert (out / "runs.csv").read_bytes() == before
    assert not list(out.glob(".*.part*"))
    shutil.rmtree(out / "to_plot")
    assert run_here(study.main, *flags, f"--known={out / 'runs.csv'}").returncode == 0
    assert (out / "runs.csv").read_bytes() == before
    flags = (table, f"--out_dir={out}", "--stage=measures")
    assert run_here(study.main, *flags, "--fewer_runs").returncode == 0
    assert count(out / "runs.csv") == 0


def test_known_is_no_remedy_where_the_checkpoint_is_there(left, run_here) -> None:
    """A run's own files come first, so that values of the table would not be taken."""
    table, out, report = left
    path = report / "runs.csv"
    write_runs(path, [row for row in read_rows(path) if row["seed"] != "2"])
    for measured in out.glob("Eigenvalues/*_sharpness.json"):
        measured.unlink()
    flags = ("report", table, f"--out_dir={out}", f"--output={report}")
    done = run_here(study.main, *flags)
    assert done.returncode == 2 and f"{path}: values of runs would be lost" in done.stderr
    assert "; another --output keeps them, --fewer_runs drops them" in done.stderr
    assert run_here(study.main, *flags, f"--known={path}").returncode == 2


def test_a_damaged_table_is_replaced_only_in_words(left, run_here) -> None:
    table, out, report = left
    (report / "runs.csv").write_bytes((out / "runs.csv").read_bytes()[:-9])
    flags = ("report", table, f"--out_dir={out}", f"--output={report}")
    done = run_here(study.main, *flags)
    assert done.returncode == 2 and "--fewer_runs replaces it, whatever it has" in done.stderr
    assert run_here(study.main, *flags, "--fewer_runs").returncode == 0


def test_a_table_without_a_run_may_be_replaced(carried_out, tmp_path: Path) -> None:
    """And a table by itself; one that has runs not by one without."""
    path = tmp_path / "runs.csv"
    replace_runs(path, [], "--out_dir")
    replace_runs(path, [], "--out_dir")
    rows = read_rows(carried_out[1] / "runs.csv")
    older = [{k: v for k, v in row.items() if k not in DIGESTS} for row in rows]
    replace_runs(path, older, "--out_dir")
    replace_runs(path, rows[::-1], "--out_dir")
    assert len(read_runs(path)) == 16
    others = [{**row, "settings_digest": f"{n:016x}"} for n, row in enumerate(rows)]
    for fewer in ([], others):  # such as of the same command lines, with other defaults
        with pytest.raises(ValueError, match="16 of its 16 runs and trials would be lost"):
            replace_runs(path, fewer, "--out_dir")


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ("python a.py --y=2 --x 1 2 --threads=4", True),
        ("python a.py --x 1 2 --y=2 --threads=1", True),
        ("python a.py --x 2 1 --y=2", False),
        ("python b.py --x 1 2 --y=2", False),
        ("python a.py --x 1 2 --y='2", False),
        ("", False),
    ],
)
def test_command_lines_are_the_same_in_whatever_order(other: str, same: bool) -> None:
    assert (flags_of("python a.py --x 1 2 --y=2") == flags_of(other)) == same
