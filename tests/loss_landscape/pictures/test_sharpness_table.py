"""Measures of sharpness beside surfaces on a page: those of the checkpoint, taken in one way."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from loss_landscape import compare, sharpness
from loss_landscape.pictures.sharpness_table import refuse_different, sharpness_table
from utilities import checkpoint

OLD = Path(__file__).parents[2] / "old_files"
MODEL = Path("to_plot") / "model_GCN_SAM_rho0.05.pt"
QUICK = ("--samples=24", "--m=8", "--draws=2", "--threads=1", "--measures", "m_sharpness")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, its surface and spectrum, and two of its measures."""
    folder = tmp_path_factory.mktemp("measured")
    shutil.copytree(OLD, folder, dirs_exist_ok=True)
    flags = ["--model_file", str(folder / MODEL), "--out_dir", str(folder), *QUICK]
    sharpness.main([*flags, "average_case", "--data_dir", str(folder)])
    return folder


@pytest.fixture
def folder(measured: Path, tmp_path: Path) -> Path:
    shutil.copytree(measured, tmp_path, dirs_exist_ok=True)
    return tmp_path


def flags_of(folder: Path) -> list[object]:
    flags = ["--model_files", folder / MODEL, "--out_dir", folder, "--output", folder / "a.png"]
    return [*flags, "--sharpness"]


def test_the_page_has_the_values_of_the_file(folder: Path, run_here) -> None:
    page = folder / "a.html"
    done = run_here(compare.main, *flags_of(folder), "--html", page)
    assert done.returncode == 0, done.stderr
    path = folder / "Eigenvalues" / "GCN_SAM_sharpness.json"
    found = json.loads(path.read_text())["measures"]
    text = page.read_text("utf-8")
    for name, measure in found.items():
        said = f"{measure['value']:.4g} ± {measure['standard_error']:.2g}</td><td>loss</td>"
        row = re.search(rf"<tr><td>{name}</td>.*?</tr>", text)
        assert row is not None and said in row[0] and "L_S(w" in row[0]
        assert f'title="standard error over {measure["error_of"]}"' in row[0]
    assert "over 24 samples of train" in text and "m = 8" in text
    assert 'class="sharpness"' not in without(folder, run_here)


def without(folder: Path, run_here) -> str:
    flags = flags_of(folder)[:-1]
    assert run_here(compare.main, *flags, "--html", folder / "b.html").returncode == 0
    return (folder / "b.html").read_text("utf-8")


def test_what_is_missing_damaged_or_anothers_is_refused(folder: Path, run_here) -> None:
    flags = (*flags_of(folder), "--html", folder / "a.html")
    done = run_here(compare.main, *flags_of(folder))
    assert done.returncode == 2 and "is a table on the page; name that too" in done.stderr
    path = folder / "Eigenvalues" / "GCN_SAM_sharpness.json"
    text = path.read_text()
    wrong = {
        text.replace('"bound": null', '"bound": "x"'): "no finite number",
        text[:-9]: "damaged",
    }
    for content, message in wrong.items():
        path.write_text(content)
        done = run_here(compare.main, *flags)
        assert done.returncode == 2 and message in done.stderr, done.stderr
    path.write_text(text.replace('"checkpoint_sha256": "', '"checkpoint_sha256": "0'))
    done = run_here(compare.main, *flags)
    assert done.returncode == 2 and "is of another checkpoint" in done.stderr
    path.unlink()
    done = run_here(compare.main, *flags)
    assert done.returncode == 2 and "sharpness.py writes it" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (folder / "a.html").exists()
    assert checkpoint.load(folder / MODEL)


def test_measures_that_were_taken_in_two_ways_are_refused() -> None:
    one = {"arguments": {"rho": 0.05, "model": "a:b"}, "samples": 24, "m": 8, "measures": {}}
    refuse_different(["a", "b"], [one, {**one, "arguments": {"rho": 0.05, "model": "c:d"}}])
    others = {
        r"--rho \(0.1, not 0.05\)": {**one, "arguments": {"rho": 0.1}},
        r"--bn \(batch, not eval\)": {**one, "arguments": {"rho": 0.05, "bn": "batch"}},
        r"--samples \(9, not 24\)": {**one, "samples": 9},
        r"--m \(4, not 8\)": {**one, "m": 4},
    }
    for message, other in others.items():
        with pytest.raises(ValueError, match=rf"b: differs from a in {message}, so one table"):
            refuse_different(["a", "b"], [one, other])


def test_a_measure_that_one_checkpoint_lacks_has_an_empty_place() -> None:
    found = {"value": 1.0, "standard_error": None}
    records = [{"measures": measures, "arguments": {}} for measures in ({"trace": found}, {})]
    assert '<td title="not measured">-</td>' in sharpness_table(records, ["a", "b"])


def test_an_error_over_samples_is_not_called_a_bound() -> None:
    """The cell shows the larger of the two, and under the mouse each has its own number."""
    found = {"value": 4.87, "standard_error": 4.8, "error_of": "samples", "bound": 0.004}
    text = sharpness_table([{"measures": {"lambda_max": found}, "arguments": {}}], ["a"])
    assert ">4.87 ± 4.8</td>" in text
    said = "standard error over samples; bound: of these samples it is off by 0.004 at most"
    assert f'title="{said}"' in text
