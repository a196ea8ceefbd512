"""Graph convolutional network for graph classification.

Three graph convolutions (Kipf & Welling 2017), mean over the nodes of each graph, dropout and a
linear layer, as in PyTorch Geometric's notebook on MUTAG.
"""

from __future__ import annotations

import warnings

import torch.nn.functional as F
from torch import Tensor, nn

with warnings.catch_warnings():  # PyTorch Geometric 2.8 calls the deprecated torch.jit.script
    warnings.simplefilter("ignore", FutureWarning)
    from torch_geometric.data import Batch
    from torch_geometric.nn import GCNConv, global_mean_pool


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
        self.conv1 = GCNConv(in_channels, hidden_channels)
        self.conv2 = GCNConv(hidden_channels, hidden_channels)
        self.conv3 = GCNConv(hidden_channels, hidden_channels)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden_channels, num_classes)

    def forward(self, graphs: Batch) -> Tensor:
        """Logits (graphs, classes) of graphs with ``x`` (nodes, in_channels)."""
        x, edges = graphs.x.to(self.classifier.weight.dtype), graphs.edge_index
        x = F.relu(self.conv1(x, edges))  # (nodes, hidden)
        x = F.relu(self.conv2(x, edges))
        x = self.conv3(x, edges)
        x = global_mean_pool(x, graphs.batch, graphs.num_graphs)  # (graphs, hidden)
        return self.classifier(self.dropout(x))
