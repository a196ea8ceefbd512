"""Several minima side by side: what belongs together, with numbers that are some."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import h5py
import pytest

from loss_landscape import compare
from utilities import checkpoint

OLD = Path(__file__).parents[1] / "old_files"
MODEL = Path("to_plot") / "model_GCN_SAM_rho0.05.pt"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint with its surface and its spectrum."""
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    return tmp_path


def read(folder: Path) -> compare.Minimum:
    return compare.read_minimum(folder / MODEL, (folder / MODEL).with_suffix(".h5"), folder)


def test_comparison_refuses_what_was_never_computed(trained, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"plot_surface\.py writes it"):
        compare.main(["--model_files", str(trained["GCN"]), "--output", str(tmp_path / "a.png")])


def test_results_of_a_checkpoint_that_was_trained_again_are_refused(folder: Path) -> None:
    """Its surface and its spectrum agreed, and stood beside the new run's accuracy."""
    assert (
        read(folder).numbers["test_acc"] == checkpoint.load(folder / MODEL)["metrics"]["test_acc"]
    )
    checkpoint.save(folder / MODEL, {**checkpoint.load(folder / MODEL), "epoch": 7})
    with pytest.raises(ValueError, match=r"\.h5 is of another checkpoint.*compute it anew"):
        read(folder)


@pytest.mark.parametrize("value", [None, "0.5", [0.5], True, {}])
@pytest.mark.parametrize("name", [*compare.METRICS, *compare.CURVATURE])
def test_what_is_no_number_in_a_file_is_refused(name: str, value, folder: Path) -> None:
    """The kind: null, text and lists where numbers are to be printed; unfinished runs too."""
    record = folder / "Eigenvalues" / "GCN_SAM.json"
    spectrum, content = json.loads(record.read_text()), checkpoint.load(folder / MODEL)
    if name in compare.METRICS:
        content["metrics"][name] = value
        checkpoint.save(folder / MODEL, content)
    else:
        spectrum[name] = value
    identity = hashlib.sha256((folder / MODEL).read_bytes()).hexdigest()
    record.write_text(json.dumps({**spectrum, "checkpoint_sha256": identity}))
    with h5py.File((folder / MODEL).with_suffix(".h5"), "r+") as file:
        file.attrs["checkpoint_sha256"] = identity
    if (name, value) == ("trace_standard_error", None):  # of a single sample
        assert "+-" not in next(iter(compare.table([read(folder)]).columns[-1].cells))
        return
    with pytest.raises(ValueError, match=name) as error:
        read(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("output", ["picture", "picture.npz", "to_plot"])
def test_a_picture_without_a_pictures_name_is_refused_first(output, tmp_path, run_here) -> None:
    flags = ("--model_files", tmp_path / "none.pt", "--output", tmp_path / output)
    result = run_here(compare.main, *flags)
    assert result.returncode == 2 and "no picture's name; end it in .png" in result.stderr
    assert len(result.stderr.splitlines()) == 1
