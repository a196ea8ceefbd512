"""Losses whose sharpness is known, and the published ascent written out parameter by parameter."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loss_landscape.my_pyhessian.operators import HessianOperator
from loss_landscape.sharpness_measures.nearby_loss import NearbyLoss


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Quadratic(nn.Module):
    """A sample x has the loss c + x'w + w'Hw / 2."""

    def __init__(self, hessian: Tensor, weights: Tensor, constant: float = 0.0) -> None:
        super().__init__()
        self.hessian, self.constant = hessian, constant
        self.weights = nn.Parameter(weights.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.constant + x @ self.weights + self.weights @ self.hessian @ self.weights / 2


def given(outputs: Tensor, targets: Tensor) -> Tensor:
    """The outputs are the losses."""
    return outputs


def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return model(batch[0]), batch[1]


def losses_of(
    model: nn.Module, x: Tensor, y: Tensor, m: int, criterion: Callable = given
) -> tuple[HessianOperator, NearbyLoss, list[list[tuple[Tensor, Tensor]]]]:
    """Operator, loss and subsets of m samples."""
    subsets = [[pair] for pair in zip(x.split(m), y.split(m), strict=True)]
    operator = HessianOperator(model, criterion, [(x, y)], forward)
    return operator, NearbyLoss(model, criterion, forward), subsets


def quadratic(hessian: Tensor, weights: Tensor, x: Tensor, m: int, constant: float = 0.0):
    """As ``losses_of``, of samples x (n, dim)."""
    model = Quadratic(hessian, weights, constant)
    return losses_of(model, x, torch.zeros(len(x)), m)


def relu_net() -> nn.Sequential:
    torch.manual_seed(1)
    layers = (nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    return nn.Sequential(*layers).double()


def points(count: int = 24) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 4, generator=generator(3), dtype=torch.float64)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0)


def cross_entropies(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def rescaled(model: nn.Sequential, a: float) -> nn.Sequential:
    """The same function: the first layer times ``a``, the next layer's weights over it."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        model[0].weight.mul_(a)
        model[0].bias.mul_(a)
        model[2].weight.div_(a)
    return model


def published_ascent(
    model: nn.Module,
    batches: list[tuple[Tensor, Tensor]],
    loss_f: Callable,
    rho: float,
    n_iters: int,
    whole_restart: bool,
) -> float:
    """eval_APGD_sharpness of tml-epfl/sharpness-vs-generalization, adaptive, norm linf.

    With ``whole_restart`` the perturbation is taken back to the best one where the step is halved;
    as published only the model is, which the next step uses for its gradient alone.
    """
    orig = {p: p.detach().clone() for p in model.parameters()}
    p, w = [0, 0.22], [0, math.ceil(n_iters * 0.22)]
    while w[-1] < n_iters and w[-1] != w[-2]:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
        w.append(math.ceil(p[-1] * n_iters))
    w = w[1:]
    total = 0.0
    for x, y in batches:
        init_loss = loss_f(model(x), y).item()
        delta = {param: torch.zeros_like(param) for param in orig}
        prev = {param: torch.zeros_like(param) for param in orig}
        worst_delta = {param: torch.zeros_like(param) for param in orig}
        worst = prev_worst = init_loss
        step = prev_step = 2 * rho
        updates = prev_cp = 0
        for i in range(n_iters):
            backup = {param: delta[param].clone() for param in delta}
            model.zero_grad()
            loss_f(model(x), y).backward()
            with torch.no_grad():
                for param in orig:
                    bound = rho * orig[param].abs()
                    moved = delta[param] + step * param.grad.sign() * orig[param].abs()
                    moved = torch.max(torch.min(moved, bound), -bound)
                    delta[param] = 0.75 * moved + 0.25 * prev[param]
                    param.copy_(orig[param] + delta[param])
                prev = backup
                current = loss_f(model(x), y).item()
                if current > worst:
                    worst, updates = current, updates + 1
                    worst_delta = {param: delta[param].clone() for param in delta}
                if i in w:
                    few = updates < 0.75 * (i - prev_cp)
                    stuck = prev_step == step and prev_worst == worst
                    prev_step, prev_worst, prev_cp, updates = step, worst, i, 0
                    if few or stuck:
                        step *= 0.5
                        for param in orig:
                            param.copy_(orig[param] + worst_delta[param])
                        if whole_restart:
                            delta = {param: worst_delta[param].clone() for param in delta}
        with torch.no_grad():
            for param in orig:
                param.copy_(orig[param])
        total += worst - init_loss
    return total / len(batches)
