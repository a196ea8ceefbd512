"""Merged nodes: the classes are those of colour refinement, the logits the GCN's."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Batch, Data

import DatasetClass
from loss_landscape.forward_pass.merged_graphs import MergedGCN, merge, refine
from loss_landscape.forward_pass.stand_ins import UnsuitedError
from models.gnc import GCN, adjacency_of
from utilities.files import ROOT


def graphs_of(seed: int, count: int, directed: bool) -> Batch:
    """Random graphs with repeated features, some of them without edges; one without nodes."""
    rng = np.random.default_rng(seed)
    graphs = []
    for index in range(count):
        nodes = int(rng.integers(0 if index == 1 else 1, 9))
        links = rng.integers(max(nodes, 1), size=(2, int(rng.integers(0, 12)) * (nodes > 0)))
        edges = links if directed else np.unique(np.hstack([links, links[::-1]]), axis=1)
        x = np.eye(3, dtype=np.float32)[rng.integers(3, size=nodes)]
        graphs.append(Data(x=torch.from_numpy(x), edge_index=torch.from_numpy(edges).long()))
    return Batch.from_data_list(graphs)


def make_model(seed: int = 0) -> GCN:
    torch.manual_seed(seed)
    model = GCN(in_channels=3, num_classes=2, hidden_channels=16).eval()
    for p in model.parameters():
        p.data.add_(0.3 * torch.randn(p.shape))
    return model


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 12), directed=st.booleans())
def test_merged_graphs_give_the_models_logits(seed: int, count: int, directed: bool) -> None:
    model, graphs = make_model(), graphs_of(seed, count, directed)
    stand_in = MergedGCN(model, "fp32", False).eval()
    prepared = stand_in.prepare(graphs)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(stand_in(prepared), model(graphs), rtol=1e-4, atol=1e-5)
            for p in model.parameters():
                p.mul_(1.3)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), directed=st.booleans())
def test_classes_are_those_of_colour_refinement(seed: int, directed: bool) -> None:
    graphs = graphs_of(seed, 6, directed)
    matrix = adjacency_of(graphs, torch.float32)
    colour = graphs.x.argmax(dim=1)
    for _ in range(2):
        classes, first = refine(matrix, colour)
        spans = zip(matrix.offsets[:-1].tolist(), matrix.offsets[1:].tolist(), strict=True)
        pairs = list(zip(colour[matrix.columns].tolist(), matrix.values.tolist(), strict=True))
        keys = [frozenset(Counter(pairs[start:end]).items()) for start, end in spans]
        both = set(zip(keys, classes.tolist(), strict=True))
        assert len(both) == len(set(keys)) == len(set(classes.tolist())) == len(first)
        assert classes[first].tolist() == list(range(len(first)))
        colour = classes


def test_most_of_mutags_nodes_are_alike() -> None:
    dataset = DatasetClass.load("MUTAG", data_dir=ROOT / "data", seed=42)
    (graphs, _), *_ = dataset.fixed("train", 1000)
    merged = merge(graphs)
    assert len(graphs.x) > 7 * len(merged.mean.columns.unique())
    assert len(graphs.x) > 30 * len(merged.x)


def test_another_model_or_precision_takes_no_merged_graphs() -> None:
    for model, precision in ((torch.nn.Linear(3, 2), "fp32"), (make_model(), "bf16")):
        with pytest.raises(UnsuitedError):
            MergedGCN(model, precision, False)
