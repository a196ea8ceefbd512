"""A small client of Chromium's DevTools protocol, for tests that look at a page."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import websocket

NAMES = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome")
SECONDS = 180.0  # for whatever is waited for; a busy machine without a GPU draws slowly
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # containers run as root, for whom Chromium has none
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
    "--use-angle=swiftshader",  # 3D without a GPU
    "--enable-unsafe-swiftshader",
    "--window-size=920,700",
    "--disable-dev-shm-usage",
    "--no-first-run",
)


def find() -> str | None:
    """Chromium's path, or None if it isn't installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of a running Chromium, with all that it reported."""

    def __init__(self, address: str) -> None:
        self.socket = websocket.create_connection(address, timeout=SECONDS)
        self.events: list[dict[str, Any]] = []
        self.number = 0
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol; return its result."""
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, script: str) -> Any:
        """The expression's value as soon as it is true."""
        end = time.monotonic() + SECONDS
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.1)
        return value

    def mouse(self, kind: str, x: float, y: float, pressed: bool = False) -> None:
        """Move, press or release the left button at a place of the window."""
        button = {"button": "left", "buttons": 1, "clickCount": 1} if pressed else {}
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    def requests(self) -> list[str]:
        """The addresses that were asked for."""
        sent = (e for e in self.events if e["method"] == "Network.requestWillBeSent")
        return [event["params"]["request"]["url"] for event in sent]

    def complaints(self) -> list[dict[str, Any]]:
        """Uncaught exceptions, and what the browser logged as an error."""
        return [
            event
            for event in self.events
            if event["method"] == "Runtime.exceptionThrown"
            or (
                event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error"
            )
        ]


@contextmanager
def opened(folder: Path) -> Iterator[Browser]:
    """A browser with its profile below ``folder``; it ends with the block."""
    program = find()
    assert program is not None
    process = subprocess.Popen(
        [program, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield Browser(_address(folder / "DevToolsActivePort"))
    finally:
        process.terminate()
        process.wait(SECONDS)


def _address(port_file: Path) -> str:
    end = time.monotonic() + SECONDS
    local = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < end:
        try:
            port = port_file.read_text().split()[0]
            with local.open(f"http://127.0.0.1:{port}/json/list") as answer:
                pages = [page for page in json.load(answer) if page["type"] == "page"]
            return pages[0]["webSocketDebuggerUrl"]
        except (OSError, IndexError):
            time.sleep(0.1)
    raise TimeoutError(f"Chromium wrote no {port_file}")
