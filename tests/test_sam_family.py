"""SAM's relatives against literal twins in the papers' letters, and steps that must be left out."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sam import SAM, normalisation_only

RHO, LR = 0.3, 0.05
torch.manual_seed(0)
ROOT = torch.randn(6, 6, dtype=torch.float64)
A = ROOT @ ROOT.T / 6
START = torch.randn(6, dtype=torch.float64)
Gradient = Callable[[Tensor], Tensor]


def loss_at(w: Tensor) -> Tensor:
    return 0.5 * w @ A @ w + (w**4).sum() / 20


def gradient_at(w: Tensor) -> Tensor:
    return A @ w + w**3 / 5


def trained(steps: int, lr: float = LR, momentum: float = 0.0, **options) -> tuple[Tensor, int]:
    """The weights after ``steps`` and how often the closure was called."""
    w = START.clone().requires_grad_()
    optimizer = SAM([w], torch.optim.SGD, rho=RHO, lr=lr, momentum=momentum, **options)
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = loss_at(w)
        loss.backward()
        return loss.detach()

    for _ in range(steps):
        optimizer.step(closure)
    return w.detach(), calls


def plain(w: Tensor) -> Tensor:
    return w - LR * gradient_at(w)


def sam(w: Tensor) -> Tensor:
    g = gradient_at(w)
    return w - LR * gradient_at(w + RHO * g / g.norm())


def orthogonal(a: Tensor, b: Tensor) -> Tensor:
    return a - (a @ b) / (b @ b) * b


def test_every_and_start_alternate_plain_and_sam_steps() -> None:
    w, calls = trained(7, every=3, start=2)
    expected = START
    for step in range(7):
        expected = sam(expected) if step in (2, 5) else plain(expected)
    torch.testing.assert_close(w, expected)
    assert calls == 7 + 2
    assert torch.equal(trained(5, every=1, looksam_alpha=0.7)[0], trained(5)[0])


def test_two_steps_climb_when_every_says_so() -> None:
    w = START.clone().requires_grad_()
    optimizer = SAM([w], torch.optim.SGD, rho=RHO, lr=LR, every=2)
    for step in range(4):
        before = w.detach().clone()
        _backward(optimizer, w)
        optimizer.first_step(zero_grad=True)
        assert torch.equal(w, before) is bool(step % 2)
        _backward(optimizer, w)
        optimizer.second_step(zero_grad=True)
    torch.testing.assert_close(w.detach(), plain(sam(plain(sam(START)))))


def test_looksam_is_algorithm_1() -> None:
    alpha, expected = 0.7, START
    for step in range(7):
        g = gradient_at(expected)
        if step % 3 == 0:
            g_s = gradient_at(expected + RHO * g / g.norm())
            g_v = orthogonal(g_s, g)
        else:
            g_s = g + alpha * g.norm() / g_v.norm() * g_v
        expected = expected - LR * g_s
    w, calls = trained(7, every=3, looksam_alpha=alpha)
    torch.testing.assert_close(w, expected)
    assert calls == 7 + 3


def test_looksam_forgets_what_an_earlier_ascent_knew_of_a_parameter() -> None:
    """One without a gradient in the last ascent has no g_v, so its plain step is the base's."""
    w, late = (torch.tensor([1.0, 2.0], requires_grad=True) for _ in range(2))
    optimizer = SAM([w, late], torch.optim.SGD, lr=0.1, every=2, looksam_alpha=0.7)
    for step in range(4):
        before = late.detach().clone()

        def closure(step: int = step) -> torch.Tensor:
            optimizer.zero_grad()
            loss = (w.square() + (late.square() if step != 2 else 0)) @ torch.tensor([1.0, 3.0])
            loss.backward()
            return loss.detach()

        optimizer.step(closure)
    torch.testing.assert_close(late.detach(), before * torch.tensor([0.8, 0.4]))


def test_gsam_is_algorithm_1() -> None:
    alpha, expected = 0.4, START
    for _ in range(5):
        g = gradient_at(expected)
        g_s = gradient_at(expected + RHO * g / g.norm())
        expected = expected - LR * (g_s - alpha * orthogonal(g, g_s))
    torch.testing.assert_close(trained(5, gsam_alpha=alpha)[0], expected)


def test_friendly_sam_is_algorithm_1() -> None:
    sigma, decay, expected, m = 0.8, 0.6, START, torch.zeros_like(START)
    for _ in range(5):
        g = gradient_at(expected)
        m = decay * m + (1 - decay) * g
        d = g - sigma * m
        expected = expected - LR * gradient_at(expected + RHO * d / d.norm())
    torch.testing.assert_close(trained(5, fsam_sigma=sigma, fsam_lambda=decay)[0], expected)


def test_msam_is_algorithm_1_in_one_pass_a_step() -> None:
    momentum, expected, v = 0.9, START, torch.zeros_like(START)
    for step in range(5):
        climbed = expected - RHO * v / v.norm() if step else expected
        v = momentum * v + gradient_at(climbed)
        expected = expected - LR * v
    w, calls = trained(5, momentum=momentum, msam=True)
    torch.testing.assert_close(w, expected)
    assert calls == 5


def test_rho_zero_is_the_base_optimizer_in_one_pass() -> None:
    w = START.clone().requires_grad_()
    optimizer = SAM([w], torch.optim.SGD, rho=0.0, lr=LR)
    assert optimizer.passes == 1
    optimizer.step(lambda: _backward(optimizer, w))
    torch.testing.assert_close(w.detach(), plain(START))


def _backward(optimizer, w: Tensor) -> Tensor:
    optimizer.zero_grad()
    loss = loss_at(w)
    loss.backward()
    return loss.detach()


def test_normalisation_only_leaves_other_weights_where_they_are() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    optimizer = SAM(normalisation_only(model), torch.optim.SGD, lr=LR)
    before = copy.deepcopy(model.state_dict())
    model(torch.randn(8, 3)).square().mean().backward()
    optimizer.first_step()
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"1.weight", "1.bias"}


def test_normalisation_only_refuses_a_model_without_any() -> None:
    """Nothing would climb, so that it would be the base optimizer under SAM's name."""
    with pytest.raises(ValueError, match="the model has no normalisation layer"):
        normalisation_only(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False)))


@pytest.mark.parametrize("options", [{"every": 3, "looksam_alpha": 0.7}, {"fsam_sigma": 1.0}])
def test_resume_carries_what_the_options_remember(options: dict[str, float]) -> None:
    w = START.clone().requires_grad_()
    whole = SAM([w], torch.optim.SGD, rho=RHO, lr=LR, momentum=0.9, **options)
    for _ in range(4):
        whole.step(lambda: _backward(whole, w))
    v = w.detach().clone().requires_grad_()
    resumed = SAM([v], torch.optim.SGD, rho=RHO, lr=LR, momentum=0.9, **options)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    for _ in range(5):
        whole.step(lambda: _backward(whole, w))
        resumed.step(lambda: _backward(resumed, v))
    assert torch.equal(w, v)


def test_gsam_leaves_nothing_in_the_checkpoint() -> None:
    w = START.clone().requires_grad_()
    optimizer = SAM([w], torch.optim.SGD, rho=RHO, lr=LR, gsam_alpha=0.1)
    optimizer.step(lambda: _backward(optimizer, w))
    state = optimizer.state_dict()
    assert state.keys() == {"state", "param_groups"}
    assert (state["param_groups"][0]["steps"], state["param_groups"][0]["skipped"]) == (1, 0)
    assert not any(isinstance(kept, Tensor) for s in state["state"].values() for kept in s.values())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("fused", [False, True])
def test_step_with_a_nonfinite_gradient_is_left_out(bad: float, which: int, fused: bool) -> None:
    w = START.float().requires_grad_()
    optimizer = SAM([w], torch.optim.AdamW, rho=RHO, lr=LR, fused=fused)
    optimizer.step(lambda: _float_backward(optimizer, w, 1.0))
    before, calls = w.detach().clone(), iter(range(2))
    optimizer.step(lambda: _float_backward(optimizer, w, bad if next(calls) == which else 1.0))
    assert torch.equal(w, before)
    assert optimizer.skipped == 1
    optimizer.step(lambda: _float_backward(optimizer, w, 1.0))
    assert w.isfinite().all() and not torch.equal(w, before)


def _float_backward(optimizer, w: Tensor, factor: float) -> Tensor:
    optimizer.zero_grad()
    (w.square().sum() * factor).backward()
    return w.detach().sum()


@pytest.mark.parametrize("which", [0, 1])
def test_grad_scaler_halves_its_scale_and_skips(which: int) -> None:
    w = START.float().requires_grad_()
    optimizer = SAM([w], torch.optim.SGD, rho=RHO, lr=LR)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    before, calls = w.detach().clone(), iter(range(2))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = w.square().sum()
        factor = float("inf") if next(calls) == which else 1.0
        scaler.scale(loss * factor).backward()
        return loss.detach()

    optimizer.step(closure, scaler)
    scaler.update()
    assert torch.equal(w, before)
    assert scaler.get_scale() == 8.0 and optimizer.skipped == 1


@pytest.mark.parametrize("first", [1.0, float("inf")])
def test_scaler_that_has_unscaled_for_clipping(first: float) -> None:
    w, twin = (START.float().requires_grad_() for _ in range(2))
    optimizer = SAM([w], torch.optim.SGD, rho=RHO, lr=LR)
    plain_optimizer = SAM([twin], torch.optim.SGD, rho=RHO, lr=LR)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    scaler.scale(w.square().sum() * first).backward()
    optimizer.first_step(zero_grad=True)
    scaler.scale(w.square().sum()).backward()
    scaler.unscale_(optimizer.base_optimizer)
    optimizer.second_step(scaler=scaler)
    scaler.update()
    skipped = first != 1.0
    if not skipped:
        plain_optimizer.step(lambda: _float_backward(plain_optimizer, twin, 1.0))
    assert torch.equal(w, twin)  # scaled by a power of two, so bit for bit
    assert optimizer.skipped == skipped and scaler.get_scale() == (8.0 if skipped else 16.0)


def test_adaptive_ascent_is_the_authors_by_the_parameters_names() -> None:
    """Kwon et al.'s code: |w| + eta for what is called weight, batch norm's too, 1 for the rest."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.5, adaptive=True, lr=LR, model=model)
    model(torch.randn(8, 3)).square().sum().backward()
    with torch.no_grad():
        t = {n: p.abs() + 0.01 if "weight" in n else 1 for n, p in model.named_parameters()}
        tg = {n: t[n] * p.grad for n, p in model.named_parameters()}
        norm = torch.cat([x.flatten() for x in tg.values()]).norm()
        expected = {n: p + 0.5 * t[n] * tg[n] / norm for n, p in model.named_parameters()}
    optimizer.first_step()
    torch.testing.assert_close(dict(model.named_parameters()), expected)


def test_adaptive_ascent_ignores_a_rescaling_of_two_layers() -> None:
    """ReLU(x W1) W2 with W1 times c and W2 over c is the same function, and so is its ascent."""
    torch.manual_seed(1)
    x, w1, w2 = (torch.randn(s, dtype=torch.float64) for s in [(5, 3), (3, 4), (4, 1)])
    losses = []
    for c in (1.0, 7.0):
        pair = [(w1 * c).requires_grad_(), (w2 / c).requires_grad_()]
        optimizer = SAM(pair, torch.optim.SGD, rho=0.5, adaptive=True, eta=0.0, lr=LR)
        (torch.relu(x @ pair[0]) @ pair[1]).square().mean().backward()
        optimizer.first_step()
        losses.append((torch.relu(x @ pair[0]) @ pair[1]).square().mean().detach())
    torch.testing.assert_close(losses[0], losses[1])


def test_two_micro_batches_equal_the_full_batch() -> None:
    torch.manual_seed(2)
    x, start = torch.randn(8, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    results = []
    for parts in (1, 2):
        w = start.clone().requires_grad_()
        optimizer = SAM([w], torch.optim.SGD, rho=RHO, lr=LR)

        def closure(w=w, optimizer=optimizer, parts=parts) -> Tensor:
            optimizer.zero_grad()
            losses = [(part @ w).pow(3).mean() / parts for part in x.chunk(parts)]
            for loss in losses:
                loss.backward()
            return torch.stack(losses).sum().detach()

        optimizer.step(closure)
        results.append(w.detach())
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every"),
        ({"msam": True}, "momentum"),
        ({"fsam_lambda": 1.0}, "fsam_lambda"),
        ({"gsam_alpha": -1.0}, "gsam_alpha"),
        ({"sync_ascent": False}, "model="),
        ({"maximize": True}, "negated loss"),
    ],
)
def test_impossible_options_say_what_is_needed(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SAM([START.clone().requires_grad_()], torch.optim.SGD, lr=LR, **options)


def test_complex_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="real parameters"):
        SAM([torch.ones(2, dtype=torch.complex64, requires_grad=True)], torch.optim.SGD, lr=LR)
