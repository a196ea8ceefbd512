"""Read the records of MIT-BIH, in the WFDB format (wfdb.io), and refuse damaged ones by name.

wfdb reads the files; what it leaves unsaid about damage is looked for here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from DatasetClass.raw.heartbeats import CLASSES, KACHUEE, Beats, Cut, cut_beats, rr_intervals

# ANSI/AAMI EC57:1998, table 3: the annotation codes of each class.
AAMI = {"N": "NLRej", "S": "AaJS", "V": "VE", "F": "F", "Q": "/fQ"}
LABELS = {code: CLASSES.index(name) for name, codes in AAMI.items() for code in codes}
LEAD = "MLII"  # of 46 records; the other two, 102 and 104, have none and give their first lead
RECORDED = 360  # Hz, of the records


def read_record(path: Path, cut: Cut = KACHUEE) -> Beats:
    """Cut one record, named without extension, into beats and their classes' numbers.

    Args:
        path: of its three files, without extension.
        cut: where beats begin, and their scale.

    Raises:
        ValueError: one of its three files is missing or damaged; the message names it.
    """
    signal = _read_signal(path)
    peaks, labels = read_annotations(path, len(signal))
    if len(peaks) < 2:
        raise ValueError(f"{path}.atr: {len(peaks)} annotated beats, at least 2 are needed")
    return cut_beats(signal, RECORDED, peaks / RECORDED, cut), labels[:-1]


def read_rr_intervals(path: Path) -> np.ndarray:
    """R-R intervals of the beats that ``read_record`` cuts, (beats, 4) float32.

    Raises:
        ValueError: the header or the annotations are missing or damaged; the message names them.
    """
    import wfdb

    header = _read_part(path, ".hea", lambda: wfdb.rdheader(str(path)))
    _check_header(path, header)
    peaks, _ = read_annotations(path, header.sig_len)
    return rr_intervals(peaks / RECORDED)


def read_annotations(path: Path, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of a record's beats in samples, rising, and their classes: both (beats,) int64.

    Raises:
        ValueError: ``path``.atr is missing or damaged, or not of a record of ``samples`` samples.
    """
    import wfdb

    annotation = _read_part(path, ".atr", lambda: wfdb.rdann(str(path), "atr"))
    kept = [i for i, code in enumerate(annotation.symbol) if code in LABELS]
    labels = np.array([LABELS[annotation.symbol[i]] for i in kept], dtype=np.int64)
    peaks = np.asarray(annotation.sample, dtype=np.int64)[kept]
    if len(peaks) and (peaks[0] < 0 or peaks[-1] >= samples or (np.diff(peaks) <= 0).any()):
        raise ValueError(f"{path}.atr: damaged, its beats don't rise from 0 to {samples - 1}")
    return peaks, labels


def _read_signal(path: Path) -> np.ndarray:
    """One lead in mV, (samples,) float64, its checksum compared."""
    import wfdb

    header = _read_part(path, ".hea", lambda: wfdb.rdheader(str(path)))
    _check_header(path, header)
    record = _read_part(path, ".dat", lambda: wfdb.rdrecord(str(path), physical=False))
    # wfdb compares the header's checksums only when it writes.
    if ((record.d_signal.sum(axis=0) - header.checksum) % 65536).any():
        raise ValueError(f"{path}.dat: wrong checksum, the file or its header is damaged")
    lead = header.sig_name.index(LEAD) if LEAD in header.sig_name else 0
    # A damaged gain or baseline may be no number that fits the signal.
    signal = _read_part(path, ".hea", record.dac)[:, lead]
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
    for field, allowed in expected.items():
        value = getattr(header, field)
        if not leads or set(value if isinstance(value, list) else [value]) != allowed:
            raise ValueError(f"{path}.hea: {field} is {value}, all of MIT-BIH have {min(allowed)}")
    if None in header.checksum or not all(header.adc_gain):
        raise ValueError(f"{path}.hea: damaged, a lead without checksum or gain")
    data = path.with_suffix(".dat")
    size, needed = data.stat().st_size if data.is_file() else 0, -(-leads * samples * 3 // 2)
    if samples < 1 or size != needed:
        raise ValueError(f"{data}: {size:,} bytes, damaged; {path.name}.hea asks for {needed:,}")


def _read_part(path: Path, suffix: str, read: Callable[[], Any]) -> Any:
    file = path.with_suffix(suffix)
    if not file.is_file():
        raise ValueError(f"{file}: no such file, the record is incomplete")
    try:
        return read()
    except Exception as error:  # wfdb raises nearly anything on damaged files
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise ValueError(f"{file}: damaged ({reason})") from error
