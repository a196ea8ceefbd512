"""Eigenvalues of trained models against ARPACK on curvlinops' Hessian."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from curvature_cases import generator, layer_norm
from curvlinops import HessianLinearOperator
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import models
from loss_landscape.my_pyhessian.hessian import hessian


def trained(name: str) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A small model after a few steps on inputs like the real ones, and its batches."""
    torch.manual_seed(0)
    classes = {"cifar": 10, "mitbih": 5}[name]
    count = {"cifar": 6, "mitbih": 24}[name]
    targets = torch.arange(count) % classes
    if name == "cifar":
        model = models.build("cifar", depth=10, width_factor=1, num_classes=classes)
        inputs = (
            torch.randn(count, 3, 16, 16, generator=generator()) + targets[:, None, None, None] / 5
        )
    else:
        args = dict(dim=8, heads=2, layers=2, feedforward=16, patch=10, features=4)
        model = models.build("mitbih", length=200, num_classes=classes, **args)
        inputs = torch.rand(count, 204, generator=generator()) + targets[:, None] / 5
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(8):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    # Batches of different sizes, so that each must weigh what it holds.
    return model.eval(), list(
        zip(inputs.split(4 * count // 6), targets.split(4 * count // 6), strict=True)
    )


@pytest.mark.parametrize("name", ["cifar", "mitbih"])
def test_the_top_five_are_those_of_arpack_on_curvlinops_operator(name: str) -> None:
    model, batches = trained(name)
    found, _ = hessian(model, F.cross_entropy, dataloader=batches).eigenvalues(top_n=5)
    # curvlinops goes forward over reverse, which torch 2.14 derives wrongly through the fused norm:
    # with it its lowest of these five is 3e-3 off for the Transformer.
    with sdpa_kernel(SDPBackend.MATH), patch.object(nn.LayerNorm, "forward", layer_norm):
        peer = HessianLinearOperator(
            model, nn.CrossEntropyLoss(), list(model.parameters()), batches
        ).to_scipy()
        expected = eigsh(peer, 5, which="LM", tol=1e-5, return_eigenvectors=False)
    np.testing.assert_allclose(np.sort(found), np.sort(expected), rtol=1e-3)
