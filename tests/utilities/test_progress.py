"""Progress: plain lines in a pipe, a bar on a terminal, the time left in both."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from utilities import progress
from utilities.progress import Progress, time_left, track


class Clock:
    """A clock that stands still until it is told to go on."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_pipe_gets_the_start_a_line_each_ten_seconds_and_the_end(clock, capsys) -> None:
    for _ in track(range(6), "rows"):
        clock.now += 5.0
    assert capsys.readouterr().out.splitlines() == [
        "rows ...",
        "rows: 2 of 6, 20.0 s left",
        "rows: 4 of 6, 10.0 s left",
        "rows: 6 of 6, in 30.0 s",
    ]


def test_without_a_total_there_is_a_count_and_no_time_left(clock, capsys) -> None:
    with Progress("products") as shown:
        clock.now += 12
        shown.update(1200)
    out = capsys.readouterr().out.splitlines()
    assert out == ["products ...", "products: 1,200", "products: 1,200, in 12.0 s"]


def test_poochs_calls_are_understood(clock, capsys) -> None:
    """As pooch's HTTPDownloader makes them: total, chunks of a fixed size, reset, total, close."""
    with Progress("downloading", size=True) as shown:
        shown.total = 3_000_000
        for _ in range(2):
            clock.now += 20
            shown.update(2_000_000)
        shown.reset()
        shown.update(shown.total)
        shown.close()
    out = capsys.readouterr().out.splitlines()
    assert out[1] == "downloading: 2.0 MB of 3.0 MB, 10.0 s left"
    assert out[-1] == "downloading: 3.0 MB of 3.0 MB, in 40.0 s"


def test_what_fails_is_not_said_to_be_done(capsys) -> None:
    with pytest.raises(KeyError):
        for _ in track([1, 2], "rows"):
            raise KeyError
    with pytest.raises(KeyError), Progress("rows", 2):
        raise KeyError
    assert capsys.readouterr().out == "rows ...\n" * 2


@pytest.mark.parametrize(
    ("seconds", "count", "total", "left"),
    [(10, 5, 20, 30), (10, 0, 20, None), (10, 5, None, None), (10, 5, 0, None), (10, 7, 5, 0)],
)
def test_time_left_is_the_rest_at_the_mean_speed(seconds, count, total, left) -> None:
    assert time_left(seconds, count, total) == left


SCRIPT = """
from utilities.progress import track
for i in track(range(3), "[rows]"):
    print("note", i)
"""


def test_a_terminal_gets_a_bar_below_what_is_printed() -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    subprocess.run([sys.executable, "-c", SCRIPT], stdout=theirs, env=environment, check=True)
    os.close(theirs)
    seen = b""
    try:
        while chunk := os.read(ours, 4096):
            seen += chunk
    except OSError:  # Linux ends a terminal so
        pass
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    assert "[rows] ━" in text and "note 2" in text
    assert re.search(r"\[rows\]: 3 of 3, in 0\.\d\d s\s*$", text)


def test_forced_colours_make_no_bar_in_a_pipe(tmp_path: Path) -> None:
    environment = {**os.environ, "FORCE_COLOR": "1"}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "\x1b" not in done.stdout and done.stdout.startswith("[rows] ...\nnote 0\n")


def test_a_bound_and_an_estimate_are_shown(clock, capsys) -> None:
    with Progress("products", 50, at_most=True) as shown:
        clock.now += 12
        shown.note = "trace 3 +- 1"
        shown.update(10)
        shown.total, shown.note = 10, ""
    assert capsys.readouterr().out.splitlines()[1:] == [
        "products: 10 of at most 50, trace 3 +- 1, 48.0 s left",
        "products: 10 of at most 10, in 12.0 s",
    ]
