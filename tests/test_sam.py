"""SAM against closed forms in float64 and a slow twin in the papers' letters."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sam import SAM, ascent_scale, frozen_batch_norm, global_norm


def quadratic(dim: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A positive definite A and a start w of f(w) = w'Aw / 2, in float64."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return root @ root.T, torch.randn(dim, generator=generator, dtype=torch.float64)


def closure_of(optimizer, loss_function):
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_function()
        loss.backward()
        return loss.detach()

    return closure


def network(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def batch(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(16, 4, generator=generator, dtype=dtype)
    return inputs, torch.randint(3, (16,), generator=generator)


def train(model: nn.Module, optimizer, steps: range) -> None:
    for step in steps:
        inputs, targets = batch(step)
        optimizer.step(
            closure_of(
                optimizer, lambda x=inputs, y=targets: nn.functional.cross_entropy(model(x), y)
            )
        )


@settings(max_examples=30, deadline=None)
@given(rho=st.floats(0.001, 2), lr=st.floats(0.001, 0.5), seed=st.integers(0, 1000))
def test_step_on_a_quadratic_is_the_closed_form(rho: float, lr: float, seed: int) -> None:
    a, start = quadratic(seed=seed)
    w = start.clone().requires_grad_()
    optimizer = SAM([w], torch.optim.SGD, rho=rho, lr=lr)
    loss = optimizer.step(closure_of(optimizer, lambda: 0.5 * w @ a @ w))
    gradient = a @ start
    perturbed = start + rho * gradient / gradient.norm()
    torch.testing.assert_close(w.detach(), start - lr * a @ perturbed, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss, 0.5 * start @ a @ start)


def test_adaptive_step_is_kwon_equation_7_with_biases_unnormalised() -> None:
    rho, eta, lr = 0.5, 0.01, 0.1
    torch.manual_seed(0)
    weight = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, dtype=torch.float64)

    def loss(w: Tensor, b: Tensor) -> Tensor:
        return ((w @ x + b) ** 3).sum()

    start = [weight.detach().clone(), bias.detach().clone()]
    t = [start[0].abs() + eta, torch.ones_like(start[1])]
    g = torch.autograd.grad(loss(weight, bias), (weight, bias))
    norm = sum(((ti * gi) ** 2).sum() for ti, gi in zip(t, g, strict=True)).sqrt()
    moved = [
        (s + rho * ti**2 * gi / norm).requires_grad_()
        for s, ti, gi in zip(start, t, g, strict=True)
    ]
    expected = [
        s - lr * gi for s, gi in zip(start, torch.autograd.grad(loss(*moved), moved), strict=True)
    ]
    optimizer = SAM([weight, bias], torch.optim.SGD, rho=rho, adaptive=True, eta=eta, lr=lr)
    optimizer.step(closure_of(optimizer, lambda: loss(weight, bias)))
    torch.testing.assert_close([weight.detach(), bias.detach()], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_rho_zero_is_the_base_optimizer_bit_for_bit(base) -> None:
    ours, theirs = network(), network()
    train(ours, SAM(ours.parameters(), base, rho=0, lr=0.01, model=ours), range(5))
    train(theirs, base(theirs.parameters(), lr=0.01), range(5))
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


def test_closure_equals_two_steps_bit_for_bit() -> None:
    one, two = network(), network()
    options = dict(rho=0.1, lr=0.1, momentum=0.9)
    train(one, SAM(one.parameters(), torch.optim.SGD, model=one, **options), range(3))
    optimizer = SAM(two.parameters(), torch.optim.SGD, **options)
    for step in range(3):
        inputs, targets = batch(step)
        nn.functional.cross_entropy(two(inputs), targets).backward()
        optimizer.first_step(zero_grad=True)
        with frozen_batch_norm(two):
            nn.functional.cross_entropy(two(inputs), targets).backward()
        optimizer.second_step(zero_grad=True)
    for name, value in one.state_dict().items():
        assert torch.equal(two.state_dict()[name], value), name


def test_weights_return_exactly_also_when_the_second_pass_raises() -> None:
    model = network(dtype=torch.float32)
    before = [p.detach().clone() for p in model.parameters()]
    pointers = [p.data_ptr() for p in model.parameters()]
    optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.3, lr=0.1, model=model)
    inputs, targets = batch(dtype=torch.float32)
    calls = []

    def closure() -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        return loss

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert all(map(torch.equal, before, model.parameters()))
    assert pointers == [p.data_ptr() for p in model.parameters()]
    assert all(m.track_running_stats for m in model if isinstance(m, nn.BatchNorm1d))
    optimizer.state_dict()  # not in the middle of a step any more


def test_weights_stay_when_memory_runs_out_in_the_ascent(monkeypatch) -> None:
    a, b = (torch.ones(2, requires_grad=True) for _ in range(2))
    optimizer = SAM([a, b], torch.optim.SGD, rho=0.5, lr=0.1)
    optimizer.step(closure_of(optimizer, lambda: (a**2).sum()))
    before = a.detach().clone()

    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("no memory for the copy of b")

    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr(torch, "zeros_like", fail)
        optimizer.step(closure_of(optimizer, lambda: (a**2).sum() + (b**2).sum()))
    assert torch.equal(a, before) and torch.equal(b, torch.ones(2))


def test_copies_made_between_the_steps_know_the_way_back() -> None:
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.5, lr=0.1)
    model(batch()[0]).square().sum().backward()
    optimizer.first_step(zero_grad=True)
    for twin, twin_optimizer in (
        copy.deepcopy((model, optimizer)),
        pickle.loads(pickle.dumps((model, optimizer))),
    ):
        assert not torch.equal(twin[0].weight, before[0])
        twin_optimizer.restore()
        assert all(map(torch.equal, twin.parameters(), before))
    assert not torch.equal(model[0].weight, before[0])


@pytest.mark.parametrize("only_in", [1, 2])
def test_a_parameter_with_a_gradient_in_one_pass_only(only_in: int) -> None:
    a = torch.ones(2, dtype=torch.float64, requires_grad=True)
    b = torch.ones(2, dtype=torch.float64, requires_grad=True)
    frozen = torch.ones(2, dtype=torch.float64)
    groups = [{"params": [a, b]}, {"params": [frozen]}, {"params": []}]
    optimizer = SAM(groups, torch.optim.SGD, rho=0.5, lr=0.1)
    calls = []

    def closure() -> Tensor:
        calls.append(1)
        loss = (a**2).sum() + ((b**2).sum() if len(calls) == only_in else 0)
        loss.backward()
        return loss

    optimizer.step(closure)
    expected = 1.0 if only_in == 1 else 1 - 0.1 * 2
    assert torch.equal(b, torch.full_like(b, expected))
    assert torch.equal(frozen, torch.ones_like(frozen))


def test_zero_and_absent_gradients_leave_the_weights() -> None:
    a = torch.ones(2, requires_grad=True)
    optimizer = SAM([a], torch.optim.SGD, rho=0.5, lr=0.1)
    optimizer.step(closure_of(optimizer, lambda: (0 * a).sum()))
    assert torch.equal(a, torch.ones(2))
    optimizer.step(lambda: torch.tensor(1.0))
    assert torch.equal(a, torch.ones(2))


def test_batch_norm_statistics_move_once_a_step() -> None:
    model, twin = network(), network()
    optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.5, lr=0.1, model=model)
    train(model, optimizer, range(1))
    twin(batch(0)[0])
    assert model[1].num_batches_tracked == 1
    assert torch.equal(model[1].running_mean, twin[1].running_mean)
    assert torch.equal(model[1].running_var, twin[1].running_var)


def test_frozen_batch_norm_nests_and_spares_eval_layers() -> None:
    model = network()
    inputs = batch()[0]
    with frozen_batch_norm(model):
        with frozen_batch_norm(model):
            model(inputs)
        model(inputs)
    assert model[1].num_batches_tracked == 0
    model(inputs)
    assert model[1].num_batches_tracked == 1
    model.eval()
    before = model(inputs)
    with frozen_batch_norm(model):
        assert torch.equal(model(inputs), before)


@pytest.mark.parametrize(
    ("base", "options"),
    [
        (torch.optim.SGD, dict(lr=0.1, momentum=0.9)),
        (torch.optim.Adam, dict(lr=0.01)),
        (torch.optim.AdamW, dict(lr=0.01)),
    ],
)
def test_save_load_go_on_is_bitwise_an_uninterrupted_run(base, options) -> None:
    def fresh():
        model = network()
        optimizer = SAM(model.parameters(), base, rho=0.1, model=model, **options)
        return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)

    def go(model, optimizer, scheduler, steps: range) -> None:
        for step in steps:
            train(model, optimizer, range(step, step + 1))
            scheduler.step()

    whole = fresh()
    go(*whole, range(8))
    first = fresh()
    go(*first, range(4))
    saved = pickle.loads(pickle.dumps([part.state_dict() for part in first]))
    second = fresh()
    for part, state in zip(second, saved, strict=True):
        part.load_state_dict(state)
    go(*second, range(4, 8))
    for name, value in whole[0].state_dict().items():
        assert torch.equal(second[0].state_dict()[name], value), name


def test_copies_go_on_independently_and_alike() -> None:
    model = network()
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9, model=model)
    train(model, optimizer, range(2))
    for copied in (
        copy.deepcopy((model, optimizer)),
        pickle.loads(pickle.dumps((model, optimizer))),
    ):
        twin, twin_optimizer = copied
        reference, reference_optimizer = copy.deepcopy((model, optimizer))
        train(twin, twin_optimizer, range(2, 4))
        train(reference, reference_optimizer, range(2, 4))
        assert all(map(torch.equal, twin.parameters(), reference.parameters()))
        assert twin_optimizer.base_optimizer.param_groups is twin_optimizer.param_groups
        assert twin_optimizer.base_optimizer.state is twin_optimizer.state
        assert not torch.equal(twin[0].weight, model[0].weight)


def test_groups_have_their_own_rho_and_can_be_added_later() -> None:
    a, start = quadratic()
    w = start.clone().requires_grad_()
    still = torch.ones(2, dtype=torch.float64, requires_grad=True)
    optimizer = SAM([w], torch.optim.SGD, rho=0.5, lr=0.1, momentum=0.9)
    optimizer.add_param_group({"params": [still], "rho": 0.0})
    optimizer.step(closure_of(optimizer, lambda: 0.5 * w @ a @ w + (still**2).sum()))
    gradient = a @ start
    expected = start - 0.1 * a @ (start + 0.5 * gradient / gradient.norm())
    torch.testing.assert_close(w.detach(), expected)
    torch.testing.assert_close(still.detach(), torch.full_like(still, 0.8))
    assert optimizer.base_optimizer.param_groups is optimizer.param_groups


def test_schedulers_attach_without_warnings() -> None:
    w = torch.ones(1, requires_grad=True)
    optimizer = SAM([w], torch.optim.SGD, lr=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1)
        optimizer.step(closure_of(optimizer, lambda: (w**2).sum()))
        scheduler.step()
    assert optimizer.base_optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_saving_between_the_steps_is_an_error() -> None:
    w = torch.ones(1, requires_grad=True)
    optimizer = SAM([w], torch.optim.SGD, lr=1.0)
    saved = optimizer.state_dict()
    (w**2).sum().backward()
    optimizer.first_step()
    for call in (
        optimizer.state_dict,
        optimizer.first_step,
        lambda: optimizer.load_state_dict(saved),
    ):
        with pytest.raises(RuntimeError, match="between first_step and second_step"):
            call()
    optimizer.restore()
    assert w == 1 and optimizer.state_dict() == saved


@pytest.mark.parametrize("rho", [-1.0, float("nan"), float("inf")])
def test_bad_rho_is_refused(rho: float) -> None:
    with pytest.raises(ValueError, match="rho"):
        SAM([torch.ones(1, requires_grad=True)], torch.optim.SGD, rho=rho, lr=0.1)


def test_step_without_closure_is_an_error() -> None:
    with pytest.raises(TypeError, match="closure"):
        SAM([torch.ones(1, requires_grad=True)], torch.optim.SGD, lr=0.1).step()


def test_norm_of_half_precision_does_not_overflow() -> None:
    tensors = [torch.full((100,), 1000.0, dtype=torch.float16), torch.ones(1)]
    expected = (100 * 1000.0**2 + 1) ** 0.5
    assert float(global_norm(tensors)) == pytest.approx(expected, rel=1e-6)
    for none in (0.0, float("inf"), float("nan")):
        assert ascent_scale(0.05, none) == ascent_scale(0.05, torch.tensor(none)) == 0.0
