"""Archives whose members climb out, link, lie about their size or are damaged."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from DatasetClass.storage.archives import unpack

CONTENT = bytes(range(256)) * 40


def make_zip(path: Path, members: dict[str, bytes], kind: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (kind | 0o644) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(info, content)
    return path


def make_tar(path: Path, members: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            file.addfile(info, io.BytesIO(content))
    return path


def text_only(name: str) -> str | None:
    return name.rsplit("/", 1)[-1] if name.endswith(".txt") else None


MAKERS = [make_zip, make_tar]
Make = Callable[[Path, dict[str, bytes]], Path]


@pytest.mark.parametrize("make", MAKERS)
def test_wanted_members_are_unpacked(make: Make, tmp_path) -> None:
    archive = make(tmp_path / "archive", {"a/one.txt": b"1", "a/b/two.txt": b"22", "c.bin": b"3"})
    for _ in range(2):  # the second time, the folder is there: another process was faster
        unpack(archive, tmp_path / "raw", text_only)
        found = {path.name: path.read_bytes() for path in (tmp_path / "raw").iterdir()}
        assert found == {"one.txt": b"1", "two.txt": b"22"}
    assert {path.name for path in tmp_path.iterdir()} == {"archive", "raw"}


def refused(archive: Path, tmp_path: Path, message: str, **arguments) -> None:
    with pytest.raises(ValueError, match=message) as error:
        unpack(archive, tmp_path / "out" / "raw", text_only, **arguments)
    assert str(archive) in str(error.value) and "\n" not in str(error.value)
    assert list((tmp_path / "out").iterdir()) == []
    assert [p.name for p in tmp_path.iterdir() if p != archive] == ["out"]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    "name", ["../up.txt", "/top.txt", "a/../../up.txt", "..\\up.txt", "C:\\up.txt", "../unwanted"]
)
def test_a_member_outside_the_folder_is_refused(make: Make, name: str, tmp_path) -> None:
    refused(make(tmp_path / "archive", {"a.txt": b"1", name: b"2"}), tmp_path, "outside")


def test_a_target_outside_the_folder_is_refused(tmp_path) -> None:
    archive = make_zip(tmp_path / "archive", {"a.txt": b"1"})
    with pytest.raises(ValueError, match="outside"):
        unpack(archive, tmp_path / "out" / "raw", lambda name: f"../../{name}")
    assert not (tmp_path / "a.txt").exists()


@pytest.mark.parametrize(
    "archive",
    [
        lambda path: make_zip(path, {"a.txt": b"/etc/passwd"}, 0o120000),
        lambda path: make_tar(path, {"a.txt": b""}, tarfile.SYMTYPE),
        lambda path: make_tar(path, {"a.txt": b""}, tarfile.LNKTYPE),
        lambda path: make_tar(path, {"a.txt": b""}, tarfile.CHRTYPE),
        lambda path: make_tar(path, {"a.txt": b""}, tarfile.FIFOTYPE),
    ],
)
def test_links_and_devices_are_refused(archive, tmp_path) -> None:
    refused(archive(tmp_path / "archive"), tmp_path, "link or a device")


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("members", [{"a.txt": bytes(10**7)}, {"b": bytes(10**7), "a.txt": b"1"}])
def test_a_bomb_is_stopped_at_the_limit(make: Make, members, tmp_path) -> None:
    archive = make(tmp_path / "archive", members)
    assert archive.stat().st_size < 20_000
    if make is make_zip and "b" in members:  # a zip's members are reached one by one
        unpack(archive, tmp_path / "out" / "raw", text_only, limit=10**6)
    else:
        refused(archive, tmp_path, "more than", limit=10**6)


def test_a_zip_that_lies_about_its_sizes_is_refused(tmp_path) -> None:
    archive = make_zip(tmp_path / "archive", {"a.txt": bytes(10**6)})
    honest = (10**6).to_bytes(4, "little")
    assert archive.read_bytes().count(honest) == 2
    archive.write_bytes(archive.read_bytes().replace(honest, (10).to_bytes(4, "little")))
    refused(archive, tmp_path, "damaged|more than")


@pytest.mark.parametrize("make", MAKERS)
def test_damaged_archives_are_named(make: Make, tmp_path) -> None:
    archive = make(tmp_path / "archive", {"a.txt": CONTENT})
    whole = archive.read_bytes()
    for cut in (0, 10, len(whole) // 2):
        archive.write_bytes(whole[:cut])
        refused(archive, tmp_path, "damaged|none of the files")


def test_an_archive_with_nothing_wanted_is_refused(tmp_path) -> None:
    refused(make_zip(tmp_path / "archive", {"a.bin": b"1"}), tmp_path, "none of the files")
    with pytest.raises(FileNotFoundError, match="no such archive"):
        unpack(tmp_path / "absent", tmp_path / "raw", text_only)
