"""Pictures of graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import networkx as nx  # comes with torch
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from DatasetClass.batches import Dataset
from DatasetClass.describe.panels import bare, choose, head, label_row
from utilities.pictures import COLOURS

GRAPHS = 5  # of each class
LARGEST = 60  # nodes of a graph that can be seen in a small picture


def graphs(dataset: Dataset, names: Sequence[str], generator: torch.Generator) -> Figure:
    """A row a class; the colour of a node is its label, or its degree where it has none."""
    classes, count = dataset.num_classes, GRAPHS
    figure = Figure(figsize=(2.0 + 2.0 * count, 1.2 + 1.9 * classes), layout="constrained")
    figure.suptitle(f"{head(dataset, 'graphs')}; small ones shown")
    grid = figure.subplots(classes, count, squeeze=False)
    chosen = [_small_graphs(dataset, label, count, generator) for label in range(classes)]
    every = [graph for row in chosen for graph in row]
    columns = _label_columns(every)
    kinds: set[int] = set()
    for axes in grid.flat:
        bare(axes)
    for label, row in enumerate(chosen):
        for axes, graph in zip(grid[label], row, strict=False):
            kinds |= _plot_graph(axes, graph, columns)
        label_row(grid[label][0], dataset, names, label)
    what = "degree" if all(_shows_degrees(graph, columns) for graph in every) else "node label"
    _legend(figure, sorted(kinds), dataset.node_names, what)  # type: ignore[attr-defined]
    return figure


def _small_graphs(dataset: Dataset, label: int, count: int, generator: torch.Generator) -> list:
    """Random graphs that fit a small picture; where none does, the smallest of some."""
    candidates = choose(dataset, label, 20 * count, generator)
    chosen = [dataset.fetch(index[None])[0].cpu() for index in candidates]
    small = [graph for graph in chosen if graph.num_nodes <= LARGEST]
    return (small or sorted(chosen, key=lambda graph: graph.num_nodes))[:count]


def _label_columns(graphs: list) -> Tensor:
    """The features that tell a node's label, one-hot: the last ones, after any attributes."""
    x = torch.cat([graph.x for graph in graphs])
    for first in range(x.size(1)):
        last = x[:, first:]
        if ((last == 0) | (last == 1)).all() and (last.sum(dim=1) == 1).all():
            return torch.arange(first, x.size(1))
    return torch.arange(0)


def _shows_degrees(data: Any, columns: Tensor) -> bool:
    """Whether the features are the degrees, as of sets without labels."""
    degrees = data.edge_index[0].bincount(minlength=data.num_nodes)
    return len(columns) > 0 and torch.equal(data.x[:, columns].argmax(dim=1), degrees)


def _plot_graph(axes: Axes, data: Any, columns: Tensor) -> set[int]:
    """Plot one graph; return the kinds of its nodes, all 0 where nodes have no labels."""
    graph = nx.Graph()
    graph.add_nodes_from(range(data.num_nodes))
    graph.add_edges_from(data.edge_index.t().tolist())
    kinds = data.x[:, columns].argmax(dim=1).tolist() if len(columns) else [0] * data.num_nodes
    nx.draw_networkx(
        graph,
        layout(graph),
        ax=axes,
        with_labels=False,
        node_size=max(12, 70 - data.num_nodes),
        node_color=[COLOURS[kind % len(COLOURS)] for kind in kinds],
        edge_color="0.6",
    )
    axes.set_title(f"{data.num_nodes} nodes", fontsize=8, color="0.4")
    return set(kinds)


def layout(graph: nx.Graph) -> dict[int, np.ndarray]:
    """Positions by Kamada and Kawai (1989), each connected part for itself, side by side."""
    positions, left = {}, 0.0
    for part in sorted(nx.connected_components(graph), key=len, reverse=True):
        radius = len(part) ** 0.5
        lay_out = nx.kamada_kawai_layout if len(part) <= 200 else nx.spring_layout  # slow, fast
        inside = lay_out(graph.subgraph(part), scale=radius)
        for node, position in inside.items():
            positions[node] = position + np.array([left + radius, 0.0])
        left += 2 * radius + 1
    return positions


def _legend(figure: Figure, kinds: list[int], names: tuple[str, ...], what: str) -> None:
    texts = [names[kind] if kind < len(names) else f"{what} {kind}" for kind in kinds]
    marks = [
        Line2D([], [], ls="", marker="o", color=COLOURS[kind % len(COLOURS)], label=text)
        for kind, text in zip(kinds, texts, strict=True)
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=8, frameon=False, fontsize=9)
