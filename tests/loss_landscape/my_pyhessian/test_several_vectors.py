"""One second pass for several vectors, as benchmarks/hessian_several.py times it."""

from __future__ import annotations

import pytest
import torch
from curvature_cases import curvature_case, dense

from benchmarks.hessian_several import SecondPasses
from loss_landscape.my_pyhessian.operators import HessianOperator

WAYS = [("cifar", "plain"), ("cifar", "quick"), ("mitbih", "plain")]
WAYS += [("GCN", "plain"), ("GCN", "merged")]


@pytest.mark.parametrize(("name", "layers"), WAYS)
def test_several_vectors_give_the_dense_hessians_products(name: str, layers: str) -> None:
    model, inputs, targets, loss = curvature_case(name)
    passes = SecondPasses(HessianOperator(model, loss, [(inputs, targets)]), layers)
    expected = dense(model, inputs, targets, loss)
    vectors = torch.eye(len(expected)).double()[:: max(1, len(expected) // 5)]
    for way in (passes.of_one, passes.of_all):
        torch.testing.assert_close(way(vectors), vectors @ expected)
