"""Batches cut from the collated set against PyTorch Geometric's collation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Batch, Data

import DatasetClass
from DatasetClass.batches import first_part
from DatasetClass.graphs import GraphSet, first_graphs
from models.gnc import normalised_adjacency

CPU = torch.device("cpu")


@st.composite
def graph_lists(draw: st.DrawFn) -> tuple[list[Data], bool]:
    """Up to 6 random graphs of 0 to 5 nodes, all of them undirected or not."""
    undirected = draw(st.booleans())
    graphs = []
    for nodes in draw(st.lists(st.integers(0, 5), min_size=1, max_size=6)):
        node = st.integers(0, max(nodes - 1, 0))
        pairs = draw(st.sets(st.tuples(node, node), max_size=8)) if nodes else set()
        pairs = {(a, b) for a, b in pairs if a != b}
        if undirected:
            pairs |= {(b, a) for a, b in pairs}
        edges = torch.tensor(sorted(pairs), dtype=torch.long).reshape(-1, 2).T
        x = torch.rand(nodes, 2, generator=torch.Generator().manual_seed(nodes))
        graphs.append(Data(x=x, edge_index=edges.contiguous()))
    return graphs, undirected


def collate(graphs: list[Data]) -> GraphSet:
    whole = Batch.from_data_list(graphs)
    arrays = (whole.x.numpy(), whole.edge_index.numpy(), whole.batch.numpy())
    return GraphSet(*arrays, len(graphs), CPU)


def assert_same(cut: Batch, expected: Batch) -> None:
    for key in ("x", "edge_index", "batch", "ptr"):
        assert torch.equal(cut[key], expected[key]), key
        assert cut[key].dtype == expected[key].dtype
    assert cut.num_graphs == expected.num_graphs
    assert cut.num_nodes == expected.num_nodes


def assert_normalised(cut: Batch) -> None:
    offsets, columns, values = cut.adjacency
    expected = normalised_adjacency(cut.edge_index, cut.num_nodes, torch.float64)
    eye = torch.eye(cut.num_nodes, dtype=torch.float64)
    rows = torch.repeat_interleave(offsets.diff())
    dense = torch.zeros_like(eye).index_put((rows, columns), values.double())
    torch.testing.assert_close(dense, expected @ eye, rtol=1e-6, atol=1e-7)


@settings(max_examples=60, deadline=None)
@given(drawn=graph_lists(), data=st.data())
def test_a_cut_batch_is_the_collated_one(drawn: tuple[list[Data], bool], data) -> None:
    graphs, undirected = drawn
    graph_set = collate(graphs)
    indices = data.draw(st.lists(st.integers(0, len(graphs) - 1), min_size=1, max_size=8))
    cut = graph_set.batch(torch.tensor(indices))
    assert_same(cut, Batch.from_data_list([graphs[i] for i in indices]))
    edges = cut.edge_index
    for count in range(1, len(indices) + 1):
        part = Batch.from_data_list([graphs[i] for i in indices[:count]])
        assert_same(first_graphs(cut, count), part)
    if undirected:
        assert_normalised(cut)
        assert_normalised(first_graphs(cut, 1))
    else:
        pairs = set(map(tuple, edges.T.tolist()))
        assert "adjacency" not in cut or pairs == {(b, a) for a, b in pairs}


def test_first_part_takes_a_share_of_any_batch() -> None:
    ring = torch.tensor([[0, 1, 2, 1, 2, 0], [1, 2, 0, 0, 1, 2]])
    graphs = [Data(x=torch.full((3, 2), float(i)), edge_index=ring) for i in range(5)]
    plain, targets = Batch.from_data_list(graphs), torch.arange(5)
    for batch in (plain, collate(graphs).batch(targets)):
        part, labels = first_part((batch, targets), 0.5)
        assert labels.tolist() == [0, 1, 2]
        assert_same(part, Batch.from_data_list(graphs[:3]))
        assert first_part((batch, targets), 1.0)[0] is batch


def test_one_graph_is_a_data_object(data_dir: Path) -> None:
    graphs = DatasetClass.load("TINY", data_dir).graphs
    assert len(graphs) == 40
    assert graphs[0].edge_index.tolist()[0] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]  # a ring of five
    assert graphs[-1].num_nodes == 1
    with pytest.raises(IndexError):
        graphs[40]


def test_a_set_of_empty_graphs_has_empty_batches() -> None:
    none = np.empty((2, 0), np.int64)
    graph_set = GraphSet(np.empty((0, 3), np.float32), none, none[0], 4, CPU)
    cut = graph_set.batch(torch.tensor([2, 0]))
    assert cut.ptr.tolist() == [0, 0, 0]
    assert cut.x.shape == (0, 3)
