"""Data sets on tiny files in the official formats, and on the real ones where they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import DatasetClass
from DatasetClass.batches import Batch, Dataset, first_part

NAMES = ["cifar10", "mitbih", "TINY", "MUTAG"]


def all_targets(batches) -> torch.Tensor:
    return torch.cat([targets for _, targets in batches])


@pytest.mark.parametrize("name", NAMES)
def test_a_data_set_keeps_the_contract(name: str, data_dir: Path) -> None:
    dataset = DatasetClass.load(name, data_dir, batch_size=7)
    seen = [set(getattr(dataset, s).indices.tolist()) for s in ("train", "val", "test")]
    assert sum(map(len, seen)) == len(set.union(*seen)) == len(dataset.labels)
    for batches in (dataset.train, dataset.val, dataset.test):
        assert len(list(batches)) == len(batches)
        targets = all_targets(batches)
        assert targets.dtype == torch.int64
        assert len(targets) == batches.samples
        assert targets.min() >= 0 and targets.max() < dataset.num_classes
    assert dataset.describe().startswith(name)


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_and_nothing_else_makes_the_splits(name: str, data_dir: Path) -> None:
    torch.manual_seed(1)
    one = DatasetClass.load(name, data_dir, seed=3)
    torch.manual_seed(2)
    two = DatasetClass.load(name, data_dir, **one.data_args)
    other = DatasetClass.load(name, data_dir, seed=4)
    assert torch.equal(one.train.indices, two.train.indices)
    assert torch.equal(all_targets(one.train), all_targets(two.train))  # the order too
    assert not torch.equal(one.train.indices, other.train.indices)


@pytest.mark.parametrize("name", NAMES)
def test_fixed_batches_are_always_the_same(name: str, data_dir: Path) -> None:
    dataset = DatasetClass.load(name, data_dir)
    first = dataset.fixed("train", 5, 11)
    list(dataset.train)  # moves the generator
    again = DatasetClass.load(name, data_dir).fixed("train", 5, 11)
    assert [len(targets) for _, targets in first] == [5, 5, 1]
    for (a, targets), (b, others) in zip(first, again, strict=True):
        a, b = (inputs if torch.is_tensor(inputs) else inputs.x for inputs in (a, b))
        assert torch.equal(a, b)
        assert torch.equal(targets, others)


# --- shared between processes --------------------------------------------------------------------
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
    assert torch.equal(first.train.new_order(), second.train.new_order())
    draws = [torch.rand(3, generator=dataset.generator) for dataset in (first, second)]
    assert not torch.equal(*draws)
    # The first draws as one process alone does.
    assert torch.equal(draws[0], torch.rand(3, generator=Numbers(20, 2, 4).generator))


def test_a_batch_that_cant_be_shared_is_named() -> None:
    with pytest.raises(ValueError, match="--batch_size 4: not a multiple of the 3 processes"):
        Numbers(20, 2, 4).share(0, 3)
    with pytest.raises(ValueError, match="2 training samples for 4 processes; start fewer"):
        Numbers(2, 2, 4).share(0, 4)


def test_a_batch_that_nobody_can_cut_is_refused() -> None:
    targets = torch.arange(5)
    assert first_part((targets + 1, targets), 0.3)[0].tolist() == [1, 2]
    assert first_part(({}, targets), 1.0)[0] == {}
    with pytest.raises(TypeError, match="a batch of dict can't be cut"):
        first_part(({}, targets), 0.5)  # rather than the first keys, or nothing at all
