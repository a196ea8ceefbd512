"""Who trains and who is tested: beats at random, as Kaggle has them, or whole patients."""

from __future__ import annotations

import torch
from torch import Tensor

from DatasetClass.splits import Splits, stratified_split

# de Chazal, O'Dwyer & Reilly 2004, table II. 102, 104, 107 and 217, with paced beats, are in none.
# fmt: off
DS1 = [101, 106, 108, 109, 112, 114, 115, 116, 118, 119, 122,
       124, 201, 203, 205, 207, 208, 209, 215, 220, 223, 230]
DS2 = [100, 103, 105, 111, 113, 117, 121, 123, 200, 202, 210,
       212, 213, 214, 219, 221, 222, 228, 231, 232, 233, 234]
# fmt: on
# Record 201 of DS1 and 202 of DS2 are of one man (their headers: 68 M 1960 2851 x1), the only
# pair. 201 is left out, so that the test set stays the published one.
SAME_PATIENT = 201
# A fifth of DS1's beats with all classes: N 8,008, S 110, V 591, F 30, Q 2. Most of F (record 208)
# and of S (209, 207) has to stay for the training.
VALIDATION = [101, 124, 205, 223]

FRACTIONS = {"train": 7 / 8, "val": 1 / 8}  # of what isn't test
# The beats N, S, V, F, Q of the published set and those in its mitbih_test.csv: a fifth, but by no
# rule of rounding.
KAGGLE_BEATS = [90589, 2779, 7236, 803, 8039]
KAGGLE_TEST = [18118, 556, 1448, 162, 1608]


def random_split(labels: Tensor, seed: int) -> Splits:
    """Stratified over beats, a patient's beats in all parts: test a fifth, val a tenth.

    Args:
        labels: (beats,) int64; where their counts are the published ones, so are the test set's.
        seed: of the random choice.

    Returns:
        Beat indices of "train", "val" and "test" in rising order; together they are all.
    """
    counts = labels.bincount().tolist()
    sizes = KAGGLE_TEST if counts == KAGGLE_BEATS else [round(0.2 * count) for count in counts]
    generator = torch.Generator().manual_seed(seed)
    tested = torch.zeros(len(labels), dtype=torch.bool)
    for label, size in enumerate(sizes):
        members = torch.nonzero(labels == label).flatten()
        tested[members[torch.randperm(len(members), generator=generator)[:size]]] = True
    rest = torch.nonzero(~tested).flatten()
    parts = stratified_split(labels[rest], FRACTIONS, seed)
    splits = {name: rest[part] for name, part in parts.items()}
    return {**splits, "test": torch.nonzero(tested).flatten()}


def of_patients(records: Tensor) -> Tensor:
    """Which beats the split by patient uses: (beats,) bool from their records (beats,) int64."""
    used = [record for record in DS1 + DS2 if record != SAME_PATIENT]
    return torch.isin(records, torch.tensor(used))


def inter_patient_split(records: Tensor) -> Splits:
    """Whole patients: DS1 without ``VALIDATION`` and 201, ``VALIDATION``, DS2; nothing at random.

    Args:
        records: (beats,) int64, the record that each beat is from.

    Returns:
        Beat indices of "train", "val" and "test" in rising order; beats of other records in none.
    """
    train = [record for record in DS1 if record != SAME_PATIENT and record not in VALIDATION]
    parts = {"train": train, "val": VALIDATION, "test": DS2}
    return {
        name: torch.nonzero(torch.isin(records, torch.tensor(part))).flatten()
        for name, part in parts.items()
    }
