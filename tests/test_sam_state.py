"""All that SAM remembers lies in state and param_groups, where torch's checkpoint tools look."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from sam import SAM

OPTIONS: dict[str, dict[str, Any]] = {
    "SAM": {},
    "LookSAM": {"every": 3, "looksam_alpha": 0.7},
    "Friendly SAM": {"fsam_sigma": 1.0},
    "both": {"every": 3, "looksam_alpha": 0.7, "fsam_sigma": 1.0, "start": 1},
    "GSAM": {"gsam_alpha": 0.2},
}
BASES: dict[str, dict[str, Any]] = {
    "SGD": {"base_optimizer": torch.optim.SGD, "lr": 0.1},
    "momentum": {"base_optimizer": torch.optim.SGD, "lr": 0.1, "momentum": 0.9},
    "Adam": {"base_optimizer": torch.optim.Adam, "lr": 0.01},
    "fused": {"base_optimizer": torch.optim.Adam, "lr": 0.01, "fused": True},
}


def fresh(kind: str = "SAM", base: str = "momentum") -> tuple[nn.Module, SAM]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "rho": 0.2}]
    return model, SAM(groups, rho=0.1, **BASES[base], **OPTIONS[kind])


def train(model: nn.Module, optimizer: SAM, steps: range) -> None:
    for step in steps:
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        bad = float("nan") if step == 1 else 1.0

        def closure(inputs: Tensor = inputs, bad: float = bad) -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs) * bad, torch.arange(8) % 3)
            loss.backward()
            return loss.detach()

        optimizer.step(closure)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(map(torch.equal, a.parameters(), b.parameters()))


def through_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("flat", [False, True])
def test_torchs_checkpoint_tools_carry_all_of_it(kind: str, base: str, flat: bool) -> None:
    """Kind: what an optimizer remembers outside of state and param_groups.

    The two calls are those that Lightning, accelerate and FSDP use. Members: the count of steps,
    of those skipped, g_v, the running mean; a fresh optimizer, of which they ask zero steps.
    """
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    whole = fresh(kind, base)
    train(*whole, range(5))
    saved = through_file([whole[0].state_dict(), get_optimizer_state_dict(*whole, options=options)])
    model, optimizer = fresh(kind, base)
    model.load_state_dict(saved[0])
    set_optimizer_state_dict(model, optimizer, saved[1], options=options)
    assert (optimizer.steps, optimizer.skipped) == (5, 1)
    assert [group["rho"] for group in optimizer.param_groups] == [0.1, 0.2]
    train(*whole, range(5, 9))
    train(model, optimizer, range(5, 9))
    assert same(whole[0], model)


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("base", BASES)
def test_asking_a_fresh_optimizer_moves_nothing(kind: str, base: str) -> None:
    model, optimizer = fresh(kind, base)
    before = copy.deepcopy(model)
    state = get_optimizer_state_dict(model, optimizer)
    assert same(model, before) and optimizer.steps == 0
    names = {name for kept in state["state"].values() for name in kept}
    assert ("fsam_m" in names) is ("fsam_sigma" in OPTIONS[kind])
    assert ("looksam_g_v" in names) is ("looksam_alpha" in OPTIONS[kind])
    train(model, optimizer, range(3))
    assert all(p.isfinite().all() for p in model.parameters())


def test_zero_gradients_are_the_only_excuse_for_no_closure() -> None:
    model, optimizer = fresh()
    with pytest.raises(TypeError, match="closure"):
        optimizer.step()
    model(torch.ones(1, 4)).sum().backward()
    before = copy.deepcopy(model)
    with pytest.raises(TypeError, match="closure"):
        optimizer.step()
    assert same(model, before)


@pytest.mark.parametrize("base", BASES)
def test_base_starts_where_sam_remembers_something_already(base: str) -> None:
    """Adam and others begin where a parameter's state is empty, and SAM's comes first."""
    model, optimizer = fresh("both", base)
    train(model, optimizer, range(4))
    first = next(iter(model.parameters()))
    assert {"fsam_m", "looksam_g_v"} <= optimizer.state[first].keys()
    assert optimizer.base_optimizer.state is optimizer.state


def older_file(optimizer: SAM) -> dict[str, Any]:
    """What state_dict gave before: SAM's own in an entry "sam", its counts not in the groups."""
    state = copy.deepcopy(optimizer.state_dict())
    own: dict[str, Any] = {"steps": optimizer.steps, "skipped": optimizer.skipped}
    for name, key in (("g_v", "looksam_g_v"), ("mean", "fsam_m")):
        own[name] = {i: s.pop(key) for i, s in state["state"].items() if key in s}
    state["state"] = {i: s for i, s in state["state"].items() if s}
    for group in state["param_groups"]:
        del group["steps"], group["skipped"]
    return {**state, "sam": own}


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("by_base", [False, True])
def test_older_files_are_read_whole(kind: str, base: str, by_base: bool) -> None:
    whole = fresh(kind, base)
    train(*whole, range(5))
    model, optimizer = fresh(kind, base)
    model.load_state_dict(whole[0].state_dict())
    state = through_file(older_file(whole[1]))
    (optimizer.base_optimizer if by_base else optimizer).load_state_dict(state)
    assert "sam" in state  # it is the caller's
    assert (optimizer.steps, optimizer.skipped) == (5, 1)
    train(*whole, range(5, 9))
    train(model, optimizer, range(5, 9))
    assert same(whole[0], model)
