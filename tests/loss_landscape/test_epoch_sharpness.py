"""Eigenvalues followed from matrix to matrix, a training at the edge of stability, the file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sharpness_cases import generator
from torch import Tensor, nn

from loss_landscape.edges import momentum_edge, sam_edge
from loss_landscape.epoch_sharpness import ENDING, EpochsFile, follow, read_epochs
from loss_landscape.my_pyhessian.operators import HessianOperator
from sam import SAM
from utilities import files

DIM = 1000
TEMPLATE = torch.zeros(DIM, dtype=torch.float64)


def diagonal(*large: float) -> Tensor:
    bulk = torch.linspace(-0.2, 0.8, DIM - len(large), dtype=torch.float64)
    return torch.cat([torch.tensor(large, dtype=torch.float64), bulk])


def followed(matrices: list[Tensor]) -> list[dict]:
    rows, vectors = [], None
    for values in matrices:
        row, vectors = follow(lambda v, d=values: d * v, vectors, TEMPLATE)
        rows.append(row)
    return rows


def test_the_largest_eigenvalue_is_followed_in_few_products() -> None:
    drift = [diagonal(5 + 0.1 * i, 4, 3 - 0.1 * i) for i in range(6)]
    rows = followed(drift)
    for row, values in zip(rows, drift, strict=True):
        assert row["converged"] and row["lambda_max"] == pytest.approx(
            float(values.max()), rel=1e-6
        )
    assert max(row["products"] for row in rows[1:]) <= 6 < rows[0]["products"]


def test_an_eigenvalue_that_overtakes_is_found_though_the_vectors_stay() -> None:
    """The vector of before is an exact eigenvector still, whose residual is 0."""
    for crossed in ((5, 5.5, 3), (5, 4, 5.2), (4, 3.9, 3.8)):
        first, then = followed([diagonal(5, 4, 3), diagonal(*crossed)])
        assert first["lambda_max"] == pytest.approx(5, rel=1e-6)
        assert then["lambda_max"] == pytest.approx(max(crossed), rel=1e-4)
        assert then["products"] <= 8


def test_one_that_comes_from_below_is_found_soon() -> None:
    """From none of the three that are followed, and by little."""
    before, after = diagonal(5, 4, 3, 1), diagonal(5, 4, 3, 5.5)
    rows = followed([before, after, after])
    assert rows[-1]["lambda_max"] == pytest.approx(5.5, rel=1e-4)


def test_small_and_negative_matrices_are_whole() -> None:
    for values in ([-2.0], [3.0, -5.0], [0.0, 0.0, 0.0, 0.0]):
        d = torch.tensor(values, dtype=torch.float64)
        row, vectors = follow(lambda v, d=d: d * v, None, d)
        assert row["lambda_max"] == pytest.approx(max(values), abs=1e-12)
        row, _ = follow(lambda v, d=d: d * v, vectors, d)
        assert row["lambda_max"] == pytest.approx(max(values), abs=1e-12)


def test_few_products_are_said_not_to_be_enough_and_many_restart() -> None:
    dense = torch.linspace(0, 1, DIM, dtype=torch.float64)
    row, _ = follow(lambda v: dense * v, None, TEMPLATE, max_products=4)
    assert row["products"] == 4 and not row["converged"]
    row, _ = follow(lambda v: dense * v, None, TEMPLATE, max_products=400, tol=1e-6)
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

    ratios, vectors = [], None
    for step in range(1801 if rho == 0 else 1001):
        if step % 100 == 0:
            row, vectors = follow(operator, vectors, operator.flat)
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
            start = file.start_for(epoch)
            row, vectors = follow(lambda v, d=values: d * v, start, TEMPLATE.float())
            file.add(epoch, {**row, "gradient_norm": 1.0}, vectors)
    return file


def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, monkeypatch) -> None:
    """Killed at each of its writes, before and after it."""
    whole = tmp_path / f"whole{ENDING}"
    fill(whole, range(5))
    real = files.os.replace
    for at in range(10):
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


def test_epochs_between_others_begin_anew_and_move_nothing(tmp_path: Path) -> None:
    path = tmp_path / f"a{ENDING}"
    few = fill(path, range(0, 5, 2)).rows
    every = fill(path, range(5)).rows
    assert sorted(every) == list(range(5))
    assert all(every[epoch] == few[epoch] for epoch in few)
    assert every[1]["products"] > every[2]["products"]
    assert fill(path, range(5)).start_for(3) is None
    assert fill(path, range(5)).start_for(9) is not None


def test_other_settings_and_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / f"a{ENDING}"
    file = fill(path, range(2))
    with pytest.raises(ValueError, match="holds another sharpness, which differs in --tol"):
        EpochsFile.open(path, {"--tol": 1e-4}, overwrite=False)
    text = path.read_text()
    for wrong in ("", "[]", "{}", text[:50], '{"settings": {}, "epochs": []}', text[:-5]):
        path.write_text(wrong)
        with pytest.raises(ValueError, match="overwrite"):
            EpochsFile.open(path, {"--tol": 1e-3}, overwrite=False)
    for value in ("NaN", "null", '"x"'):
        rows = json.loads(text)["epochs"]
        path.write_text(text.replace(repr(rows[0]["lambda_max"]), value))
        with pytest.raises(ValueError, match="overwrite"):
            read_epochs(path)
    path.write_text(text)
    file.vectors_path.write_bytes(b"PK something")
    with pytest.raises(ValueError, match="remove it"):
        EpochsFile.open(path, {"--tol": 1e-3}, overwrite=False)
    assert not EpochsFile.open(path, {"--tol": 1e-4}, overwrite=True).rows
    with pytest.raises(FileNotFoundError, match="writes it"):
        read_epochs(path)
