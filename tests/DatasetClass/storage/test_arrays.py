"""Readers of .npy and .npz that look before they allocate."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from DatasetClass.storage.arrays import read_npy, read_npz


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.ones((2, 3))),
        np.array(3),
        np.empty((0, 5)),
    ],
)
def test_npy_files_are_read(array: np.ndarray, mmap: bool, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    got = read_npy(tmp_path / "a.npy", mmap)
    assert got.dtype == array.dtype and got.shape == array.shape
    np.testing.assert_array_equal(got, array)


def header(descr: object, shape: object, size: int = 128) -> bytes:
    """A .npy of ``size`` bytes that asks for ``shape``."""
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    head = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
    return (head + text.encode().ljust(117) + b"\n").ljust(size, b"\0")


BAD = [
    header("<f8", (2**32,)),
    header("<f8", (10**30, 0)),
    header("<f8", (True,), 136),
    header("<f8", (-1,)),
    header("|V0", (10**9,)),
    header("|O", (1,), 136),
    header([("a", "<f8")], (1,), 136),
    header("<f8", (1,), 137),
    header("nonsense", (1,), 136),
    header("<f8", "x"),
    b"\x93NUMPY\x03\x00" + header("<f8", (1,), 136)[8:],
    b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
    b"",
    b"PK\x03\x04",
]


@pytest.mark.parametrize("content", BAD)
def test_bad_npy_files_are_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    for mmap in (True, False):
        with pytest.raises(ValueError, match="damaged") as error:
            read_npy(path, mmap)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_npz_files_are_read(tmp_path: Path) -> None:
    arrays = {"f": np.ones((4, 3), np.float32), "i": np.arange(4), "n": np.empty((0, 5), np.uint8)}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays, other=np.zeros(3))
        got = read_npz(tmp_path / "a.npz", arrays)
        assert got.keys() == arrays.keys()
        for name, expected in arrays.items():
            assert got[name].dtype == expected.dtype
            np.testing.assert_array_equal(got[name], expected)


def write_member(path: Path, content: bytes, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a.npy", content)
    return path


@pytest.mark.parametrize("content", BAD)
def test_bad_members_of_an_npz_are_named(content: bytes, tmp_path: Path) -> None:
    path = write_member(tmp_path / "a.npz", content)
    with pytest.raises(ValueError, match="damaged") as error:
        read_npz(path, ["a"])
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_an_npz_that_lies_is_refused(tmp_path: Path) -> None:
    path = write_member(tmp_path / "a.npz", header("<f8", (1,), 136))
    whole = path.read_bytes()
    asks = write_member(path, header("<f8", (2**27,), 136)).read_bytes()
    size = (2**30 + 128).to_bytes(4, "little")
    lies = asks.replace((136).to_bytes(4, "little"), size)
    flipped = bytearray(whole)
    flipped[45] ^= 1
    for content in (lies, bytes(flipped), whole[:-30], b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="damaged"):
            read_npz(path, ["a"])
    write_member(path, header("<f8", (1,), 136), zipfile.ZIP_BZIP2)
    with pytest.raises(ValueError, match="packed"):
        read_npz(path, ["a"])
    write_member(path, header("<f8", (1,), 136))
    with pytest.raises(ValueError, match="no array b"):
        read_npz(path, ["b"])
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_npz(tmp_path / "absent.npz", ["a"])


def test_a_false_header_costs_less_than_100_mb(tmp_path: Path) -> None:
    """FAULTS.md 14: 128 bytes that ask for 32 GiB, in a process of its own."""
    path = tmp_path / "a.npy"
    path.write_bytes(header("<f8", (2**32,)))
    write_member(tmp_path / "a.npz", path.read_bytes())
    code = f"""
import json, pathlib, resource
from DatasetClass.storage.arrays import read_npy, read_npz
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
folder, refused = pathlib.Path({str(tmp_path)!r}), 0
for read in (lambda: read_npy(folder / "a.npy", False), lambda: read_npz(folder / "a.npz", "a")):
    try:
        read()
    except ValueError:
        refused += 1
print(json.dumps([refused, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    refused, kilobytes = json.loads(done.stdout)
    assert refused == 2
    assert kilobytes < 100_000
