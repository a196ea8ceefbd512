"""Which samples train, choose and test: at random, equally by class, in folds."""

from __future__ import annotations

import torch
from torch import Tensor

INNER_FOLDS = 10  # val is one of so many parts of the training folds, as Errica et al. 2020

Splits = dict[str, Tensor]  # sample indices (samples,) int64 of "train", "val" and "test"


def subset(indices: Tensor, samples: int | None) -> Tensor:
    """Choose ``samples`` of ``indices`` without replacement, always the same, in rising order."""
    if samples is None or samples >= len(indices):
        return indices
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(indices), generator=generator)[:samples]
    return indices[chosen.sort().values]


def dealt(indices: Tensor, number: int, parts: int) -> Tensor:
    """Part ``number``, from 0, of ``indices`` dealt out at random to ``parts``, in rising order.

    The parts are always the same; together they are all indices, each once.
    """
    if parts == 1:
        return indices
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(indices), generator=generator)[number::parts]
    return indices[chosen.sort().values]


def stratified_split(labels: Tensor, fractions: dict[str, float], seed: int) -> Splits:
    """Split sample indices at random so that every part has the classes in equal proportion.

    Args:
        labels: (samples,) int64.
        fractions: of each named part; the first part takes what rounding leaves over.
        seed: of the random choice.

    Returns:
        For each name the sample indices in rising order; together they are all, each once.
    """
    generator = torch.Generator().manual_seed(seed)
    first, *others = fractions
    parts: dict[str, list[Tensor]] = {name: [] for name in fractions}
    for label in labels.unique():
        members = torch.nonzero(labels == label).flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        start = 0
        for name in others:
            stop = start + round(fractions[name] * len(members))
            parts[name].append(members[start:stop])
            start = stop
        parts[first].append(members[start:])
    return {name: torch.cat(part).sort().values for name, part in parts.items()}


def stratified_folds(labels: Tensor, folds: int, seed: int) -> Tensor:
    """Each sample's fold, (samples,) int64.

    Shuffled, then dealt out class after class: the folds' sizes differ by one at most, and so
    do their members of any class, also of one with fewer samples than folds.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    membership = torch.empty_like(labels)
    membership[by_class] = torch.arange(len(labels)) % folds
    return membership


def fold_split(labels: Tensor, fold: int, folds: int, seed: int) -> Splits:
    """Split for one fold of a cross-validation: test is the fold, val a tenth of the others.

    So epochs and settings are chosen without a look at the test samples (Errica et al. 2020,
    arXiv:1912.09893).

    Args:
        labels: (samples,) int64.
        fold: from 0 to ``folds`` - 1.
        folds: their number.
        seed: of the folds.

    Raises:
        ValueError: no such fold, or more folds than samples.
    """
    if not 2 <= folds <= len(labels):
        raise ValueError(f"--folds {folds}: needs 2 to {len(labels):,}, the number of graphs")
    if not 0 <= fold < folds:
        raise ValueError(f"--fold {fold}: with --folds {folds} it goes from 0 to {folds - 1}")
    tested = stratified_folds(labels, folds, seed) == fold
    others = torch.nonzero(~tested).flatten()
    held_out = stratified_folds(labels[others], INNER_FOLDS, seed) == 0
    return {
        "train": others[~held_out],
        "val": others[held_out],
        "test": torch.nonzero(tested).flatten(),
    }
