"""Largest eigenvalues that are known to be them, a training at the edge of stability, the file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sharpness_cases import generator
from torch import Tensor, nn

from loss_landscape.my_pyhessian.lanczos import KrylovSpace, hidden_share
from loss_landscape.my_pyhessian.operators import HessianOperator
from loss_landscape.sharpness_measures.edges import momentum_edge, sam_edge
from loss_landscape.sharpness_measures.epoch_sharpness import (
    ENDING,
    EpochsFile,
    largest_eigenvalue,
    read_epochs,
)
from sam import SAM
from utilities import files

DIM = 1000


def diagonal(*large: float) -> Tensor:
    bulk = torch.linspace(-0.2, 0.8, DIM - len(large), dtype=torch.float64)
    return torch.cat([torch.tensor(large, dtype=torch.float64), bulk])


def found(values: Tensor, **how: float) -> dict:
    return largest_eigenvalue(lambda v: values * v, values, **how)


def test_the_largest_eigenvalue_is_found_in_few_products() -> None:
    for large in ((5, 4, 3), (5, 5.2, 3), (0.9, 0.85, 0.8), (-0.1,)):
        values = diagonal(*large)
        row = found(values)
        exact = float(values.max())
        assert row["converged"] and row["lambda_max"] == pytest.approx(exact, rel=2e-3)
        assert row["products"] <= (12 if exact > 2 else 100)


@pytest.mark.parametrize("seed", range(20))
def test_one_that_overtakes_by_two_percent_is_found_at_once(seed: int) -> None:
    """Kind: Lanczos that begins with the eigenvectors of the epoch before finds these again.

    It said 5 of all these, converged: the second was no eigenvector that it followed.
    """
    for values in (diagonal(5, 4, 3, 1), diagonal(5, 4, 3, 5.1)):
        row = found(values, seed=seed)
        assert row["converged"]
        assert row["lambda_max"] == pytest.approx(float(values.max()), rel=1e-3)


def test_an_eigenvalue_that_the_search_has_nothing_of_is_not_called_the_largest() -> None:
    """The vector that Lanczos begins with is next to orthogonal to the largest one's."""
    values = diagonal(5, 4, 3, 1)
    start = torch.ones(DIM, dtype=torch.float64)
    for share, could_be in ((1e-12, False), (1.0, True)):
        start[0] = share
        space = KrylovSpace(lambda v: values * v, start, 40)
        for _ in range(6):
            space.extend()
        top = float(space.ritz()[0][-1])
        assert (top > 4.5) == could_be
        # What it may have of an eigenvalue above is no less than what it has of that one.
        if not could_be:
            assert hidden_share(space, 5.0) >= share**2 / float(start.norm()) ** 2
        assert hidden_share(space, 6.0) < 0.1 / DIM


def test_an_eigenvector_of_two_weights_is_seen_as_any_other() -> None:
    """Of two classes whose biases alone get a gradient; random signs miss it every other time."""
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    nn.init.constant_(net[0].bias, -100.0)
    nn.init.zeros_(net[2].bias)
    x = torch.randn(8, 3, generator=generator(), dtype=torch.float64)
    operator = HessianOperator(net, nn.CrossEntropyLoss(), [(x, torch.arange(8) % 2)])
    rows = [largest_eigenvalue(operator, operator.flat, seed=seed) for seed in range(20)]
    assert all(row["converged"] for row in rows)
    assert [row["lambda_max"] for row in rows] == pytest.approx([0.5] * 20)


def test_what_may_be_hidden_is_christoffels_function() -> None:
    """Against the least of a polynomial's squares over the measure, by linear algebra."""
    values = torch.linspace(-1, 1, 9, dtype=torch.float64)
    start = torch.randn(9, generator=generator(), dtype=torch.float64)
    space = KrylovSpace(lambda v: values * v, start, 5)
    for _ in range(4):
        space.extend()
    weights = (start / start.norm()).square()
    powers = values[:, None] ** torch.arange(5)
    moments = powers.T @ (weights[:, None] * powers)
    at = 1.3 ** torch.arange(5, dtype=torch.float64)
    expected = 1 / float(at @ torch.linalg.solve(moments, at))
    assert hidden_share(space, 1.3) == pytest.approx(expected, rel=1e-8)


def test_small_and_negative_matrices_are_whole() -> None:
    for values in ([-2.0], [3.0, -5.0], [0.0, 0.0, 0.0, 0.0]):
        row = found(torch.tensor(values, dtype=torch.float64))
        assert row["lambda_max"] == pytest.approx(max(values), abs=1e-12) and row["converged"]


def test_few_products_are_said_not_to_be_enough_and_many_restart() -> None:
    dense = torch.linspace(0, 1, DIM, dtype=torch.float64)
    row = found(dense, max_products=4)
    assert row["products"] == 4 and not row["converged"]
    row = found(dense, max_products=400, tol=1e-6)
    assert row["converged"] and 40 < row["products"] < 400
    assert row["lambda_max"] == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("rho", [0.0, 0.05])
def test_a_networks_sharpness_rises_to_its_edge_and_hovers_there(rho: float) -> None:
    """Full-batch gradient descent, and SAM on it, in float64 (Cohen et al. 2021, Long 2024)."""
    torch.manual_seed(0)
    x, rate = torch.linspace(-2, 2, 24, dtype=torch.float64)[:, None], 0.2
    net = nn.Sequential(nn.Linear(1, 12), nn.Tanh(), nn.Linear(12, 1)).double()

    def squared(outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets) ** 2).mean(dim=1)

    batch = x, torch.sin(3 * x)
    operator = HessianOperator(net, squared, [batch])
    optimizer = SAM(net.parameters(), torch.optim.SGD, rho=rho, lr=rate)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = squared(net(batch[0]), batch[1]).mean()
        loss.backward()
        return loss

    ratios = []
    for step in range(1801 if rho == 0 else 1001):
        if step % 100 == 0:
            row = largest_eigenvalue(operator, operator.flat)
            edge = sam_edge(momentum_edge(rate), rho, float(operator.gradient().norm()))
            ratios.append(row["lambda_max"] / edge)
        optimizer.step(closure)
    assert ratios[0] < 0.9
    assert np.mean(ratios[-5:]) == pytest.approx(1, abs=0.06)
    assert np.max(np.abs(np.array(ratios[-5:]) - 1)) < 0.2


# --- the file -------------------------------------------------------------------------------------
class Killed(BaseException):
    pass


def fill(path: Path, epochs: range) -> EpochsFile:
    """Measure changing matrices, in float32, of those epochs that aren't there."""
    file = EpochsFile.open(path, {"--tol": 1e-3}, overwrite=False)
    noise = torch.randn(DIM, generator=generator())
    for epoch in epochs:
        if epoch not in file.rows:
            values = diagonal(5 + epoch, 4, 3).float() + 0.01 * epoch * noise
            file.add(epoch, {**found(values), "gradient_norm": 1.0})
    return file


def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, monkeypatch) -> None:
    """Killed at each of its writes, before and after it."""
    whole = tmp_path / f"whole{ENDING}"
    fill(whole, range(5))
    real = files.os.replace
    for at in range(5):
        for after in (False, True):
            path, writes = tmp_path / f"{at}{after}{ENDING}", []

            def replace(source, target, at=at, after=after, writes=writes):
                writes.append(target)
                if len(writes) == at + 1 and not after:
                    raise Killed
                real(source, target)
                if len(writes) == at + 1:
                    raise Killed

            monkeypatch.setattr(files.os, "replace", replace)
            with pytest.raises(Killed):
                fill(path, range(5))
            monkeypatch.setattr(files.os, "replace", real)
            fill(path, range(5))
            assert path.read_bytes() == whole.read_bytes(), (at, after)


def test_epochs_between_others_move_nothing(tmp_path: Path) -> None:
    path = tmp_path / f"a{ENDING}"
    few = fill(path, range(0, 5, 2)).rows
    every = fill(path, range(5)).rows
    assert sorted(every) == list(range(5)) == list(read_epochs(path)[1])
    assert all(every[epoch] == few[epoch] for epoch in few)


def test_other_settings_and_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / f"a{ENDING}"
    fill(path, range(2))
    with pytest.raises(ValueError, match="holds another sharpness, which differs in --tol"):
        EpochsFile.open(path, {"--tol": 1e-4}, overwrite=False)
    text = path.read_text()
    for wrong in ("", "[]", "{}", text[:50], '{"settings": {}, "epochs": []}', text[:-5]):
        path.write_text(wrong)
        with pytest.raises(ValueError, match="overwrite"):
            EpochsFile.open(path, {"--tol": 1e-3}, overwrite=False)
    for value in ("NaN", "null", '"x"', 400 * "9"):
        rows = json.loads(text)["epochs"]
        path.write_text(text.replace(repr(rows[0]["lambda_max"]), value))
        with pytest.raises(ValueError, match="overwrite"):
            read_epochs(path)
    path.write_text(text)
    assert not EpochsFile.open(path, {"--tol": 1e-4}, overwrite=True).rows
    with pytest.raises(FileNotFoundError, match="writes it"):
        read_epochs(path)
