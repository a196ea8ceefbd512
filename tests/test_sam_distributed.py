"""SAM under DistributedDataParallel: two gloo processes against one process and m-sharpness."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pairs import in_two_processes
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sam import SAM

RHO, LR, STEPS = 0.1, 0.05, 3
torch.manual_seed(0)
INPUTS = torch.randn(8, 4, dtype=torch.float64)
TARGETS = torch.arange(8) % 3


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def closure_of(model: nn.Module, optimizer: SAM, inputs: Tensor, targets: Tensor, bad: float):
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets) * bad
        loss.backward()
        return loss.detach()

    return closure


def train(rank: int, sync: bool, bad_rank: int) -> dict[str, Any]:
    """What one rank ends with; the gradients of ``bad_rank`` are NaN in the second step."""
    model = DistributedDataParallel(network())
    optimizer = SAM(
        model.parameters(), torch.optim.SGD, rho=RHO, lr=LR, momentum=0.9, model=model,
        sync_ascent=sync,
    )  # fmt: skip
    for step in range(STEPS):
        bad = float("nan") if (rank, step) == (bad_rank, 1) else 1.0
        optimizer.step(closure_of(model, optimizer, INPUTS[rank::2], TARGETS[rank::2], bad))
    return {"weights": [p.detach() for p in model.parameters()], "skipped": optimizer.skipped}


def rank_main(rank: int, folder: str) -> None:
    ends = {f"{sync} {bad}": train(rank, sync, bad) for sync in (True, False) for bad in (-1, 1)}
    torch.save(ends, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes ends with, for all cases: starting them takes seconds."""
    folder = tmp_path_factory.mktemp("ranks")
    in_two_processes(rank_main, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def two_ranks(ranks: list[dict[str, Any]], sync: bool, bad_rank: int = -1) -> list[Tensor]:
    first, second = (ends[f"{sync} {bad_rank}"] for ends in ranks)
    assert all(torch.equal(a, b) for a, b in zip(first["weights"], second["weights"], strict=True))
    assert first["skipped"] == second["skipped"] == (bad_rank >= 0)
    return first["weights"]


def close(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.allclose(x, y, rtol=0, atol=1e-12) for x, y in zip(a, b, strict=True))


def test_synchronised_ascent_is_one_process_with_the_whole_batch(ranks) -> None:
    model = network()
    optimizer = SAM(model.parameters(), torch.optim.SGD, rho=RHO, lr=LR, momentum=0.9)
    for _ in range(STEPS):
        optimizer.step(closure_of(model, optimizer, INPUTS, TARGETS, 1.0))
    assert close(two_ranks(ranks, sync=True), list(model.parameters()))


def m_sharpness(steps: int) -> list[Tensor]:
    """Foret et al. 2021, section 4.1: each part climbs along its own gradient, mean of the two."""
    model = network()
    params = list(model.parameters())
    velocity = [torch.zeros_like(p) for p in params]
    for _ in range(steps):
        total = [torch.zeros_like(p) for p in params]
        for rank in (0, 1):

            def gradient(rank: int = rank) -> list[Tensor]:
                logits = model(INPUTS[rank::2])
                loss = nn.functional.cross_entropy(logits, TARGETS[rank::2])
                return list(torch.autograd.grad(loss, params))

            g = gradient()
            norm = torch.sqrt(sum((x * x).sum() for x in g))
            saved = [p.detach().clone() for p in params]
            with torch.no_grad():
                for p, x in zip(params, g, strict=True):
                    p.add_(RHO * x / norm)
            at_top = gradient()
            with torch.no_grad():
                for p, w, t, x in zip(params, saved, total, at_top, strict=True):
                    p.copy_(w)
                    t.add_(x / 2)
        with torch.no_grad():
            for p, v, t in zip(params, velocity, total, strict=True):
                v.mul_(0.9).add_(t)
                p.sub_(LR * v)
    return params


def test_unsynchronised_ascent_is_m_sharpness(ranks) -> None:
    assert close(two_ranks(ranks, sync=False), m_sharpness(STEPS))


@pytest.mark.parametrize("sync", [True, False])
def test_nan_on_one_rank_leaves_the_step_out_on_both(sync: bool, ranks) -> None:
    weights = two_ranks(ranks, sync=sync, bad_rank=1)
    if not sync:
        assert close(weights, m_sharpness(STEPS - 1))
