"""Downloads from a local https server that misbehaves; archives that do."""

from __future__ import annotations

import hashlib
import io
import ssl
import subprocess
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from DatasetClass import download
from DatasetClass.download import check_hash, fetch, set_aside, unpack

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers ``/a-b-c`` with behaviour a first, then b, then c and so on."""

    def do_GET(self) -> None:
        steps = self.path.strip("/").split("-")
        step = steps[min(self.server.asked, len(steps) - 1)]  # type: ignore[attr-defined]
        self.server.asked += 1  # type: ignore[attr-defined]
        getattr(self, step)()

    def answer(self, status: int, body: bytes, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def whole(self) -> None:
        self.answer(200, CONTENT, len(CONTENT))

    def cut(self) -> None:
        self.answer(200, CONTENT[:5000], len(CONTENT))

    def other(self) -> None:
        self.answer(200, CONTENT[::-1], len(CONTENT))

    def missing(self) -> None:
        self.answer(404, b"<html>not found</html>", 22)

    def busy(self) -> None:
        self.answer(503, b"<html>later</html>", 18)

    def stall(self) -> None:
        self.answer(200, CONTENT[:5000], len(CONTENT))
        time.sleep(1.5)

    def away(self) -> None:
        self.send_response(302)
        self.send_header("Location", "http://127.0.0.1:9/whole")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Keep the tests' output clean."""


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and self-signed certificate of 127.0.0.1 in one file."""
    folder = tmp_path_factory.mktemp("certificate")
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(key), "-out", str(cert)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl here to make a certificate")
    both = folder / "both.pem"
    both.write_bytes(key.read_bytes() + cert.read_bytes())
    return both


@pytest.fixture
def server(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """The server; its certificate is trusted, pauses and patience are short."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = 0  # type: ignore[attr-defined]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(download, "TIMEOUT", 0.5)
    yield server
    server.shutdown()
    server.server_close()


def url(server: ThreadingHTTPServer, steps: str) -> str:
    return f"https://127.0.0.1:{server.server_port}/{steps}"


@pytest.mark.parametrize("steps", ["whole", "cut-busy-whole", "stall-other-whole"])
def test_a_file_arrives_whole_after_at_most_two_failures(steps, server, tmp_path, capsys) -> None:
    path = fetch(url(server, steps), tmp_path / "new" / "file", SHA256, "the set")
    assert path.read_bytes() == CONTENT
    assert server.asked == len(steps.split("-"))
    assert "downloading the set from https://" in capsys.readouterr().out
    fetch(url(server, "missing"), path, SHA256, "the set")  # there already: nothing is asked
    assert server.asked == len(steps.split("-"))
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("steps", "kind", "message", "asked"),
    [
        ("cut", FileNotFoundError, "IncompleteRead", 3),
        ("missing", FileNotFoundError, "404", 1),
        ("busy", FileNotFoundError, "503", 3),
        ("stall", FileNotFoundError, "timed out", 3),
        ("other", ValueError, "SHA-256", 3),
        ("away", ValueError, "only https", 3),
    ],
)
def test_a_failed_download_leaves_nothing(steps, kind, message, asked, server, tmp_path) -> None:
    path = tmp_path / "file"
    with pytest.raises(kind, match=message) as error:
        fetch(url(server, steps), path, SHA256, "the set")
    named = url(server, steps) if steps != "away" else "http://127.0.0.1:9/whole"
    assert all(part in str(error.value) for part in (str(path), "the set", named))
    assert server.asked == asked
    assert list(tmp_path.iterdir()) == []


def test_an_untrusted_certificate_is_refused(server, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with pytest.raises(FileNotFoundError, match=r"(?i)certificate"):
        fetch(url(server, "whole"), tmp_path / "file", SHA256, "the set")
    assert server.asked == 0
    assert list(tmp_path.iterdir()) == []


def test_plain_http_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="only https"):
        fetch("http://127.0.0.1:9/file", tmp_path / "file", SHA256, "the set")


def test_a_damaged_file_is_set_aside_and_fetched_again(server, tmp_path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    assert fetch(url(server, "whole"), path, SHA256, "the set").read_bytes() == CONTENT
    assert (tmp_path / "file.damaged").read_bytes() == b"old"


def test_check_hash_keeps_what_it_refuses(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    check_hash(path, SHA256)
    for name in ("file.damaged", "file.damaged2"):
        path.write_bytes(name.encode())
        with pytest.raises(ValueError, match=name) as error:
            check_hash(path, SHA256)
        assert str(path) in str(error.value)
        assert (tmp_path / name).read_bytes() == name.encode()
        assert not path.exists()
    set_aside(path)  # another process was faster
    assert not (tmp_path / "file.damaged3").exists()


# --- archives -------------------------------------------------------------------------------------
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
