"""Cut heartbeats out of WFDB records as Kachuee et al. 2018 (arXiv:1805.00794, section III) do.

The paper splits a record, one lead at 125 Hz, into windows of 10 s, scales to 0 to 1, finds the R
peaks, takes the median R-R interval of a window as its period T, cuts 1.2 T from each R peak on
and pads with zeros. Here it is the same with two differences. The R peaks are the annotated ones:
the paper's rule (local maxima above 0.9 of the window's range) misses beats, and its authors' set
has one for nearly every annotation. The scale is each beat's own minimum and maximum, not the
window's: so it is in the files that the authors published, where every row reaches 1.

A beat's R-R interval is the one to the next beat, so the last beat of a record has none and is
left out. That leaves N 90,589, S 2,779, V 7,236, F 803, Q 8,039, to the beat the counts of the
published set; with the last beats they would be 42 N, 2 S and 4 Q more.

The published values aren't reproduced sample by sample: the paper names no filter for the
resampling (here scipy's polyphase filter), and its windows may start elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

LENGTH = 187  # samples a beat
RATE = 125  # Hz, of the beats
WINDOW = 10  # seconds over which the R-R interval is taken
CLASSES = ("N", "S", "V", "F", "Q")
# ANSI/AAMI EC57:1998, table 3: the annotation codes of each class.
AAMI = {"N": "NLRej", "S": "AaJS", "V": "VE", "F": "F", "Q": "/fQ"}
LABELS = {code: CLASSES.index(name) for name, codes in AAMI.items() for code in codes}
LEAD = "MLII"  # of 46 records; the other two, 102 and 104, have none and give their first lead
RECORDED = 360  # Hz, of the records
Beats = tuple[np.ndarray, np.ndarray]  # (beats, 187) float32 from 0 to 1, (beats,) int64


def read_record(path: Path) -> Beats:
    """Cut one record, named without extension, into beats and their classes' numbers.

    Raises:
        ValueError: one of its three files is missing or damaged; the message names it.
    """
    signal = _read_signal(path)
    peaks, labels = read_annotations(path, len(signal))
    if len(peaks) < 2:
        raise ValueError(f"{path}.atr: {len(peaks)} annotated beats, at least 2 are needed")
    return cut_beats(signal, RECORDED, peaks / RECORDED), labels[:-1]


def read_annotations(path: Path, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of a record's beats in samples, rising, and their classes: both (beats,) int64.

    Raises:
        ValueError: ``path``.atr is missing or damaged, or not of a record of ``samples`` samples.
    """
    import wfdb

    annotation = _read(path, ".atr", lambda: wfdb.rdann(str(path), "atr"))
    kept = [i for i, code in enumerate(annotation.symbol) if code in LABELS]
    labels = np.array([LABELS[annotation.symbol[i]] for i in kept], dtype=np.int64)
    peaks = np.asarray(annotation.sample, dtype=np.int64)[kept]
    if len(peaks) and (peaks[0] < 0 or peaks[-1] >= samples or (np.diff(peaks) <= 0).any()):
        raise ValueError(f"{path}.atr: damaged, its beats don't rise from 0 to {samples - 1}")
    return peaks, labels


def _read_signal(path: Path) -> np.ndarray:
    """One lead in mV, (samples,) float64, its checksum compared."""
    import wfdb

    header = _read(path, ".hea", lambda: wfdb.rdheader(str(path)))
    _check_header(path, header)
    record = _read(path, ".dat", lambda: wfdb.rdrecord(str(path), physical=False))
    # wfdb compares the header's checksums only when it writes.
    if ((record.d_signal.sum(axis=0) - header.checksum) % 65536).any():
        raise ValueError(f"{path}.dat: wrong checksum, the file or its header is damaged")
    lead = header.sig_name.index(LEAD) if LEAD in header.sig_name else 0
    # A damaged gain or baseline may be no number that fits the signal.
    signal = _read(path, ".hea", record.dac)[:, lead]
    if not np.isfinite(signal).all():
        raise ValueError(f"{path}.dat: has invalid samples, row {np.isnan(signal).argmax() + 1}")
    return signal


def _check_header(path: Path, header: Any) -> None:
    """Refuse a header that isn't of MIT-BIH's kind before wfdb allocates what it asks for."""
    leads, samples = header.n_sig or 0, header.sig_len or 0
    expected: dict[str, set[Any]] = {
        "fs": {RECORDED},
        "file_name": {f"{path.name}.dat"},
        "fmt": {"212"},
        "samps_per_frame": {1},
        "skew": {None},
        "byte_offset": {None},
    }
    for field, wanted in expected.items():
        value = getattr(header, field)
        if not leads or set(value if isinstance(value, list) else [value]) != wanted:
            raise ValueError(f"{path}.hea: {field} is {value}, all of MIT-BIH have {min(wanted)}")
    if None in header.checksum or not all(header.adc_gain):
        raise ValueError(f"{path}.hea: damaged, a lead without checksum or gain")
    data = path.with_suffix(".dat")
    size, needed = data.stat().st_size if data.is_file() else 0, -(-leads * samples * 3 // 2)
    if samples < 1 or size != needed:
        raise ValueError(f"{data}: {size:,} bytes, damaged; {path.name}.hea asks for {needed:,}")


def _read(path: Path, suffix: str, read: Any) -> Any:
    file = path.with_suffix(suffix)
    if not file.is_file():
        raise ValueError(f"{file}: no such file, the record is incomplete")
    try:
        return read()
    except Exception as error:  # wfdb raises nearly anything on damaged files
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise ValueError(f"{file}: damaged ({reason})") from error


def cut_beats(signal: np.ndarray, rate: int, peaks: np.ndarray) -> np.ndarray:
    """Cut and normalise all beats but the last, which has no R-R interval.

    Args:
        signal: (samples,), one lead.
        rate: of the signal, in Hz.
        peaks: (beats,), times of the R peaks in seconds, rising.

    Returns:
        (beats - 1, 187) float32 from 0 to 1 at 125 Hz; a beat of constant signal is all 0.
    """
    from scipy.signal import resample_poly

    # "line" takes the offset away first, which would ring at the ends.
    resampled = resample_poly(signal, RATE, rate, padtype="line")
    starts = np.round(peaks[:-1] * RATE).astype(int)
    lengths = np.round(1.2 * RATE * periods(peaks)).astype(int).clip(2, LENGTH)
    beats = np.zeros((len(starts), LENGTH), dtype=np.float32)
    for beat, start, length in zip(beats, starts, lengths, strict=True):
        piece = resampled[start : start + length]
        height = np.ptp(piece)
        beat[: len(piece)] = (piece - piece.min()) / height if height else 0.0
    return beats


def periods(peaks: np.ndarray) -> np.ndarray:
    """Median R-R interval of the window that each peak but the last lies in, in seconds.

    Args:
        peaks: (beats,), times of the R peaks in seconds, rising.

    Returns:
        (beats - 1,), over windows of 10 s from the record's start on.
    """
    intervals = np.diff(peaks)
    windows = (peaks[:-1] // WINDOW).astype(int)
    medians = {window: np.median(intervals[windows == window]) for window in np.unique(windows)}
    return np.array([medians[window] for window in windows])
