"""PhysioNet's records: their list, the download, the cache."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from DatasetClass.patients import (
    DS1,
    DS2,
)
from DatasetClass.raw import physionet
from DatasetClass.raw.physionet import read_physionet, record_names
from DatasetClass.raw.wfdb_records import read_record
from DatasetClass.storage import download


@pytest.mark.parametrize(("names", "row"), [("100\n../100\n", 2), ("100\n100\n", 2), ("x", 1)])
def test_wrong_names_of_records_are_refused(names: str, row: int, record: Path) -> None:
    (record.parent / "RECORDS").write_text(names)
    with pytest.raises(ValueError, match=f"RECORDS, row {row}"):
        read_physionet(record.parents[1])


@pytest.mark.parametrize(
    "text", ["100", "100\r\n101\r\n", "\ufeff100\n101\n", " 100 \n101\t\n\n  \n", "100\n101\n\n\n"]
)
def test_what_editors_add_to_the_list_changes_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "RECORDS").write_bytes(text.encode())
    assert record_names(tmp_path) == ["100", "101"][: 1 + text.count("101")]


@pytest.mark.parametrize(("text", "row"), [("100\n\n101\n", 2), ("\n100", 1), ("100 101\n", 1)])
def test_the_list_has_one_record_a_line(text: str, row: int, tmp_path: Path) -> None:
    (tmp_path / "RECORDS").write_text(text)
    with pytest.raises(ValueError, match=f"RECORDS, row {row}: .* expected a number, each once"):
        record_names(tmp_path)


def test_the_second_start_cuts_nothing(record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = {name: np.array(array) for name, array in read_physionet(record.parents[1]).items()}
    with monkeypatch.context() as patch:
        patch.setattr(
            "DatasetClass.raw.wfdb_records.read_record", lambda path: pytest.fail("cut again")
        )
        again = read_physionet(record.parents[1])
    assert all(np.array_equal(first[name], again[name]) for name in first)
    annotation = record.with_suffix(".atr")  # a change is noticed
    annotation.write_bytes(b"\0\0")
    with pytest.raises(ValueError, match="annotated beats"):
        read_physionet(record.parents[1])


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
        monkeypatch.setattr(download, "download", self.download)

    def download(self, url: str, path: Path, sha256: str, what: str) -> Path:
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


@pytest.mark.real
def test_real_records_have_the_hashes_that_the_source_is_anchored_to(real_records: Path) -> None:
    sums = real_records / "mitdb" / "SHA256SUMS.txt"
    assert hashlib.sha256(sums.read_bytes()).hexdigest() == physionet.SUMS_SHA256
    listed = physionet.read_sums(sums)
    assert {name[:3] for name in listed if name != "RECORDS"} == {
        str(n) for n in (*DS1, *DS2, 102, 104, 107, 217)
    }
