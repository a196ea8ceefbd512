"""SAM with a GradScaler: right or refused, in whatever order people call the two."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sam import SAM

SCALE = 1024.0


class Loop:
    """w = [1, 2], loss = sum w^2, SGD 0.1, rho 0.05, and a scaler."""

    def __init__(self, scale: float = SCALE, **options: Any) -> None:
        self.w = torch.tensor([1.0, 2.0], requires_grad=True)
        base = options.pop("base", torch.optim.SGD)
        self.optimizer = SAM([self.w], base, **{"rho": 0.05, "lr": 0.1, **options})
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale)

    def backward(self) -> Tensor:
        loss = (self.w.square() * torch.tensor([1.0, 3.0])).sum()
        self.scaler.scale(loss).backward()
        return loss.detach()

    def climb(self) -> None:
        self.backward()
        self.optimizer.first_step(zero_grad=True)
        self.backward()

    def unscaled_steps(self, steps: int) -> Tensor:
        """The same without a scaler, by the closure."""
        plain = Loop(1.0, **{k: getattr(self.optimizer, k) for k in ("gsam_alpha", "every")})
        plain.optimizer.looksam_alpha = self.optimizer.looksam_alpha
        for _ in range(steps):
            plain.optimizer.step(lambda: (plain.optimizer.zero_grad(), plain.backward())[1])
        return plain.w.detach()


def unscale(loop: Loop, whose: str) -> None:
    base = loop.optimizer.base_optimizer
    loop.scaler.unscale_(loop.optimizer if whose == "optimizer" else base)


@pytest.mark.parametrize("whose", ["optimizer", "base", "nobody"])
@pytest.mark.parametrize(
    "options", [{}, {"gsam_alpha": 0.4}, {"every": 2, "looksam_alpha": 0.7}, {"every": 2}]
)
def test_unscaled_for_either_object_is_unscaled_once(whose: str, options: dict[str, Any]) -> None:
    """Kind: one object, two identities, by which a scaler counts whom it has unscaled.

    GSAM's member: it mixes both passes' gradients, of which only the second is unscaled.
    """
    loop = Loop(**options)
    for _ in range(4):
        loop.climb()
        if whose != "nobody":
            unscale(loop, whose)
            torch.nn.utils.clip_grad_norm_([loop.w], 1e6)
        loop.optimizer.second_step(zero_grad=True, scaler=loop.scaler)
        loop.scaler.update()
    torch.testing.assert_close(loop.w.detach(), loop.unscaled_steps(4))
    assert loop.scaler.get_scale() == SCALE


def test_one_step_is_the_closed_form() -> None:
    loop = Loop()
    loop.climb()
    unscale(loop, "optimizer")
    loop.optimizer.second_step(scaler=loop.scaler)
    g = torch.tensor([2.0, 12.0])
    top = torch.tensor([1.0, 2.0]) + 0.05 * g / g.norm()
    expected = torch.tensor([1.0, 2.0]) - 0.1 * 2 * top * torch.tensor([1.0, 3.0])
    torch.testing.assert_close(loop.w.detach(), expected)


def test_unscaled_for_both_is_refused() -> None:
    loop = Loop()
    loop.climb()
    unscale(loop, "optimizer")
    unscale(loop, "base")
    with pytest.raises(RuntimeError, match="once"):
        loop.optimizer.second_step(scaler=loop.scaler)
    assert torch.equal(loop.w.detach(), torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize("whose", ["optimizer", "base"])
@pytest.mark.parametrize("known", [False, True])
def test_unscaled_before_the_ascent_is_refused(whose: str, known: bool) -> None:
    """Also in the very first step, when nobody has told SAM of a scaler yet."""
    loop = Loop()
    if known:
        loop.climb()
        loop.optimizer.second_step(zero_grad=True, scaler=loop.scaler)
        loop.scaler.update()
    before = loop.w.detach().clone()
    loop.backward()
    unscale(loop, whose)
    with pytest.raises(RuntimeError, match="before first_step"):
        loop.optimizer.first_step(zero_grad=True)
    assert torch.equal(loop.w.detach(), before)


def test_unscaled_within_the_closure_is_refused() -> None:
    loop = Loop()

    def closure() -> Tensor:
        loop.optimizer.zero_grad()
        loss = loop.backward()
        loop.scaler.unscale_(loop.optimizer)
        return loss

    with pytest.raises(RuntimeError, match="before first_step"):
        loop.optimizer.step(closure, loop.scaler)
    assert torch.equal(loop.w.detach(), torch.tensor([1.0, 2.0]))


STEPS: dict[str, Callable[[Loop], Any]] = {
    "optimizer": lambda loop: loop.scaler.step(loop.optimizer),
    "base": lambda loop: loop.scaler.step(loop.optimizer.base_optimizer),
    "closure": lambda loop: loop.scaler.step(loop.optimizer, loop.backward),
}


@pytest.mark.parametrize("how", STEPS)
@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("factor", [1.0, float("inf")])
def test_the_scalers_own_step_is_refused(how: str, base: Any, fused: bool, factor: float) -> None:
    """It can't make two passes; with an infinite gradient it would not even ask SAM."""
    if how == "base" and not fused and factor != 1.0:
        pytest.skip("the scaler skips the base without asking; first_step then says it")
    loop = Loop(base=base, fused=fused)
    loop.climb()
    loop.w.grad *= factor
    with pytest.raises(RuntimeError, match="second_step"):
        STEPS[how](loop)
    loop.optimizer.restore()
    assert torch.equal(loop.w.detach(), torch.tensor([1.0, 2.0]))
    if how == "base":
        return
    loop.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)  # all goes on as if nothing were
    loop.optimizer.step(lambda: (loop.optimizer.zero_grad(), loop.backward())[1], loop.scaler)
    assert loop.optimizer.skipped == 0 and loop.w.isfinite().all()


def test_a_forgotten_scaler_is_seen_by_its_update() -> None:
    loop = Loop()
    loop.climb()
    loop.optimizer.second_step()
    with pytest.raises(AssertionError, match="No inf checks"):
        loop.scaler.update()


def test_a_forgotten_scaler_after_unscaling_is_right() -> None:
    loop = Loop()
    loop.climb()
    unscale(loop, "optimizer")
    loop.optimizer.second_step()
    loop.scaler.update()
    torch.testing.assert_close(loop.w.detach(), loop.unscaled_steps(1))


@pytest.mark.parametrize("whose", ["optimizer", "base"])
@pytest.mark.parametrize("how", ["closure", "two steps"])
def test_unscaled_by_a_scaler_of_later_is_refused(whose: str, how: str) -> None:
    """Kind: a scaler that first_step couldn't know, so that nobody asked what it had unscaled."""
    loop = Loop(1.0)
    if how == "closure":
        loop.optimizer.step(lambda: (loop.optimizer.zero_grad(), loop.backward())[1])
    else:
        loop.climb()
        loop.optimizer.second_step(zero_grad=True)
    before = loop.w.detach().clone()
    loop.optimizer.zero_grad()
    loop.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    loop.backward()
    unscale(loop, whose)
    with pytest.raises(RuntimeError, match="first_step"):
        loop.optimizer.first_step(zero_grad=True)
        loop.backward()
        loop.optimizer.second_step(scaler=loop.scaler)
    assert torch.equal(loop.w.detach(), before)


def test_scalers_that_are_garbage_have_no_say() -> None:
    """They know dead optimizers by an id, which a new one may have got."""
    for _ in range(8):  # 45 % of the rounds were refused before
        scalers: list[Any] = [torch.amp.GradScaler("cpu") for _ in range(100)]
        gc.collect()  # makes them old, so that the optimizers go before them
        gc.disable()
        try:
            for scaler in scalers:
                loop = Loop()
                loop.scaler = scaler.cycle = scaler
                loop.backward()
                unscale(loop, "optimizer")
            del scalers, scaler, loop
            gc.collect(0)
            Loop().climb()
        finally:
            gc.enable()
