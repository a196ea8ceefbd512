"""Many graphs as one, on the device, from which a batch is cut with tensor code alone."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from DatasetClass.batches import first_samples

with warnings.catch_warnings():  # PyTorch Geometric 2.8 calls the deprecated torch.jit.script
    warnings.simplefilter("ignore", FutureWarning)
    from torch_geometric.data import Batch as GraphBatch
    from torch_geometric.data import Data


class GraphSet:
    """All graphs of a data set in one row of nodes, one of edges and one normalised adjacency.

    Args:
        x: (nodes, features) float32, graph after graph.
        edges: (2, edges) int64, nodes counted over all graphs; by source, then target.
        graph: (nodes,) int64, each node's graph, in rising order.
        count: number of graphs; one may have no nodes.
        device: where they lie.
    """

    def __init__(
        self, x: np.ndarray, edges: np.ndarray, graph: np.ndarray, count: int, device: torch.device
    ) -> None:
        nodes = np.bincount(graph, minlength=count)
        links = np.bincount(graph[edges[0]], minlength=count)
        # Per graph: nodes, edges and entries of the adjacency. The host's copy tells the sizes of
        # a batch without waiting for the device.
        sizes = torch.from_numpy(np.stack([nodes, links, nodes + links]))
        self._sizes = sizes
        self._on_device = torch.stack([sizes, sizes.cumsum(1) - sizes]).to(device)
        self.x = torch.from_numpy(x).to(device)
        first = np.cumsum(nodes) - nodes
        local = edges - first[graph[edges[0]]]
        self._edges = torch.from_numpy(local).to(device)  # counted within each graph
        self._adjacency = None
        if _undirected(edges, len(graph)):
            degrees, columns, values = normalised_rows(torch.from_numpy(edges), len(graph))
            columns = columns - torch.from_numpy(first[graph]).repeat_interleave(degrees)
            self._adjacency = tuple(part.to(device) for part in (degrees, columns, values))

    def __len__(self) -> int:
        return self._sizes.size(1)

    def __getitem__(self, index: int) -> Data:
        one = self.batch(torch.tensor([range(len(self))[index]]))
        return Data(x=one.x, edge_index=one.edge_index)

    def batch(self, indices: Tensor) -> GraphBatch:
        """The graphs ``indices`` (graphs,), as ``GraphBatch.from_data_list`` would put them.

        Returns:
            A Batch with x, edge_index, batch and ptr and, where the set is undirected,
            ``adjacency``: D^-1/2 (A + I) D^-1/2 (Kipf & Welling 2017) in compressed rows, the
            tuple of offsets (nodes + 1,), columns (entries,) and values (entries,) float32. It
            isn't to be taken apart again by ``to_data_list``: ``self[i]`` is a single graph.
        """
        on_device = indices.to(self._on_device.device, non_blocking=True)
        sizes, starts = self._on_device[:, :, on_device]
        totals = self._sizes[:, indices].sum(dim=1).tolist()
        ends = F.pad(sizes.cumsum(1), (1, 0))  # (3, graphs + 1)
        ptr, shifts = ends[0], starts - ends[:, :-1]

        def pick(kind: int) -> tuple[Tensor, Tensor]:
            """For each element of the batch its graph, and its index in the whole set."""
            graph = torch.repeat_interleave(sizes[kind], output_size=totals[kind])
            index = torch.arange(totals[kind], device=graph.device)
            return graph, index.add_(shifts[kind].index_select(0, graph))

        graph, nodes = pick(0)
        of_edge, edges = pick(1)
        batch = _new_batch(
            x=self.x.index_select(0, nodes),
            edge_index=self._edges.index_select(1, edges).add_(ptr.index_select(0, of_edge)),
            batch=graph,
            ptr=ptr,
        )
        if self._adjacency is not None:
            degrees, columns, values = self._adjacency
            of_entry, entries = pick(2)
            batch.adjacency = (
                F.pad(degrees.index_select(0, nodes).cumsum(0), (1, 0)),
                columns.index_select(0, entries).add_(ptr.index_select(0, of_entry)),
                values.index_select(0, entries),
            )
        return batch


@first_samples.register
def first_graphs(graphs: GraphBatch, count: int) -> GraphBatch:
    """The first ``count`` graphs of a batch: x, edge_index, batch, ptr and adjacency, if it has it.

    Works on any Batch whose nodes stand graph by graph, made by this module or by PyG.
    """
    nodes = int(graphs.ptr[count])
    kept = graphs.edge_index[:, graphs.edge_index[0] < nodes]
    part = _new_batch(
        x=graphs.x[:nodes],
        edge_index=kept,
        batch=graphs.batch[:nodes],
        ptr=graphs.ptr[: count + 1],
    )
    if "adjacency" in graphs:
        offsets, columns, values = graphs.adjacency
        entries = int(offsets[nodes])
        part.adjacency = (offsets[: nodes + 1], columns[:entries], values[:entries])
    return part


def normalised_rows(edges: Tensor, nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    """D^-1/2 (A + I) D^-1/2 of undirected edges without loops.

    Returns:
        Entries a row (nodes,), their columns in rising order (entries,), their values float32.
    """
    loops = torch.arange(nodes).expand(2, -1)
    rows, columns = torch.cat([edges, loops], dim=1)
    order = (rows * nodes + columns).argsort()
    rows, columns = rows[order], columns[order]
    degrees = rows.bincount(minlength=nodes)
    scale = degrees.double().rsqrt()
    return degrees, columns, (scale[rows] * scale[columns]).float()


def _undirected(edges: np.ndarray, nodes: int) -> bool:
    """Whether sorted ``edges`` hold each edge in both directions."""
    back = np.sort(edges[1] * nodes + edges[0])
    return np.array_equal(edges[0] * nodes + edges[1], back)


_EMPTY = GraphBatch()


def _new_batch(**tensors: Tensor) -> GraphBatch:
    """``GraphBatch(**tensors)``, which makes a new class at each call, without that."""
    batch = copy.copy(_EMPTY)
    for name, tensor in tensors.items():
        batch[name] = tensor
    return batch
