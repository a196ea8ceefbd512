"""Caches that are made once and mapped from then on."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from forks import end, start

from DatasetClass.storage.cache import cached

ARRAYS = {
    "beats": np.arange(12, dtype=np.float32).reshape(4, 3),
    "labels": np.arange(4),
    "none": np.empty((0, 5), np.uint8),
}


def never() -> dict[str, np.ndarray]:
    raise AssertionError("prepared again")


def check(arrays: dict[str, np.ndarray]) -> None:
    assert arrays.keys() == ARRAYS.keys()
    for name, expected in ARRAYS.items():
        assert arrays[name].dtype == expected.dtype
        np.testing.assert_array_equal(arrays[name], expected)


def test_the_second_start_maps_what_the_first_made(tmp_path: Path) -> None:
    check(cached(tmp_path / "set", "v1", lambda: dict(ARRAYS)))
    again = cached(tmp_path / "set", "v1", never)
    check(again)
    assert isinstance(again["beats"], np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        again["beats"][0] = 0


def test_a_new_version_replaces_the_old(tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("not ours")
    (tmp_path / "folder").mkdir()
    cached(tmp_path, "v1", lambda: {"a": np.zeros(3)})
    (tmp_path / ".v1.1234.part").mkdir()  # what a crash leaves
    check(cached(tmp_path, "v2", lambda: dict(ARRAYS)))
    names = {path.name for path in tmp_path.iterdir()} - {"lock"}
    assert names == {"keep.txt", "folder", "v2"}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def change_manifest(old: str, new: str):
    def change(home: Path) -> None:
        text = (home / "manifest.json").read_text()
        assert old in text
        (home / "manifest.json").write_text(text.replace(old, new))

    return change


@pytest.mark.parametrize(
    "damage",
    [
        lambda home: cut(home / "beats.npy"),
        lambda home: (home / "labels.npy").unlink(),
        lambda home: (home / "manifest.json").unlink(),
        lambda home: (home / "manifest.json").write_text("[]"),
        lambda home: (home / "manifest.json").write_text("[" * 10**5),
        change_manifest("beats", "../beats"),
        change_manifest("<f4", "<i4"),
        change_manifest("<f4", "O"),
    ],
)
def test_a_damaged_cache_is_made_again(damage, tmp_path: Path, capsys) -> None:
    cached(tmp_path, "v1", lambda: dict(ARRAYS))
    damage(tmp_path / "v1")
    check(cached(tmp_path, "v1", lambda: dict(ARRAYS)))
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "made again" in out and str(tmp_path) in out
    check(cached(tmp_path, "v1", never))


def test_an_unwritable_folder_costs_the_cache_and_says_so(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    check(cached(tmp_path / "file" / "set", "v1", lambda: dict(ARRAYS)))
    assert "no cache kept" in capsys.readouterr().out


def test_a_full_disk_costs_the_cache_and_says_so(tmp_path: Path, capsys, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    made = []
    monkeypatch.setattr(np, "save", full)
    check(cached(tmp_path, "v1", lambda: made.append(1) or dict(ARRAYS)))
    assert "No space left" in capsys.readouterr().out
    assert len(made) == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"lock"}


def test_errors_of_the_preparation_pass_and_leave_nothing(tmp_path: Path) -> None:
    def fails() -> dict[str, np.ndarray]:
        raise OSError("record 100 is cut")

    with pytest.raises(OSError, match="record 100"):
        cached(tmp_path, "v1", fails)
    for bad in ({"a b": np.zeros(2)}, {"a": np.array([{}], dtype=object)}):
        with pytest.raises(ValueError, match="can't be kept"):
            cached(tmp_path, "v1", lambda bad=bad: bad)
    assert {path.name for path in tmp_path.iterdir()} <= {"lock"}


@pytest.mark.parametrize("version", ["", "..", "a/b", ".hidden"])
def test_a_version_is_a_plain_name(version: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no name"):
        cached(tmp_path / "set", version, never)


def prepare(folder: Path, number: int) -> None:
    def make() -> dict[str, np.ndarray]:
        with (folder / f"made{number}").open("x"):
            time.sleep(0.2)
        return dict(ARRAYS)

    check(cached(folder / "set", "v1", make))


def test_processes_that_come_at_once_prepare_once(tmp_path: Path) -> None:
    workers = [start(prepare, tmp_path, i) for i in range(4)]
    assert [end(worker) for worker in workers] == [0] * 4
    assert len(list(tmp_path.glob("made*"))) == 1


def test_109446_beats_are_there_in_under_300_ms(tmp_path: Path) -> None:
    shape = (109_446, 187)
    cached(tmp_path, "v1", lambda: {"beats": np.zeros(shape, np.float32)})
    start = time.perf_counter()
    beats = cached(tmp_path, "v1", never)["beats"]
    assert time.perf_counter() - start < 0.3
    assert beats.shape == shape
