"""plot_hessian_eigen.py: both ends of the spectrum at each point, against the dense Hessian."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from loss_landscape import plot_hessian_eigen
from loss_landscape.restore import restore
from loss_landscape.surface_file import read_directions, read_surface


def flags_of(checkpoint: Path, data_dir: Path, out: Path, *more: str) -> list[str]:
    flags = ["--model_file", str(checkpoint), "--data_dir", str(data_dir), "--out_dir", str(out)]
    return [*flags, "--threads=1", "--samples=12", *more]


def dense_ends(argv: list[str], steps: tuple[float, float], path: Path) -> tuple[float, float]:
    """Smallest and largest eigenvalue of the whole Hessian in float64 at a point of the plane."""
    args = plot_hessian_eigen.parse_args(argv)
    restored = restore(args)
    batches = restored.batches("train", args.samples, args.batch_size)
    model = restored.model.double()
    names, weights = zip(*model.named_parameters(), strict=True)
    x, y = read_directions(path)
    at = [
        (w + steps[0] * d.double() + steps[1] * e.double()).detach()
        for w, d, e in zip(weights, x, y, strict=True)
    ]
    sizes = [w.numel() for w in at]

    def loss(flat: Tensor) -> Tensor:
        parts = [p.view_as(w) for p, w in zip(flat.split(sizes), at, strict=True)]
        moved = dict(zip(names, parts, strict=True))
        losses = []
        for inputs, targets in batches:
            inputs.x = inputs.x.double()
            losses.append(restored.loss(functional_call(model, moved, (inputs,)), targets))
        return torch.cat(losses).mean()

    flat = torch.cat([w.flatten() for w in at])
    values = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))
    return float(values[0]), float(values[-1])


def test_both_ends_are_the_dense_hessians_at_each_point(trained, data_dir, tmp_path: Path) -> None:
    argv = flags_of(trained["GCN"], data_dir, tmp_path, "--x=-1:1:3", "--y=0:1:2", "--plot")
    path = plot_hessian_eigen.main(argv)
    assert path.name == f"{trained['GCN'].stem}_eigen.h5"
    surface = read_surface(path)
    assert surface.y is not None
    for row, y in enumerate(surface.y):
        for column, x in enumerate(surface.x):
            found = {name: value[row, column] for name, value in surface.values.items()}
            low, high = dense_ends(argv, (x, y), path)
            scale = 2e-3 * max(abs(low), abs(high))
            assert found["min_eig"] == pytest.approx(low, abs=scale)
            assert found["max_eig"] == pytest.approx(high, abs=scale)
            assert max(found["min_eig_residual"], found["max_eig_residual"]) <= scale
            assert found["certain_eig"] == 1
            assert found["eig_ratio"] == pytest.approx(abs(low / high), abs=5e-3)
    pictures = [p.name for p in (tmp_path / "plots").glob("*eig_ratio*.png")]
    assert len(pictures) == 4
    with h5py.File(path, "r") as file:  # as loss-landscape's plot_2D.py reads it
        assert file["min_eig"][:].shape == (len(file["ycoordinates"]), len(file["xcoordinates"]))


QUADRATIC = """
import torch
from torch import nn

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(50, 6, generator=GENERATOR) * torch.arange(1, 7)
TARGETS = torch.randn(50, 1, generator=GENERATOR)


def make():
    return nn.Linear(6, 1, bias=False)


def load():
    return [*zip(INPUTS.split(32), TARGETS.split(32))]
"""


def test_a_quadratic_network_has_the_same_eigenvalues_everywhere(tmp_path, monkeypatch) -> None:
    """A user's own linear regression: H = 2/N X'X, and a parabola along each eigenvector."""
    (tmp_path / "quadratic_net.py").write_text(QUADRATIC)
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.arange(6.0)[None]}, "net.pt")
    own = ["--model=quadratic_net:make", "--dataset=quadratic_net:load", "--loss_name=mse"]
    own += ["--model_file=net.pt", "--out_dir", str(tmp_path), "--threads=1"]
    grid = ["--directions=eigenvectors", "--x=-3:3:3", "--y=-2:2:3"]
    surface = read_surface(plot_hessian_eigen.main([*own, *grid, "--tol=1e-4"]))
    inputs = importlib.import_module("quadratic_net").INPUTS.double().numpy()
    values = np.linalg.eigvalsh(inputs.T @ inputs / 25)
    np.testing.assert_allclose(surface.values["min_eig"], values[0], atol=1e-3 * values[-1])
    np.testing.assert_allclose(surface.values["max_eig"], values[-1], rtol=1e-3)
    loss = surface.values["train_loss"]
    for line, step, k in ((loss[1], 3.0, -1), (loss[:, 1], 2.0, -2)):
        assert (line[0] - 2 * line[1] + line[2]) / step**2 == pytest.approx(values[k], rel=1e-3)
    assert "eigenvector of eigenvalue" in surface.attributes["ydirection_is"]
    torch.save({"weight": torch.ones(1, 1)}, "one.pt")
    Path("quadratic_line.py").write_text(QUADRATIC.replace("6", "1").replace("7", "2"))
    one = [flag.replace("_net", "_line").replace("net.pt", "one.pt") for flag in own]
    with pytest.raises(ValueError, match="one parameter has no two eigenvalues"):
        plot_hessian_eigen.main([*one, "--x=-1:1:3"])


class Stopped(BaseException):
    pass


def test_a_stopped_grid_goes_on_bit_for_bit(trained, data_dir, tmp_path, monkeypatch) -> None:
    grid = ("--x=-1:1:3", "--y=-1:1:3", "--tol=0.01")
    whole = plot_hessian_eigen.main(flags_of(trained["GCN"], data_dir, tmp_path / "a", *grid))
    argv = flags_of(trained["GCN"], data_dir, tmp_path / "b", *grid)
    at, visited = plot_hessian_eigen.Eigenvalues.at, []

    def stopping(self: Any, steps: list[float]) -> tuple[float, ...]:
        if len(visited) == 4:
            raise Stopped
        visited.append(steps)
        return at(self, steps)

    monkeypatch.setattr(plot_hessian_eigen.Eigenvalues, "at", stopping)
    with pytest.raises(Stopped):
        plot_hessian_eigen.main(argv)
    monkeypatch.setattr(plot_hessian_eigen.Eigenvalues, "at", at)
    again = plot_hessian_eigen.main(argv)
    one, other = read_surface(whole).values, read_surface(again).values
    assert set(one) == set(plot_hessian_eigen.Eigenvalues.names)
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name], name)
    for more in (["--tol=0.1"], ["--seed=5"], ["--samples=13"], ["--y=-1:1:5"], ["--max_steps=9"]):
        with pytest.raises(ValueError, match="holds another surface"):
            plot_hessian_eigen.main([*argv, *more])


def test_points_without_a_hessian_are_nan_and_done(trained, data_dir, tmp_path, capsys) -> None:
    argv = flags_of(trained["GCN"], data_dir, tmp_path, "--x=0:1e30:2", "--plot")
    values = read_surface(plot_hessian_eigen.main(argv)).values
    assert np.isfinite(values["max_eig"][0]) and np.isnan(values["max_eig"][1])
    assert np.isnan(values["eig_ratio"][1])
    assert "not finite at 1 of 2 points" in capsys.readouterr().out
    again = plot_hessian_eigen.main(argv)
    assert "2 of 2 points are there already" in capsys.readouterr().out
    np.testing.assert_array_equal(read_surface(again).values["min_eig"], values["min_eig"])


def test_few_steps_are_said_to_be_few(trained, data_dir, tmp_path, capsys) -> None:
    argv = flags_of(trained["GCN"], data_dir, tmp_path, "--x=0:1:2", "--max_steps=3")
    surface = read_surface(plot_hessian_eigen.main(argv))
    assert (surface.values["min_eig_residual"] > 0).all()
    assert (surface.values["certain_eig"] == 0).all()
    said = capsys.readouterr().out
    assert "not within --tol after --max_steps at 2 of 2 points" in said
    assert "others may lie beyond both at 2 of 2 points" in said


def test_bad_flags_are_one_line(trained, data_dir: Path, tmp_path: Path, run_here) -> None:
    for more, message in (
        (["--max_steps=1"], "two eigenvalues take 2 products"),
        (["--x=0:1:1", "--y=0:1:3", "--plot"], "a grid of one line can't be drawn"),
        (["--tol=0"], "--tol"),
        (["--model_file3=x.pt"], "--model_file3: y runs to it"),
    ):
        done = run_here(
            plot_hessian_eigen.main, *flags_of(trained["GCN"], data_dir, tmp_path, *more)
        )
        assert done.returncode == 2 and message in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "to_plot").exists()
