"""sam.py in other people's code: davda54's checkpoints, schedulers, half precision, compile."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.sam_step import extra_memory
from sam import SAM


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)).to(dtype)


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(8, 4, dtype=dtype), torch.arange(8) % 3


def closure_of(model: nn.Module, optimizer: SAM, data: tuple[Tensor, Tensor], losses: list):
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(data[0]).float(), data[1])
        loss.backward()
        losses.append(loss.item())
        return loss.detach()

    return closure


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_checkpoint_of_davda54s_sam_loads() -> None:
    model = network()
    params = list(model.parameters())
    momentum = [torch.randn_like(p) for p in params]
    group = {
        "rho": 0.2,
        "adaptive": False,
        "lr": 0.3,
        "momentum": 0.9,
        "dampening": 0,
        "weight_decay": 0.0,
        "nesterov": False,
        "params": list(range(len(params))),
    }
    state = {
        i: {"old_p": torch.zeros_like(p), "momentum_buffer": m}
        for i, (p, m) in enumerate(zip(params, momentum, strict=True))
    }
    optimizer = SAM(params, torch.optim.SGD, lr=0.1, momentum=0.9)
    optimizer.load_state_dict({"state": state, "param_groups": [group]})
    assert optimizer.param_groups[0]["rho"] == 0.2
    assert optimizer.base_optimizer.param_groups[0]["lr"] == 0.3
    assert all("old_p" not in kept for kept in optimizer.state.values())
    buffers = [optimizer.base_optimizer.state[p]["momentum_buffer"] for p in params]
    assert equal(buffers, momentum)
    optimizer.step(closure_of(model, optimizer, batch(), []))
    assert all(p.isfinite().all() for p in params)


def test_checkpoint_of_an_older_torch_loads() -> None:
    """Adam counted its steps in an int then; its ``__setstate__`` converts it."""
    w = torch.ones(2, requires_grad=True)
    optimizer = SAM([w], torch.optim.Adam, lr=0.1)
    state = {"step": 5, "exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)}
    group = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "params": [0]}
    optimizer.load_state_dict({"state": {0: state}, "param_groups": [group]})
    w.square().sum().backward()
    optimizer.second_step()
    assert w.isfinite().all() and optimizer.state[w]["step"] == 6


def test_step_after_davda54s_backward_is_the_same_step() -> None:
    """His ``step(closure)`` wanted a backward pass beforehand, and a closure without zero_grad."""
    models = [network().eval() for _ in range(2)]
    data = batch()
    for model, beforehand in zip(models, (False, True), strict=True):
        optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)

        def closure(model=model) -> Tensor:
            loss = nn.functional.cross_entropy(model(data[0]), data[1])
            loss.backward()
            return loss

        for _ in range(2):
            if beforehand:
                closure()
            optimizer.step(closure)
            optimizer.zero_grad()
    assert equal(weights(models[0]), weights(models[1]))


def test_default_dtype_and_device_do_not_matter() -> None:
    w = torch.ones(2, requires_grad=True)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        optimizer = SAM([w], torch.optim.SGD, lr=0.1)
        for size in (1.0, float("nan"), 1.0):
            w.grad = torch.full_like(w, 1.0)
            optimizer.first_step(zero_grad=True)
            w.grad = torch.full_like(w, size)
            optimizer.second_step()
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(w.detach(), torch.full((2,), 0.8))
    assert optimizer.skipped == 1


def test_hooks_run_once_a_step() -> None:
    model = network()
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1)
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.base_optimizer.register_step_post_hook(lambda *_: calls.append("base"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.step(closure_of(model, optimizer, batch(), []))
    assert calls == ["before", "base", "after"]


def test_scheduler_beside_two_steps_gives_no_warning() -> None:
    model = network()
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    closure = closure_of(model, optimizer, batch(), [])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            closure()
            optimizer.first_step(zero_grad=True)
            closure()
            optimizer.second_step(zero_grad=True)
            scheduler.step()
    assert optimizer.base_optimizer.param_groups[0]["lr"] == 0.025


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"adaptive": True}, {"fsam_sigma": 1.0}])
def test_half_precision_climbs_by_rho_with_large_and_small_gradients(dtype, options) -> None:
    for size in (1e-5, 300.0):
        w = torch.zeros(1000, dtype=dtype, requires_grad=True)
        optimizer = SAM([w], torch.optim.SGD, lr=1e-3, rho=1.0, **options)
        w.grad = torch.full_like(w, size)  # 300 * sqrt(1000) squared overflows float16
        optimizer.first_step(zero_grad=True)
        # Adaptive too: a vector without a name is a bias, so that T_w = 1.
        assert w.detach().double().norm().item() == pytest.approx(1.0, rel=0.01)
        w.grad = torch.ones_like(w)
        optimizer.second_step()
        assert torch.equal(w, torch.full_like(w, -1e-3)) and optimizer.skipped == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_msam_climbs_by_rho(dtype) -> None:
    for size in (1e-5, 300.0):  # rho / |v| is as small as 2e-7, below half of float16's step
        w = torch.zeros(1_000_000, dtype=dtype, requires_grad=True)
        optimizer = SAM([w], torch.optim.SGD, lr=0.0, rho=0.05, momentum=0.9, msam=True)
        w.grad = torch.full_like(w, size)
        optimizer.second_step(zero_grad=True)
        optimizer.first_step()
        assert w.detach().double().norm().item() == pytest.approx(0.05, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gsam_does_not_overflow(dtype) -> None:
    w = torch.zeros(1000, dtype=dtype, requires_grad=True)
    optimizer = SAM([w], torch.optim.SGD, lr=1e-3, rho=1.0, gsam_alpha=0.5)
    for part in (optimizer.first_step, optimizer.second_step):  # parallel: no orthogonal part
        w.grad = torch.full_like(w, 300.0)
        part(zero_grad=True)
    torch.testing.assert_close(w.detach(), torch.full_like(w, -0.3), rtol=0.01, atol=0)
    assert optimizer.skipped == 0


@pytest.mark.parametrize("same", [True, False])
def test_same_dropout_replays_the_masks_and_goes_on_drawing(same: bool) -> None:
    model = network()
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.0, rho=0.0, same_dropout=same)
    optimizer.param_groups[0]["rho"] = 1e-12  # the weights stay, only the masks could differ
    losses: list[float] = []
    data = batch()
    for _ in range(2):
        optimizer.step(closure_of(model, optimizer, data, losses))
    assert (losses[0] == losses[1]) is same
    assert (losses[2] == losses[3]) is same
    assert losses[0] != losses[2]


def test_clipping_bounds_the_second_gradient() -> None:
    model = network()
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=1.0)
    closure = closure_of(model, optimizer, batch(), [])
    before = weights(model)
    closure()
    optimizer.first_step(zero_grad=True)
    closure()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    optimizer.second_step()
    moved = torch.cat([(a - b).flatten() for a, b in zip(weights(model), before, strict=True)])
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_davda54s_adaptive_variant_scales_biases_too() -> None:
    w = torch.tensor([2.0, 4.0], dtype=torch.float64, requires_grad=True)
    optimizer = SAM(
        [w], torch.optim.SGD, lr=0.0, rho=1.0, adaptive=True, normalise_bias=True, eta=0.0
    )
    g = torch.tensor([1.0, 3.0], dtype=torch.float64)
    start, w.grad = w.detach().clone(), g.clone()
    optimizer.first_step()
    expected = start**2 * g / (start * g).norm()  # e(w) = rho T^2 g / |T g|, T = |w|
    torch.testing.assert_close(w.detach() - start, expected, rtol=1e-12, atol=0)


def test_compiled_model_is_not_recompiled_after_the_first_step() -> None:
    torch._dynamo.reset()
    model = network()
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend)
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1, model=model)
    data = batch()
    optimizer.step(closure_of(compiled, optimizer, data, []))
    warm = len(graphs)
    for _ in range(3):
        optimizer.step(closure_of(compiled, optimizer, data, []))
    assert warm >= 1 and len(graphs) == warm


def test_compiled_batch_norm_costs_two_graphs_and_no_more() -> None:
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    reference = copy.deepcopy(model)
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend)
    data = batch()
    counts = []
    for kind, net in ((model, compiled), (reference, reference)):
        optimizer = SAM(kind.parameters(), torch.optim.SGD, lr=0.1, model=kind)
        for _ in range(3):
            optimizer.step(closure_of(net, optimizer, data, []))
            counts.append(len(graphs))
    assert counts[0] == counts[2] >= 1
    torch.testing.assert_close(model[1].running_mean, reference[1].running_mean)
    assert model[1].num_batches_tracked == 3


class HostReads(TorchDispatchMode):
    """Counts what would make the host wait for an accelerator."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name() in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal"):
            self.reads.append(func.name())
        return func(*args, **(kwargs or {}))


class Fused(torch.optim.SGD):
    """Takes the flag as torch's fused optimizers do, and cannot step on meta tensors either."""

    _step_supports_amp_scaling = True
    flags: tuple[Tensor, ...] = ()

    def step(self, closure=None) -> None:
        self.flags = (*self.flags, self.found_inf)


@pytest.mark.parametrize("options", [{}, {"adaptive": True}, {"every": 2, "looksam_alpha": 0.7}])
def test_steps_with_a_fused_base_read_nothing_on_the_host(options) -> None:
    """The accelerators' branch, on meta tensors, from which nothing can be read at all."""
    params = [nn.Parameter(torch.ones(size, device="meta")) for size in ((3, 2), (2,))]
    optimizer = SAM(params, Fused, rho=0.1, lr=0.1, **options)
    with HostReads() as mode:
        for part in (optimizer.first_step, optimizer.second_step) * 2:
            for p in params:
                p.grad = torch.ones_like(p)
            part()
    assert mode.reads == []
    assert [flag.device.type for flag in optimizer.base_optimizer.flags] == ["meta", "meta"]


@pytest.mark.parametrize("options", [{}, {"fsam_sigma": 1.0}, {"gsam_alpha": 0.1}])
def test_extra_memory_is_one_copy_and_one_for_an_option(options: dict[str, float]) -> None:
    model = nn.Sequential(nn.Linear(200, 300), nn.Linear(300, 100))
    params = list(model.parameters())
    size = sum(p.numel() * 4 for p in params)
    grads = [torch.randn_like(p) for p in params]
    _, base = extra_memory(params, grads, torch.optim.SGD(params, lr=0.1))
    _, left = extra_memory(params, grads, SAM(params, torch.optim.SGD, lr=0.1, **options))
    assert (left - base) / size == pytest.approx(1 + len(options), abs=0.01)


def test_one_pass_steps_leave_their_gradients_for_looking_at() -> None:
    model = network()
    model.eval()
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1, every=2, looksam_alpha=0.7)
    losses: list[float] = []
    closure = closure_of(model, optimizer, batch(), losses)
    for _ in range(4):
        optimizer.step(closure)
    assert len(losses) == 6 and losses[-1] < losses[0]
    assert all(p.grad is not None for p in model.parameters())
