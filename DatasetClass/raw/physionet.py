"""The 48 records of the MIT-BIH Arrhythmia Database (Moody & Mark 2001) from PhysioNet.

Downloaded where absent, file by file, each checked against SHA256SUMS.txt, whose own hash stands
here; an interrupted download goes on with the files that are missing. wfdb reads the records but
doesn't bring them: its ``dl_database`` checks no hash and keeps a truncated file for good.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from DatasetClass.raw.heartbeats import KACHUEE, Cut
from DatasetClass.storage.arrays import Arrays
from DatasetClass.storage.cache import cached, fingerprint
from utilities.progress import track

URL = "https://physionet.org/files/mitdb/1.0.0/"
SUMS = "SHA256SUMS.txt"
SUMS_SHA256 = "b61158a96d5f2ca80edfb354a9a66a6324836c390a84e1966dcee2b907d6be43"
SUFFIXES = (".hea", ".dat", ".atr")
VERSION = 1  # of the cutting; raise it with every change that changes beats
RR_VERSION = 1  # of the R-R intervals


def read_physionet(data_dir: Path, cut: Cut = KACHUEE) -> Arrays:
    """Beats of all records below ``data_dir``/mitdb, cut once and from then on mapped from disk.

    Args:
        data_dir: folder of mitdb/, and of the cache.
        cut: where beats begin, and their scale; each has a cache of its own.

    Returns:
        ``beats`` (N, 187) float32, ``labels`` (N,) int64, ``records`` (N,) int64: the number of
        the record that each beat is from.

    Raises:
        FileNotFoundError: no records there, and they can't be downloaded.
        ValueError: a damaged record; the message names the file.
    """
    folder = data_dir / "mitdb"
    if _incomplete(folder):
        download_records(folder)
    names = record_names(folder)
    files = [folder / f"{name}{suffix}" for name in names for suffix in SUFFIXES]
    version = fingerprint([folder / "RECORDS", *files], VERSION)
    home = "mitbih_physionet" + (f"_before{cut.samples}" if cut.samples else "")
    home += "" if cut.scale == KACHUEE.scale else f"_{cut.scale}"
    return cached(data_dir / "cache" / home, version, lambda: _cut(folder, names, cut))


def read_rr(data_dir: Path) -> np.ndarray:
    """R-R intervals (N, 4) float32 of the beats that ``read_physionet`` has cut before.

    They have a cache of their own, which leaves the beats' as it is.

    Raises:
        ValueError: a damaged record; the message names the file.
    """
    folder = data_dir / "mitdb"
    names = record_names(folder)
    files = [folder / f"{name}{suffix}" for name in names for suffix in (".hea", ".atr")]
    version = fingerprint([folder / "RECORDS", *files], RR_VERSION)

    def read() -> Arrays:
        from DatasetClass.raw.wfdb_records import read_rr_intervals

        return {"intervals": np.concatenate([read_rr_intervals(folder / name) for name in names])}

    return cached(data_dir / "cache" / "mitbih_rr_intervals", version, read)["intervals"]


def record_names(folder: Path) -> list[str]:
    """The records that the file RECORDS lists.

    Raises:
        ValueError: it is empty, or a line is no record's number; the message names the row.
    """
    path = folder / "RECORDS"
    names: list[str] = []
    text = path.read_text(encoding="utf-8-sig", errors="replace").rstrip()
    for row, line in enumerate(text.splitlines(), start=1):
        name = line.strip()
        if not re.fullmatch(r"[0-9]{1,9}", name) or name in names:
            raise ValueError(f"{path}, row {row}: {name[:40]!a}, expected a number, each once")
        names.append(name)
    if not names:
        raise ValueError(f"{path}: empty; remove it")
    return names


def _incomplete(folder: Path) -> bool:
    """Whether there are no records, or a download of ours that lacks files."""
    if not (folder / "RECORDS").is_file():
        return True
    files = [folder / f"{name}{suffix}" for name in record_names(folder) for suffix in SUFFIXES]
    return (folder / SUMS).is_file() and not all(file.is_file() for file in files)


def download_records(folder: Path) -> None:
    """Bring the files that are missing or damaged; RECORDS comes last and marks the whole.

    Raises:
        FileNotFoundError: a file can't be had; those that came stay for the next try.
        ValueError: a file has a wrong hash each time.
    """
    from DatasetClass.storage.download import download

    try:
        download(URL + SUMS, folder / SUMS, SUMS_SHA256, "MIT-BIH's checksums")
        sums = read_sums(folder / SUMS)
        names = sorted(name for name in sums if name.endswith(SUFFIXES))
        for number, name in enumerate(names, start=1):
            what = f"MIT-BIH {name} ({number} of {len(names)})"
            download(URL + name, folder / name, sums[name], what)
        download(URL + "RECORDS", folder / "RECORDS", sums["RECORDS"], "MIT-BIH's list of records")
    except FileNotFoundError as error:
        kaggle = "mitbih_train.csv and mitbih_test.csv of Kaggle"
        raise FileNotFoundError(f"{error}; or put {kaggle} into {folder.parent}") from error


def read_sums(path: Path) -> dict[str, str]:
    """SHA-256 of each record's files and of RECORDS, by name."""
    lines = re.findall(r"^([0-9a-f]{64}) ([0-9]+\.\w{3}|RECORDS)$", path.read_text(), re.M)
    return {name: digest for digest, name in lines}


def _cut(folder: Path, names: list[str], cut: Cut) -> Arrays:
    from DatasetClass.raw.wfdb_records import read_record

    _verify(folder, names)
    parts = []
    for name in track(names, "records cut into heartbeats, once"):
        beats, labels = read_record(folder / name, cut)
        parts.append((beats, labels, np.full(len(labels), int(name))))
    beats, labels, records = (np.concatenate(part) for part in zip(*parts, strict=True))
    return {"beats": beats, "labels": labels, "records": records}


def _verify(folder: Path, names: list[str]) -> None:
    """Compare the hashes of RECORDS and the records' files where the folder has their list."""
    from DatasetClass.storage.damaged import check_hash
    from DatasetClass.storage.download import download

    if not (folder / SUMS).is_file():
        print(f"{folder}: no {SUMS}, so the records' hashes aren't compared")
        return
    download(URL + SUMS, folder / SUMS, SUMS_SHA256, "MIT-BIH's checksums")  # only if it is damaged
    sums = read_sums(folder / SUMS)
    for file in ["RECORDS", *(f"{name}{suffix}" for name in names for suffix in SUFFIXES)]:
        if file not in sums:
            raise ValueError(f"{folder / file}: not in {SUMS}; MIT-BIH has no such record")
        try:
            check_hash(folder / file, sums[file])
        except ValueError as error:
            raise ValueError(f"{error}; the next start downloads it again") from error
