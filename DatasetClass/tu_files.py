"""The text files of a TUDataset, read with numpy; an error names the file and the row.

Format (https://chrsmrrs.github.io/datasets/docs/format/): ``<name>_A.txt`` has an edge a row, two
node numbers from 1; ``_graph_indicator.txt`` each node's graph number from 1, in rising order;
``_graph_labels.txt`` a label a graph; ``_node_labels.txt`` and ``_node_attributes.txt``, where
there are any, one or several values a node. PyTorch Geometric's reader gives the same arrays on
sound files and nearly any exception, or none, on damaged ones.
"""

from __future__ import annotations

import warnings
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

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
    targets = _whole_numbers(path["graph_labels"], columns=1)
    classes = np.unique(targets, return_inverse=True)[1].reshape(-1)
    graph = _graph_numbers(path["graph_indicator"], len(classes))
    edges = _edges(path["A"], graph)
    labels = attributes = np.empty((len(graph), 0), np.float32)
    if path["node_labels"].exists():
        labels = _one_hot(path["node_labels"], len(graph))
    if path["node_attributes"].exists():
        attributes = _attributes(path["node_attributes"], len(graph))
    return Graphs(edges, graph, classes, labels, attributes)


def _refuse_missing(path: dict[str, Path], name: str) -> None:
    if not path["graph_labels"].is_file():
        other = path["graph_labels"].with_name(f"{name}_graph_attributes.txt")
        why = "a regression set" if other.is_file() else "no such file"
        raise FileNotFoundError(
            f"{path['graph_labels']}: {why}; {name} can't be classified without graph labels"
        )
    for part in ("A", "graph_indicator"):
        if not path[part].is_file():
            raise FileNotFoundError(
                f"{path[part]}: no such file; remove the folder, and the set is fetched again"
            )


def _graph_numbers(path: Path, graphs: int) -> np.ndarray:
    graph = _whole_numbers(path, columns=1)[:, 0] - 1
    outside = (graph < 0) | (graph >= graphs)
    _refuse(path, outside, f"graph {{}} of 1 to {graphs:,}, as many as have labels", graph + 1)
    falling = np.diff(graph, prepend=graph[:1]) < 0
    _refuse(path, falling, "graph {} after a higher one; nodes have to be in order", graph + 1)
    return graph


def _edges(path: Path, graph: np.ndarray) -> np.ndarray:
    """The edges in PyTorch Geometric's order: by source, then target."""
    nodes = len(graph)
    if not path.stat().st_size:  # a set of single nodes
        return np.empty((2, 0), np.int64)
    ends = _whole_numbers(path, columns=2) - 1
    outside = np.any((ends < 0) | (ends >= nodes), axis=1)
    _refuse(path, outside, f"nodes {{}}; there are 1 to {nodes:,}", ends + 1)
    across = graph[ends[:, 0]] != graph[ends[:, 1]]
    _refuse(path, across, "nodes {} are of different graphs", ends + 1)
    ends = ends[ends[:, 0] != ends[:, 1]]
    keys = np.unique(ends[:, 0] * nodes + ends[:, 1])
    return np.stack([keys // nodes, keys % nodes]) if nodes else np.empty((2, 0), np.int64)


def _one_hot(path: Path, nodes: int) -> np.ndarray:
    """Each label column one-hot from its lowest label to its highest."""
    labels = _whole_numbers(path)
    _refuse_rows(path, labels, nodes)
    parts = []
    for column in (labels - labels.min(axis=0)).T:
        far = column >= MAX_KINDS
        _refuse(path, far, f"labels spread over more than {MAX_KINDS:,}", column)
        part = np.zeros((nodes, int(column.max()) + 1), np.float32)
        part[np.arange(nodes), column] = 1
        parts.append(part)
    return np.concatenate(parts, axis=1)


def _attributes(path: Path, nodes: int) -> np.ndarray:
    attributes = _table(path)
    _refuse_rows(path, attributes, nodes)
    with np.errstate(over="ignore"):
        narrow = attributes.astype(np.float32)
    _refuse(
        path, np.any(~np.isfinite(narrow), axis=1), "a value that float32 can't hold", attributes
    )
    return narrow


def _refuse_rows(path: Path, table: np.ndarray, nodes: int) -> None:
    if len(table) != nodes:
        raise ValueError(
            f"{path}: {len(table):,} rows for {nodes:,} nodes; remove the folder, and the set "
            "is fetched again"
        )


def _refuse(path: Path, bad: np.ndarray, what: str, values: np.ndarray) -> None:
    """Raise for the first row that is ``bad``; ``what`` may show its values."""
    if bad.any():
        row = int(bad.argmax())
        shown = ", ".join(str(v) for v in np.atleast_1d(values[row])[:3])
        raise ValueError(f"{path}: row {_line(path, row)}: {what.format(shown)}")


def _line(path: Path, row: int) -> int:
    """The line, from 1, of the table's ``row``, from 0: blank lines are no rows of the table."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        lines = (number for number, line in enumerate(file, start=1) if line.strip())
        return next(islice(lines, row, None))


def _whole_numbers(path: Path, columns: int | None = None) -> np.ndarray:
    """(rows, columns) int64; written as 1 or 1.0."""
    table = _table(path)
    if columns is not None and table.shape[1] != columns:
        raise ValueError(f"{path}: row 1: {table.shape[1]} columns, {columns} expected")
    broken = (np.abs(table) >= 2**53) | (table != np.floor(table))
    _refuse(path, np.any(broken, axis=1), "{} is not a whole number", table)
    return table.astype(np.int64)


def _table(path: Path) -> np.ndarray:
    """(rows, columns) float64, all finite."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of an empty file, refused below
            table = np.loadtxt(file, delimiter=",", ndmin=2, comments=None)
    except (ValueError, IndexError, OverflowError) as error:
        raise ValueError(f"{path}: {_first_bad_row(path, error)}") from error
    if not table.size:
        raise ValueError(f"{path}: empty; remove the folder, and the set is fetched again")
    _refuse(path, np.any(~np.isfinite(table), axis=1), "{} is not finite", table)
    return table


def _first_bad_row(path: Path, error: Exception) -> str:
    """Look for the row that numpy stumbled over: its own count leaves out blank lines."""
    width = None
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for row, line in enumerate(file, start=1):
            cells = line.split(",") if line.strip() else []
            try:
                [float(cell.replace("_", "?")) for cell in cells]  # numpy takes no 1_000
            except ValueError:
                return f"row {row}: {line.strip()[:40]!r} is not a row of numbers"
            width = width or len(cells)
            if cells and len(cells) != width:
                return f"row {row}: {len(cells)} columns, {width} in the rows before"
    return " ".join(str(error).split())[:120]
