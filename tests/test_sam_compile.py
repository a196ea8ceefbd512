"""Whole steps inside torch.compile: what SAM must remember between calls is not lost there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sam import SAM, frozen_batch_norm

OPTIONS: list[dict[str, Any]] = [
    {"every": 2, "looksam_alpha": 0.7},
    {"fsam_sigma": 1.0, "adaptive": True},
    {"msam": True},
]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


INPUTS, TARGETS = (
    torch.randn(16, 4, generator=torch.Generator().manual_seed(1)),
    torch.arange(16) % 3,
)


def backward(model: Any) -> Tensor:
    loss = nn.functional.cross_entropy(model(INPUTS), TARGETS)
    loss.backward()
    return loss.detach()


def by_closure(model: nn.Module, optimizer: SAM) -> Callable[[], Any]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        return backward(model)

    return lambda: optimizer.step(closure)


def by_two_steps(model: nn.Module, optimizer: SAM) -> Callable[[], Any]:
    def two_steps() -> Tensor:
        loss = backward(model)
        optimizer.first_step(zero_grad=True)
        with frozen_batch_norm(model):
            backward(model)
        optimizer.second_step(zero_grad=True)
        return loss

    return two_steps


def by_restoring(model: nn.Module, optimizer: SAM) -> Callable[[], Any]:
    def restored() -> None:
        backward(model)
        optimizer.first_step()
        optimizer.restore()
        optimizer.second_step(zero_grad=True)

    return restored


WAYS = [by_closure, by_two_steps, by_restoring]
CASES = [
    *[(backend, way, {}) for backend in ("eager", "aot_eager") for way in WAYS],
    *[("inductor", way, {}) for way in WAYS[:2]],  # its kernels take seconds to build
    *[("eager", WAYS[1], options) for options in OPTIONS],
]


def name_of(case: object) -> str:
    """The same in every process: a function's ``str`` has its address, which is not."""
    return getattr(case, "__name__", str(case))


@pytest.mark.parametrize(("backend", "way", "options"), CASES, ids=name_of)
def test_compiled_whole_step_is_the_step(backend: str, way: Any, options: dict[str, Any]) -> None:
    """Kind: Python state that a compiled step writes: where w is, the count, the norm, the skips.

    A NaN in the third step must be counted and leave the weights.
    """
    torch._dynamo.reset()
    ends = []
    for compiled in (False, True):
        model = network()
        optimizer = SAM(
            model.parameters(), torch.optim.SGD, rho=0.5, lr=0.1, momentum=0.9, **options
        )
        step = way(model, optimizer)
        if compiled:
            step = torch.compile(step, backend=backend)
        for index in range(5):
            INPUTS[0, 0] = float("nan") if index == 2 else 0.5
            statistics = copy.deepcopy(model[1].state_dict())
            step()
            if index == 2:  # the forward pass has seen it, as without SAM
                model[1].load_state_dict(statistics)
        assert optimizer.steps == 5 and optimizer.skipped == 1
        ends.append(model.state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, msg=name)


def test_whole_graph_is_refused_before_anything_moves() -> None:
    torch._dynamo.reset()
    model = network()
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1)
    before = copy.deepcopy(model.state_dict())
    step = torch.compile(by_closure(model, optimizer), backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        step()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
