"""Pictures of a few samples of each class: images, signals or graphs."""

from __future__ import annotations

from typing import Any

import networkx as nx  # comes with torch
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from DatasetClass.batches import Dataset
from DatasetClass.facts import Facts

COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#8c8c8c")
SAMPLES = {"images": 12, "signals": 5, "graphs": 5}  # of each class
LARGEST = 60  # nodes of a graph that can be seen in a small picture


def draw(dataset: Dataset, facts: Facts, seed: int) -> Figure:
    """Draw training samples of each class, drawn at random from ``seed``."""
    inputs, _ = dataset.fetch(dataset.train.indices[:1])
    generator = torch.Generator().manual_seed(seed)
    if not isinstance(inputs, Tensor):
        return _graphs(dataset, facts, generator)
    return (_images if inputs.ndim == 4 else _signals)(dataset, facts, generator)


def choose(dataset: Dataset, label: int, count: int, generator: torch.Generator) -> Tensor:
    """Indices of at most ``count`` random training samples of class ``label``."""
    indices = dataset.train.indices
    labels = dataset.labels.cpu()  # type: ignore[attr-defined]
    members = indices[labels[indices] == label]
    return members[torch.randperm(len(members), generator=generator)[:count]]


def _name(dataset: Dataset, facts: Facts, label: int) -> str:
    labels = dataset.labels  # type: ignore[attr-defined]
    return f"{facts.classes[label]}\n{int((labels == label).sum()):,}"


def _bare(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _label(axes: Axes, text: str) -> None:
    axes.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=10, labelpad=8)


def _title(dataset: Dataset, what: str) -> str:
    total = len(dataset.labels)  # type: ignore[attr-defined]
    return f"{dataset.name}: {total:,} {what}, {dataset.num_classes} classes"


# --- images ---------------------------------------------------------------------------------------
def _images(dataset: Dataset, facts: Facts, generator: torch.Generator) -> Figure:
    """A strip of images a class; many classes stand in columns with fewer images each."""
    classes = dataset.num_classes
    columns = -(-classes // 25)
    rows, count = -(-classes // columns), max(3, SAMPLES["images"] // columns)
    chosen = [choose(dataset, label, count, generator) for label in range(classes)]
    pictures, _ = dataset.fetch(torch.cat(chosen))
    pictures = _visible(pictures)
    names = 0.4 + 0.09 * max(map(len, facts.classes))  # inches
    size = (columns * (names + 0.52 * count), 0.6 + 0.52 * rows)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(_title(dataset, "images"))
    grid = figure.subplots(rows, columns, squeeze=False)
    strips = pictures.split([len(part) for part in chosen])
    for axes in grid.flat:
        _bare(axes)
    for label, strip in enumerate(strips):
        axes = grid[label % rows][label // rows]
        if len(strip):  # a class may have no training samples
            row = [np.pad(picture, _GAP, constant_values=1) for picture in strip]
            axes.imshow(np.concatenate(row, axis=1))
        name = _name(dataset, facts, label)
        _label(axes, name if columns == 1 else name.split("\n")[0])
    return figure


_GAP = ((0, 0), (0, 1), (0, 0))  # a white line right of each image


def _visible(images: Tensor) -> Tensor:
    """(B, C, H, W) normalised to (B, H, W, 3) from 0 to 1.

    Among so many images each channel reaches black and white, so its range undoes whatever
    normalisation the data set applies.
    """
    images = images.float().cpu()
    low, high = images.amin(dim=(0, 2, 3), keepdim=True), images.amax(dim=(0, 2, 3), keepdim=True)
    images = (images - low) / (high - low).clamp_min(1e-6)
    return images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)


# --- signals --------------------------------------------------------------------------------------
def _signals(dataset: Dataset, facts: Facts, generator: torch.Generator) -> Figure:
    """A row a class; zeros that only pad the signal are drawn grey."""
    classes, count = dataset.num_classes, SAMPLES["signals"]
    figure = Figure(figsize=(2.2 + 1.9 * count, 0.9 + 1.15 * classes), layout="constrained")
    figure.suptitle(_title(dataset, "signals"))
    grid = figure.subplots(classes, count, squeeze=False, sharex=True, sharey=True)
    for label in range(classes):
        signals, _ = dataset.fetch(choose(dataset, label, count, generator))
        for axes in grid[label][len(signals) :]:
            axes.set_axis_off()
        for axes, signal in zip(grid[label], signals.cpu().flatten(1).numpy(), strict=False):
            _draw_signal(axes, signal, facts.rate, COLOURS[label % len(COLOURS)])
        _label(grid[label][0], _name(dataset, facts, label))
    unit = "sample" if facts.rate is None else f"seconds ({facts.rate:g} Hz); grey: padding"
    figure.supxlabel(unit, fontsize=10)
    return figure


def _draw_signal(axes: Axes, signal: np.ndarray, rate: float | None, colour: str) -> None:
    time = np.arange(len(signal)) / (rate or 1)
    used = int(np.flatnonzero(signal)[-1]) + 1 if signal.any() else 0
    axes.plot(time[:used], signal[:used], color=colour, lw=1.2)
    axes.plot(time[used:], signal[used:], color="0.7", lw=1.2)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


# --- graphs ---------------------------------------------------------------------------------------
def _graphs(dataset: Dataset, facts: Facts, generator: torch.Generator) -> Figure:
    """A row a class; the colour of a node is its label, or its degree where it has none."""
    classes, count = dataset.num_classes, SAMPLES["graphs"]
    figure = Figure(figsize=(2.0 + 2.0 * count, 1.2 + 1.9 * classes), layout="constrained")
    figure.suptitle(f"{_title(dataset, 'graphs')}; small ones drawn")
    grid = figure.subplots(classes, count, squeeze=False)
    chosen = [_small_graphs(dataset, label, count, generator) for label in range(classes)]
    every = [graph for row in chosen for graph in row]
    columns = _label_columns(every)
    kinds: set[int] = set()
    for axes in grid.flat:
        _bare(axes)
    for label, row in enumerate(chosen):
        for axes, graph in zip(grid[label], row, strict=False):
            kinds |= _draw_graph(axes, graph, columns)
        _label(grid[label][0], _name(dataset, facts, label))
    what = "degree" if all(_shows_degrees(graph, columns) for graph in every) else "node label"
    _legend(figure, sorted(kinds), facts.nodes, what)
    return figure


def _small_graphs(dataset: Dataset, label: int, count: int, generator: torch.Generator) -> list:
    """Random graphs that fit a small picture; where none does, the smallest of some."""
    candidates = choose(dataset, label, 20 * count, generator)
    graphs = [dataset.fetch(index[None])[0].cpu() for index in candidates]
    small = [graph for graph in graphs if graph.num_nodes <= LARGEST]
    return (small or sorted(graphs, key=lambda graph: graph.num_nodes))[:count]


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


def _draw_graph(axes: Axes, data: Any, columns: Tensor) -> set[int]:
    """Draw one graph; return the kinds of its nodes, all 0 where nodes have no labels."""
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
        place_nodes = nx.kamada_kawai_layout if len(part) <= 200 else nx.spring_layout  # slow, fast
        inside = place_nodes(graph.subgraph(part), scale=radius)
        for node, place in inside.items():
            positions[node] = place + np.array([left + radius, 0.0])
        left += 2 * radius + 1
    return positions


def _legend(figure: Figure, kinds: list[int], names: tuple[str, ...], what: str) -> None:
    texts = [names[kind] if kind < len(names) else f"{what} {kind}" for kind in kinds]
    marks = [
        Line2D([], [], ls="", marker="o", color=COLOURS[kind % len(COLOURS)], label=text)
        for kind, text in zip(kinds, texts, strict=True)
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=8, frameon=False, fontsize=9)
