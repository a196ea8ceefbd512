"""Tiny instances of each task's model in float64, and their Hessians as whole matrices."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch_geometric.data import Batch, Data

import models
from loss_landscape.my_pyhessian.operators import CurvatureOperator
from models.smooth_crossentropy import smooth_crossentropy


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def graphs(count: int) -> Batch:
    ring = torch.tensor([[0, 1, 2, 1, 2, 0], [1, 2, 0, 0, 1, 2]])
    features = torch.rand(count, 3, 2, generator=generator(1), dtype=torch.float64)
    return Batch.from_data_list([Data(x=x, edge_index=ring) for x in features])


def case(name: str) -> tuple[nn.Module, object, Tensor]:
    """A tiny instance of a task's model in float64, with its inputs and targets."""
    torch.manual_seed(0)
    if name == "GCN":
        model = models.build("GCN", in_channels=2, num_classes=2, hidden_channels=4)
        inputs, targets = graphs(6), torch.arange(6) % 2
    elif name == "mitbih":
        args = dict(dim=4, heads=2, layers=1, feedforward=4, patch=5, features=2)
        model = models.build("mitbih", length=20, num_classes=3, **args)
        inputs, targets = torch.rand(6, 22, dtype=torch.float64), torch.arange(6) % 3
    else:
        # The published widths start at 16 channels: only the last layers take part here.
        model = models.build("cifar", depth=10, width_factor=1, num_classes=3)
        inputs, targets = torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.arange(6) % 3
        nn.init.normal_(model.classifier.weight, std=0.3)
        for part in (model.conv, *model.groups, model.norm):
            part.requires_grad_(False)
        model.groups[2][0].norm1.requires_grad_(True)
        model.groups[1][0].shortcut.requires_grad_(True)
    return model.double(), inputs, targets


CASES = ["linear", "logistic", "perceptron", "cifar", "mitbih", "GCN"]


def curvature_case(name: str) -> tuple[nn.Module, object, Tensor, Callable]:
    """A model, inputs, targets and a loss that gives one value a sample."""
    if name in ("cifar", "mitbih", "GCN"):
        return *case(name), smooth_crossentropy
    torch.manual_seed(0)
    x = torch.randn(7, 4, dtype=torch.float64)
    if name == "linear":
        return nn.Linear(4, 1).double(), x, torch.randn(7, 1, dtype=torch.float64), squared_error
    if name == "logistic":
        return nn.Linear(4, 1).double(), x, (torch.arange(7) % 2)[:, None].double(), logistic_loss
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    return model, x, torch.arange(7) % 3, smooth_crossentropy


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs - targets) ** 2).sum(dim=1)


def logistic_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    loss = nn.functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
    return loss.sum(dim=1)


def layer_norm(self: nn.LayerNorm, x: Tensor) -> Tensor:
    """By its formula: the fused one's forward derivative of its backward is wrong in torch 2.14
    (torch.func.hessian of it isn't symmetric; finite differences side with our product).
    """
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / ((centred**2).mean(-1, keepdim=True) + self.eps).sqrt() * self.weight + self.bias
    )


def flattened(model: nn.Module, inputs: object) -> tuple[Callable, Tensor]:
    """The outputs as a function of all free parameters in one vector, and that vector."""
    model.eval()
    free = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    def function(vector: Tensor) -> Tensor:
        parts = vector.split([p.numel() for p in free.values()])
        named = {n: v.view_as(p) for v, (n, p) in zip(parts, free.items(), strict=True)}
        return functional_call(model, named, (inputs,))

    return function, torch.cat([p.flatten() for p in free.values()])


def dense(model: nn.Module, inputs: object, targets: Tensor, loss: Callable) -> Tensor:
    """The whole matrix by torch.func.hessian over one flat vector."""
    function, start = flattened(model, inputs)
    with sdpa_kernel(SDPBackend.MATH), patch.object(nn.LayerNorm, "forward", layer_norm):
        matrix = torch.func.hessian(lambda w: loss(function(w), targets).mean())(start)
    torch.testing.assert_close(matrix, matrix.T)
    return matrix


def symmetric(values: list[float], seed: int = 0) -> Tensor:
    """A matrix with these eigenvalues in a random basis."""
    dim = len(values)
    q, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator(seed), dtype=torch.float64))
    return q @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ q.T


BULK = np.random.default_rng(0).normal(0, 0.02, 300).tolist()
KNOWN = {  # eigenvalues, and how many to find
    "outliers": ([10, 7, 5, 4, 3, 2, 1.5, *BULK], 5),
    "repeated": ([*4 * [5.0], 1, *BULK], 5),
    "ninefold": ([*9 * [5.0], *BULK], 5),
    "pairs": ([3, 3, -3, -3, *BULK], 4),
    "negative": ([-5, -4, -3, -2, -1, *(-abs(b) for b in BULK)], 3),
    "uniform": (np.linspace(0, 1, 200).tolist(), 5),
    "zero": (30 * [0.0], 3),
    "identity": (20 * [2.0], 4),
    "low rank": ([3.0, 2.0, 1.0] + 50 * [0.0], 5),
    "all of them": ([5.0, 5.0, 1.0, 0.0], 4),
    "number": ([-2.0], 1),
    "huge": ([1e30, 1e29, 1e28, *(1e26 * np.array(BULK))], 2),
    "tiny": ([1e-30, 1e-31, *(1e-33 * np.array(BULK))], 2),
}


def wishart(dim: int = 150) -> Tensor:
    x = torch.randn(3 * dim, dim, generator=generator(), dtype=torch.float64)
    return x.T @ x / len(x)


def points(count: int = 12, classes: int = 3, dtype: torch.dtype = torch.float64):
    x = torch.randn(count, 4, generator=generator(3), dtype=dtype)
    return x, torch.arange(count) % classes


def perceptron(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)


def matrix(of: CurvatureOperator) -> Tensor:
    """All columns of the operator."""
    return torch.stack([of(e) for e in torch.eye(of.flat.numel()).double()])


def in_batches(x: Tensor, y: Tensor, size: int = 5) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(size), y.split(size), strict=True))
