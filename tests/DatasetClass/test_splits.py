"""Subsets, stratified splits and folds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from DatasetClass.splits import dealt, fold_split, stratified_folds, stratified_split, subset


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


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 3), min_size=12, max_size=90),
    folds=st.integers(2, 10),
    seed=st.integers(0, 5),
)
def test_folds_are_disjoint_covering_and_stratified(
    labels: list[int], folds: int, seed: int
) -> None:
    tensor = torch.tensor(labels)
    tested = []
    for fold in range(folds):
        parts = fold_split(tensor, fold, folds, seed)
        together = torch.cat(list(parts.values()))
        assert torch.equal(together.sort().values, torch.arange(len(labels)))
        tested.append(parts["test"])
        for label in set(labels):
            share = labels.count(label) / folds
            assert abs(int((tensor[parts["test"]] == label).sum()) - share) < 1
            outer = labels.count(label) - int((tensor[parts["test"]] == label).sum())
            assert abs(int((tensor[parts["val"]] == label).sum()) - 0.1 * outer) < 1
        assert len(parts["val"]) == -(-(len(labels) - len(parts["test"])) // 10)
    assert torch.equal(torch.cat(tested).sort().values, torch.arange(len(labels)))
    sizes = [len(part) for part in tested]
    assert max(sizes) - min(sizes) <= 1


def test_the_seed_and_nothing_else_deals_the_folds() -> None:
    labels = torch.arange(60) % 3
    torch.manual_seed(1)
    first = stratified_folds(labels, 10, seed=3)
    torch.manual_seed(2)
    assert torch.equal(first, stratified_folds(labels, 10, seed=3))
    assert not torch.equal(first, stratified_folds(labels, 10, seed=4))


def test_a_class_smaller_than_the_folds_works() -> None:
    labels = torch.tensor([0] * 30 + [1] * 3)
    held = [fold_split(labels, fold, 10, seed=0)["test"] for fold in range(10)]
    assert sorted(int(labels[part].sum()) for part in held) == [0] * 7 + [1] * 3


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_dealt_parts_are_disjoint_even_and_complete(parts: int) -> None:
    indices = torch.arange(100, 120)
    found = [dealt(indices, number, parts) for number in range(parts)]
    assert torch.equal(torch.cat(found).sort().values, indices)
    assert max(map(len, found)) - min(map(len, found)) <= 1
    assert all(torch.equal(part, part.sort().values) for part in found)
