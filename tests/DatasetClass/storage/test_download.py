"""Downloads from a local https server that misbehaves."""

from __future__ import annotations

import hashlib
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import DatasetClass.storage.download as module
from DatasetClass.storage.damaged import check_hash, set_aside
from DatasetClass.storage.download import download

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
    monkeypatch.setattr(module, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(module, "TIMEOUT", 0.5)
    yield server
    server.shutdown()
    server.server_close()


def url(server: ThreadingHTTPServer, steps: str) -> str:
    return f"https://127.0.0.1:{server.server_port}/{steps}"


@pytest.mark.parametrize("steps", ["whole", "cut-busy-whole", "stall-other-whole"])
def test_a_file_arrives_whole_after_at_most_two_failures(steps, server, tmp_path, capsys) -> None:
    path = download(url(server, steps), tmp_path / "new" / "file", SHA256, "the set")
    assert path.read_bytes() == CONTENT
    assert server.asked == len(steps.split("-"))
    assert "downloading the set from https://" in capsys.readouterr().out
    download(url(server, "missing"), path, SHA256, "the set")  # there already: nothing is asked
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
        download(url(server, steps), path, SHA256, "the set")
    named = url(server, steps) if steps != "away" else "http://127.0.0.1:9/whole"
    assert all(part in str(error.value) for part in (str(path), "the set", named))
    assert server.asked == asked
    assert list(tmp_path.iterdir()) == []


def test_an_untrusted_certificate_is_refused(server, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with pytest.raises(FileNotFoundError, match=r"(?i)certificate"):
        download(url(server, "whole"), tmp_path / "file", SHA256, "the set")
    assert server.asked == 0
    assert list(tmp_path.iterdir()) == []


def test_plain_http_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="only https"):
        download("http://127.0.0.1:9/file", tmp_path / "file", SHA256, "the set")


def test_a_damaged_file_is_set_aside_and_downloaded_again(server, tmp_path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    assert download(url(server, "whole"), path, SHA256, "the set").read_bytes() == CONTENT
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
