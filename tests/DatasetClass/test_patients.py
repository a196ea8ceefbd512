"""Who trains and who is tested: the published counts, and no patient in two parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import wfdb

from DatasetClass.patients import (
    DS1,
    DS2,
    KAGGLE_BEATS,
    KAGGLE_TEST,
    SAME_PATIENT,
    VALIDATION,
    inter_patient_split,
    random_split,
)
from DatasetClass.raw.physionet import read_physionet


def test_the_published_counts_give_the_published_test_set() -> None:
    labels = torch.arange(5).repeat_interleave(torch.tensor(KAGGLE_BEATS))
    splits = random_split(labels, 0)
    assert labels[splits["test"]].bincount().tolist() == KAGGLE_TEST
    assert len(splits["test"]) == 21892
    assert len(splits["train"]) + len(splits["val"]) == 87554
    assert len(torch.cat(list(splits.values())).unique()) == 109446


def test_no_record_is_in_two_parts() -> None:
    assert len(DS1) == len(DS2) == 22
    assert len({*DS1, *DS2, 102, 104, 107, 217}) == 48
    records = torch.arange(90, 240).repeat(3)
    parts = {name: records[part].unique() for name, part in inter_patient_split(records).items()}
    assert parts["test"].tolist() == sorted(DS2)
    assert parts["val"].tolist() == sorted(VALIDATION)
    assert {*parts["train"].tolist()} == {*DS1} - {*VALIDATION, SAME_PATIENT}


@pytest.mark.real
@pytest.mark.parametrize(
    ("records", "published"),
    [(DS1, [45866, 944, 3788, 415, 8]), (DS2, [44259, 1837, 3221, 388, 7])],
)
def test_real_counts_are_de_chazals(
    records: list[int], published: list[int], real_records: Path
) -> None:
    """Table II of the paper from the annotations; ours lack the last beat of each record."""
    groups = {
        code: i for i, codes in enumerate(("NLRej", "AaJS", "VE", "F", "/fQ")) for code in codes
    }
    codes = [wfdb.rdann(str(real_records / "mitdb" / str(n)), "atr").symbol for n in records]
    labels = [[groups[code] for code in record if code in groups] for record in codes]
    annotated = np.bincount(np.concatenate(labels), minlength=5)
    assert annotated.tolist() == published
    arrays = read_physionet(real_records)
    ours = np.bincount(arrays["labels"][np.isin(arrays["records"], records)], minlength=5)
    last = np.bincount([record[-1] for record in labels], minlength=5)
    assert (ours + last).tolist() == published
