"""The GCN against three stock GCNConv layers and global_mean_pool of PyTorch Geometric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GCNConv, global_mean_pool

import DatasetClass
import models
from DatasetClass.batches import first_part
from models.gnc import normalised_adjacency


class Stock(nn.Module):
    """The model as PyTorch Geometric's notebook on MUTAG has it."""

    def __init__(self, in_channels: int, num_classes: int, hidden_channels: int) -> None:
        super().__init__()
        self.conv1 = GCNConv(in_channels, hidden_channels)
        self.conv2 = GCNConv(hidden_channels, hidden_channels)
        self.conv3 = GCNConv(hidden_channels, hidden_channels)
        self.classifier = nn.Linear(hidden_channels, num_classes)

    def forward(self, graphs: Batch) -> Tensor:
        x = graphs.x.to(self.classifier.weight.dtype)
        x = F.relu(self.conv1(x, graphs.edge_index))
        x = F.relu(self.conv2(x, graphs.edge_index))
        x = self.conv3(x, graphs.edge_index)
        return self.classifier(global_mean_pool(x, graphs.batch, graphs.num_graphs))


def pair(in_channels: int, num_classes: int, hidden: int = 8) -> tuple[nn.Module, Stock]:
    """Ours and the stock model with the same weights, in float64."""
    torch.manual_seed(0)
    stock = Stock(in_channels, num_classes, hidden).double()
    ours = models.build(
        "GCN", in_channels=in_channels, num_classes=num_classes, hidden_channels=hidden
    )
    ours.load_state_dict(stock.state_dict())  # the same names and shapes
    for conv in (stock.conv1, stock.conv2, stock.conv3):
        nn.init.normal_(conv.bias)
    ours.double().load_state_dict(stock.state_dict())
    return ours.eval(), stock


def derivatives(model: nn.Module, graphs: Any, targets: Tensor) -> list[Tensor]:
    """Logits, gradients, and the Hessian's product with the gradient's direction."""
    logits = model(graphs)
    weights = list(model.parameters())
    loss = F.cross_entropy(logits, targets)
    gradients = torch.autograd.grad(loss, weights, create_graph=True)
    along = [g.detach() for g in gradients]
    dot = sum((g * a).sum() for g, a in zip(gradients, along, strict=True))
    products = torch.autograd.grad(dot, weights, materialize_grads=True)
    return [logits, *gradients, *products]


def awkward() -> Batch:
    """Directed edges, a loop, a repeated edge, a graph without edges, one without nodes."""
    generator = torch.Generator().manual_seed(1)
    edges = [[[0, 1, 1, 2, 3, 3], [1, 0, 2, 2, 0, 0]], [[], []], [[], []], [[0, 1], [1, 0]]]
    return Batch.from_data_list(
        [
            Data(x=torch.rand(n, 3, generator=generator), edge_index=torch.tensor(e).long())
            for n, e in zip([4, 2, 0, 2], edges, strict=True)
        ]
    )


@pytest.mark.parametrize("hidden", [2, 8])  # narrower and wider than the 3 features
def test_any_batch_gives_the_stock_layers_values_and_derivatives(hidden: int) -> None:
    ours, stock = pair(3, 2, hidden)
    graphs, targets = awkward(), torch.tensor([0, 1, 0, 1])
    for a, b in zip(
        derivatives(ours, graphs, targets), derivatives(stock, graphs, targets), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["TINY", "MUTAG"])
def test_the_data_sets_batches_do_too(name: str, data_dir: Path) -> None:
    dataset = DatasetClass.load(name, data_dir, batch_size=20)
    graphs, targets = first_part(next(iter(dataset.train)), 0.5)
    ours, stock = pair(**dataset.model_args)
    plain = Batch(x=graphs.x, edge_index=graphs.edge_index, batch=graphs.batch, ptr=graphs.ptr)
    expected = derivatives(stock, plain, targets)
    # The batch's adjacency is in float32: 1e-6.
    for batch, close in ((plain, 1e-9), (graphs, 1e-6)):
        assert ("adjacency" in batch) == (batch is graphs)
        for a, b in zip(derivatives(ours, batch, targets), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=close, atol=close)


def test_normalised_adjacency_is_the_papers() -> None:
    graphs = awkward()
    nodes = len(graphs.x)
    dense = torch.eye(nodes, dtype=torch.float64)
    for source, target in graphs.edge_index.T.tolist():
        dense[target, source] += source != target
    scale = dense.sum(dim=1).rsqrt().diag()
    matrix = normalised_adjacency(graphs.edge_index, nodes, torch.float64)
    torch.testing.assert_close(matrix @ torch.eye(nodes), scale @ dense @ scale)
    torch.testing.assert_close(matrix.transposed @ torch.eye(nodes), (scale @ dense @ scale).T)


def test_it_starts_as_the_stock_layers_do() -> None:
    torch.manual_seed(0)
    ours = models.build("GCN", in_channels=50, num_classes=2, hidden_channels=400)
    bound = (6 / 450) ** 0.5  # Glorot & Bengio 2010, eq. 16
    weight = ours.conv1.lin.weight.detach()
    assert 0.99 * bound < float(weight.abs().max()) <= bound
    assert abs(float(weight.var()) - bound**2 / 3) < 0.05 * bound**2
    assert not ours.conv1.bias.any()


def test_mixed_precision_stays_close() -> None:
    ours, _ = pair(3, 2)
    ours.float()
    graphs = awkward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = ours(graphs)
    torch.testing.assert_close(rough.float(), ours(graphs), rtol=0.05, atol=0.05)
