"""Graph convolutional network for graph classification.

Three graph convolutions (Kipf & Welling 2017), mean over the nodes of each graph, dropout and a
linear layer, as in PyTorch Geometric's notebook on MUTAG.

The function is that of its three GCNConv layers and global_mean_pool, computed in another order:
the normalised adjacency is made once a batch instead of in each layer, and as matrix products
are associative, the last layer's propagation and the mean are one product, which leaves its
weights to be applied to graphs instead of nodes. Checkpoints fit both.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.sparse_product import SparseMatrix


class GraphConvolution(nn.Module):
    """``matrix @ x @ W + b``, with the names and the initialisation of PyG's GCNConv."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.lin = nn.utils.skip_init(nn.Linear, in_channels, out_channels, bias=False)
        nn.init.xavier_uniform_(self.lin.weight)
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor, matrix: SparseMatrix) -> Tensor:
        """(nodes, in_channels) -> (rows of ``matrix``, out_channels)."""
        if self.lin.in_features > self.lin.out_features:  # sum whichever has fewer columns
            return (matrix @ self.lin(x)) + self.bias
        return F.linear(matrix @ x, self.lin.weight, self.bias)


class GCN(nn.Module):
    """Graph convolutional network.

    Args:
        in_channels: features a node.
        num_classes: number of classes.
        hidden_channels: width of the convolutions.
        dropout: probability with which a pooled feature is dropped in training.
    """

    def __init__(
        self, in_channels: int, num_classes: int, hidden_channels: int = 64, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.conv1 = GraphConvolution(in_channels, hidden_channels)
        self.conv2 = GraphConvolution(hidden_channels, hidden_channels)
        self.conv3 = GraphConvolution(hidden_channels, hidden_channels)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden_channels, num_classes)

    def forward(self, graphs: Any) -> Tensor:
        """Logits (graphs, classes).

        Args:
            graphs: a torch_geometric Batch with ``x`` (nodes, in_channels), ``edge_index``,
                ``batch`` and ``ptr``. Its ``adjacency``, if it has one, must be the offsets,
                columns and values of ``normalised_adjacency``, a symmetric matrix.
        """
        dtype = self.classifier.weight.dtype
        adjacency = adjacency_of(graphs, dtype)
        x = self.conv1(graphs.x.to(dtype), adjacency).relu_()  # (nodes, hidden)
        x = self.conv2(x, adjacency).relu_()
        sizes = graphs.ptr.diff()[:, None]  # (graphs, 1)
        x = self.conv3(x, mean_over_nodes(graphs, sizes, adjacency))  # (graphs, hidden)
        x = x * (sizes > 0)  # the mean over no nodes is 0, without the bias
        return self.classifier(self.dropout(x))


def normalised_adjacency(edges: Tensor, nodes: int, dtype: torch.dtype) -> SparseMatrix:
    """D^-1/2 (A + I) D^-1/2, D the degrees of A + I (Kipf & Welling 2017, eq. 2).

    Args:
        edges: (2, edges) int64, from source to target; a node's loops count once.
        nodes: their number.
        dtype: of the values.

    Returns:
        (nodes, nodes), the row being the target.
    """
    loops = torch.arange(nodes, device=edges.device).expand(2, -1)
    source, target = torch.cat([edges[:, edges[0] != edges[1]], loops], dim=1)
    scale = target.bincount(minlength=nodes).to(dtype).rsqrt()
    values = scale[source] * scale[target]
    by_source = _compressed(source, target, values, nodes)
    return SparseMatrix(*_compressed(target, source, values, nodes), SparseMatrix(*by_source))


def _compressed(
    rows: Tensor, columns: Tensor, values: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    order = rows.argsort()
    offsets = F.pad(rows.bincount(minlength=count).cumsum(0), (1, 0))
    return offsets, columns[order], values[order]


def adjacency_of(graphs: Any, dtype: torch.dtype) -> SparseMatrix:
    """The normalised adjacency (nodes, nodes) of a Batch, its own where it has one."""
    ready = getattr(graphs, "adjacency", None)
    if ready is None:
        return normalised_adjacency(graphs.edge_index, len(graphs.x), dtype)
    offsets, columns, values = ready
    return SparseMatrix(offsets, columns, values.to(dtype))


def mean_over_nodes(graphs: Any, sizes: Tensor, adjacency: SparseMatrix) -> SparseMatrix:
    """(graphs, nodes): the mean over each graph's ``sizes`` (graphs, 1) nodes of what they get."""
    weights = sizes.clamp(min=1).to(adjacency.values.dtype).reciprocal()  # of each graph's nodes
    values = (adjacency.transposed @ weights.index_select(0, graphs.batch)).flatten()
    nodes = torch.arange(len(values) + 1, device=values.device)
    by_node = SparseMatrix(nodes, graphs.batch, values)
    return SparseMatrix(graphs.ptr, nodes[:-1], values, by_node)
