"""Eigenvectors, gradient and kept epochs as directions: closed forms, and real surfaces."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from loss_landscape import plot_surface
from loss_landscape.directions import Direction, coordinates, cosine
from loss_landscape.evaluation import Visits
from loss_landscape.my_pyhessian.operators import HessianOperator
from loss_landscape.plane.chosen_directions import as_direction, eigenvectors, gradient, orthogonal
from loss_landscape.restore import restore
from loss_landscape.surface_file import read_directions, read_surface


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().sum(dim=1)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear_regression() -> tuple[nn.Module, list[tuple[Tensor, Tensor]], Tensor]:
    """A quadratic network, its samples in unequal batches, and its Hessian 2/N X'X, by hand."""
    inputs, targets = drawn(50, 6) * torch.arange(1, 7), drawn(50, 1, seed=1)
    model = nn.Linear(6, 1, bias=False).double()
    model.weight.data = drawn(1, 6, seed=2)
    return model, [*zip(inputs.split(32), targets.split(32), strict=True)], inputs.T @ inputs / 25


def test_the_loss_along_eigenvectors_is_their_parabola() -> None:
    """f(a, b) = f(0) + a g'v + b g'w + (lambda a^2 + mu b^2) / 2, to rounding, at any distance."""
    model, batches, hessian = linear_regression()
    operator = HessianOperator(model, squared, batches)
    weights = coordinates(model, "weights")
    directions, said = eigenvectors(operator, weights, 2, seed=0)
    values, vectors = np.linalg.eigh(hessian.numpy())
    inputs, targets = (torch.cat(part) for part in zip(*batches, strict=True))
    slope = 2 * inputs.T @ (inputs @ model.weight[0].detach() - targets[:, 0]) / 50
    for direction, k, text in zip(directions, (-1, -2), said, strict=True):
        v = direction[0][0].numpy()
        assert abs(v @ vectors[:, k]) == pytest.approx(1, abs=1e-5) and v[abs(v).argmax()] > 0
        assert f"eigenvalue {values[k]:.4g}" in text

    def at_point() -> dict[str, float]:
        with torch.no_grad():
            return {"train_loss": float(squared(model(inputs), targets).mean())}

    points = np.array([[0.0, 0.0], [1.0, 0.0], [-2.0, 3.0], [0.5, 10.0]])
    losses = Visits(list(weights.values()), directions, ("train_loss",), at_point)(points)
    linear = [float(slope @ direction[0][0]) for direction in directions]
    expected = points @ linear + points**2 @ values[[-1, -2]] / 2
    np.testing.assert_allclose(losses["train_loss"] - losses["train_loss"][0], expected, rtol=1e-3)


def test_the_gradient_is_autograds_over_all_samples() -> None:
    model, batches, _ = linear_regression()
    weights = coordinates(model, "weights")
    (direction,), (said,) = gradient(HessianOperator(model, squared, batches), weights)
    inputs, targets = (torch.cat(part) for part in zip(*batches, strict=True))
    (expected,) = torch.autograd.grad(squared(model(inputs), targets).mean(), model.parameters())
    torch.testing.assert_close(direction[0], expected / expected.norm())
    assert said == f"gradient, of length {float(expected.norm()):.4g}"
    assert model.weight.grad is None
    zero = [(x * 0, y * 0) for x, y in batches]
    with pytest.raises(ValueError, match="at the checkpoint: it points nowhere"):
        gradient(HessianOperator(model, squared, zero), weights)


def test_states_without_a_gradient_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    model[0].bias.requires_grad = False
    batches = [(drawn(8, 3), drawn(8, 4))]
    operator = HessianOperator(model, squared, batches)
    states = coordinates(model, "states")
    direction = as_direction(operator, torch.ones_like(operator.flat), states)
    moved = {name for name, d in zip(states, direction, strict=True) if d.all()}
    still = {name for name, d in zip(states, direction, strict=True) if not d.any()}
    assert moved == {"0.weight", "1.weight", "1.bias"}
    assert still == {"0.bias", "1.running_mean", "1.running_var"}


def test_a_direction_beside_another() -> None:
    one, other = [drawn(3), drawn(2, 2, seed=1)], [drawn(3, seed=2), drawn(2, 2, seed=3)]
    length = sum(float(t.square().sum()) for t in other) ** 0.5
    unit = [t / length for t in other]
    rest = orthogonal(one, unit)
    assert cosine(rest, unit) == pytest.approx(0, abs=1e-12)
    assert sum(float(t.square().sum()) for t in rest) == pytest.approx(1)
    assert cosine(rest, one) > 0
    with pytest.raises(ValueError, match="span no plane"):
        orthogonal([-2 * t for t in unit], unit)


# --- through the command line ---------------------------------------------------------------------
def flags_of(checkpoint: Path, data_dir: Path, path: Path, *more: str) -> list[str]:
    flags = ["--model_file", str(checkpoint), "--data_dir", str(data_dir), "--threads=1"]
    return [*flags, "--surf_file", str(path), *more]


class InDouble:
    """The training loss of a checkpoint in float64, as a function of steps along directions."""

    def __init__(self, argv: list[str], directions: list[Direction]) -> None:
        restored = restore(plot_surface.parse_args(argv))
        self.model, self.loss = restored.model.double(), restored.loss
        self.batches = restored.batches("train", None, 64)
        for inputs, _ in self.batches:
            inputs.x = inputs.x.double()
        self.weights = {name: p.detach() for name, p in self.model.named_parameters()}
        self.directions = [[t.double() for t in direction] for direction in directions]

    def __call__(self, *steps: Tensor) -> Tensor:
        at = dict(self.weights)
        for step, direction in zip(steps, self.directions, strict=True):
            at = {k: w + step * d for (k, w), d in zip(at.items(), direction, strict=True)}
        pairs = [(functional_call(self.model, at, (x,)), y) for x, y in self.batches]
        return torch.cat([self.loss(logits, targets) for logits, targets in pairs]).mean()


@pytest.mark.parametrize("kind", ["eigenvectors", "gradient"])
def test_a_surface_bends_at_the_checkpoint_as_the_hessian_says(
    kind: str, trained, data_dir: Path, tmp_path: Path
) -> None:
    grid = ("--x=-0.5:0.5:3", "--y=-1:1:5")
    argv = flags_of(trained["GCN"], data_dir, tmp_path / "s.h5", "--directions", kind, *grid)
    surface = read_surface(plot_surface.main(argv))
    directions = read_directions(tmp_path / "s.h5")
    assert cosine(*directions) == pytest.approx(0, abs=2e-3)
    assert surface.attributes["directions"] == kind and surface.attributes["norm"] == "unit unit"
    loss = InDouble(argv, directions)
    at = [[float(loss(*torch.tensor([x, y]))) for x in surface.x] for y in surface.y]
    np.testing.assert_allclose(surface.values["train_loss"], at, rtol=1e-5)
    zero, h = torch.zeros(2, dtype=torch.float64), 1e-5  # below the next kink of a ReLU
    slope = torch.func.grad(lambda steps: loss(*steps))(zero)
    bend = torch.autograd.functional.hessian(loss, tuple(zero))
    said = [surface.attributes[f"{axis}direction_is"] for axis in "xy"]
    for i, step in enumerate(torch.eye(2, dtype=torch.float64)):
        curvature = float(bend[i][i])
        seconds = loss(*(h * step)) - 2 * loss(*zero) + loss(*(-h * step))
        assert float(seconds) / h**2 == pytest.approx(curvature, rel=1e-3, abs=1e-4)
        if kind == "eigenvectors":
            value = float(said[i].split("eigenvalue ")[1].split(",")[0])
            assert value == pytest.approx(curvature, rel=1e-2, abs=1e-4)
    if kind == "gradient":  # no direction is steeper, and the other is level
        assert said[0] == f"gradient, of length {float(slope[0]):.4g}"
        assert float(slope[1]) == pytest.approx(0, abs=1e-5)
    else:
        assert float(bend[0][1]) == pytest.approx(0, abs=1e-2 * abs(float(bend[0][0])))


def test_a_surface_gone_on_with_keeps_its_directions(trained, data_dir: Path, tmp_path) -> None:
    """Computed anew, on another machine say, they would differ in rounding."""
    argv = flags_of(trained["GCN"], data_dir, tmp_path / "s.h5", "--directions=eigenvectors")
    argv += ["--x=-1:1:3", "--y=-1:1:2"]
    whole = read_surface(plot_surface.main(argv)).values["train_loss"]
    with h5py.File(tmp_path / "s.h5", "r+") as file:
        file["done"][1] = False
        file["train_loss"][1] = -1
    again = read_surface(plot_surface.main([*argv, "--batch_size=7"]))
    np.testing.assert_allclose(again.values["train_loss"], whole, rtol=1e-6)
    assert again.attributes["xdirection_is"].startswith("eigenvector of eigenvalue")
    for other in (["--directions=gradient"], ["--samples=5"], ["--directions=random"]):
        with pytest.raises(ValueError, match="holds another surface"):
            plot_surface.main([*argv, *other])


def test_no_such_directions_are_one_line(trained, data_dir: Path, tmp_path: Path, run_here) -> None:
    for more, message in (
        (["--directions=pca"], "kept no epochs beside it; train with --keep_epochs 1"),
        (["--directions=pca", "--model_file2=x.pt"], "both say the directions"),
        (["--directions=gradient", "--dir_file=x.h5"], "both say the directions"),
        (["--directions=sideways"], "invalid choice: 'sideways'"),
    ):
        argv = flags_of(trained["GCN"], data_dir, tmp_path / "s.h5", *more)
        done = run_here(plot_surface.main, *argv)
        assert done.returncode == 2 and message in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "s.h5").exists()
