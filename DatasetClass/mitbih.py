"""Heartbeats of the MIT-BIH Arrhythmia Database in the five classes of the AAMI standard.

Either Kaggle's ``mitbih_train.csv`` and ``mitbih_test.csv`` (188 columns: 187 samples and the
label), or beats cut here from the PhysioNet records (Moody & Mark 2001) much as Kachuee et al.
2018 (arXiv:1805.00794, section III-A) describe: resampled from 360 to 125 Hz, each beat from its R
peak over 1.2 times the median R-R interval around it, scaled to 0 to 1, padded with zeros to 187
samples. R peaks are the annotated ones, where the paper detects them.

The splits are random over beats: a patient's beats lie in all of them, as in the Kaggle files, so
accuracies here say nothing on unseen patients.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from DatasetClass.batches import Batch, Dataset, stratified_split

LENGTH = 187  # samples a beat
RATE = 125  # Hz
CLASSES = ("N", "S", "V", "F", "Q")
# ANSI/AAMI EC57:1998, table 3: the annotation codes of each class.
AAMI = {"N": "NLRej", "S": "AaJS", "V": "VE", "F": "F", "Q": "/fQ"}
LABELS = {code: CLASSES.index(name) for name, codes in AAMI.items() for code in codes}
SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}
WINDOW = 10  # seconds around a beat over which the R-R interval is taken


class MitBih(Dataset):
    """Heartbeats on the device; batches are (signals (B, 187) from 0 to 1, labels (B,)).

    Args:
        data_dir: folder of the Kaggle files, or of ``mitdb/`` with the PhysioNet records.
        batch_size: beats a batch.
        device: where the beats lie.
        seed: of the splits and the order.
        train_samples: use only this many training beats.
        source: "kaggle", "physionet", or "auto" for Kaggle's files if they are there.

    Raises:
        FileNotFoundError: neither source is there and the records can't be downloaded.
        ValueError: a damaged file; the message names file and row.
    """

    name = "mitbih"
    num_classes = len(CLASSES)

    def __init__(
        self,
        data_dir: Path,
        batch_size: int,
        device: torch.device,
        seed: int = 42,
        train_samples: int | None = None,
        source: str = "auto",
    ) -> None:
        files = [data_dir / f"mitbih_{part}.csv" for part in ("train", "test")]
        if source == "auto":
            source = "kaggle" if all(file.is_file() for file in files) else "physionet"
        if source == "kaggle":
            (beats, labels), (test_beats, test_labels) = (read_kaggle(file) for file in files)
            shares = {"train": 7 / 8, "val": 1 / 8}
            splits = stratified_split(torch.from_numpy(labels), shares, seed)
            splits["test"] = torch.arange(len(labels), len(labels) + len(test_labels))
            beats = np.concatenate([beats, test_beats])
            labels = np.concatenate([labels, test_labels])
        else:
            beats, labels = read_physionet(data_dir)
            splits = stratified_split(torch.from_numpy(labels), SHARES, seed)
        self.source = source
        self.beats = torch.from_numpy(beats).to(device)
        self.labels = torch.from_numpy(labels).to(device)
        self.model_args = {"length": LENGTH, "num_classes": len(CLASSES)}
        self.data_args = {"seed": seed, "train_samples": train_samples, "source": source}
        self.make_splits(splits, batch_size, seed, train_samples)

    def fetch(self, indices: Tensor) -> Batch:
        indices = indices.to(self.labels.device)
        return self.beats[indices], self.labels[indices]

    def describe(self) -> str:
        counts = self.labels.bincount(minlength=len(CLASSES)).tolist()
        classes = " ".join(f"{name} {n:,}" for name, n in zip(CLASSES, counts, strict=True))
        return f"{super().describe()}; {LENGTH} samples at {RATE} Hz from {self.source}; {classes}"


def read_kaggle(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read one Kaggle file: beats (N, 187) float32 and labels (N,) int64.

    Raises:
        FileNotFoundError: no such file.
        ValueError: wrong number of columns, text, NaN or a label other than 0 to 4.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; --source physionet needs none")
    try:
        table = pd.read_csv(path, header=None, dtype=np.float32).to_numpy()
    except pd.errors.EmptyDataError as error:
        raise ValueError(f"{path}: empty") from error
    except ValueError as error:  # pandas' parser errors are ValueErrors
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}{_first_bad_row(path)}: not numbers only ({reason})") from error
    if table.shape[1] != LENGTH + 1:
        raise ValueError(f"{path}: {table.shape[1]} columns, expected {LENGTH + 1}")
    bad = ~np.isfinite(table).all(axis=1)
    if bad.any():
        raise ValueError(f"{path}, row {bad.argmax() + 1}: missing or not finite")
    labels = table[:, LENGTH]
    bad = ~np.isin(labels, range(len(CLASSES)))
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"{path}, row {row + 1}: label {labels[row]:g}, expected 0 to 4")
    return np.ascontiguousarray(table[:, :LENGTH]), labels.astype(np.int64)


def _first_bad_row(path: Path) -> str:
    """Where the first row that isn't 188 numbers stands; pandas doesn't say."""
    with path.open(errors="replace") as file:
        for row, line in enumerate(file, start=1):
            cells = line.rstrip("\n").split(",")
            try:
                list(map(float, cells))
            except ValueError:
                return f", row {row}"
            if len(cells) != LENGTH + 1:
                return f", row {row}"
    return ""


def read_physionet(data_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """Cut all records below ``data_dir``/mitdb: beats (N, 187) float32, labels (N,) int64.

    Raises:
        FileNotFoundError: no records there, and they can't be downloaded.
        ValueError: a damaged record.
    """
    folder = data_dir / "mitdb"
    if not (folder / "RECORDS").is_file():
        _download(folder)
    names = (folder / "RECORDS").read_text().split()
    parts = [read_record(folder / name) for name in names]
    beats, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    return beats, labels


def _download(folder: Path) -> None:
    import wfdb

    try:
        wfdb.dl_database("mitdb", str(folder))
    except Exception as error:  # wfdb lets through whatever its HTTP client raises
        raise FileNotFoundError(
            f"{folder}: no MIT-BIH records, and the download failed ({error}); put the files of "
            "physionet.org/content/mitdb/1.0.0 there, or mitbih_train.csv and mitbih_test.csv of "
            f"Kaggle into {folder.parent}"
        ) from error


def read_record(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Cut one record, named without extension: beats (N, 187) float32, labels (N,) int64.

    Raises:
        ValueError: a file of it is missing or damaged.
    """
    import wfdb

    try:
        record = wfdb.rdrecord(str(path))
        annotation = wfdb.rdann(str(path), "atr")
    except Exception as error:  # wfdb raises nearly anything on damaged files
        raise ValueError(f"{path}: unreadable record ({error}); remove {path.parent}") from error
    lead = record.sig_name.index("MLII") if "MLII" in record.sig_name else 0
    kept = [i for i, code in enumerate(annotation.symbol) if code in LABELS]
    labels = np.array([LABELS[annotation.symbol[i]] for i in kept], dtype=np.int64)
    peaks = annotation.sample[kept] / record.fs  # seconds
    return cut_beats(record.p_signal[:, lead], record.fs, peaks), labels


def cut_beats(signal: np.ndarray, rate: float, peaks: np.ndarray) -> np.ndarray:
    """Cut and normalise beats.

    Args:
        signal: (samples,), one lead in mV.
        rate: of the signal, in Hz.
        peaks: (beats,), times of the R peaks in seconds, rising.

    Returns:
        (beats, 187) float32 from 0 to 1 at 125 Hz.
    """
    from scipy.signal import resample_poly

    resampled = resample_poly(signal, RATE, int(rate))
    beats = np.zeros((len(peaks), LENGTH), dtype=np.float32)
    starts = np.round(peaks * RATE).astype(int)
    for beat, start, period in zip(beats, starts, _periods(peaks), strict=True):
        piece = resampled[start : start + min(LENGTH, max(2, round(1.2 * period * RATE)))]
        if len(piece):
            height = np.ptp(piece)
            beat[: len(piece)] = (piece - piece.min()) / height if height else 0.0
    return beats


def _periods(peaks: np.ndarray) -> np.ndarray:
    """Median R-R interval within the 10 seconds around each peak, in seconds, (beats,)."""
    intervals = np.diff(peaks)
    if len(intervals) == 0:
        return np.full(len(peaks), LENGTH / RATE)
    first = np.searchsorted(peaks, peaks - WINDOW / 2)
    last = np.searchsorted(peaks, peaks + WINDOW / 2)
    return np.array(
        [
            np.median(intervals[i : max(j - 1, i + 1)] if i < len(intervals) else intervals[-1:])
            for i, j in zip(first, last, strict=True)
        ]
    )
