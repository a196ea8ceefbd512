"""How processes share batches and splits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from DatasetClass.batches import Batch, Dataset


class Numbers(Dataset):
    """Sample i is the number i."""

    name, num_classes = "numbers", 2

    def __init__(self, train: int, val: int, batch_size: int) -> None:
        ends = torch.arange(train + 2 * val).split([train, val, val])
        self.labels = torch.arange(train + 2 * val) % 2
        splits = dict(zip(("train", "val", "test"), ends, strict=True))
        self.make_splits(splits, batch_size, seed=0, train_samples=None)

    def fetch(self, indices: Tensor) -> Batch:
        return indices, self.labels[indices]


@settings(max_examples=60, deadline=None)
@given(
    world=st.integers(1, 5),
    share=st.integers(1, 4),
    train=st.integers(5, 40),
    val=st.integers(1, 9),
)
def test_processes_share_what_one_would_see(world: int, share: int, train: int, val: int) -> None:
    alone = Numbers(train, val, world * share)
    parts = [Numbers(train, val, world * share) for _ in range(world)]
    for rank, part in enumerate(parts):
        part.share(rank, world)
        assert part.describe() == alone.describe()
    shared = [list(part.train) for part in parts]
    assert {len(batches) for batches in shared} == {len(parts[0].train)}
    whole = [inputs.tolist() for inputs, _ in alone.train]
    for number, batches in enumerate(zip(*shared, strict=True)):
        sizes = {len(inputs) for inputs, _ in batches}
        together = torch.cat([inputs for inputs, _ in batches]).tolist()
        assert len(sizes) == 1  # so that the mean of means is the mean
        assert together == whole[number][: len(together)]
        assert len(whole[number]) - len(together) < world
    for split in ("val", "test"):
        seen = [i for part in parts for inputs, _ in getattr(part, split) for i in inputs.tolist()]
        assert sorted(seen) == sorted(i for x, _ in getattr(alone, split) for i in x.tolist())


def test_draws_of_processes_are_their_own_and_their_order_is_not() -> None:
    first, second = Numbers(20, 2, 4), Numbers(20, 2, 4)
    first.share(0, 2)
    second.share(1, 2)
    assert torch.equal(first.train._draw(), second.train._draw())
    draws = [torch.rand(3, generator=dataset.generator) for dataset in (first, second)]
    assert not torch.equal(*draws)
    # The first draws as one process alone does.
    assert torch.equal(draws[0], torch.rand(3, generator=Numbers(20, 2, 4).generator))


def test_a_batch_that_cant_be_shared_is_named() -> None:
    with pytest.raises(ValueError, match="--batch_size 4: not a multiple of the 3 processes"):
        Numbers(20, 2, 4).share(0, 3)
    with pytest.raises(ValueError, match="2 training samples for 4 processes; start fewer"):
        Numbers(2, 2, 4).share(0, 4)
