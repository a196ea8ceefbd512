"""Sharded parameters: FSDP2 on two gloo processes against one process; what can't be is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pairs import in_two_processes
from torch import Tensor, nn

from sam import SAM, frozen_batch_norm, global_norm

INPUTS = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(8) % 3
BASE: dict[str, Any] = {"base_optimizer": torch.optim.SGD, "lr": 0.05, "momentum": 0.9}
CASES: dict[str, dict[str, Any]] = {
    "SAM": {},
    "ASAM": {"adaptive": True, "rho": 0.5},
    "GSAM": {"gsam_alpha": 0.3},
    "LookSAM": {"every": 2, "looksam_alpha": 0.7},
    "Friendly SAM": {"fsam_sigma": 0.8},
    "MSAM": {"msam": True},
    "Adam": {"base_optimizer": torch.optim.Adam, "lr": 0.01, "momentum": None},
    "fused Adam": {"base_optimizer": torch.optim.Adam, "momentum": None, "fused": True},
}
WITH_NAN = ("SAM", "LookSAM", "fused Adam")


def network() -> nn.Module:
    """Layers whose sizes two processes share unevenly, one with a row for the first alone.

    The first has no bias: batch norm takes it out, and Adam would make steps of its rounding.
    """
    torch.manual_seed(1)
    layers = [
        nn.Linear(4, 7, bias=False),
        nn.BatchNorm1d(7),
        nn.Tanh(),
        nn.Linear(7, 1),
        nn.Linear(1, 3),
    ]
    return nn.Sequential(*layers).double()


def optimizer_of(model: nn.Module, case: str) -> SAM:
    options = {k: v for k, v in {"rho": 0.1, **BASE, **CASES[case]}.items() if v is not None}
    return SAM(model.parameters(), **options)


def train(model: nn.Module, case: str, bad_rank: int, rank: int | None) -> dict[str, Any]:
    """Four steps by closure and two in two parts; the second is NaN on one process.

    The whole batch goes to each process, because batch norm's statistics are each one's own.
    """
    optimizer = optimizer_of(model, case)
    start = {name: whole(p).clone() for name, p in model.named_parameters()}

    def backward(step: int) -> Tensor:
        optimizer.zero_grad()
        bad = float("nan") if step == 1 and bad_rank in (rank, -1) else 1.0
        loss = nn.functional.cross_entropy(model(INPUTS) * bad, TARGETS)
        loss.backward()
        return loss.detach()

    for step in range(4):
        optimizer.step(lambda step=step: backward(step))
    for step in (4, 5):
        backward(step)
        optimizer.first_step(zero_grad=True)
        if step == 4:
            moved = [whole(p) for p in model.parameters()]
        with frozen_batch_norm(model):
            backward(step)
        optimizer.second_step(zero_grad=True)
    values = {name: whole(p) for name, p in model.named_parameters()}
    assert any(not torch.equal(start[name], value) for name, value in values.items())
    return {"weights": values, "moved": moved, "skipped": optimizer.skipped, "start": start}


def whole(p: Any) -> Tensor:
    return (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()


def sharded() -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    model = network()
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    return fully_shard(model)


def checkpoint(case: str) -> bool:
    """Whether a sharded optimizer's state, gathered, is that of one process, and loads again."""
    from torch.distributed.checkpoint import state_dict as tools

    options = tools.StateDictOptions(full_state_dict=True)
    model = sharded()
    optimizer = optimizer_of(model, case)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(INPUTS), TARGETS)
        loss.backward()
        return loss.detach()

    optimizer.step(closure)
    state = tools.get_optimizer_state_dict(model, optimizer, options=options)
    optimizer.zero_grad()  # the tools ask only an optimizer without gradients for its state
    twin = optimizer_of(model, case)
    tools.set_optimizer_state_dict(model, twin, state, options=options)
    kept, loaded = optimizer.state, twin.state
    equal = [
        torch.equal(whole(value), whole(loaded[p][name]))
        for p in model.parameters()
        for name, value in kept[p].items()
        if isinstance(value, Tensor)
    ]
    return bool(equal) and all(equal) and twin.steps == 1


def refused(kind: str) -> str:
    """What SAM says to shards whose whole it can't see."""
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.optim import ZeroRedundancyOptimizer

    try:
        if kind == "zero":
            ZeroRedundancyOptimizer(
                network().parameters(), SAM, base_optimizer=torch.optim.SGD, lr=0.1
            )
        elif kind == "alone":
            model = sharded()
            SAM(model.parameters(), torch.optim.SGD, lr=0.1, model=model, sync_ascent=False)
        else:
            model = FullyShardedDataParallel(
                network(), use_orig_params=kind == "fsdp1, original", device_id=torch.device("cpu")
            )
            SAM(model.parameters(), torch.optim.SGD, lr=0.1)
    except ValueError as error:
        return str(error)
    return ""


REFUSED = {
    "zero": "ZeroRedundancyOptimizer",
    "fsdp1": "fully_shard",
    "fsdp1, original": "fully_shard",
    "alone": "sync_ascent",
}


def rank_main(rank: int, folder: str) -> None:
    ends: dict[str, Any] = {}
    for case in CASES:
        for bad_rank in (-2, 1) if case in WITH_NAN else (-2,):
            ends[f"{case} {bad_rank}"] = train(sharded(), case, bad_rank, rank)
    ends["checkpoint"] = {case: checkpoint(case) for case in CASES}
    ends["refused"] = {kind: refused(kind) for kind in REFUSED}
    model = sharded()
    model(INPUTS).square().sum().backward()
    ends["norm"] = global_norm([p.grad for p in model.parameters()])
    torch.save(ends, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes ends with, for all cases: starting them takes seconds."""
    folder = tmp_path_factory.mktemp("ranks")
    in_two_processes(rank_main, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize(
    ("case", "bad"), [(case, False) for case in CASES] + [(case, True) for case in WITH_NAN]
)
def test_fsdp2_is_one_process(case: str, bad: bool, ranks: list[dict[str, Any]]) -> None:
    """Kind: norms and products of shards, and steps that one process alone would leave out."""
    expected = train(network(), case, -1 if bad else -2, None)
    assert expected["skipped"] == bad
    for ends in ranks:
        end = ends[f"{case} {1 if bad else -2}"]
        assert end["skipped"] == bad
        for name in ("weights", "moved", "start"):
            torch.testing.assert_close(end[name], expected[name], rtol=0, atol=1e-12)


def test_norm_is_that_of_the_whole(ranks: list[dict[str, Any]]) -> None:
    model = network()
    model(INPUTS).square().sum().backward()
    grads = [p.grad for p in model.parameters()]
    for ends in ranks:
        assert ends["norm"] == pytest.approx(float(global_norm(grads)), rel=1e-14)


@pytest.mark.parametrize("case", CASES)
def test_sharded_state_is_saved_and_loaded(case: str, ranks: list[dict[str, Any]]) -> None:
    assert all(ends["checkpoint"][case] for ends in ranks)


@pytest.mark.parametrize("kind", REFUSED)
def test_parts_whose_whole_is_unknown_are_refused(kind: str, ranks: list[dict[str, Any]]) -> None:
    assert all(REFUSED[kind] in ends["refused"][kind] for ends in ranks)
