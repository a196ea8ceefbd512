"""A loader's batches as they are measured: every row once, in fixed order, whatever their kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import own_things
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Batch, Data

from loss_landscape.own_model.data import OwnData, as_tensors, digest, regroup, rows_of


@settings(max_examples=60, deadline=None)
@given(data=st.data(), batch_size=st.integers(1, 9))
def test_chosen_rows_come_once_and_in_order(data: st.DataObject, batch_size: int) -> None:
    """Of batches of unequal sizes and widths, with the row's number in each tensor."""
    shapes = data.draw(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 3)), min_size=1))
    start, batches = 0, []
    for count, width in shapes:
        numbers = torch.arange(start, start + count)
        start += count
        batches.append({"x": numbers[:, None].expand(-1, width), "y": numbers, "kind": "text"})
    chosen = torch.tensor(sorted(data.draw(st.sets(st.integers(0, start - 1), min_size=1))))
    found = regroup(batches, [count for count, _ in shapes], chosen, batch_size)
    assert torch.equal(torch.cat([batch["y"] for batch in found]), chosen)
    widths = torch.tensor([w for n, w in shapes for _ in range(n)])
    for batch in found:
        assert 1 <= len(batch["y"]) <= batch_size and batch["kind"] == "text"
        assert torch.equal(batch["x"], batch["y"][:, None].expand_as(batch["x"]))
        assert set(widths[batch["y"]].tolist()) == {batch["x"].shape[1]}


def test_like_rows_fill_batches() -> None:
    batches = [(torch.ones(3, 2), torch.zeros(3)) for _ in range(5)]
    sizes = [len(y) for _, y in regroup(batches, [3] * 5, torch.arange(0, 15, 2), 6)]
    assert sizes == [6, 2]


def graphs(count: int) -> tuple[Any, torch.Tensor]:
    one = Data(x=torch.ones(2, 1), edge_index=torch.tensor([[0], [1]]))
    return Batch.from_data_list([one] * count), torch.arange(count)


@pytest.mark.parametrize(
    ("batch", "rows"),
    [
        ((torch.ones(3, 2), torch.ones(3)), 3),
        ({"a": (torch.ones(4), torch.ones(4, 1)), "b": "text", "c": None}, 4),
        ((torch.ones(3, 2), torch.ones(2)), None),
        ((torch.ones(3, 2), torch.tensor(1)), None),
        (graphs(3), None),  # which only their own code can cut
    ],
)
def test_rows_are_what_all_tensors_share(batch: Any, rows: int | None) -> None:
    assert rows_of(batch) == rows


def test_what_has_no_rows_isnt_cut(monkeypatch) -> None:
    monkeypatch.setattr(own_things, "graphs", lambda: [graphs(3), graphs(2)], raising=False)
    data = OwnData("own_things:graphs", {})
    assert [len(y) for _, y in data.fixed("train", 1)] == [3, 2]
    with pytest.raises(ValueError, match="so no samples can be cut out of it"):
        data.fixed("train", 1, samples=2)


def test_parts_are_all_samples_once() -> None:
    data = OwnData("own_things:arrays", {})
    parts = [data.fixed("train", 4, None, (k, 3)) for k in range(3)]
    rows = [tuple(row) for part in parts for x, _ in part for row in x.tolist()]
    assert len(rows) == len(set(rows)) == own_things.SAMPLES
    with pytest.raises(ValueError, match="--data_split 23: there are 22 samples"):
        data.fixed("train", 4, None, (0, 23))


def test_arrays_become_tensors_of_their_own_memory() -> None:
    array = np.arange(6.0).reshape(2, 3)
    inputs, targets = as_tensors([{"x": array}, array[:, 0]])
    array[:] = 0
    assert torch.equal(inputs["x"], torch.arange(6.0, dtype=torch.float64).view(2, 3))
    assert torch.equal(targets, torch.tensor([0.0, 3.0], dtype=torch.float64))


def test_a_digest_tells_values_shapes_types_and_order_apart() -> None:
    x = torch.arange(6)
    others = [[x], [x.view(2, 3)], [x.int()], [x.flip(0)], [x, x], [(x,)], [{"x": x}], [x + 1], [7]]
    assert len({digest(batches) for batches in others}) == len(others)
    assert digest([x.view(2, 3).T]) == digest([x.view(2, 3).T.contiguous()])
