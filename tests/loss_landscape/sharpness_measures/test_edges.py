"""Edges of stability against simulated optimizers, and which edge a run is said to have."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from loss_landscape.sharpness_measures.edges import edge_of, momentum_edge, rates, sam_edge
from sam import SAM
from utilities.history import write_history

positive = st.floats(0.01, 10)
some = settings(max_examples=20, deadline=None)
few = settings(max_examples=5, deadline=None)  # of those that take many steps


class Bowl(nn.Module):
    """The loss w' diag(curvatures) w / 2."""

    def __init__(self, curvatures: list[float], start: list[float]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start, dtype=torch.float64))
        self.curvatures = torch.tensor(curvatures, dtype=torch.float64)

    def forward(self) -> Tensor:
        return (self.curvatures * self.w**2).sum() / 2


def run(bowl: Bowl, steps: int, rho: float = 0.0, **options: float) -> list[Tensor]:
    """The weights after each step of SGD, or SAM on it."""
    optimizer = SAM(bowl.parameters(), torch.optim.SGD, rho=rho, **options)
    path = [bowl.w.detach().clone()]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = bowl()
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
        path.append(bowl.w.detach().clone())
    return path


@settings(max_examples=12, deadline=None)
@given(
    st.floats(0.05, 2),
    st.sampled_from([0.0, 0.5, 0.9]),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from([0.9, 1.1]),
)
def test_sgd_shrinks_below_its_edge_and_grows_above(
    rate: float, momentum: float, decay: float, factor: float
) -> None:
    curvature = factor * momentum_edge(rate, momentum, decay)
    path = run(Bowl([curvature], [1.0]), 120, lr=rate, momentum=momentum, weight_decay=decay)
    late = max(abs(float(w)) for w in path[-20:])
    assert late > 10 if factor > 1 else late < 0.1


@some
@given(positive, st.floats(1e-3, 1), positive)
def test_sams_edge_is_the_published_formula(rate: float, rho: float, norm: float) -> None:
    published = norm / (2 * rho) * (math.sqrt(1 + 8 * rho / (rate * norm)) - 1)
    found = sam_edge(momentum_edge(rate), rho, norm)
    assert found == pytest.approx(published, rel=1e-9)
    assert found * (1 + rho * found / norm) == pytest.approx(2 / rate)  # where it comes from
    assert found < 2 / rate
    assert sam_edge(2 / rate, 0.0, norm) == 2 / rate and sam_edge(2 / rate, rho, 0.0) == 0


@some
@given(
    st.floats(0.05, 1),
    st.floats(0.01, 0.5),
    st.sampled_from([0.98, 1.02]),
    st.sampled_from([0.0, 0.1]),
)
def test_a_step_of_sam_shrinks_below_its_edge_and_grows_above(
    rate: float, rho: float, factor: float, decay: float
) -> None:
    """The weight of the largest curvature, whichever way the whole gradient points."""
    slope = 0.7  # norm of the gradient's other part
    curvature = 3.0
    for _ in range(50):  # the edge at this gradient, times the factor
        norm = math.hypot(slope, curvature * 0.1)
        curvature = factor * sam_edge(momentum_edge(rate, 0.0, decay), rho, norm)
    other = 0.2 * curvature
    before, after = run(
        Bowl([curvature, other], [0.1, slope / other]), 1, rho, lr=rate, weight_decay=decay
    )
    assert (abs(float(after[0])) > abs(float(before[0]))) == (factor > 1)


@few
@given(st.floats(0.05, 1), st.floats(0.01, 0.5), st.floats(0.3, 0.9))
def test_sam_ends_at_the_gradient_whose_edge_is_the_curvature(
    rate: float, rho: float, share: float
) -> None:
    """In one dimension, below 2 / lr: jumps from side to side, which neither grow nor shrink."""
    curvature = share * 2 / rate
    path = run(Bowl([curvature], [1.0]), 200, rho, lr=rate)
    norm = curvature * abs(float(path[-1]))
    assert norm == pytest.approx(rate * rho * curvature**2 / (2 - rate * curvature), rel=1e-4)
    assert sam_edge(2 / rate, rho, norm) == pytest.approx(curvature, rel=1e-4)
    diverged = run(Bowl([1.2 * 2 / rate], [1.0]), 60, rho, lr=rate)
    assert abs(float(diverged[-1])) > 1e6


# --- of a run -------------------------------------------------------------------------------------
def content(**train_args: object) -> dict:
    args = {
        **{"optimizer": "SGD", "base_optimizer": "SGD", "rho": 0.0, "momentum": 0.0},
        **{"weight_decay": 0.0, "learning_rate": 0.1, "schedule": "constant", "epochs": 3},
        **{"batch_size": 200, "seed": 1},
    }
    return {
        **{"task": "GCN", "model": "GCN", "dataset": "MUTAG", "epoch": 0, "state_dict": {}},
        **{"model_args": {}, "data_args": {}, "train_args": {**args, **train_args}},
    }


def test_the_edge_is_that_of_the_runs_own_optimizer() -> None:
    assert edge_of(content(), 100).at(0.1, 5.0) == pytest.approx(20)
    heavy = edge_of(content(momentum=0.9, weight_decay=0.5), 100)
    assert heavy.at(0.1, 5.0) == pytest.approx(37.5)
    assert "momentum" in heavy.formula and "weight decay" in heavy.formula
    climbing = edge_of(content(optimizer="SAM", rho=0.05), 100)
    assert climbing.at(0.1, 5.0) == pytest.approx(sam_edge(20, 0.05, 5.0))
    assert edge_of(content(optimizer="SAM"), 100).at(0.1, 5.0) == pytest.approx(20)  # rho 0
    assert not any(edge_of(c, 100).why for c in (content(), content(optimizer="SAM", rho=0.05)))


@pytest.mark.parametrize(
    ("train_args", "why"),
    [
        ({"optimizer": "ADAM"}, "preconditioned"),
        ({"optimizer": "SAM", "base_optimizer": "ADAM", "rho": 0.1}, "preconditioned"),
        ({"optimizer": "ASAM", "rho": 0.5}, "ASAM"),
        ({"optimizer": "SAM", "rho": 0.1, "gsam_alpha": 0.2, "every": 5}, "--every, --gsam_alpha"),
        ({"optimizer": "SAM", "rho": 0.1, "msam": True}, "--msam"),
        ({"average": "ema"}, "average"),
    ],
)
def test_no_edge_is_given_where_none_is_known(train_args: dict, why: str) -> None:
    edge = edge_of(content(**train_args), 100)
    assert not edge.formula and why in edge.why[0]


def test_what_keeps_a_run_from_its_edge_is_said() -> None:
    run = content(optimizer="SAM", rho=0.1, momentum=0.9, batch_size=50, class_weights=True)
    run["model_args"], run["data_args"] = {"dropout": 0.5}, {"augment": True}
    run["state_dict"] = {"norm.running_mean": 0}
    said = " ".join(edge_of(run, 100).why)
    for word in (
        *("50 of 100", "momentum", "class_weights", "dropout, augmentation, batch statistics"),
    ):
        assert word in said


def test_a_changing_learning_rate_comes_from_the_runs_history(tmp_path: Path) -> None:
    assert rates(content(), tmp_path) == dict.fromkeys(range(4), 0.1)
    run = content(schedule="cosine")
    assert "no such history" in str(rates(run, tmp_path))
    path = tmp_path / "outputs" / "my_train_GCN_SGD_0.0_MUTAG_seed1.dat"
    names = ("train_loss", "train_acc", "train_f1", "val_loss", "val_acc", "val_f1", "seconds")
    rows = [
        {"epoch": i, "learning_rate": rate, **dict.fromkeys(names, 1.0)}
        for i, rate in enumerate((0.1, 0.05, 0.01), start=1)
    ]
    path.parent.mkdir()
    write_history(path, run["train_args"], rows)
    assert rates(run, tmp_path) == {0: 0.1, 1: 0.1, 2: 0.05, 3: 0.01}
    write_history(path, {**run["train_args"], "epochs": 4}, rows)
    assert "another run's (epochs)" in str(rates(run, tmp_path))
