"""Heartbeats of the MIT-BIH Arrhythmia Database in the five classes of the AAMI standard.

Two sources that serve every script alike: beats cut here from PhysioNet's records (see
``raw/heartbeats.py``), or Kaggle's ``mitbih_train.csv`` and ``mitbih_test.csv``. Both have 109,446
beats: N 90,589, S 2,779, V 7,236, F 803, Q 8,039.

Two ways to split. ``random`` mixes beats, as the Kaggle files do: a patient's beats lie in all
parts, so accuracies say nothing on unseen patients. ``inter_patient`` keeps patients apart (de
Chazal et al. 2004); it needs the records, because Kaggle's files don't say whose a beat is. So do
R-R intervals, beats that begin before the R peak and beats with their heights.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from DatasetClass.batches import Batch, Dataset
from DatasetClass.patients import FRACTIONS, inter_patient_split, of_patients, random_split
from DatasetClass.raw.heartbeats import CLASSES, KACHUEE, LENGTH, RATE, RR_INTERVALS, SCALES, Cut
from DatasetClass.raw.kaggle import PARTS, kaggle_files, read_both
from DatasetClass.raw.physionet import read_physionet, read_rr
from DatasetClass.splits import Splits, stratified_split

SOURCES = ("auto", "kaggle", "physionet")
SPLITS = ("random", "inter_patient")
MOST_BEFORE = 0.5  # seconds: what lies further before the R peak is of the last beat


class MitBih(Dataset):
    """Heartbeats on the device; batches are (signals (B, 187) from 0 to 1, labels (B,)).

    With ``rr_intervals`` each signal is followed by four numbers, (B, 191): see
    ``raw/heartbeats.py:rr_intervals``.

    Args:
        data_dir: folder of the Kaggle files, or of ``mitdb/`` with the PhysioNet records.
        batch_size: beats a batch.
        device: where the beats lie.
        seed: of the random split and of the order; patients are split the same way each time.
        train_samples: use only this many training beats.
        source: "kaggle", "physionet", or "auto": Kaggle's files if they are there and the split
            can be had from them.
        split: "random" over beats, or "inter_patient".
        rr_intervals: add what the R-R intervals say, from the records only.
        before: the R peak a beat begins, in seconds; more than 0 from the records only.
        scale: "beat", or "record", which keeps heights, from the records only.

    Attributes:
        beats: (N, 187 or 191) float32, those that the split uses.
        labels: (N,) int64.
        record_of: (N,) int64 on the CPU, the record of each beat; None from Kaggle.

    Raises:
        FileNotFoundError: neither source is there and the records can't be downloaded.
        ValueError: a damaged file (the message names file and row), an unknown source, split or
            scale, ``before`` out of range, or of Kaggle's files what they don't have.
    """

    name = "mitbih"
    rate = RATE  # Hz, of the signals
    num_classes = len(CLASSES)
    class_names = (
        "N normal",
        "S supraventricular",
        "V ventricular",
        "F fusion",
        "Q unknown, paced",
    )

    def __init__(
        self,
        data_dir: Path,
        batch_size: int,
        device: torch.device,
        seed: int = 42,
        train_samples: int | None = None,
        source: str = "auto",
        split: str = "random",
        rr_intervals: bool = False,
        before: float = 0.0,
        scale: str = "beat",
    ) -> None:
        self.split, self.cut = split, Cut(before, scale)
        self.source = choose_source(data_dir, source, split, rr_intervals, self.cut)
        if self.source == "kaggle":
            self.beats, self.labels, splits = _from_kaggle(data_dir, seed)
            self.record_of = None
        else:
            loaded = _from_physionet(data_dir, seed, split, rr_intervals, self.cut)
            self.beats, self.labels, self.record_of, splits = loaded
        self.beats, self.labels = self.beats.to(device), self.labels.to(device)
        self.model_args = {"length": LENGTH, "num_classes": len(CLASSES)}
        self.data_args = {
            "seed": seed,
            "train_samples": train_samples,
            "source": self.source,
            "split": split,
        }
        # Only where they are asked for, so that older runs and results stay the same ones.
        if rr_intervals:
            self.model_args["features"] = RR_INTERVALS
            self.data_args["rr_intervals"] = True
        # So are the others: what is the default is not said.
        self.data_args |= {k: v for k, v in self.cut._asdict().items() if v != getattr(Cut(), k)}
        self.make_splits(splits, batch_size, seed, train_samples)

    def fetch(self, indices: Tensor) -> Batch:
        indices = indices.to(self.labels.device, non_blocking=True)
        return self.beats[indices], self.labels[indices]

    def describe(self) -> str:
        counts = self.labels.bincount(minlength=len(CLASSES)).tolist()
        classes = " ".join(f"{name} {n:,}" for name, n in zip(CLASSES, counts, strict=True))
        split = "split by patient" if self.split == "inter_patient" else "split at random"
        signal = f"{LENGTH} samples at {RATE} Hz from {self.source}, {split}"
        signal += f", from {self.cut.before:g} s before the R peak on" if self.cut.before else ""
        signal += ", scaled by record" if self.cut.scale == "record" else ""
        signal += ", with R-R intervals" if "features" in self.model_args else ""
        return f"{super().describe()}; {signal}; {classes}"


def choose_source(
    data_dir: Path, source: str, split: str, rr_intervals: bool = False, cut: Cut = KACHUEE
) -> str:
    """The source that "auto" stands for, or ``source`` itself.

    Raises:
        ValueError: an unknown source, split or scale, ``before`` out of range, or of Kaggle's
            files what they don't have.
    """
    if source not in SOURCES or split not in SPLITS:
        known = f"{', '.join(SOURCES)} and {', '.join(SPLITS)}"
        raise ValueError(f"mitbih: source {source!r} or split {split!r} is none of {known}")
    if cut.scale not in SCALES:
        raise ValueError(f"mitbih: scale {cut.scale!r} is none of {', '.join(SCALES)}")
    if not 0 <= cut.before <= MOST_BEFORE:
        raise ValueError(
            f"--before {cut.before:g}: from 0 to {MOST_BEFORE} seconds before the R peak"
        )
    lacking = {
        "which patient a beat is from; --split inter_patient": split == "inter_patient",
        "how far apart beats are; --rr_intervals": rr_intervals,
        "what is before the R peak; --before": cut.before > 0,
        "how high a beat is; --scale record": cut.scale == "record",
    }
    asked = [what for what, wanted in lacking.items() if wanted]
    if asked and source == "kaggle":
        raise ValueError(f"mitbih: Kaggle's files don't say {asked[0]} needs --source physionet")
    if source == "auto":
        complete = all(file.is_file() for file in kaggle_files(data_dir))
        return "kaggle" if complete and not asked else "physionet"
    return source


def _from_kaggle(data_dir: Path, seed: int) -> tuple[Tensor, Tensor, Splits]:
    """Both files in one, their own test set kept."""
    arrays = read_both(data_dir)
    beats = torch.from_numpy(np.concatenate([arrays[f"{part}_beats"] for part in PARTS]))
    labels = _labels(np.concatenate([arrays[f"{part}_labels"] for part in PARTS]), data_dir)
    train = len(arrays["train_labels"])
    splits = stratified_split(labels[:train], FRACTIONS, seed)
    return beats, labels, {**splits, "test": torch.arange(train, len(labels))}


def _from_physionet(
    data_dir: Path, seed: int, split: str, rr_intervals: bool, cut: Cut
) -> tuple[Tensor, Tensor, Tensor, Splits]:
    """Beats, labels and records, copied out of the mapped files, and the splits."""
    arrays = read_physionet(data_dir, cut)
    beats, records = (torch.from_numpy(np.array(arrays[name])) for name in ("beats", "records"))
    if rr_intervals:
        beats = torch.cat([beats, torch.from_numpy(np.array(read_rr(data_dir)))], dim=1)
    labels = _labels(np.array(arrays["labels"]), data_dir)
    if split == "random":
        return beats, labels, records, random_split(labels, seed)
    used = of_patients(records)
    records = records[used]
    return beats[used], labels[used], records, inter_patient_split(records)


def _labels(labels: np.ndarray, data_dir: Path) -> Tensor:
    """Refuse labels that can only come from a cache that was damaged after it was made."""
    if labels.min() < 0 or labels.max() >= len(CLASSES):
        raise ValueError(f"{data_dir / 'cache'}: damaged, a label out of range; remove it")
    return torch.from_numpy(labels)
