"""Buffers that a training forward pass writes move once a step, whoever calls SAM and how."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm

from sam import SAM, frozen_batch_norm


class Averages(nn.Module):
    """Writes buffers in the ways that people write: in place, by .data, by another tensor."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("in_place", "by_data", "replaced", "count"):
            self.register_buffer(
                name, torch.zeros(6, 4)[:, 0] if name == "in_place" else torch.zeros(6)
            )
        self.register_buffer("calls", torch.tensor(0), persistent=False)
        self.register_buffer("nothing", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            mean = x.detach().flatten(1).mean()
            self.in_place.lerp_(mean.expand(6), 0.1)
            self.by_data.data.copy_(self.by_data * 0.9 + mean)
            self.replaced = self.replaced * 0.9 + mean
            self.calls += 1
        return x + self.in_place.mean().detach() * 0


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm": lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)),
    "BatchNorm without weights": lambda: nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6, affine=False)
    ),
    "BatchNorm with cumulative mean": lambda: nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6, momentum=None)
    ),
    "InstanceNorm": lambda: nn.Sequential(
        nn.Linear(4, 6), nn.Unflatten(1, (2, 3)), nn.InstanceNorm1d(2, track_running_stats=True),
        nn.Flatten(),
    ),
    "spectral_norm": lambda: spectral_norm(nn.Linear(4, 6)),
    "parametrized spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(4, 6)),
    "own averages": lambda: nn.Sequential(nn.Linear(4, 6), Averages()),
}  # fmt: skip


class Net(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).tanh())


def net(layer: str) -> Net:
    torch.manual_seed(0)
    return Net(LAYERS[layer]())


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 4, generator=generator), torch.arange(8) % 3


def closure_of(optimizer: SAM, model: Any, step: int) -> Callable[[], Tensor]:
    inputs, targets = batch(step)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        return loss.detach()

    return closure


PARAMS: dict[str, Callable[[nn.Module], Any]] = {
    "generator": lambda model: model.parameters(),
    "list": lambda model: list(model.parameters()),
    "named": lambda model: model.named_parameters(),
    "filter": lambda model: filter(lambda p: p.requires_grad, model.parameters()),
    "groups": lambda model: [
        {"params": [p for p in model.parameters() if p.ndim > 1]},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ],
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("how", ["model=", "generator"])
def test_buffers_move_once_a_step(layer: str, how: str) -> None:
    """Kind: buffers that a training forward pass writes, of whatever layer and in whatever way."""
    model = net(layer)
    options: dict[str, Any] = {"model": model} if how == "model=" else {}
    optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.5, lr=0.1, **options)
    identities = {name: id(buffer) for name, buffer in model.named_buffers()}
    for step in range(2):
        twin = net(layer)  # one forward pass at the weights before the step
        twin.load_state_dict(model.state_dict())
        twin(batch(step)[0])
        optimizer.step(closure_of(optimizer, model, step))
        for name in set(twin.state_dict()) & {name for name, _ in model.named_buffers()}:
            torch.testing.assert_close(model.state_dict()[name], twin.state_dict()[name], msg=name)
    if layer == "own averages":
        assert model.layer[1].calls == 2
    else:
        assert identities == {name: id(buffer) for name, buffer in model.named_buffers()}


@pytest.mark.parametrize("how", PARAMS)
def test_the_model_is_found_by_its_parameters(how: str) -> None:
    """Without model=, however the parameters are given; two models in one closure too."""
    first, second = net("BatchNorm without weights"), nn.BatchNorm1d(3)
    both = nn.ModuleList([first, second])
    optimizer = SAM(PARAMS[how](both), torch.optim.SGD, rho=0.5, lr=0.1)
    unrelated = nn.BatchNorm1d(4)
    del both
    optimizer.step(closure_of(optimizer, lambda x: second(first(unrelated(x))), 0))
    assert first.layer[1].num_batches_tracked == second.num_batches_tracked == 1
    assert unrelated.num_batches_tracked == 2  # none of the optimizer's, so none of its business
    late = nn.BatchNorm1d(4)
    named = late.named_parameters() if how == "named" else late.parameters()
    optimizer.add_param_group({"params": named})
    optimizer.step(closure_of(optimizer, lambda x: second(first(late(x))), 0))
    assert late.num_batches_tracked == 1 and second.num_batches_tracked == 2


def test_layers_in_eval_mode_and_plain_steps_are_left_alone() -> None:
    model = net("BatchNorm")
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1, every=2)
    optimizer.step(closure_of(optimizer, model, 0))
    optimizer.step(closure_of(optimizer, model, 1))
    assert model.layer[1].num_batches_tracked == 2
    model.eval()
    optimizer.step(closure_of(optimizer, model, 2))
    assert model.layer[1].num_batches_tracked == 2


def test_msam_keeps_the_statistics_of_its_only_pass() -> None:
    model = net("BatchNorm")
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9, msam=True)
    for step in range(2):
        optimizer.step(closure_of(optimizer, model, step))
    assert model.layer[1].num_batches_tracked == 2


def test_buffers_come_back_when_the_second_pass_raises() -> None:
    model = net("BatchNorm")
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1)
    closure, calls = closure_of(optimizer, model, 0), []

    def failing() -> Tensor:
        calls.append(closure())
        if len(calls) == 2:
            raise KeyboardInterrupt
        return calls[0]

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(failing)
    assert model.layer[1].num_batches_tracked == 1


@pytest.mark.parametrize("layer", LAYERS)
def test_frozen_batch_norm_freezes_them_all(layer: str) -> None:
    model = net(layer)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with frozen_batch_norm(model):
        model(batch(0)[0])
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name


@pytest.mark.parametrize(
    ("backend", "how"),
    [
        ("aot_eager", "module"),
        ("aot_eager", "in place"),
        ("eager", "function"),
        ("inductor", "module"),
    ],
)
def test_buffers_of_a_compiled_model_move_once_a_step(backend: str, how: str) -> None:
    torch._dynamo.reset()
    model = net("BatchNorm")
    twin = copy.deepcopy(model)
    called: Any = model
    if how == "in place":
        model.compile(backend=backend)
    else:
        called = torch.compile(model if how == "module" else lambda x: model(x), backend=backend)
    for net_, call in ((model, called), (twin, twin)):
        optimizer = SAM(net_.parameters(), torch.optim.SGD, rho=0.5, lr=0.1)
        for step in range(2):
            optimizer.step(closure_of(optimizer, call, step))
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, msg=name)


def test_frozen_garbage_collection_asks_for_the_model() -> None:
    import gc

    model = net("BatchNorm")
    gc.freeze()
    try:
        optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match="model="):
            optimizer.step(closure_of(optimizer, model, 0))
    finally:
        gc.unfreeze()
    assert torch.equal(model.head.weight, before["head.weight"])
