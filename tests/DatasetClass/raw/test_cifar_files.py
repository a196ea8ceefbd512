"""The files of CIFAR: official batches as Python 2 wrote them, and damaged or planted ones."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import struct
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pooch
import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import datasets

import DatasetClass
import DatasetClass.raw.cifar_files as files
from DatasetClass.raw.cifar_batches import parse_batch
from DatasetClass.raw.cifar_files import read_cifar
from DatasetClass.raw.cifar_official import OFFICIAL, URL

TORCHVISION = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
CLASSES = {"cifar10": 10, "cifar100": 100}


def old_pickle(value: object) -> bytes:
    """Pickle a value as Python 2 did with protocol 2: text is bytes, arrays by their old name."""
    if isinstance(value, bytes):
        return b"T" + struct.pack("<i", len(value)) + value
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(old_pickle, value)) + b"e"
    if isinstance(value, dict):
        pairs = [old_pickle(part) for pair in value.items() for part in pair]
        return b"}(" + b"".join(pairs) + b"u"
    assert isinstance(value, np.ndarray)
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    kind = value.dtype.str[1:].encode()
    dtype = b"cnumpy\ndtype\n" + old_pickle(kind) + b"K\x00K\x01\x87R"
    dtype += b"(K\x03U\x01|NNN" + old_pickle(-1) * 2 + b"K\x00tb"
    shape = b"(" + b"".join(map(old_pickle, value.shape)) + b"t"
    return empty + b"(K\x01" + shape + dtype + b"\x89" + old_pickle(value.tobytes()) + b"tb"


def batch_bytes(name: str, count: int, seed: int = 0) -> tuple[bytes, np.ndarray, list[int]]:
    """An official batch with its images, one plane a channel, and its labels."""
    rng = np.random.default_rng(seed)
    planes = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
    labels = (np.arange(count) % CLASSES[name]).tolist()
    content = {b"batch_label": b"one", OFFICIAL[name].labels: labels, b"data": planes}
    return b"\x80\x02" + old_pickle(content) + b".", planes, labels


def test_the_old_pickles_of_these_tests_are_numpys() -> None:
    content, planes, labels = batch_bytes("cifar10", 3)
    loaded = pickle.loads(content, encoding="latin1")
    assert np.array_equal(loaded["data"], planes)
    assert loaded["labels"] == labels


@pytest.mark.parametrize("name", list(OFFICIAL))
def test_an_official_batch_is_read_as_torchvision_reads_it(name: str) -> None:
    content, planes, expected = batch_bytes(name, 5)
    images, labels = parse_batch(content, Path("batch"), name)
    assert np.array_equal(images, planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    assert images.flags.c_contiguous and labels.dtype == np.int64
    assert labels.tolist() == expected


class Official:
    """Tiny official files in a data folder, with their hashes taken for the known ones."""

    def __init__(self, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.name, self.folder, self.patch = name, folder, monkeypatch
        self.source = TORCHVISION[name]
        self.names = [file for file, _ in self.source.train_list + self.source.test_list]
        self.samples = [10 * CLASSES[name] + i for i in range(len(self.names))]
        self.content = {
            file: batch_bytes(name, self.samples[i], seed=i)[0] for i, file in enumerate(self.names)
        }
        self.know()

    def know(self, **changes: object) -> None:
        for part in ("train", "test"):
            files_of_part = getattr(OFFICIAL[self.name], part)
            changes[part] = {f: hashlib.md5(self.content[f]).hexdigest() for f in files_of_part}
        self.patch.setitem(OFFICIAL, self.name, replace(OFFICIAL[self.name], **changes))

    def lay_out(self) -> Path:
        raw = self.folder / self.source.base_folder
        raw.mkdir()
        for file, content in self.content.items():
            (raw / file).write_bytes(content)
        return raw

    def archive(self) -> Path:
        path = self.folder / self.source.filename
        with tarfile.open(path, "w:gz") as tar:
            for file, content in {**self.content, "readme.html": b"<html>"}.items():
                member = tarfile.TarInfo(f"{self.source.base_folder}/{file}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        self.know(sha256=pooch.file_hash(str(path)))
        return path


@pytest.fixture(params=list(TORCHVISION))
def official(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Official:
    return Official(request.param, tmp_path, monkeypatch)


def test_a_folder_gives_torchvisions_arrays(official: Official) -> None:
    official.lay_out()
    official.patch.setattr(official.source, "_check_integrity", lambda self: True)
    official.patch.setattr(official.source, "_load_meta", lambda self: None)  # names of classes
    arrays = read_cifar(official.name, official.folder)
    for part in ("train", "test"):
        expected = official.source(official.folder, train=part == "train")
        assert np.array_equal(arrays[f"x_{part}"], expected.data)
        assert arrays[f"y_{part}"].tolist() == expected.targets


def test_an_archive_is_read_once_and_cached(official: Official) -> None:
    archive = official.archive()
    arrays = read_cifar(official.name, official.folder)
    first = official.source.train_list[0][0]
    expected, labels = parse_batch(official.content[first], Path(first), official.name)
    assert np.array_equal(arrays["x_train"][: len(expected)], expected)
    assert arrays["y_train"][: len(labels)].tolist() == labels.tolist()
    archive.unlink()  # from now on the cache is enough
    assert [path.name for path in official.folder.iterdir()] == ["cache"]
    again = read_cifar(official.name, official.folder)
    assert all(np.array_equal(arrays[key], again[key]) for key in files.KEYS)
    dataset = DatasetClass.load(official.name, official.folder)
    assert len(dataset.labels) == sum(official.samples)


def test_a_damaged_archive_is_set_aside_and_asked_for_again(
    official: Official, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = official.archive()
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-9])
    monkeypatch.setattr("DatasetClass.storage.download.PAUSES", ())
    asked = []

    def offline(self: object, url: str, *_: object) -> None:
        asked.append(url)
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", offline)
    with pytest.raises(FileNotFoundError, match="download failed"):
        read_cifar(official.name, official.folder)
    assert asked == [f"https://www.cs.toronto.edu/~kriz/{official.source.filename}"]
    aside = archive.with_name(f"{archive.name}.damaged")
    assert aside.read_bytes() == whole[:-9] and not archive.exists()
    archive.write_bytes(whole)
    assert len(read_cifar(official.name, official.folder)["y_train"]) > 0


@pytest.mark.parametrize("name", list(OFFICIAL))
def test_what_is_known_is_what_torchvision_knows(name: str) -> None:
    ours, theirs = OFFICIAL[name], TORCHVISION[name]
    assert len(ours.sha256) == 64
    assert URL.format(ours.archive) == theirs.url
    assert (ours.archive, ours.folder) == (theirs.filename, theirs.base_folder)
    assert list(ours.train.items()) == list(map(tuple, theirs.train_list))
    assert list(ours.test.items()) == list(map(tuple, theirs.test_list))
    # The names stand in the archives' alphabetical order.
    assert len(set(ours.classes)) == CLASSES[name] and list(ours.classes) == sorted(ours.classes)


def planted(marker: Path) -> bytes:
    class Planted:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return os.mkdir, (str(marker),)

    return pickle.dumps(Planted(), protocol=2)


def test_a_planted_pickle_never_runs(official: Official, tmp_path: Path) -> None:
    marker, first = tmp_path / "ran", official.names[0]
    official.content[first] = planted(marker)
    path = official.lay_out() / first
    with pytest.raises(ValueError, match=r"wrong MD5, .* not opened") as error:
        read_cifar(official.name, official.folder)
    assert str(path) in str(error.value)
    official.know()  # even were its hash the known one
    with pytest.raises(ValueError, match=r"asks for .*mkdir, which is never loaded"):
        read_cifar(official.name, official.folder)
    assert path.exists() and not marker.exists()
    pickle.loads(official.content[first])  # the plain way it would have
    assert marker.exists()


def test_a_missing_batch_is_named(official: Official) -> None:
    path = official.lay_out() / official.names[-1]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{path}: missing"):
        read_cifar(official.name, official.folder)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_batches_are_refused_in_one_line(data: st.DataObject) -> None:
    content = batch_bytes("cifar10", 2)[0]
    start = data.draw(st.integers(0, len(content) - 1))
    removed = data.draw(st.integers(0, 40))
    damaged = content[:start] + data.draw(st.binary(max_size=8)) + content[start + removed :]
    try:
        images, read_labels = parse_batch(damaged, Path("batch"), "cifar10")
    except ValueError as error:
        assert str(error).startswith("batch: ") and "\n" not in str(error)
    else:  # damage that hits a pixel or a label alone
        assert images.shape == (len(read_labels), 32, 32, 3)
        assert read_labels.max() < 10


def test_statistics_are_numpys_and_refuse_a_blank_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PIXELS", 1000)
    images = np.random.default_rng(0).integers(0, 200, (5, 32, 32, 3), dtype=np.uint8)
    pixels = images.reshape(-1, 3) / 255
    arrays = files.with_statistics({"x_train": images}, Path("set"))
    np.testing.assert_allclose(arrays["mean"], pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(arrays["std"], pixels.std(axis=0), rtol=1e-10)
    images[..., 1] = 7
    with pytest.raises(ValueError, match="set: x_train has a channel"):
        files.with_statistics({"x_train": images}, Path("set"))


# --- cifar10.npz ----------------------------------------------------------------------------------
def arrays_of(name: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    arrays = {}
    for part, count in (("train", 20), ("test", 10)):
        arrays[f"x_{part}"] = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        arrays[f"y_{part}"] = np.arange(count) % CLASSES[name]
    return arrays


def put(key: str, row: int, label: int) -> Callable[[dict[str, np.ndarray]], None]:
    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays[key][row] = label

    return change


def put_array(key: str, make: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict], None]:
    return lambda arrays: arrays.update({key: make(arrays[key])})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("y_train", 7, 10), "y_train, row 7: label 10 is outside 0 to 9"),
        (put("y_test", 3, -1), "y_test, row 3: label -1 is outside"),
        (put_array("y_train", lambda y: y.astype(float)), "y_train is not"),
        (put_array("y_train", lambda y: y[:, None]), "y_train is not"),
        (put_array("y_train", lambda y: y[:-1]), r"x_train is not \(19, 32, 32, 3\)"),
        (put_array("x_test", lambda x: x.astype(np.float32)), "x_test is not"),
        (put_array("x_test", lambda x: x.transpose(0, 3, 1, 2)), "x_test is not"),
        (put_array("x_train", lambda x: x.astype(object)), "pickle|plain numbers"),
        (lambda arrays: arrays.pop("y_test"), "y_test"),
        (lambda arrays: arrays.update(x_test=np.empty((0, 32, 32, 3), "u1"), y_test=[]), "y_test"),
    ],
)
def test_a_wrong_npz_is_named_and_left_in_its_place(change, message, tmp_path: Path) -> None:
    arrays = arrays_of("cifar10")
    change(arrays)
    path = tmp_path / "cifar10.npz"
    np.savez(path, **arrays)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message) as error:
        read_cifar("cifar10", tmp_path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["cifar10.npz"]
    assert path.read_bytes() == before


@settings(max_examples=60, deadline=None)
@given(at=st.floats(0, 0.999), flipped=st.booleans())
def test_a_cut_or_flipped_npz_is_refused(
    at: float, flipped: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("npz") / "cifar10.npz"
    arrays = arrays_of("cifar10")
    np.savez(path, **arrays)
    content = bytearray(path.read_bytes())
    byte = int(at * len(content))
    if flipped:
        content[byte] ^= 64
    path.write_bytes(content if flipped else content[:byte])
    try:
        again = read_cifar("cifar10", path.parent)
    except ValueError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
    else:  # a byte that nothing depends on, such as the time of a member
        assert flipped and all(np.array_equal(again[key], arrays[key]) for key in files.KEYS)
