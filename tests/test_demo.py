"""The demo and the notebook, end to end, small."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from conftest import Run, run_script
from nbclient import NotebookClient

from utilities.files import ROOT, locked


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The demo's folder of results and what it printed; it needs nothing but the clone."""
    out = tmp_path_factory.mktemp("demo")
    flags = ("--epochs", 3, "--points", 5, "--probes", 2, "--folds", 3)
    done = run_script("demo.py", "--out_dir", out, "--data_dir", out / "data", *flags)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_demo_ends_with_the_picture_and_the_table(demo: tuple[Path, str]) -> None:
    out, text = demo
    assert (out / "plots" / "demo_GCN.png").stat().st_size > 20_000
    for column in ("test acc. (%)", "test loss", "lambda_max", "trace"):
        assert column in text
    for row in ("GCN on MUTAG, ADAM", "GCN on MUTAG, SAM, rho 0.05"):
        assert row in text
    for name in ("GCN_ADAM", "GCN_SAM"):
        assert (out / "plots" / f"eig_{name}.png").is_file()


def test_demo_can_be_run_again(demo: tuple[Path, str], run_here: Run) -> None:
    from demo import main

    out, _ = demo
    flags = ("--epochs", 2, "--points", 4, "--probes", 1, "--folds", 3)  # other results than before
    done = run_here(main, "--out_dir", out, "--data_dir", out / "data", *flags)
    assert done.returncode == 0, done.stderr


def test_a_second_demo_in_one_folder_stops_at_once(tmp_path: Path) -> None:
    """It would train the models anew that the first is looking at."""
    import demo

    with (
        locked(tmp_path / "plots" / "demo_GCN.png", "wait"),
        pytest.raises(ValueError, match=r"demo_GCN\.png: another process .* another --out_dir"),
    ):
        demo.main(["--out_dir", str(tmp_path), "--epochs", "1"])
    assert not (tmp_path / "to_plot").exists()


def test_notebook_runs_on_the_demos_files(demo: tuple[Path, str], monkeypatch) -> None:
    monkeypatch.setenv("SAM_OUT_DIR", str(demo[0]))
    notebook = nbformat.read(ROOT / "Loss_plots.ipynb", as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT)}}).execute()
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 5
