"""Data sets on tiny files in the official formats, and on the real ones where they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import DatasetClass
from DatasetClass.batches import stratified_split, subset

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


@settings(max_examples=50, deadline=None)
@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=80), seed=st.integers(0, 9))
def test_stratified_split_keeps_proportions(labels: list[int], seed: int) -> None:
    tensor = torch.tensor(labels)
    parts = stratified_split(tensor, {"train": 0.7, "val": 0.1, "test": 0.2}, seed)
    together = torch.cat(list(parts.values())).sort().values
    assert torch.equal(together, torch.arange(len(labels)))
    for label in set(labels):
        count = labels.count(label)
        for name, share in (("val", 0.1), ("test", 0.2)):
            assert abs((tensor[parts[name]] == label).sum() - share * count) <= 0.5


def test_a_subset_is_drawn_once() -> None:
    indices = torch.arange(100, 200)
    chosen = subset(indices, 10)
    assert torch.equal(chosen, subset(indices, 10))
    assert len(chosen.unique()) == 10
    assert torch.equal(subset(indices, 1000), indices)
