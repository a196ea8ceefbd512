"""SAM and its base optimizer are one object: one state, one list of groups, one way to step."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sam import SAM


def optimizer_of(w: Tensor, base: Any = torch.optim.SGD, **options: Any) -> SAM:
    return SAM([w], base, **{"rho": 0.05, "lr": 0.1, **options})


def step(optimizer: SAM, w: Tensor) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = w.square().sum()
        loss.backward()
        return loss.detach()

    optimizer.step(closure)


def pair(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor([1.0, 2.0], dtype=dtype, requires_grad=True)


def add_group(base: Any) -> None:
    base.add_param_group({"params": [torch.ones(2, dtype=torch.float64, requires_grad=True)]})


REPLACED: dict[str, Callable[[Any], Any]] = {
    "load_state_dict": lambda base: base.load_state_dict(base.state_dict()),
    "load of the base alone": lambda base: base.load_state_dict(plain_state()),
    "add_param_group": add_group,
    "__setstate__": lambda base: base.__setstate__(
        {"state": copy.copy(base.state), "param_groups": [dict(g) for g in base.param_groups]}
    ),
    "groups assigned": lambda base: setattr(
        base, "param_groups", [dict(g) for g in base.param_groups]
    ),
}


def plain_state() -> dict[str, Any]:
    w = pair()
    optimizer = torch.optim.SGD([w], lr=0.1, momentum=0.9)
    w.square().sum().backward()
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize("how", REPLACED)
def test_whatever_replaces_the_bases_dicts_replaces_sams(how: str) -> None:
    """Kind: two objects that each hold groups and state, of which one gets new ones.

    Members: loading (the base's own state and a plain optimizer's), adding a group, setstate,
    assignment. What a scheduler sets in SAM must be the rate that steps use, and what the base
    remembers must be in SAM's state_dict.
    """
    w = pair()
    optimizer = optimizer_of(w, momentum=0.9)
    step(optimizer, w)
    REPLACED[how](optimizer.base_optimizer)
    for group in optimizer.param_groups:  # as schedulers do
        group["lr"] = 0.0
    before = w.detach().clone()
    step(optimizer, w)
    assert torch.equal(w, before)  # at rate 0
    assert [g["rho"] for g in optimizer.param_groups] == [0.05] * len(optimizer.param_groups)
    kept = optimizer.base_optimizer.state.get(w, {})
    assert ("momentum_buffer" in kept) is ("momentum_buffer" in optimizer.state_dict()["state"][0])


def test_a_groups_own_rho_outlives_a_plain_checkpoint() -> None:
    """The kind's quiet member: what a file doesn't say must stay, not become the default."""
    w, still = pair(), pair()
    groups = [{"params": [w]}, {"params": [still], "rho": 0.0}]
    for load in ("optimizer", "base"):
        optimizer = SAM(groups, torch.optim.SGD, rho=0.3, lr=0.1)
        state = torch.optim.SGD([{"params": [w]}, {"params": [still]}], lr=0.7).state_dict()
        loaded = optimizer if load == "optimizer" else optimizer.base_optimizer
        loaded.load_state_dict(state)
        assert [(g["rho"], g["lr"]) for g in optimizer.param_groups] == [(0.3, 0.7), (0.0, 0.7)]


def test_base_optimizer_does_not_step_alone() -> None:
    w = pair()
    optimizer = optimizer_of(w)
    w.square().sum().backward()
    optimizer.first_step()
    with pytest.raises(RuntimeError, match="second_step"):
        optimizer.base_optimizer.step()
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        with pytest.raises(RuntimeError, match="second_step"):
            twin.base_optimizer.step()


def with_a_setting(name: str) -> Any:
    def base(params: Any, lr: float) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(params, lr)
        optimizer.defaults[name] = 0
        return optimizer

    return base


@pytest.mark.parametrize("name", ["rho", "eta", "adaptive", "normalise_bias", "steps", "skipped"])
def test_setting_of_one_name_in_sam_and_its_base_is_refused(name: str) -> None:
    """Kind: a key of a group that both would read, such as Adadelta's decay rho."""
    base = torch.optim.Adadelta if name == "rho" else with_a_setting(name)
    with pytest.raises(ValueError, match=rf"has a setting of its own named {name}\b"):
        optimizer_of(pair(), base)


def needs_closure(params: Any, lr: float) -> torch.optim.Optimizer:
    class Demanding(torch.optim.SGD):
        def step(self, closure: Any) -> None:  # type: ignore[override]
            super().step(closure)

    return Demanding(params, lr=lr)


@pytest.mark.parametrize("base", [torch.optim.LBFGS, needs_closure])
def test_base_that_needs_a_closure_is_refused(base: Any) -> None:
    with pytest.raises(ValueError, match="no closure"):
        optimizer_of(pair(), base)


@pytest.mark.parametrize("where", ["one group", "two groups", "added"])
def test_parameter_twice_is_refused(where: str) -> None:
    w = pair()
    groups: Any = {"one group": [w, w], "two groups": [{"params": [w]}, {"params": [w]}]}
    with pytest.raises(ValueError, match=r"once|more than one parameter group"):
        if where == "added":
            optimizer_of(w).add_param_group({"params": [w]})
        else:
            SAM(groups[where], torch.optim.SGD, lr=0.1)


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
@pytest.mark.parametrize("how", ["model", "named", "nothing"])
@pytest.mark.parametrize("passes", [1, 2])
def test_sparse_gradient_is_refused_by_name(how: str, passes: int) -> None:
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Linear(3, 1))
    params: Any = {"named": model.named_parameters()}.get(how, model.parameters())
    options = {"model": model} if how == "model" else {}
    optimizer = SAM(params, torch.optim.SGD, lr=0.1, rho=0.05 * (passes - 1), **options)
    before = copy.deepcopy(model.state_dict())

    def closure() -> Tensor:
        loss = model(torch.tensor([1, 2])).sum()
        loss.backward()
        return loss

    name = r"shape \(5, 3\)" if how == "nothing" else "0.weight"
    with pytest.raises(ValueError, match=name):
        optimizer.step(closure)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_base_with_a_file_format_of_its_own_saves_and_loads_all_of_it() -> None:
    class Counting(torch.optim.SGD):
        count = 0

        def step(self, closure: Any = None) -> None:
            super().step()
            self.count += 1

        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), "count": self.count}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            super().load_state_dict(state_dict)
            self.count = state_dict["count"]

    w = pair()
    optimizer, twin = (optimizer_of(w, partial(Counting)) for _ in range(2))
    step(optimizer, w)
    twin.load_state_dict(optimizer.state_dict())
    assert twin.base_optimizer.count == 1 and twin.steps == 1


def test_a_refused_group_is_not_added() -> None:
    w, late = pair(), pair()
    optimizer = optimizer_of(w)
    with pytest.raises(ValueError, match="rho=-1"):
        optimizer.add_param_group({"params": [late], "rho": -1.0})
    optimizer.add_param_group({"params": [late], "rho": 0.5})
    assert [group["rho"] for group in optimizer.param_groups] == [0.05, 0.5]


def test_sparse_gradient_of_a_later_group_is_refused_by_name() -> None:
    w, table = pair(), nn.Embedding(5, 3, sparse=True)
    optimizer = optimizer_of(w)
    step(optimizer, w)
    optimizer.add_param_group({"params": table.parameters()})
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ValueError, match=r"shape \(5, 3\)"):
        optimizer.first_step()


def test_weights_come_back_exactly_in_a_type_that_they_got_later() -> None:
    """Kind: the copy of the weights is kept between steps, and model.double() has them change."""
    for first, later in ((torch.float32, torch.float64), (torch.bfloat16, torch.float32)):
        w = nn.Parameter(pair(first).detach())
        optimizer = optimizer_of(w)
        step(optimizer, w)
        w.data = torch.tensor([1 / 3, 2 / 3], dtype=later)
        before = w.detach().clone()
        w.square().sum().backward()
        optimizer.first_step(zero_grad=True)
        optimizer.restore()
        assert torch.equal(w, before)


def test_an_ascent_that_was_given_up_leaves_no_step_out() -> None:
    w = pair()
    optimizer = optimizer_of(w)
    w.grad = torch.tensor([float("nan"), 1.0], dtype=torch.float64)
    optimizer.first_step(zero_grad=True)
    optimizer.restore()
    w.square().sum().backward()
    optimizer.second_step()  # a plain one
    torch.testing.assert_close(w.detach(), 0.8 * pair().detach())
    assert optimizer.skipped == 0
