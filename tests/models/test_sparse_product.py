"""The sparse product and its derivatives against dense matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual

from models.sparse_product import SparseMatrix


def rows_of(dense: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Offsets, columns and values."""
    offsets = torch.tensor([0, *(dense != 0).sum(dim=1).cumsum(0).tolist()])
    return offsets, dense.nonzero()[:, 1], dense[dense != 0]


def case(symmetric: bool) -> tuple[SparseMatrix, Tensor, Tensor]:
    """A matrix with an empty row, the same dense, and something to multiply."""
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(5, 5 if symmetric else 4, generator=generator, dtype=torch.float64)
    dense = torch.where(dense > 0.2, dense, 0.0)
    dense[2] = 0
    x = torch.randn(dense.size(1), 3, generator=generator, dtype=torch.float64)
    if symmetric:
        dense = dense @ dense.T
        return SparseMatrix(*rows_of(dense)), dense, x
    return SparseMatrix(*rows_of(dense), SparseMatrix(*rows_of(dense.T))), dense, x


@pytest.mark.parametrize("symmetric", [True, False])
def test_product_is_the_dense_one_in_every_mode(symmetric: bool) -> None:
    matrix, dense, x = case(symmetric)
    torch.testing.assert_close(matrix @ x, dense @ x)
    torch.testing.assert_close(matrix.transposed @ dense, dense.T @ dense)
    x.requires_grad_()
    assert gradcheck(lambda x: (matrix @ x).sin(), x, check_forward_ad=True)
    assert gradgradcheck(lambda x: (matrix @ x).sin(), x)
    many = torch.randn(7, *x.shape, dtype=torch.float64)
    torch.testing.assert_close(torch.func.vmap(matrix.__matmul__)(many), dense @ many)
    with dual_level():
        tangent = unpack_dual(matrix @ make_dual(x, many[0])).tangent
    torch.testing.assert_close(tangent, dense @ many[0])


def test_hessian_by_forward_over_reverse_is_the_dense_one() -> None:
    matrix, dense, x = case(symmetric=False)
    ours = torch.func.hessian(lambda x: (matrix @ x).sin().sum())(x)
    theirs = torch.func.hessian(lambda x: (dense @ x).sin().sum())(x)
    torch.testing.assert_close(ours, theirs)


def test_a_matrix_without_entries_gives_zeros() -> None:
    none = torch.empty(0, dtype=torch.long)
    wide = SparseMatrix(torch.zeros(5, dtype=torch.long), none, torch.empty(0))
    matrix = SparseMatrix(torch.zeros(3, dtype=torch.long), none, torch.empty(0), wide)
    x = torch.ones(4, 6, requires_grad=True)
    product = matrix @ x
    assert torch.equal(product, torch.zeros(2, 6))
    assert torch.equal(torch.autograd.grad(product.sum(), x)[0], torch.zeros(4, 6))
