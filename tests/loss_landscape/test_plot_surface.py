"""plot_surface.py through its command line: right values, resumed, never mixed, clear errors."""

from __future__ import annotations

import shutil
import time
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from bowls import run_surface
from conftest import run_script
from forks import end, start

import DatasetClass
import models
from loss_landscape import plot_1D, plot_2D, plot_surface
from loss_landscape.evaluation import loss_and_accuracy
from loss_landscape.points import surface_measure
from loss_landscape.restore import restore
from loss_landscape.surface_file import Surface, done, read_directions, read_surface
from models.smooth_crossentropy import smooth_crossentropy
from utilities import checkpoint
from utilities.files import ROOT
from utilities.metrics import evaluate


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
    classes = dataset.num_classes
    expected, _ = evaluate(model.eval(), batches, loss, classes).loss_and_accuracy()
    assert surface.values["train_loss"][2, 1] == pytest.approx(expected, rel=1e-5)
    same, _ = evaluate(model, dataset.fixed("train", 37), loss, classes).loss_and_accuracy()
    assert surface.values["train_loss"][2, 1] == same  # exactly
    # a corner, moved by hand
    x, y = read_directions(path)
    with torch.no_grad():
        for p, a, b in zip(model.parameters(), x, y, strict=True):
            p += -0.5 * a + 1.0 * b
    expected, _ = evaluate(model, batches, loss, classes).loss_and_accuracy()
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
        (["--x=-1:1:100000", "--y=-1:1:100000"], "10,000,000,000 points"),
        (["--x=-1:1:1", "--y=-1:1:3", "--plot"], "3 x 1 can't be drawn"),
        (["--model_file3", "none.pt"], "--model_file3: y runs to it, but there is no --y"),
        (["--dir_file", "none.h5", "--model_file2", "none.pt"], "both say the directions"),
        (["--threads", "1000000"], "--threads: '1000000' is not a whole number from 0 to 1024"),
        (["--surf_file", "SELF", "--overwrite"], "is there and no surface"),
        (["--same_dir"], "--same_dir: y takes the direction of x, but there is no --y"),
        (["--same_dir", "--y=0:1:2", "--model_file3", "none.pt"], "say the direction of y"),
        (["--data_split", "3", "--split_idx", "3"], "gives parts 0 to 2"),
        (["--data_split", "1000"], "--data_split 1000: the train split has 28 samples"),
        (["--bn", "recalibrate", "--dir_type", "states"], "take --dir_type weights"),
        (["--bn", "recalibrate"], "model has no batch norm"),
        (["--show"], "--show"),
        (["--precision=bf16", "--no-fast"], "--precision bf16: is one of the faster ways"),
        (["--vmin=0", "--y=0:1:3"], "--vmin: says how the surface is drawn; add --plot"),
        (["--vlevel=1", "--plot"], "--vmin, --vlevel: are of surfaces in 2D"),
        (["--vmin=3", "--vmax=2", "--plot", "--y=0:1:3"], "--vmin 3: not below --vmax 2"),
        (["--raw_data"], "--raw_data: the model was trained on normalised inputs"),
        (["--cuda"], "--cuda: write --device cuda"),
        (["--datapath", "cifar10/data"], "--datapath: write --data_dir"),
    ],
)
def test_bad_flags_are_one_line(
    flags, message, trained, data_dir, tmp_path: Path, run_here
) -> None:
    """The kind: numbers that make no grid, flags that contradict, a result over something else."""
    flags = [trained["GCN"] if flag == "SELF" else flag for flag in flags]
    weights = trained["GCN"].read_bytes()
    common = ["--model_file", trained["GCN"], "--data_dir", data_dir, "--out_dir", tmp_path]
    result = run_here(plot_surface.main, *common, *flags)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
    assert trained["GCN"].read_bytes() == weights


def surface_from(trained: Path, data_dir: Path, path: Path, *flags: str) -> Surface:
    common = ["--model_file", str(trained), "--data_dir", str(data_dir), "--surf_file", str(path)]
    return read_surface(plot_surface.main([*common, *flags]))


def test_parts_of_the_data_make_up_the_whole(trained, data_dir, tmp_path: Path) -> None:
    """loss-landscape's --split_idx changes a file's name and nothing else."""
    whole = surface_from(trained["GCN"], data_dir, tmp_path / "whole.h5", "--x=-1:1:3")
    parts = [
        surface_from(
            *(trained["GCN"], data_dir, tmp_path / f"{number}.h5", "--x=-1:1:3"),
            *("--data_split=4", f"--split_idx={number}"),
        ).values["train_loss"]
        for number in range(4)
    ]
    np.testing.assert_allclose(np.mean(parts, axis=0), whole.values["train_loss"], rtol=1e-5)
    with pytest.raises(ValueError, match="differs in data_split"):
        surface_from(trained["GCN"], data_dir, tmp_path / "1.h5", "--x=-1:1:3", "--data_split=4")


def test_the_same_direction_twice_makes_a_surface_of_the_sum(trained, data_dir, tmp_path) -> None:
    flags = ["--x=-1:1:3", "--y=-1:1:3", "--same_dir"]
    surface = surface_from(trained["GCN"], data_dir, tmp_path / "s.h5", *flags)
    loss = surface.values["train_loss"]
    np.testing.assert_allclose(loss, loss.T, rtol=1e-5)
    np.testing.assert_allclose(np.diagonal(loss[::-1]), loss[1, 1], rtol=1e-5)  # x + y = 0
    assert np.ptp(loss) > 0.01
    made = surface.attributes["xdirection_is"]
    assert made == surface.attributes["ydirection_is"]
    assert made == "drawn with seed 123, idx 0; norm filter, ignore biasbn"


def test_a_part_of_the_samples_has_a_standard_error_beside_its_mean(
    trained, data_dir: Path, tmp_path: Path
) -> None:
    flags = ["--x=0:1:2", "--samples=20", "--batch_size=7"]
    surface = surface_from(trained["GCN"], data_dir, tmp_path / "s.h5", *flags)
    args = plot_surface.parse_args(
        ["--model_file", str(trained["GCN"]), "--data_dir", str(data_dir)]
    )
    restored = restore(args)
    ((inputs, targets),) = restored.batches("train", 20, 100)
    with torch.no_grad():
        losses = restored.loss(restored.model(inputs), targets).double().numpy()
    assert surface.values["train_loss"][0] == pytest.approx(losses.mean(), rel=1e-5)
    expected = losses.std(ddof=1) / 20**0.5
    assert surface.values["train_loss_se"][0] == pytest.approx(expected, rel=1e-5)
    assert surface.values["train_loss_se"][1] > 0
    whole = surface_from(trained["GCN"], data_dir, tmp_path / "all.h5", "--x=0:1:2")
    assert "train_loss_se" not in whole.values


def test_batch_norm_is_recalibrated_at_each_point(trained, data_dir, tmp_path: Path) -> None:
    flags = ["--x=0:1:2", "--batch_size=16"]
    fixed = surface_from(trained["cifar"], data_dir, tmp_path / "s.h5", *flags)
    flags.append("--bn=recalibrate")
    again = surface_from(trained["cifar"], data_dir, tmp_path / "r.h5", *flags)
    losses = [s.values["train_loss"] for s in (fixed, again)]
    assert (np.abs(np.diff(losses, axis=0)) > 1e-6).all()
    assert again.attributes["bn"] == "recalibrate, batches of 16"
    with pytest.raises(ValueError, match="differs in bn"):
        surface_from(trained["cifar"], data_dir, tmp_path / "s.h5", *flags)


@pytest.mark.parametrize("flags", [["--test"], ["--adaptive=0.001"]], ids=["plain", "adaptive"])
def test_a_killed_run_ends_with_the_same_values(flags, trained, data_dir, tmp_path: Path) -> None:
    """SIGKILL at several moments, while the network is measured."""
    grid = ["--x=-1:1:30", "--y=-1:1:26", "--threads=1", "--no-fast", *flags]
    whole = surface_from(trained["GCN"], data_dir, tmp_path / "whole.h5", *grid)
    path, cells, rng = tmp_path / "s.h5", 0, np.random.default_rng(0)
    common = ["--model_file", str(trained["GCN"]), "--data_dir", str(data_dir)]
    for _ in range(4):
        process = start(run_surface, [*common, "--surf_file", str(path), *grid])
        deadline = time.monotonic() + 60
        while process.is_alive() and not (path.exists() and done(path).sum() > cells):
            assert time.monotonic() < deadline, "the run hangs"
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        exit_code = end(process)
        assert done(path).sum() > cells or exit_code == 0
        cells = done(path).sum()
    assert cells
    again = surface_from(trained["GCN"], data_dir, path, *grid)
    for name, values in whole.values.items():
        np.testing.assert_array_equal(again.values[name], values)
    if whole.interpolated is not None:
        np.testing.assert_array_equal(again.interpolated, whole.interpolated)
        assert again.deviation == whole.deviation


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--y=-1:1:3"], "differs in grid"),  # a line is no surface, though its x is the same
        (["--seed=7"], "differs in directions_sha256, seed"),
        (["--idx=1"], "differs in directions_sha256"),
        (["--samples=9"], "differs in samples"),
        (["--model_file", "OTHER"], "differs in checkpoint_sha256"),
    ],
)
def test_a_surface_of_anything_else_is_refused(
    flags, message, trained, data_dir, tmp_path: Path
) -> None:
    """Of another grid, direction, checkpoint or data, before anything is written."""
    path = tmp_path / "s.h5"
    surface_from(trained["GCN"], data_dir, path, "--x=-1:1:3")
    before = path.read_bytes()
    last = trained["GCN"].with_name(trained["GCN"].stem + "_last.pt")
    flags = [str(last) if flag == "OTHER" else flag for flag in flags]
    with pytest.raises(ValueError, match=message):
        surface_from(trained["GCN"], data_dir, path, "--x=-1:1:3", *flags)
    assert path.read_bytes() == before


def test_directions_along_states_are_loss_landscapes(trained, data_dir, tmp_path: Path) -> None:
    """Its ``set_states`` wants one for each state, batch norm's counters too."""
    flags = ["--x=-1:1:3", "--dir_type=states"]
    surface = surface_from(trained["cifar"], data_dir, tmp_path / "s.h5", *flags)
    states = checkpoint.load(trained["cifar"])["state_dict"].values()
    (direction,) = read_directions(tmp_path / "s.h5")
    assert [d.shape for d in direction] == [s.shape for s in states]
    assert not any(d.any() for d in direction if not d.ndim)
    flags.append(f"--dir_file={tmp_path / 's.h5'}")
    again = surface_from(trained["cifar"], data_dir, tmp_path / "again.h5", *flags)
    np.testing.assert_array_equal(again.values["train_loss"], surface.values["train_loss"])
    assert again.attributes["xdirection_is"] == "taken from s.h5"


def test_a_second_writer_of_a_surface_stops_at_once(
    trained, data_dir: Path, tmp_path: Path, monkeypatch
) -> None:
    """The kind: two processes that write one result; a mixture of both was left without a word."""
    flags = ["--model_file", str(trained["GCN"]), "--x=-1:1:3", "--y=-1:1:4", "--plot"]
    flags += ["--data_dir", str(data_dir), "--out_dir", str(tmp_path)]
    alone = read_surface(plot_surface.main([*flags, "--surf_file", str(tmp_path / "alone.h5")]))
    refused: list[str] = []

    def disturbed(*args) -> dict[str, float]:
        if not refused:
            for seed in ("123", "124"):
                with pytest.raises(
                    ValueError, match=r"\.h5: another process .*--surf_file"
                ) as error:
                    plot_surface.main([*flags, "--overwrite", "--seed", seed])
                refused.append(str(error.value))
        return loss_and_accuracy(*args)

    monkeypatch.setattr(surface_measure, "loss_and_accuracy", disturbed)
    path = plot_surface.main(flags)
    assert len(refused) == 2 and read_surface(path).attributes["seed"] == 123
    for name, values in alone.values.items():
        np.testing.assert_array_equal(read_surface(path).values[name], values)


def test_a_surface_behind_a_link_stays_where_the_link_leads(trained, data_dir, tmp_path) -> None:
    flags = ["--model_file", str(trained["GCN"]), "--x=-1:1:3", "--data_dir", str(data_dir)]
    link, there = tmp_path / "link.h5", tmp_path / "disk" / "there.h5"
    link.symlink_to(there)
    with pytest.raises(OSError, match=r"link\.h5: a symbolic link to .* remove the link"):
        plot_surface.main([*flags, "--surf_file", str(link)])
    there.parent.mkdir()
    there.touch()
    plot_surface.main([*flags, "--surf_file", str(link)])
    assert link.is_symlink() and read_surface(there).values["train_loss"].shape == (3,)


def test_no_samples_given_takes_all_of_them(trained, data_dir: Path) -> None:
    """``samples`` 0 was promised to take all, and took none."""
    flags = ["--model_file", str(trained["GCN"]), "--data_dir", str(data_dir)]
    restored = restore(plot_surface.parse_args(flags))
    counts = [
        sum(len(targets) for _, targets in restored.batches("train", samples, 16))
        for samples in (0, None, 5)
    ]
    assert counts == [len(restored.data.train.indices)] * 2 + [5]


def test_a_summary_says_what_is_not_finite() -> None:
    loss = np.array([[1.0, np.nan, 3.0], [0.5, 0.25, np.inf]])
    axes = np.array([-1.0, 0.0, 1.0]), np.array([-1.0, 0.0])
    (line,) = plot_surface.summary(Surface(*axes, {"train_loss": loss, "train_acc": loss}))
    assert line.startswith("train_loss: 0.2500 to 3.0000, 0.2500 at the checkpoint")
    assert line.endswith("not finite at 2 of 6 points")
    (line,) = plot_surface.summary(Surface(axes[0], None, {"test_loss": np.full(3, np.nan)}))
    assert line.startswith("test_loss: -")


def test_a_surface_of_an_older_version_is_gone_on_with(tmp_path: Path, capsys) -> None:
    shutil.copytree(Path(__file__).parents[1] / "old_files", tmp_path, dirs_exist_ok=True)
    path = tmp_path / "to_plot" / "model_GCN_SAM_rho0.05.h5"
    before = read_surface(path)
    with h5py.File(path, "r+") as file:
        file["done"][1, 2] = False
    flags = ["--model_file", str(path.with_suffix(".pt")), "--data_dir", str(tmp_path)]
    flags += ["--x=-1:1:3", "--y=-1:1:3", "--out_dir", str(tmp_path)]
    plot_surface.main(flags)
    assert "8 of 9 points are there already" in capsys.readouterr().out
    for name, values in read_surface(path).values.items():
        np.testing.assert_allclose(values, before.values[name], rtol=1e-5)


def test_a_refined_surface_has_its_centre_measured_and_is_marked(
    trained, data_dir: Path, tmp_path: Path
) -> None:
    grid = ["--x=-1:1:33", "--y=-1:1:27", "--no-fast"]
    path = tmp_path / "a.h5"
    surface = surface_from(trained["GCN"], data_dir, path, *grid, "--adaptive", "--plot")
    whole = surface_from(trained["GCN"], data_dir, tmp_path / "w.h5", *grid).values["train_loss"]
    guessed, found = surface.interpolated, surface.values["train_loss"]
    np.testing.assert_array_equal(found[~guessed], whole[~guessed])
    assert not guessed[13, 16] and 0.2 < guessed.mean() < 1
    assert np.median(np.abs(found / whole - 1)[guessed]) < 0.01
    with pytest.raises(ValueError, match="differs in adaptive"):
        surface_from(trained["GCN"], data_dir, path, *grid)
