"""MIT-BIH's records: beats and labels, harmless forms of the header, and damage by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import wfdb
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import resample

from DatasetClass.raw.physionet import read_physionet
from DatasetClass.raw.wfdb_records import read_record

Damage = Callable[[bytes], bytes]


def test_a_beat_starts_at_its_peak_and_ends_in_zeros(data_dir: Path) -> None:
    beats, labels = read_record(data_dir / "mitdb" / "100")
    assert beats.shape == (len(labels), 187)
    assert len(labels) == 73  # of 74 annotated beats; the last has no R-R interval
    assert labels[:5].tolist() == [0, 1, 2, 3, 4]  # N A V F Q; the rhythm change is left out
    assert (beats[:, 0] > 0.9).all()  # the synthetic R peak is the maximum
    assert (beats[:, 120:] == 0).all()  # 1.2 x 0.8 s x 125 Hz = 120 samples
    assert (beats[:, :120].max(axis=1) == 1).all()


@pytest.mark.parametrize(
    ("suffix", "damage", "message"),
    [
        (".dat", lambda raw: raw[:-3], "64,797 bytes, damaged"),
        (".dat", lambda raw: raw + b"\0", "64,801 bytes, damaged"),
        (".dat", lambda raw: b"\1" + raw[1:], "wrong checksum"),
        (".dat", None, "0 bytes, damaged"),
        (".hea", None, "no such file"),
        (".hea", lambda raw: b"", "damaged"),
        (".hea", lambda raw: raw.replace(b"100.dat", b"secret.dat"), "file_name"),
        (".hea", lambda raw: raw.replace(b" 21600", b" 99999999999999"), "damaged"),
        (".hea", lambda raw: raw.replace(b" 360 ", b" 250 "), "fs is 250"),
        (".hea", lambda raw: raw.replace(b" 212 ", b" 16 "), "fmt is"),
        (".atr", None, "no such file"),
        (".atr", lambda raw: b"", "damaged"),
        (".atr", lambda raw: b"\0\0", "annotated beats"),
        (".atr", lambda raw: raw[:-2] + b"\xff\x07\0\0", "beats don't rise"),
    ],
)
def test_damaged_records_are_named(
    suffix: str, damage: Damage | None, message: str, record: Path
) -> None:
    file = record.with_suffix(suffix)
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        read_physionet(record.parents[1])
    assert str(error.value).startswith(str(record))
    assert "\n" not in str(error.value)
    assert not list(record.parents[1].rglob("*.npy"))  # nothing half-written


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.replace(b"\n", b"\r\n"),
        lambda raw: raw.rstrip(b"\n"),
        lambda raw: raw.replace(b"\n", b"  \n") + b"\n \n\n",
        lambda raw: b"\xef\xbb\xbf# made by hand\n" + raw + b"# 68 M 1960\n",
        lambda raw: raw.replace(b" ", b"\t"),
        lambda raw: raw.replace(b" ", b"  ").replace(b"\n", b"\n\n"),
    ],
)
def test_what_editors_add_to_a_header_changes_nothing(
    change: Callable[[bytes], bytes], record: Path
) -> None:
    """The lead MLII stands second, so that a name read wrongly would give another signal."""
    beats, labels = read_record(record)
    header = record.with_suffix(".hea")
    header.write_bytes(change(header.read_bytes()))
    again, kinds = read_record(record)
    assert np.array_equal(beats, again) and np.array_equal(labels, kinds)


@settings(max_examples=60, deadline=None)
@given(
    suffix=st.sampled_from([".dat", ".hea", ".atr"]),
    at=st.floats(0, 1),
    patch=st.binary(max_size=6),
    cut=st.booleans(),
)
def test_any_damage_is_read_or_named(
    suffix: str,
    at: float,
    patch: bytes,
    cut: bool,
    data_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    for source in (data_dir / "mitdb").glob("100.*"):
        shutil.copy(source, folder)
    file = folder / f"100{suffix}"
    raw = file.read_bytes()
    start = round(at * len(raw))
    file.write_bytes(raw[:start] + patch + (b"" if cut else raw[start + len(patch) :]))
    try:
        beats, labels = read_record(folder / "100")
    except ValueError as error:
        assert str(folder / "100") in str(error)
    else:
        assert np.isfinite(beats).all() and len(beats) == len(labels)


@pytest.mark.real
def test_real_record_100_agrees_with_its_annotations(real_records: Path) -> None:
    path = str(real_records / "mitdb" / "100")
    annotation, signal = wfdb.rdann(path, "atr"), wfdb.rdrecord(path).p_signal[:, 0]
    codes = np.array(annotation.symbol)
    # physionet.org/physiobank/database/html/mitdbdir/records.htm: 2239 normal, 33 atrial, 1 V
    assert {code: int((codes == code).sum()) for code in "NAV"} == {"N": 2239, "A": 33, "V": 1}
    beats, labels = read_record(Path(path))
    assert np.bincount(labels).tolist() == [2238, 33, 1]
    peaks = annotation.sample[np.isin(codes, list("NAV"))]
    assert peaks[0] == 77
    assert (labels == np.vectorize("NAV".index)(codes[np.isin(codes, list("NAV"))])[:-1]).all()
    # Each beat against its stretch of the signal, brought to 125 Hz by Fourier's method instead.
    resampled = resample(signal[: 1800 * 360], 1800 * 125)
    lengths = [int(np.flatnonzero(beat)[-1]) + 1 for beat in beats]
    for beat, peak, length in list(zip(beats, peaks, lengths, strict=False))[10:-10:50]:
        raw = resampled[round(peak / 2.88) :][:length]
        assert np.corrcoef(beat[:length], raw)[0, 1] > 0.999
    # 1.2 times the period: record 100 beats 75 a minute, 0.8 s, throughout.
    ratio = np.array(lengths) / 125 / (np.median(np.diff(peaks)) / 360)
    assert abs(np.median(ratio) - 1.2) < 0.03
