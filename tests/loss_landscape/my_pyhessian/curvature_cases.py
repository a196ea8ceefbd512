"""Tiny instances of each task's model in float64, and their Hessians as whole matrices."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch_geometric.data import Batch, Data

import models


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
        args = dict(dim=4, heads=2, layers=1, feedforward=4, patch=5)
        model = models.build("mitbih", length=20, num_classes=3, **args)
        inputs, targets = torch.rand(6, 20, dtype=torch.float64), torch.arange(6) % 3
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


def layer_norm(self: nn.LayerNorm, x: Tensor) -> Tensor:
    """By its formula: the fused one's forward derivative of its backward is wrong in torch 2.14
    (torch.func.hessian of it isn't symmetric; finite differences side with our product).
    """
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / ((centred**2).mean(-1, keepdim=True) + self.eps).sqrt() * self.weight + self.bias
    )


def dense(model: nn.Module, inputs: object, targets: Tensor, loss: Callable) -> Tensor:
    """The whole matrix by torch.func.hessian over one flat vector."""
    model.eval()
    free = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    def flat_loss(vector: Tensor) -> Tensor:
        parts = vector.split([p.numel() for p in free.values()])
        named = {n: v.view_as(p) for v, (n, p) in zip(parts, free.items(), strict=True)}
        return loss(functional_call(model, named, (inputs,)), targets).mean()

    start = torch.cat([p.flatten() for p in free.values()])
    with sdpa_kernel(SDPBackend.MATH), patch.object(nn.LayerNorm, "forward", layer_norm):
        matrix = torch.func.hessian(flat_loss)(start)
    torch.testing.assert_close(matrix, matrix.T)
    return matrix


def symmetric(values: list[float], seed: int = 0) -> Tensor:
    """A matrix with these eigenvalues in a random basis."""
    dim = len(values)
    q, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator(seed), dtype=torch.float64))
    return q @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ q.T
