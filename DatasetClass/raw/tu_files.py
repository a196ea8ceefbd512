"""The text files of a TUDataset; an error names the file and the row.

Format (https://chrsmrrs.github.io/datasets/docs/format/): ``<name>_A.txt`` has an edge a row, two
node numbers from 1; ``_graph_indicator.txt`` each node's graph number from 1, in rising order;
``_graph_labels.txt`` a label a graph; ``_node_labels.txt`` and ``_node_attributes.txt``, where
there are any, one or several values a node. PyTorch Geometric's reader gives the same arrays on
sound files and nearly any exception, or none, on damaged ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from DatasetClass.raw.number_table import read_table, read_whole_numbers, refuse_row

MAX_ONE_HOT = 1000  # degrees from here on make one number, as in PyG's benchmarks
MAX_KINDS = 5_000  # columns that one-hot node labels may take


class Graphs(NamedTuple):
    """All graphs of a set, their nodes in one row."""

    edges: np.ndarray  # (2, edges) int64: from node, to node; sorted, each once, no loops
    graph: np.ndarray  # (nodes,) int64: each node's graph, in rising order
    classes: np.ndarray  # (graphs,) int64: 0, 1, ... for the labels in rising order
    labels: np.ndarray  # (nodes, kinds) float32: one-hot node labels; kinds may be 0
    attributes: np.ndarray  # (nodes, attributes) float32; attributes may be 0


def read_graphs(raw: Path, name: str) -> Graphs:
    """Read the set ``name`` from the folder ``raw``.

    Graphs without edges or nodes are allowed. Loops and repeated edges are dropped, as PyTorch
    Geometric does.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: damaged, or no graph labels; the message names the file and the row.
    """
    path = {
        part: raw / f"{name}_{part}.txt"
        for part in ("A", "graph_indicator", "graph_labels", "node_labels", "node_attributes")
    }
    _refuse_missing(path, name)
    targets = read_whole_numbers(path["graph_labels"], columns=1)
    classes = np.unique(targets, return_inverse=True)[1].reshape(-1)
    graph = _graph_numbers(path["graph_indicator"], len(classes))
    edges = _edges(path["A"], graph)
    labels = attributes = np.empty((len(graph), 0), np.float32)
    if path["node_labels"].exists():
        labels = _one_hot(path["node_labels"], len(graph))
    if path["node_attributes"].exists():
        attributes = _attributes(path["node_attributes"], len(graph))
    return Graphs(edges, graph, classes, labels, attributes)


def node_features(raw: Graphs, node_attributes: bool) -> np.ndarray:
    """(nodes, features) float32: attributes if asked for, labels; degrees where neither is."""
    parts = [raw.attributes, raw.labels] if node_attributes else [raw.labels]
    x = np.concatenate(parts, axis=1)
    if x.shape[1]:
        return x
    degrees = np.bincount(raw.edges[0], minlength=len(raw.graph))
    highest = int(degrees.max(initial=0))
    if highest >= MAX_ONE_HOT:
        return np.log1p(degrees, dtype=np.float32)[:, None]
    x = np.zeros((len(degrees), highest + 1), np.float32)
    x[np.arange(len(degrees)), degrees] = 1
    return x


def _refuse_missing(path: dict[str, Path], name: str) -> None:
    labels = path["graph_labels"]
    if not labels.is_file() and labels.with_name(f"{name}_graph_attributes.txt").is_file():
        raise FileNotFoundError(
            f"{labels}: a regression set; {name} can't be classified without graph labels"
        )
    for part in ("graph_labels", "A", "graph_indicator"):
        if not path[part].is_file():
            raise FileNotFoundError(
                f"{path[part]}: no such file; remove the folder, and the set is downloaded again"
            )


def _graph_numbers(path: Path, graphs: int) -> np.ndarray:
    graph = read_whole_numbers(path, columns=1)[:, 0] - 1
    outside = (graph < 0) | (graph >= graphs)
    refuse_row(path, outside, f"graph {{}} of 1 to {graphs:,}, as many as have labels", graph + 1)
    falling = np.diff(graph, prepend=graph[:1]) < 0
    refuse_row(path, falling, "graph {} after a higher one; nodes have to be in order", graph + 1)
    return graph


def _edges(path: Path, graph: np.ndarray) -> np.ndarray:
    """The edges in PyTorch Geometric's order: by source, then target."""
    nodes = len(graph)
    ends = read_whole_numbers(path, columns=2, positional=False) - 1  # none: single nodes
    outside = np.any((ends < 0) | (ends >= nodes), axis=1)
    refuse_row(path, outside, f"nodes {{}}; there are 1 to {nodes:,}", ends + 1)
    across = graph[ends[:, 0]] != graph[ends[:, 1]]
    refuse_row(path, across, "nodes {} are of different graphs", ends + 1)
    ends = ends[ends[:, 0] != ends[:, 1]]
    keys = np.unique(ends[:, 0] * nodes + ends[:, 1])
    return np.stack([keys // nodes, keys % nodes]) if nodes else np.empty((2, 0), np.int64)


def _one_hot(path: Path, nodes: int) -> np.ndarray:
    """Each label column one-hot from its lowest label to its highest."""
    labels = read_whole_numbers(path)
    _refuse_rows(path, labels, nodes)
    parts = []
    for column in (labels - labels.min(axis=0)).T:
        far = column >= MAX_KINDS
        refuse_row(path, far, f"labels spread over more than {MAX_KINDS:,}", column)
        part = np.zeros((nodes, int(column.max()) + 1), np.float32)
        part[np.arange(nodes), column] = 1
        parts.append(part)
    return np.concatenate(parts, axis=1)


def _attributes(path: Path, nodes: int) -> np.ndarray:
    attributes = read_table(path)
    _refuse_rows(path, attributes, nodes)
    with np.errstate(over="ignore"):
        narrow = attributes.astype(np.float32)
    refuse_row(
        path, np.any(~np.isfinite(narrow), axis=1), "a value that float32 can't hold", attributes
    )
    return narrow


def _refuse_rows(path: Path, table: np.ndarray, nodes: int) -> None:
    if len(table) != nodes:
        raise ValueError(
            f"{path}: {len(table):,} rows for {nodes:,} nodes; remove the folder, and the set "
            "is downloaded again"
        )
