"""The graph convolutional network on classes of nodes that it can't tell apart.

A layer gives two nodes the same row if their neighbours have the same rows with the same entries of
the adjacency: colour refinement (Weisfeiler and Leman 1968; of GNNs Xu et al. 2019,
arXiv:1810.00826). Such nodes are one row here, whatever the weights are. On MUTAG 2,384 nodes are
71 classes in the first layer and 307 in the second; on PROTEINS 30,314 are 5,935 and 24,089. What
doesn't depend on the weights is done once: the first product with the adjacency, and the means.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loss_landscape.forward_pass.stand_ins import StandIn, UnsuitedError
from models.gnc import GCN, adjacency_of, mean_over_nodes
from models.sparse_product import SparseMatrix


class MergedBatch(NamedTuple):
    """A batch of graphs, for any weights.

    Attributes:
        x: (classes after a layer, in_channels), propagated once.
        second: (classes after two layers, classes after a layer), the second propagation.
        mean: (graphs, classes after two layers), the third and the mean over nodes.
        occupied: (graphs, 1), 0 for a graph without nodes, else 1.
    """

    x: Tensor
    second: SparseMatrix
    mean: SparseMatrix
    occupied: Tensor


class MergedGCN(StandIn):
    """A ``GCN`` on merged batches, in float32.

    Raises:
        UnsuitedError: the model is no ``GCN``, or the precision is another.
    """

    model: GCN

    def __init__(self, model: nn.Module, precision: str, compiled: bool) -> None:
        super().__init__(model, precision, compiled)
        if type(model) is not GCN or precision != "fp32":
            raise UnsuitedError("only a GCN in fp32 takes merged graphs")

    def prepare(self, inputs: Any) -> MergedBatch:
        return merge(inputs)

    def _outputs(self, inputs: MergedBatch) -> Tensor:
        model = self.model
        x = _linear(model.conv1, inputs.x).relu_()
        x = _linear(model.conv2, inputs.second.sums(x)).relu_()
        x = _linear(model.conv3, inputs.mean.sums(x)) * inputs.occupied
        return model.classifier(x)


def _linear(convolution: Any, x: Tensor) -> Tensor:
    return F.linear(x, convolution.lin.weight, convolution.bias)


def merge(graphs: Any, dtype: torch.dtype = torch.float32) -> MergedBatch:
    """Merge the nodes of a torch_geometric Batch (see ``GCN.forward``)."""
    adjacency = adjacency_of(graphs, dtype)
    sizes = graphs.ptr.diff()[:, None]
    features = graphs.x.to(dtype)
    colour = torch.unique(features, dim=0, return_inverse=True)[1]
    once, first_of_once = refine(adjacency, colour)
    twice, first_of_twice = refine(adjacency, once)
    mean = mean_over_nodes(graphs, sizes, adjacency)
    return MergedBatch(
        x=adjacency.sums(features)[first_of_once],
        second=merged(adjacency, once, first_of_twice),
        mean=merged(mean, twice, torch.arange(len(sizes), device=features.device)),
        occupied=(sizes > 0).to(dtype),
    )


def refine(matrix: SparseMatrix, colour: Tensor) -> tuple[Tensor, Tensor]:
    """Classes of rows with the same entries in columns of the same colours.

    A row's key is the sum of a random number for each pair of colour and entry that it has, whole
    numbers of 64 bits, in which order and rounding play no part. Two rows of 100,000 that differ
    have the same key once in 4 billion draws, and then the values would differ from the model's.

    Args:
        matrix: (rows, columns).
        colour: (columns,) int64, from 0.

    Returns:
        The class of each row (rows,), from 0, and of each class a row that has it (classes,).
    """
    rows, entry = _rows(matrix), torch.unique(matrix.values, return_inverse=True)[1]
    kinds = int(entry.max()) + 1 if len(entry) else 1
    pair = torch.unique(colour[matrix.columns] * kinds + entry, return_inverse=True)[1]
    draws = torch.Generator().manual_seed(0)
    number = torch.empty(len(rows) + 1, dtype=torch.int64).random_(-(2**63), None, generator=draws)
    count = len(matrix.offsets) - 1
    keys = torch.zeros(count, dtype=torch.int64, device=rows.device)
    keys.index_add_(0, rows, number.to(rows.device)[pair])
    classes = torch.unique(keys, return_inverse=True)[1]
    first = torch.full((int(classes.max()) + 1 if count else 0,), count, device=rows.device)
    return classes, first.scatter_reduce_(
        0, classes, torch.arange(count, device=rows.device), "amin"
    )


def merged(matrix: SparseMatrix, colour: Tensor, kept: Tensor) -> SparseMatrix:
    """The rows ``kept`` of a matrix, with the columns of each colour summed up to one.

    Args:
        matrix: (rows, columns).
        colour: (columns,) int64, from 0.
        kept: (classes,) int64, rows.

    Returns:
        (classes, colours).
    """
    rows, device = _rows(matrix), colour.device
    place = torch.full((len(matrix.offsets) - 1,), -1, device=device)
    place[kept] = torch.arange(len(kept), device=device)
    stays = place[rows] >= 0
    colours = int(colour.max()) + 1 if len(colour) else 1
    cells = place[rows[stays]] * colours + colour[matrix.columns[stays]]
    cells, inverse = torch.unique(cells, return_inverse=True)
    values = torch.zeros(len(cells), dtype=torch.float64, device=device)
    values.index_add_(0, inverse, matrix.values[stays].double())
    counts = (cells // colours).bincount(minlength=len(kept))
    offsets = F.pad(counts.cumsum(0), (1, 0))
    return SparseMatrix(offsets, cells % colours, values.to(matrix.values.dtype))


def _rows(matrix: SparseMatrix) -> Tensor:
    """The row of each entry."""
    return torch.repeat_interleave(matrix.offsets.diff())
