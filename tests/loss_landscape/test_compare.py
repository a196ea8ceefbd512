"""Several minima side by side: what belongs together, with numbers that are some."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from rich.markup import escape

from loss_landscape import compare
from loss_landscape.pictures.scale import make_scale
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


def test_the_largest_eigenvalue_has_its_error_over_samples_where_it_is_known(folder: Path) -> None:
    """Files of older versions have none, and nothing is said of it there."""
    assert "over samples" not in compare.caption([read(folder)])
    path = folder / "Eigenvalues" / "GCN_SAM.json"
    record = json.loads(path.read_text())
    assert compare.rows([read(folder)])[0][-2] == f"{record['lambda_max']:.4g}"
    errors = [0.25, *[None] * (len(record["eigenvalues"]) - 1)]
    path.write_text(json.dumps({**record, "standard_errors": errors}))
    assert compare.rows([read(folder)])[0][-2] == f"{record['lambda_max']:.4g} +- 0.25"
    assert compare.table([read(folder)]).title == f"{compare.CAPTION}. {compare.ERRORS}"


@pytest.mark.parametrize("output", ["picture", "picture.npz", "to_plot"])
def test_a_picture_without_a_pictures_name_is_refused_first(output, tmp_path, run_here) -> None:
    flags = ("--model_files", tmp_path / "none.pt", "--output", tmp_path / output)
    result = run_here(compare.main, *flags)
    assert result.returncode == 2 and "no picture's name; end it in .png" in result.stderr
    assert len(result.stderr.splitlines()) == 1


DIFFERENT = {
    "another draw": ({"seed": 7}, r"--seed \(7, not \d+\)"),
    "another norm": ({"norm": "layer filter"}, r"--norm \(layer filter, not filter filter\)"),
    "a subset": ({"samples": 5}, r"--samples \(5, not 0\)"),
    "the other loss": ({"loss_name": "crossentropy"}, r"--loss_name \(crossentropy, not"),
    "other data": ({"dataset": "PROTEINS"}, r"--dataset \(PROTEINS, not MUTAG\)"),
    "coarser losses": ({"precision": "bf16"}, r"--precision \(bf16, not fp32\)"),
    "states": ({"dir_type": "states"}, r"--dir_type \(states, not weights\)"),
    "other ends": ({"x": 2.0}, "--x, so"),
    "both": ({"y": 2.0, "seed": 7}, r"--seed \(7, not \d+\), --y, so"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_surfaces_that_were_not_taken_in_one_way_are_refused(name, folder, run_here) -> None:
    """They were drawn on one scale, under a title that said along the same random draws."""
    changes, message = DIFFERENT[name]
    other = folder / "other.h5"
    shutil.copy((folder / MODEL).with_suffix(".h5"), other)
    with h5py.File(other, "r+") as file:
        for key, value in changes.items():
            if key in "xy":
                file[f"{key}coordinates"][:] *= value
            else:
                file.attrs[key] = value
    models = [folder / MODEL, folder / MODEL]
    flags = ["--model_files", *models, "--surf_files", models[0].with_suffix(".h5"), other]
    output = folder / "a.png"
    result = run_here(compare.main, *flags, "--out_dir", folder, "--output", output)
    assert result.returncode == 2 and not output.exists()
    assert re.search(rf"other\.h5: differs from .*rho0\.05\.h5 in {message}", result.stderr)
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(("count", "spectra"), [(1, True), (3, True), (5, False)])
def test_any_number_of_minima_stands_in_one_picture(count, spectra, folder: Path) -> None:
    """Each has its surface from the top and in 3D; all have one colour bar."""
    stem = (folder / MODEL).with_suffix(".h5")
    minima = [compare.read_minimum(folder / MODEL, stem, folder, spectra) for _ in range(count)]
    scale = make_scale([m.surface.values["train_loss"] for m in minima])
    figure = compare.draw(minima, "train_loss", scale)
    kinds = [axes.name for axes in figure.axes]
    assert kinds.count("3d") == count
    assert kinds.count("rectilinear") == count + 1 + spectra
    heights = {axes.get_zlim() for axes in figure.axes if axes.name == "3d"}  # type: ignore
    assert len(heights) == 1
    assert len(list(compare.table(minima).columns)) == (6 if spectra else 4)


def test_names_from_files_are_text_in_the_table(folder: Path) -> None:
    """Rich would take what stands in brackets for colours, and leave it out."""
    minimum = read(folder)
    minimum.label = "[red]SAM[/red] [link=x]"
    assert next(iter(compare.table([minimum]).columns[0].cells)) == escape(minimum.label)
    assert compare.rows([minimum])[0][0] == minimum.label


def test_models_of_other_sizes_draw_other_numbers(folder: Path) -> None:
    one, other = read(folder), read(folder)
    assert "the same random draws" in compare.headline([one, other])
    other.content = {**other.content, "model_args": {"hidden": 7}}
    assert "draws of one seed" in compare.headline([one, other])


@pytest.mark.parametrize(
    ("said", "along"),
    [
        ({"directions": "eigenvectors"}, "each one's own eigenvectors of the Hessian"),
        ({"directions": "pca"}, "each one's own principal components of the path"),
        ({"model_file2": "b.pt"}, "directions that were given"),
        ({"dir_file": "b.h5"}, "directions that were given"),
    ],
)
def test_chosen_directions_are_not_called_random(said: dict, along: str, folder: Path) -> None:
    minimum = read(folder)
    minimum.surface.attributes["arguments"] = json.dumps(said)
    assert along in compare.headline([minimum]) and "draws" not in compare.headline([minimum])


def test_a_surface_of_a_users_own_model_stands_beside_others(folder: Path, run_here) -> None:
    """Its file holds weights alone: no accuracy, which is said so."""
    (folder / "to_plot" / "own.pt").write_bytes(b"weights")
    identity = hashlib.sha256(b"weights").hexdigest()
    surface = (folder / MODEL).with_suffix(".h5")
    shutil.copy(surface, surface.with_name("own.h5"))
    with h5py.File(surface.with_name("own.h5"), "r+") as file:
        said = {"model": "nets:resnet", "model_args": "{}", "title": "resnet on loader, own"}
        for name, value in {**said, "checkpoint_sha256": identity}.items():
            file.attrs[name] = value
    flags = ["--model_files", folder / MODEL, folder / "to_plot" / "own.pt", "--no-spectra"]
    result = run_here(compare.main, *flags, "--out_dir", folder, "--output", folder / "a.png")
    assert result.returncode == 0, result.stderr
    assert (folder / "a.png").stat().st_size
    row = next(line for line in result.stdout.splitlines() if "resnet on loader, own" in line)
    assert row.count(" - ") == 3


def test_interpolated_points_are_said_above_each_surface(folder: Path) -> None:
    minimum = read(folder)
    assert "interpolated" not in compare.heading(minimum)
    minimum.surface.interpolated = np.zeros(minimum.surface.shape, dtype=bool)
    minimum.surface.interpolated.flat[::2] = True
    minimum.surface.deviation = (0.001, 0.01)
    share = f"{minimum.surface.interpolated.mean():.0%} interpolated"
    assert share in compare.heading(minimum)


def test_long_titles_side_by_side_do_not_overlap(folder: Path) -> None:
    minimum = read(folder)
    minimum.label = "Transformer on MIT-BIH, ADAM, seed 1, inter_patient_ADAM-with-EMA_lr0p003"
    scale = make_scale([compare.grid(minimum.surface, "train_loss").filled(np.nan)])
    figure = compare.draw([minimum] * 4, "train_loss", scale)
    figure.draw_without_rendering()
    titles = [axes.title for axes in figure.axes if minimum.label[:11] in axes.title.get_text()]
    boxes = [title.get_window_extent() for title in titles]
    assert len(boxes) == 4
    for left, right in itertools.pairwise(boxes):
        assert left.x1 < right.x0
