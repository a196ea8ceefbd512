"""plot_trajectory.py through its command line: the path of a real run, and the loss along it."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import DatasetClass
import models
from loss_landscape import plot_surface, plot_trajectory
from loss_landscape.pictures import path_picture
from loss_landscape.surface_file import read_directions, read_path, read_surface
from models.smooth_crossentropy import smooth_crossentropy
from trainings import my_train_GCN
from utilities import checkpoint
from utilities.metrics import evaluate


@pytest.fixture(scope="module")
def run_dir(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of results: a run of 12 epochs that kept each second one."""
    out = tmp_path_factory.mktemp("path")
    flags = ["--dataset=TINY", "--hidden_channels=8", "--epochs=12", "--keep_epochs=2"]
    my_train_GCN.main([*flags, "--data_dir", str(data_dir), "--out_dir", str(out), "--threads=1"])
    return out


STEM = "model_GCN_ADAM_rho0.0_TINY"


def kept(run_dir: Path, epoch: int) -> Path:
    return run_dir / "to_plot" / f"{STEM}_epoch{epoch}.pt"


def trajectory(run_dir: Path, *flags: object) -> Path:
    return plot_trajectory.main([*map(str, flags), "--out_dir", str(run_dir)])


def loss_of(path: Path, data_dir: Path) -> float:
    content = checkpoint.load(path)
    dataset = DatasetClass.load(content["dataset"], data_dir, **content["data_args"])
    model = models.build(content["model"], **content["model_args"])
    model.load_state_dict(content["state_dict"])
    loss = partial(smooth_crossentropy, smoothing=0.0)
    total = evaluate(model.eval(), dataset.fixed("train", 1000), loss, dataset.num_classes)
    return total.loss_and_accuracy()[0]


def test_the_loss_on_the_plane_of_three_checkpoints_is_theirs(run_dir, data_dir, tmp_path) -> None:
    """They lie in it: the surface at a checkpoint's coordinates has that checkpoint's loss."""
    files = [kept(run_dir, epoch) for epoch in (10, 0, 12)]  # sorted as text, 0 would be last
    path = trajectory(run_dir, "--model_files", *files, "--proj_file", tmp_path / "p.h5")
    found = read_path(path)
    assert found.epochs.tolist() == [0, 10, 12]
    np.testing.assert_allclose(found.steps[-1], 0, atol=1e-6)
    assert found.attributes["explained_variance_ratio"].sum() == pytest.approx(1, abs=1e-5)
    for (x, y), file in zip(found.steps, (files[1], files[0], files[2]), strict=True):
        flags = [f"--x={x!r}:{x!r}:1", f"--y={y!r}:{y!r}:1", "--dir_file", str(path)]
        flags = [flag.replace("np.float64(", "").replace(")", "") for flag in flags]
        flags += ["--model_file", str(files[2]), "--surf_file", str(tmp_path / f"{file.stem}.h5")]
        surface = plot_surface.main([*flags, "--data_dir", str(data_dir)])
        loss = read_surface(surface).values["train_loss"].item()
        assert loss == pytest.approx(loss_of(file, data_dir), rel=1e-4)


def test_the_path_is_drawn_alone_and_on_a_surface(run_dir, data_dir, tmp_path, capsys) -> None:
    path = trajectory(run_dir, "--model_file", kept(run_dir, 12))
    assert path.name == f"{STEM}_epoch12_pca.h5"
    assert read_path(path).epochs.tolist() == list(range(0, 13, 2))
    command = next(
        line for line in capsys.readouterr().out.splitlines() if "the loss there" in line
    )
    flags = command.partition("plot_surface.py ")[2].replace(":51", ":4").split()
    surface = plot_surface.main([*flags, "--data_dir", str(data_dir), "--out_dir", str(run_dir)])
    x, y = read_path(path).steps.T
    grid = read_surface(surface)
    assert grid.y is not None
    for axis, steps in ((grid.x, x), (grid.y, y)):
        assert axis.min() < min(steps.min(), 0) and axis.max() > max(steps.max(), 0)
    on_surface = trajectory(run_dir, "--model_file", kept(run_dir, 12), "--surf_file", surface)
    np.testing.assert_allclose(read_path(on_surface).steps, read_path(path).steps, atol=1e-5)
    pictures = [run_dir / "plots" / f"{p.stem}.png" for p in (path, on_surface)]
    assert all(picture.stat().st_size > 10_000 for picture in pictures)
    assert pictures[0] != pictures[1]
    with pytest.raises(ValueError, match="not taken around"):
        trajectory(run_dir, "--model_file", kept(run_dir, 10), "--surf_file", surface)
    pca = ["--directions=pca", "--x=0:1:2", "--y=0:1:2", "--surf_file", str(tmp_path / "pca.h5")]
    plot_surface.main([*flags[:2], *pca, "--data_dir", str(data_dir)])
    for one, other in zip(*map(read_directions, (tmp_path / "pca.h5", path)), strict=True):
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(one, other, strict=True))
    # The path drawn as soon as the loss on its plane is there, or refused before.
    at = [*flags, "--plot", "--out_dir", str(tmp_path), "--data_dir", str(data_dir)]
    plot_surface.main([*at, "--proj_file", str(path)])
    assert (tmp_path / "plots" / f"{kept(run_dir, 12).stem}.h5_path.png").stat().st_size > 10_000
    theirs = tmp_path / "theirs.h5"  # loss-landscape's has the coordinates alone
    with h5py.File(theirs, "w") as file:
        file["proj_xcoord"], file["proj_ycoord"] = x, y
    assert path_picture.draw_on(surface, theirs, "train_loss", tmp_path).is_file()
    # Projected on random directions, of which loss-landscape would divide by the length.
    random = plot_surface.main(
        [
            *("--model_file", str(kept(run_dir, 12)), "--x=-1:1:2", "--y=-1:1:2"),
            *("--surf_file", str(tmp_path / "random.h5"), "--data_dir", str(data_dir)),
        ]
    )
    onto = ["--dir_file", random, "--proj_file", tmp_path / "onto.h5"]
    steps = read_path(trajectory(run_dir, "--model_file", kept(run_dir, 12), *onto)).steps
    assert np.isfinite(steps).all() and abs(steps[0]).max() > 0
    with pytest.raises(ValueError, match="of another plane than"):
        plot_surface.main(
            [*at, "--proj_file", str(onto[-1]), "--surf_file", str(tmp_path / "o.h5")]
        )
    ten = ["--model_file", str(kept(run_dir, 10)), *at[2:], "--surf_file", str(tmp_path / "t.h5")]
    with pytest.raises(ValueError, match="of another checkpoint than"):
        plot_surface.main([*ten, "--proj_file", str(path)])
    assert np.isnan(read_surface(tmp_path / "t.h5").values["train_loss"]).all()  # before any point


def test_the_file_has_what_loss_landscape_reads(run_dir: Path, tmp_path: Path) -> None:
    """Its plot_2D.plot_contour_trajectory and h5_util.read_list, step by step."""
    epochs = ["--prefix", run_dir / "to_plot" / f"{STEM}_epoch", "--max_epoch=12", "--save_epoch=4"]
    path = trajectory(run_dir, *epochs, "--proj_file", tmp_path / "p.h5", "--ignore=biasbn")
    assert read_path(path).epochs.tolist() == [0, 4, 8, 12]
    with h5py.File(path, "r") as f:
        assert len(f["proj_xcoord"][:]) == len(f["proj_ycoord"][:]) == 4
        for group in ("xdirection", "ydirection"):
            direction = [f[group][str(idx)][:] for idx in range(len(f[group]))]
            assert all(not d.any() for d in direction if d.ndim <= 1)
            assert sum((d**2).sum() for d in direction) == pytest.approx(1, abs=1e-5)


def test_a_users_own_state_dicts_make_a_path(tmp_path: Path, monkeypatch, run_here) -> None:
    """Four in a plane, whose distances the picture keeps; their numbers are their epochs."""
    source = "from torch import nn\n\n\ndef make(width):\n    return nn.Linear(2, width)\n"
    (tmp_path / "net_of_paths.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    w, d, e = torch.randn(3, 4, 2, generator=generator)
    steps = torch.randn(4, 2, generator=generator)
    epochs = (2, 5, 10, 100)
    for epoch, (x, y) in zip(epochs, steps, strict=True):
        state = {"module.weight": w + x * d + y * e, "module.bias": torch.zeros(4)}
        torch.save({"state_dict": state}, f"net_{epoch}.pth")
    own = ["--model=net_of_paths:make", "--model_args=width=4", "--prefix=net_", "--suffix=.pth"]
    found = read_path(trajectory(tmp_path, *own))
    assert tuple(found.epochs) == epochs and found.attributes["title"] == "Linear, net_100"
    points = steps @ torch.stack([d.flatten(), e.flatten()])
    distances = torch.cdist(torch.from_numpy(found.steps).float(), torch.zeros(1, 2))
    torch.testing.assert_close(distances[:, 0], (points - points[-1]).norm(dim=1))
    torch.save(state, "net.pth")
    for flags, message in (
        ([*own, "--model_args=width=5"], "weights don't fit the model"),
        ([*own[:2], "--model_files", "net_2.pth", "net_5.pth", "net.pth"], "no number in its name"),
        ([*own[:2], "--model_file=net_2.pth"], "name its checkpoints with --model_files"),
        (["--model_args=width=4", "--model_file=net_2.pth"], "is for a model of your own"),
    ):
        done = run_here(plot_trajectory.main, *flags, "--out_dir", tmp_path)
        assert done.returncode == 2 and message in done.stderr, (flags, done.stderr)


def test_what_makes_no_path_is_refused(run_dir, tmp_path, trained, run_here) -> None:
    other = tmp_path / "other.pt"
    shutil.copy(trained["GCN"], other)
    kept_files = [kept(run_dir, epoch) for epoch in (0, 2, 4)]
    foreign = tmp_path / "x.pt"
    foreign.write_bytes(b"something")
    prefix = run_dir / "to_plot" / f"{STEM}_epoch"
    for flags, message in (
        (["--model_files", *kept_files, other], "of another run than"),
        (["--model_files", *kept_files, kept_files[1]], "of epoch 2, as"),
        (["--model_files", *kept_files[:2]], "a path in a plane takes 3 or more"),
        (["--model_files", *kept_files, "--save_epoch=2"], "leave --prefix"),
        (["--prefix", prefix, "--max_epoch=13"], "epoch1.pt: no such checkpoint"),
        (["--prefix", tmp_path / "none"], "none0.pt: no such checkpoint"),
        (["--model_file", other], "kept no epochs beside it; train with --keep_epochs 1"),
        ([], "no checkpoint: name --model_file"),
        (["--prefix", prefix, "--model=mitbih"], "holds --model GCN, not --model mitbih"),
        (["--prefix", prefix, "--model_file", other], "of another run than"),
        (["--prefix", prefix, "--dir_file=a", "--surf_file=b"], "both say the plane"),
        (["--prefix", prefix, "--dir_file=a", "--ignore=biasbn"], "of principal components"),
        (["--prefix", prefix, "--proj_file", foreign, "--overwrite"], "is there and no projection"),
        (["--prefix", prefix, "--proj_file", kept(run_dir, 2)], "not a projection"),
        (["--prefix", prefix, "--surf_file", tmp_path / "no.h5"], "no.h5: no such surface"),
    ):
        done = run_here(plot_trajectory.main, *flags, "--out_dir", tmp_path)
        assert done.returncode == 2 and message in done.stderr, (flags, done.stderr)
        assert len(done.stderr.splitlines()) == 1
    assert foreign.read_bytes() == b"something"


def test_another_path_is_not_replaced_unasked(run_dir: Path, tmp_path: Path) -> None:
    flags = ["--prefix", run_dir / "to_plot" / f"{STEM}_epoch", "--proj_file", tmp_path / "p.h5"]
    trajectory(run_dir, *flags)
    trajectory(run_dir, *flags)
    with pytest.raises(ValueError, match="holds another path, which differs in epochs_of_path"):
        trajectory(run_dir, *flags, "--save_epoch=4")
    trajectory(run_dir, *flags, "--save_epoch=4", "--overwrite")
    assert read_path(tmp_path / "p.h5").epochs.tolist() == [0, 4, 8, 12]
