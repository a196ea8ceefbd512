"""The loops that most people would write, which ours are measured against.

As in davda54/sam's example: a map-style data set behind a DataLoader, float32, channels first, no
fused kernels, SAM parameter after parameter with both passes written out, loss and accuracy read
after each step.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.data_pipeline import ImageByImage
from benchmarks.sam_step import Plain
from DatasetClass.batches import Dataset
from models.smooth_crossentropy import smooth_crossentropy
from models.transformer.dropout import Dropout


def image_loader(dataset: Any) -> Iterable[Any]:
    """Batches of (images, labels)."""
    chosen = dataset.train.indices
    images = ImageByImage(dataset.images[chosen].cpu().numpy(), dataset.labels[chosen].tolist())
    return DataLoader(images, dataset.train.batch_size, shuffle=True)


def beat_loader(dataset: Any) -> Iterable[Any]:
    """Batches of (beats, labels)."""
    chosen = dataset.train.indices
    beats = TensorDataset(dataset.beats[chosen], dataset.labels[chosen])
    return DataLoader(beats, dataset.train.batch_size, shuffle=True)


class GraphLoader:
    """Batches of (graphs, labels) from PyG's own DataLoader."""

    def __init__(self, dataset: Dataset | Any) -> None:
        from torch_geometric.loader import DataLoader as Loader

        graphs = []
        for index in dataset.train.indices.tolist():
            graph = dataset.graphs[index]
            graph.y = dataset.labels[index]
            graphs.append(graph)
        self.loader = Loader(graphs, dataset.train.batch_size, shuffle=True)

    def __iter__(self) -> Any:
        return ((graphs, graphs.y) for graphs in self.loader)


class StockGCN(nn.Module):
    """The GCN of PyG's notebook on MUTAG: its GCNConv, its global_mean_pool."""

    def __init__(self, in_channels: int, num_classes: int, hidden: int, dropout: float) -> None:
        super().__init__()
        with warnings.catch_warnings():  # PyG 2.8 calls the deprecated torch.jit.script
            warnings.simplefilter("ignore", FutureWarning)
            from torch_geometric.nn import GCNConv, global_mean_pool
        self.pool = global_mean_pool
        self.conv1 = GCNConv(in_channels, hidden)
        self.conv2 = GCNConv(hidden, hidden)
        self.conv3 = GCNConv(hidden, hidden)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden, num_classes)

    def forward(self, graphs: Any) -> Tensor:
        x = F.relu(self.conv1(graphs.x, graphs.edge_index))
        x = F.relu(self.conv2(x, graphs.edge_index))
        x = self.pool(self.conv3(x, graphs.edge_index), graphs.batch)
        return self.classifier(self.dropout(x))


def stock(model: nn.Module, model_args: dict[str, Any]) -> nn.Module:
    """``model`` with the same weights as one would write it with torch's and PyG's layers."""
    if "hidden_channels" in model_args:
        sizes = (model_args[k] for k in ("in_channels", "num_classes", "hidden_channels"))
        twin = StockGCN(*sizes, model_args["dropout"])
        twin.load_state_dict(model.state_dict())
        return twin
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        if hasattr(module, "heads"):
            module.dropout = model_args["dropout"]  # of the attention weights, as in the paper
        for name, child in module.named_children():
            if isinstance(child, Dropout):
                setattr(module, name, nn.Dropout(child.p))
    return model


def make_optimizer(args: Any, model: nn.Module) -> torch.optim.Optimizer:
    """SGD, Adam or the per-parameter SAM on the base that the script's flags name."""
    name = args.base_optimizer if args.optimizer == "SAM" else args.optimizer
    options = {"lr": args.learning_rate, "weight_decay": args.weight_decay}
    kind: Any = torch.optim.Adam
    if name == "SGD":
        kind, options["momentum"] = torch.optim.SGD, args.momentum
    if args.optimizer == "SAM":
        return Plain(model.parameters(), kind, **options)
    return kind(model.parameters(), **options)


def epoch(
    model: nn.Module, optimizer: Any, loader: Iterable[Any], smoothing: float, device: torch.device
) -> None:
    """One pass over ``loader``; the loss and what is right are read and summed up step by step."""
    summed, right = 0.0, 0.0
    model.train()
    for inputs, targets in loader:
        inputs, targets = inputs.to(device), targets.to(device)
        logits = model(inputs)
        losses = smooth_crossentropy(logits, targets, smoothing)
        losses.mean().backward()
        if isinstance(optimizer, Plain):
            optimizer.first_step(zero_grad=True)
            set_running_stats(model, False)
            smooth_crossentropy(model(inputs), targets, smoothing).mean().backward()
            set_running_stats(model, True)
            optimizer.second_step(zero_grad=True)
        else:
            optimizer.step()
            optimizer.zero_grad()
        summed += losses.detach().cpu().sum().item()
        right += (logits.argmax(1) == targets).cpu().sum().item()
    if not math.isfinite(summed + right):
        raise ValueError("the plain loop's loss is not finite; lower the learning rate")


def set_running_stats(model: nn.Module, on: bool) -> None:
    """Let batch norm's running statistics move or not, as davda54's enable_running_stats."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1 if on else 0.0
