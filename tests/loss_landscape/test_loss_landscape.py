"""Directions, evaluation, surface files and plots; the scripts through their command lines."""

from __future__ import annotations

import shutil
import warnings
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import run_script
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import DatasetClass
import models
from loss_landscape import compare, plot_1D, plot_2D, plot_surface
from loss_landscape.directions import (
    NORMS,
    coordinates,
    cosine,
    difference,
    fingerprint,
    random_direction,
)
from loss_landscape.evaluation import evaluate, moved
from loss_landscape.surface_file import (
    Surface,
    create,
    done,
    read_directions,
    read_surface,
    refuse_other,
    write_row,
)
from models.smooth_crossentropy import smooth_crossentropy
from utilities import checkpoint
from utilities.files import ROOT


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


WEIGHTS = [torch.randn(4, 3, 2, 2, generator=generator(9)).double(), torch.randn(4).double()]


# --- directions -----------------------------------------------------------------------------------
def test_filter_normalisation_gives_each_filter_the_weights_norm() -> None:
    direction, bias = random_direction(WEIGHTS, "filter", "biasbn", generator())
    for d, w in zip(direction, WEIGHTS[0], strict=True):
        expected = sum(x**2 for x in w.flatten().tolist()) ** 0.5
        found = sum(x**2 for x in d.flatten().tolist()) ** 0.5
        assert found == pytest.approx(expected, rel=1e-12)
    assert not bias.any()


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        ("layer", lambda w, g: g / g.norm() * w.norm()),
        ("weight", lambda w, g: g * w),
        ("dlayer", lambda w, g: g / g.norm()),
        ("dfilter", lambda w, g: torch.stack([d / d.norm() for d in g])),
        ("none", lambda w, g: g),
    ],
)
def test_the_other_norms_are_loss_landscapes(norm: str, expected) -> None:
    drawn = torch.randn(WEIGHTS[0].shape, generator=generator()).double()
    direction, bias = random_direction(WEIGHTS, norm, "none", generator())
    torch.testing.assert_close(direction, expected(WEIGHTS[0], drawn))
    assert torch.equal(bias, WEIGHTS[1])


@pytest.mark.parametrize("norm", NORMS)
def test_zero_filters_stay_finite(norm: str) -> None:
    direction = random_direction([torch.zeros(3, 2)], norm, "biasbn", generator())
    assert direction[0].isfinite().all()


def test_one_seed_gives_two_models_the_same_gaussian() -> None:
    other = [w * 3 for w in WEIGHTS]
    ours = random_direction(WEIGHTS, "filter", "biasbn", generator(5))
    theirs = random_direction(other, "filter", "biasbn", generator(5))
    torch.testing.assert_close([d * 3 for d in ours], theirs)
    assert cosine(ours, theirs) == pytest.approx(1)
    assert fingerprint([ours]) != fingerprint([theirs])


def test_states_include_running_statistics_but_no_counters() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert set(coordinates(model, "states")) - set(coordinates(model, "weights")) == {
        "1.running_mean",
        "1.running_var",
    }


# --- evaluation -----------------------------------------------------------------------------------
def test_unequal_batches_count_by_their_samples() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 4).double(), torch.randn(10, 3).double(), torch.arange(10) % 4
    loss = partial(smooth_crossentropy, smoothing=0.1)
    whole = evaluate(model, [(x, y)], loss)
    parts = evaluate(model, [(x[:7], y[:7]), (x[7:], y[7:])], loss)
    assert parts == pytest.approx(whole, rel=1e-12)
    assert whole[0] == pytest.approx(float(loss(model(x), y).mean().detach()))


def test_moved_weights_come_back_bit_for_bit() -> None:
    model = nn.Linear(3, 2)
    weights = list(coordinates(model, "weights").values())
    before = [w.clone() for w in weights]
    pointers = [p.data_ptr() for p in model.parameters()]
    direction = [torch.randn_like(w) for w in weights]
    with pytest.raises(KeyError), moved(weights, [direction, direction], [0.3, 0.4]):
        for p, w, d in zip(model.parameters(), before, direction, strict=True):
            torch.testing.assert_close(p.detach(), w + 0.7 * d)
        raise KeyError
    assert all(map(torch.equal, before, model.parameters()))
    assert pointers == [p.data_ptr() for p in model.parameters()]


# --- the file -------------------------------------------------------------------------------------
def make_surface(path: Path, nx: int = 3, ny: int = 7) -> Surface:
    surface = Surface(np.linspace(-1, 1, nx), np.linspace(0, 6, ny), {}, {"seed": 1})
    create(path, surface, [[torch.ones(2)], [torch.arange(3.0)]], ("train_loss", "train_acc"))
    return surface


def test_values_are_y_x_and_readable_as_loss_landscape_does(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    surface = make_surface(path)
    for row, y in enumerate(surface.y):
        write_row(path, row, {"train_loss": surface.x + 10 * y, "train_acc": 0 * surface.x})
    x, y = np.meshgrid(surface.x, surface.y)
    with h5py.File(path) as file:  # as their plot_2D reads it
        assert np.array_equal(file["train_loss"][:], x + 10 * y)
        assert file["dir_file"][()].decode() == "s.h5"
        assert sorted(file["ydirection"]) == ["0"]
    assert torch.equal(read_directions(path)[1][0], torch.arange(3.0))


def test_unfinished_cells_are_nan_and_nan_is_a_finished_value(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    make_surface(path)
    values = np.array([1.0, np.nan, -1.0])
    write_row(path, 2, {"train_loss": values, "train_acc": values})
    assert done(path).sum(axis=1).tolist() == [0, 0, 3, 0, 0, 0, 0]
    read = read_surface(path).values["train_loss"]
    np.testing.assert_array_equal(read[2], values)
    assert np.isnan(np.delete(read, 2, axis=0)).all()


def test_files_of_loss_landscape_are_read(tmp_path: Path) -> None:
    path = tmp_path / "theirs.h5"
    with h5py.File(path, "w") as file:
        file["dir_file"] = "d.h5"
        file["xcoordinates"] = file["ycoordinates"] = np.linspace(-1, 1, 4)
        loss = np.arange(1.0, 17).reshape(4, 4)
        loss[0, 0] = -1  # not computed
        file["train_loss"] = loss
    surface = read_surface(path)
    assert np.isnan(surface.values["train_loss"][0, 0])
    assert len(plot_2D.draw(path, "train_loss", tmp_path)) == 4


def test_another_surface_is_never_continued(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    surface = make_surface(path)
    refuse_other(path, surface)
    with pytest.raises(ValueError, match=r"differs in grid.*--surf_file.*--overwrite"):
        refuse_other(path, Surface(surface.x, surface.y + 1, {}, {"seed": 1}))
    with pytest.raises(ValueError, match="differs in seed"):
        refuse_other(path, Surface(surface.x, surface.y, {}, {"seed": 2}))


def test_truncated_files_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    make_surface(path)
    whole = path.read_bytes()
    for percent in range(0, 100, 3):
        path.write_bytes(whole[: len(whole) * percent // 100])
        with pytest.raises(ValueError, match=r"s\.h5") as error:
            read_surface(path)
        assert "\n" not in str(error.value)


def test_external_links_are_refused(tmp_path: Path) -> None:
    path, other = tmp_path / "s.h5", tmp_path / "other.h5"
    make_surface(path)
    shutil.copy(path, other)
    with h5py.File(path, "r+") as file:
        del file["train_loss"]
        file["train_loss"] = h5py.ExternalLink("other.h5", "train_loss")
    with pytest.raises(ValueError, match="link"):
        read_surface(path)


@settings(max_examples=60)
@given(low=st.floats(-5, 5), width=st.floats(0.01, 5), num=st.integers(1, 99))
def test_axis_reads_what_it_says(low: float, width: float, num: int) -> None:
    points = plot_surface.axis(f"{low}:{low + width}:{num}").points()
    assert len(points) == num
    assert points[0] == low
    if num > 1:
        assert points[-1] == pytest.approx(low + width)


# --- the scripts ----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["GCN", "mitbih", "cifar"])
def test_the_centre_is_the_checkpoints_loss(name, trained, data_dir: Path, tmp_path: Path) -> None:
    path = plot_surface.main(
        [
            "--model_file",
            str(trained[name]),
            "--model",
            name,
            "--x=-0.5:0.5:3",
            "--y=-1:1:5",
            "--test",
            "--plot",
            "--data_dir",
            str(data_dir),
            "--out_dir",
            str(tmp_path),
            "--batch_size",
            "37",
            "--threads",
            "1",
        ]
    )
    surface = read_surface(path)
    assert surface.values["train_loss"].shape == (5, 3)
    content = checkpoint.load(trained[name])
    for value in ("loss", "acc"):
        centre = surface.values[f"test_{value}"][2, 1]
        assert centre == pytest.approx(content["metrics"][f"test_{value}"], rel=1e-5)
    dataset = DatasetClass.load(content["dataset"], data_dir, **content["data_args"])
    model = models.build(name, **content["model_args"])
    model.load_state_dict(content["state_dict"])
    smoothing = content["train_args"]["label_smoothing"]
    loss = partial(smooth_crossentropy, smoothing=smoothing)
    batches = dataset.fixed("train", 1000)
    expected = evaluate(model.eval(), batches, loss)[0]
    assert surface.values["train_loss"][2, 1] == pytest.approx(expected, rel=1e-5)
    # a corner, moved by hand
    x, y = read_directions(path)
    with torch.no_grad():
        for p, a, b in zip(model.parameters(), x, y, strict=True):
            p += -0.5 * a + 1.0 * b
    expected = evaluate(model, batches, loss)[0]
    assert surface.values["train_loss"][4, 0] == pytest.approx(expected, rel=1e-4)
    assert len(list((tmp_path / "plots").glob("*.png"))) == 4


def test_the_original_command_line_works_inside_its_folder(trained, data_dir, tmp_path) -> None:
    flags = "--x=-1:1:3 --y=-1:1:4 --dir_type weights --xnorm filter --xignore biasbn --ynorm "
    flags += "filter --yignore biasbn --plot --batch_size=8 --loss_name smooth_crossentropy"
    done = run_script(
        "loss_landscape/plot_surface.py",
        *("--model", "GCN", "--dataset", "TINY", "--model_file", trained["GCN"]),
        *flags.split(),
        *("--data_dir", data_dir, "--out_dir", tmp_path),
        cwd=ROOT / "loss_landscape",
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "plots" / f"{trained['GCN'].stem}.h5_2dcontour.png").is_file()
    assert "files written" in done.stdout


def test_a_stopped_surface_goes_on_where_it_was(trained, data_dir: Path, tmp_path: Path) -> None:
    flags = ["--model_file", str(trained["GCN"]), "--x=-1:1:4", "--y=-1:1:5"]
    flags += ["--data_dir", str(data_dir), "--out_dir", str(tmp_path)]
    path = plot_surface.main(flags)
    whole = read_surface(path).values["train_loss"]
    with h5py.File(path, "r+") as file:
        file["done"][3] = False
        file["train_loss"][3] = -1
        file["train_loss"][0, 0] = 123.0  # must not be computed again
    again = read_surface(plot_surface.main(flags)).values["train_loss"]
    np.testing.assert_array_equal(again[1:], whole[1:])
    assert again[0, 0] == 123.0
    with pytest.raises(ValueError, match="differs in grid"):
        plot_surface.main([*flags[:2], "--x=-1:1:3", *flags[3:]])


def test_a_line_runs_from_one_checkpoint_to_another(trained, data_dir, tmp_path: Path) -> None:
    last = trained["cifar"].with_name(trained["cifar"].stem + "_last.pt")
    flags = ["--model_file2", str(last), "--x=0:1:3", "--dir_type=states", "--plot"]
    flags += ["--data_dir", str(data_dir), "--out_dir", str(tmp_path), "--test"]
    path = plot_surface.main(["--model_file", str(trained["cifar"]), *flags])
    surface = read_surface(path)
    start = checkpoint.load(trained["cifar"])
    assert surface.values["test_loss"][0] == pytest.approx(start["metrics"]["test_loss"], rel=1e-5)
    with pytest.raises(ValueError, match="2D"):
        plot_2D.draw(path, "train_loss", tmp_path)
    assert plot_1D.draw(path, "test_loss", tmp_path)[0].is_file()


def test_difference_ends_at_the_other_model() -> None:
    a, b = [torch.zeros(2)], [torch.tensor([1.0, 2.0])]
    assert torch.equal(difference(a, b)[0], b[0])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--x=-1:1"], "min:max:num"),
        (["--x=1:-1:5"], "min:max:num"),
        (["--x=-1:1:0"], "min:max:num"),
        (["--x=nan:1:5"], "min:max:num"),
        (["--model", "cifar"], "holds --model GCN, not --model cifar"),
        (["--dataset", "MUTAG"], "holds --dataset TINY, not --dataset MUTAG"),
        (["--model_file", "none.pt"], "none.pt: no such checkpoint"),
        (["--dir_file", "none.h5"], "none.h5: no such surface"),
        (["--xnor", "filter"], "--xnor"),
    ],
)
def test_bad_flags_are_one_line(flags, message, trained, data_dir, tmp_path: Path) -> None:
    common = ["--model_file", trained["GCN"], "--data_dir", data_dir, "--out_dir", tmp_path]
    result = run_script("loss_landscape/plot_surface.py", *common, *flags)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_one_line_through_the_command_line(trained, tmp_path: Path) -> None:
    cut = tmp_path / "cut.pt"
    cut.write_bytes(trained["GCN"].read_bytes()[:2000])
    bad = tmp_path / "bad.h5"
    bad.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    for script, *flags in (
        ("loss_landscape/plot_surface.py", "--model_file", cut),
        ("loss_landscape/my_pyhessian/hessian.py", "--model_file", cut),
        ("loss_landscape/plot_2D.py", "--surf_file", bad),
        ("loss_landscape/my_pyhessian/density_plot.py", "--spectrum", tmp_path / "none"),
    ):
        result = run_script(script, *flags)
        assert result.returncode == 2, script
        assert len(result.stderr.splitlines()) == 1
        assert "Traceback" not in result.stderr


def test_colour_scales_are_shared_and_survive_flat_and_missing_values() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        norm = plot_2D.colour_scale([np.array([1.0, 2.0]), np.array([0.5, np.nan])])
        assert norm.vmin == 0.5
        for values in (np.ones(3), np.full(3, np.nan), np.array([1e-3, 1e3])):
            levels = plot_2D.contour_levels(plot_2D.colour_scale([values]))
            assert (np.diff(levels) > 0).all()


def test_comparison_refuses_what_was_never_computed(trained, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"plot_surface\.py writes it"):
        compare.main(["--model_files", str(trained["GCN"]), "--output", str(tmp_path / "a.png")])


def test_text_in_a_surface_has_a_fixed_length_and_comes_back(tmp_path: Path) -> None:
    """HDF5 can loop for ever in a damaged heap, where text of free length lies."""
    attributes = {"seed": 3, "norm": "filter", "arguments": "--x=-1:1:3 é", "empty": ""}
    surface = Surface(np.linspace(-1, 1, 3), None, {}, attributes)
    create(tmp_path / "a.h5", surface, [[torch.ones(2)]], ("train_loss",))
    assert read_surface(tmp_path / "a.h5").attributes == attributes
    with h5py.File(tmp_path / "a.h5") as file:
        kinds = [h5py.check_string_dtype(file.attrs.get_id(n).dtype) for n in ("norm", "empty")]
        assert [kind.length for kind in kinds] == [6, 1]


def test_a_surface_that_asks_for_too_much_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["xcoordinates"] = np.zeros(3)
        # 8 TB, none of it there
        file.create_dataset("train_loss", (10**6, 10**6), "f8", chunks=(10, 10))
    with pytest.raises(ValueError, match="false size"):
        read_surface(tmp_path / "a.h5")
