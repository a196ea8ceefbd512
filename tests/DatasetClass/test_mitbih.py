"""Heartbeats: cutting, PhysioNet's records, Kaggle's layout, the splits."""

from __future__ import annotations

import hashlib
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import wfdb
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import resample

import DatasetClass
from DatasetClass import download, export, kaggle, physionet
from DatasetClass.heartbeat_splits import (
    DS1,
    DS2,
    KAGGLE_BEATS,
    KAGGLE_TEST,
    SAME_PATIENT,
    VALIDATION,
    inter_patient_split,
    random_split,
)
from DatasetClass.heartbeats import cut_beats, periods, read_record
from DatasetClass.kaggle import read_kaggle, write_kaggle
from DatasetClass.physionet import read_physionet

Damage = Callable[[bytes], bytes]


@pytest.fixture
def record(data_dir: Path, tmp_path: Path) -> Path:
    """A copy of the record 100 of the fixture, to be damaged."""
    shutil.copytree(data_dir / "mitdb", tmp_path / "mitdb")
    return tmp_path / "mitdb" / "100"


# --- cutting --------------------------------------------------------------------------------------
def test_a_beat_starts_at_its_peak_and_ends_in_zeros(data_dir: Path) -> None:
    beats, labels = read_record(data_dir / "mitdb" / "100")
    assert beats.shape == (len(labels), 187)
    assert len(labels) == 73  # of 74 annotated beats; the last has no R-R interval
    assert labels[:5].tolist() == [0, 1, 2, 3, 4]  # N A V F Q; the rhythm change is left out
    assert (beats[:, 0] > 0.9).all()  # the synthetic R peak is the maximum
    assert (beats[:, 120:] == 0).all()  # 1.2 x 0.8 s x 125 Hz = 120 samples
    assert (beats[:, :120].max(axis=1) == 1).all()


def test_cut_beats_of_a_constant_signal_are_zero() -> None:
    beats = cut_beats(np.zeros(3600), 360, np.array([1.0, 2.0, 9.99]))
    assert beats.shape == (2, 187)
    assert (beats == 0).all()


def test_the_period_is_the_median_of_its_window() -> None:
    peaks = np.array([0.5, 1.5, 2.5, 5.5, 9.9, 10.1, 10.7, 11.5])
    # Windows 0 to 10 s: intervals 1, 1, 3, 4.4, 0.2; 10 to 20 s: 0.6, 0.8.
    np.testing.assert_allclose(periods(peaks), [1, 1, 1, 1, 1, 0.7, 0.7])


@settings(max_examples=30, deadline=None)
@given(
    gaps=st.lists(st.integers(1, 2000), min_size=1, max_size=30), offset=st.floats(-5, 5), seed=...
)
def test_every_beat_lies_in_0_to_1(gaps: list[int], offset: float, seed: int) -> None:
    peaks = np.cumsum(gaps)
    signal = np.random.default_rng(abs(seed)).standard_normal(peaks[-1] + 1) + offset
    beats = cut_beats(signal, 360, peaks / 360)
    assert beats.shape == (len(gaps) - 1, 187)
    assert beats.dtype == np.float32
    assert ((beats >= 0) & (beats <= 1)).all()


# --- PhysioNet's records --------------------------------------------------------------------------
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


@pytest.mark.parametrize(("names", "row"), [("100\n../100\n", 2), ("100\n100\n", 2), ("x", 1)])
def test_wrong_names_of_records_are_refused(names: str, row: int, record: Path) -> None:
    (record.parent / "RECORDS").write_text(names)
    with pytest.raises(ValueError, match=f"RECORDS, row {row}"):
        read_physionet(record.parents[1])


def test_the_second_start_cuts_nothing(record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = {name: np.array(array) for name, array in read_physionet(record.parents[1]).items()}
    with monkeypatch.context() as patch:
        patch.setattr("DatasetClass.heartbeats.read_record", lambda path: pytest.fail("cut again"))
        again = read_physionet(record.parents[1])
    assert all(np.array_equal(first[name], again[name]) for name in first)
    annotation = record.with_suffix(".atr")  # a change is noticed
    annotation.write_bytes(b"\0\0")
    with pytest.raises(ValueError, match="annotated beats"):
        read_physionet(record.parents[1])


@pytest.mark.parametrize("label", [-1, 5, 2**60])
def test_a_cache_with_an_impossible_label_is_named(label: int, record: Path) -> None:
    folder = record.parents[1]
    DatasetClass.load("mitbih", folder)
    cache = next((folder / "cache").rglob("labels.npy"))
    np.load(cache, mmap_mode="r+")[0] = label
    with pytest.raises(ValueError, match=r"cache: damaged, a label out of range; remove it"):
        DatasetClass.load("mitbih", folder)
    shutil.rmtree(folder / "cache")
    DatasetClass.load("mitbih", folder)


class Server:
    """PhysioNet with the record of the fixture in place of 48."""

    def __init__(self, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        names = ["100.atr", "100.dat", "100.hea", "RECORDS"]
        self.files = {name: (source / name).read_bytes() for name in names}
        digests = {name: hashlib.sha256(raw).hexdigest() for name, raw in self.files.items()}
        sums = "".join(f"{digest} {name}\n" for name, digest in digests.items()).encode()
        self.files["SHA256SUMS.txt"] = sums
        self.asked: list[str] = []
        self.missing: set[str] = set()
        monkeypatch.setattr(physionet, "SUMS_SHA256", hashlib.sha256(sums).hexdigest())
        monkeypatch.setattr(download, "fetch", self.fetch)

    def fetch(self, url: str, path: Path, sha256: str, what: str) -> Path:
        assert url == f"https://physionet.org/files/mitdb/1.0.0/{path.name}"
        assert hashlib.sha256(self.files[path.name]).hexdigest() == sha256
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            self.asked.append(path.name)
            if path.name in self.missing:
                raise FileNotFoundError(f"{path}: the download failed")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.files[path.name])
        return path


@pytest.fixture
def server(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    return Server(data_dir / "mitdb", monkeypatch)


def test_records_are_downloaded_once_and_go_on_where_they_stopped(
    server: Server, data_dir: Path, tmp_path: Path
) -> None:
    server.missing = {"100.hea"}
    with pytest.raises(FileNotFoundError, match=r"100\.hea.*mitbih_test\.csv of Kaggle"):
        read_physionet(tmp_path)
    assert server.asked == ["SHA256SUMS.txt", "100.atr", "100.dat", "100.hea"]
    assert not (tmp_path / "mitdb" / "RECORDS").exists()
    server.missing, server.asked = set(), []
    arrays = read_physionet(tmp_path)
    assert server.asked == ["100.hea", "RECORDS"]
    assert np.array_equal(arrays["beats"], read_record(data_dir / "mitdb" / "100")[0])
    read_physionet(tmp_path)
    assert server.asked == ["100.hea", "RECORDS"]


def test_a_damaged_download_is_kept_aside_and_replaced(server: Server, tmp_path: Path) -> None:
    download_again = r"100\.dat: wrong SHA-256.*next start downloads it again"
    read_physionet(tmp_path)
    data = tmp_path / "mitdb" / "100.dat"
    data.write_bytes(b"\1" + server.files["100.dat"][1:])
    with pytest.raises(ValueError, match=download_again):
        read_physionet(tmp_path)
    assert data.with_name("100.dat.damaged").is_file() and not data.exists()
    server.asked = []
    read_physionet(tmp_path)
    assert server.asked == ["100.dat"]
    assert data.read_bytes() == server.files["100.dat"]


def test_a_cut_list_of_records_is_not_taken_for_whole(server: Server, tmp_path: Path) -> None:
    read_physionet(tmp_path)
    records = tmp_path / "mitdb" / "RECORDS"
    records.write_text("100")  # as if the line after it were lost
    with pytest.raises(ValueError, match=r"RECORDS: wrong SHA-256.*next start downloads it"):
        read_physionet(tmp_path)
    server.asked = []
    read_physionet(tmp_path)
    assert server.asked == ["RECORDS"]
    assert records.read_bytes() == server.files["RECORDS"]


def test_damaged_checksums_are_brought_anew_and_missing_ones_spoken_of(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read_physionet(tmp_path)
    sums = tmp_path / "mitdb" / "SHA256SUMS.txt"
    sums.write_text("")
    shutil.rmtree(tmp_path / "cache")
    read_physionet(tmp_path)
    assert sums.read_bytes() == server.files["SHA256SUMS.txt"]
    assert "aren't compared" not in capsys.readouterr().out
    sums.unlink()
    shutil.rmtree(tmp_path / "cache")
    read_physionet(tmp_path)
    assert "no SHA256SUMS.txt, so the records' hashes aren't compared" in capsys.readouterr().out


# --- Kaggle's layout ------------------------------------------------------------------------------
def damage_columns(text: str) -> str:
    return "\n".join(line.rsplit(",", 1)[0] for line in text.splitlines())


def replace_row(row: int, change: Callable[[list[str]], list[str]]) -> Callable[[str], str]:
    def damage(text: str) -> str:
        lines = text.splitlines()
        lines[row - 1] = ",".join(change(lines[row - 1].split(",")))
        return "\n".join(lines)

    return damage


def first_cell(cell: str, row: int = 3) -> Callable[[str], str]:
    return replace_row(row, lambda cells: [cell, *cells[1:]])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_columns, "row 1: 187 columns"),
        (lambda text: damage_columns(damage_columns(text)), "row 1: 186 columns"),
        (replace_row(3, lambda cells: [*cells, "1"]), "row 3: 189 columns"),
        (replace_row(3, lambda cells: cells[1:]), "row 3: 187 columns"),
        (replace_row(2, lambda cells: []), "row 2: 1 columns"),
        (first_cell("abc"), "row 3, column 1: 'abc' is no number"),
        (first_cell("=1+1"), "row 3, column 1: '=1\\+1' is no number"),
        (first_cell("@SUM(A1)"), "row 3, column 1: '@SUM"),
        (first_cell('"0.5"'), "row 3, column 1"),
        (first_cell("1_0"), "row 3, column 1"),
        (first_cell("\x1b[2J"), r"row 3, column 1: '\\x1b"),
        (first_cell(""), "row 3, column 1: '' is no number"),
        (first_cell("nan", 4), "row 4, column 1: 'nan' is missing or not finite"),
        (first_cell("1e39", 4), "row 4, column 1: '1e39' is missing or not finite"),
        (replace_row(5, lambda cells: [*cells[:-1], "7"]), "row 5, column 188: label 7"),
        (replace_row(5, lambda cells: [*cells[:-1], "0.5"]), "row 5, column 188: label 0.5"),
        (lambda text: ",".join(map(str, range(188))) + "\n" + text, "row 1.*no header"),
        (lambda text: ",".join(["x"] * 188) + "\n" + text, "row 1.*no header"),
        (lambda text: text[: len(text) // 3 + 7], "row"),
        (lambda text: text.replace("\n", ";"), "row 1"),
        (lambda text: "\0" * 50000, "row 1"),
        (lambda text: "", "empty"),
    ],
)
def test_damaged_kaggle_files_are_named(
    damage: Callable[[str], str],
    message: str,
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kaggle, "BLOCK", 2)  # so that the bad row lies in a later block
    text = (data_dir / "mitbih_train.csv").read_text()
    path = tmp_path / "mitbih_train.csv"
    path.write_text(damage(text))
    with pytest.raises(ValueError, match=message) as error:
        read_kaggle(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


@settings(max_examples=60, deadline=None)
@given(at=st.floats(0, 1), patch=st.binary(max_size=6), cut=st.booleans())
def test_any_damaged_row_is_read_or_named(
    at: float, patch: bytes, cut: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "mitbih_test.csv"
    raw = (",".join(["0.25"] * 187) + ",1.0\n").encode() * 4
    start = round(at * len(raw))
    path.write_bytes(raw[:start] + patch + (b"" if cut else raw[start + len(patch) :]))
    try:
        beats, labels = read_kaggle(path)
    except ValueError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
    else:
        assert np.isfinite(beats).all() and set(labels.tolist()) <= set(range(5))


def test_byte_order_mark_and_crlf_are_read(data_dir: Path, tmp_path: Path) -> None:
    text = (data_dir / "mitbih_train.csv").read_text()
    path = tmp_path / "mitbih_train.csv"
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert np.array_equal(read_kaggle(path)[0], read_kaggle(data_dir / "mitbih_train.csv")[0])


def test_reading_agrees_with_numpy(data_dir: Path) -> None:
    path = data_dir / "mitbih_test.csv"
    table = np.loadtxt(path, delimiter=",")
    beats, labels = read_kaggle(path)
    np.testing.assert_array_equal(beats, table[:, :187].astype(np.float32))
    assert labels.tolist() == table[:, 187].tolist()


def test_what_is_written_is_read_bit_by_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    beats = rng.random((300, 187), dtype=np.float32)
    beats[0, :5] = np.float32([0, 1, 1e-38, 1e-7, 1 / 3])
    labels = np.arange(300) % 5
    path = tmp_path / "mitbih_train.csv"
    write_kaggle(path, beats, labels)
    again, kinds = read_kaggle(path)
    assert np.array_equal(again, beats)
    assert np.array_equal(kinds, labels)
    with pytest.raises(FileExistsError, match="move it first"):
        write_kaggle(path, beats, labels)


def test_reading_takes_the_beats_and_one_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kaggle, "BLOCK", 100)
    path = tmp_path / "mitbih_train.csv"
    row = ",".join(["1.000000000000000000e+00"] * 187) + ",0.000000000000000000e+00\n"
    path.write_text(row * 3000)
    read_kaggle(path)  # imports pandas
    tracemalloc.start()
    beats, _ = read_kaggle(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < beats.nbytes + 20 * 100 * len(row) < path.stat().st_size


def test_line_ends_alone_take_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "mitbih_train.csv"
    path.write_bytes(b"\n" * 10**6)  # as rows they would be 756 MB
    tracemalloc.start()
    with pytest.raises(ValueError, match="row 1: 1 columns"):
        read_kaggle(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_an_export_over_one_file_writes_none(record: Path, tmp_path: Path) -> None:
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "mitbih_test.csv").write_text("Kaggle's")
    with pytest.raises(FileExistsError, match=r"mitbih_test\.csv: is there already"):
        export.main(["--data_dir", str(record.parents[1]), "--folder", str(tmp_path / "csv")])
    assert [path.name for path in (tmp_path / "csv").iterdir()] == ["mitbih_test.csv"]


def test_exported_files_serve_like_the_records(record: Path, tmp_path: Path) -> None:
    flags = ["--data_dir", str(record.parents[1]), "--folder", str(tmp_path / "csv"), "--seed=3"]
    export.main(flags)
    files = [tmp_path / "csv" / f"mitbih_{part}.csv" for part in ("train", "test")]
    assert [file.name for file in files] == ["mitbih_train.csv", "mitbih_test.csv"]
    cut = DatasetClass.load("mitbih", record.parents[1], seed=3)
    read = DatasetClass.load("mitbih", tmp_path / "csv", seed=3)
    assert (cut.source, read.source) == ("physionet", "kaggle")
    for (beats, labels), (others, kinds) in zip(
        cut.fixed("test", 8), read.fixed("test", 8), strict=True
    ):
        assert torch.equal(beats, others)
        assert torch.equal(labels, kinds)
    assert [cut.train.samples, cut.val.samples] == [read.train.samples, read.val.samples]


# --- the splits -----------------------------------------------------------------------------------
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


def test_a_split_by_patient_needs_the_records(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs --source physionet"):
        DatasetClass.load("mitbih", data_dir, source="kaggle", split="inter_patient")
    with pytest.raises(ValueError, match="'half'"):
        DatasetClass.load("mitbih", data_dir, split="half")
    copies = {"100": 100, "101": 101, "201": 201, "202": 202, "208": 208, "102": 102}
    make_records(data_dir / "mitdb", tmp_path / "mitdb", list(copies))
    dataset = DatasetClass.load("mitbih", tmp_path, split="inter_patient")
    members = {
        part: dataset.record_of[getattr(dataset, part).indices].unique().tolist()
        for part in ("train", "val", "test")
    }
    assert members == {"train": [208], "val": [101], "test": [100, 202]}
    assert dataset.data_args["split"] == "inter_patient"
    assert "split by patient" in dataset.describe()


def make_records(source: Path, folder: Path, names: list[str]) -> None:
    """The fixture's record under other names."""
    folder.mkdir()
    for name in names:
        for file in source.glob("100.*"):
            raw = file.read_bytes()
            if file.suffix == ".hea":
                raw = raw.replace(b"100", name.encode())
            (folder / file.name.replace("100", name)).write_bytes(raw)
    (folder / "RECORDS").write_text("\n".join(names))


# --- the real records -----------------------------------------------------------------------------
@pytest.fixture(scope="module")
def real(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real records without anyone's cache."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "mitdb").symlink_to((real_data / "mitdb").resolve())
    return folder


@pytest.mark.real
def test_real_class_counts_are_the_published_ones(real: Path) -> None:
    dataset = DatasetClass.load("mitbih", real)
    assert dataset.labels.bincount().tolist() == [90589, 2779, 7236, 803, 8039]
    assert (dataset.test.samples, dataset.train.samples + dataset.val.samples) == (21892, 87554)


@pytest.mark.real
def test_real_record_100_agrees_with_its_annotations(real: Path) -> None:
    path = str(real / "mitdb" / "100")
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


@pytest.mark.real
def test_real_patients_are_apart_and_counts_are_de_chazals(real: Path) -> None:
    dataset = DatasetClass.load("mitbih", real, split="inter_patient")
    headers = {n: (real / "mitdb" / f"{n}.hea").read_text().splitlines()[3] for n in DS1 + DS2}
    people = {
        part: {headers[int(n)] for n in dataset.record_of[getattr(dataset, part).indices].unique()}
        for part in ("train", "val", "test")
    }
    assert headers[201] == headers[202]  # age, sex and recorders: one man
    assert not people["train"] & people["test"]
    assert not people["train"] & people["val"]
    assert not people["val"] & people["test"]
    counts = {p: dataset.labels[getattr(dataset, p).indices].bincount() for p in people}
    assert counts["val"].tolist() == [8008, 110, 591, 30, 2]  # all five classes


@pytest.mark.real
@pytest.mark.parametrize(
    ("records", "published"),
    [(DS1, [45866, 944, 3788, 415, 8]), (DS2, [44259, 1837, 3221, 388, 7])],
)
def test_real_counts_are_de_chazals(records: list[int], published: list[int], real: Path) -> None:
    """Table II of the paper from the annotations; ours lack the last beat of each record."""
    groups = {
        code: i for i, codes in enumerate(("NLRej", "AaJS", "VE", "F", "/fQ")) for code in codes
    }
    codes = [wfdb.rdann(str(real / "mitdb" / str(n)), "atr").symbol for n in records]
    labels = [[groups[code] for code in record if code in groups] for record in codes]
    annotated = np.bincount(np.concatenate(labels), minlength=5)
    assert annotated.tolist() == published
    arrays = read_physionet(real)
    ours = np.bincount(arrays["labels"][np.isin(arrays["records"], records)], minlength=5)
    last = np.bincount([record[-1] for record in labels], minlength=5)
    assert (ours + last).tolist() == published


@pytest.mark.real
def test_real_records_have_the_hashes_that_the_source_is_anchored_to(real: Path) -> None:
    sums = real / "mitdb" / "SHA256SUMS.txt"
    assert hashlib.sha256(sums.read_bytes()).hexdigest() == physionet.SUMS_SHA256
    listed = physionet.read_sums(sums)
    assert {name[:3] for name in listed if name != "RECORDS"} == {
        str(n) for n in (*DS1, *DS2, 102, 104, 107, 217)
    }
