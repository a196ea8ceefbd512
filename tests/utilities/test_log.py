"""What a run shows, on terminals and in pipes, and what it keeps: the same numbers everywhere."""

from __future__ import annotations

import builtins
import contextlib
import fcntl
import os
import pty
import re
import struct
import sys
import termios
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from utilities import log as log_module
from utilities.history import COLUMNS
from utilities.log import Log, duration

SETTINGS = {"rho": 0.05, "tag": "", "command": "a\nb"}


def row(epoch: int) -> dict[str, Any]:
    values = {name: 10 * epoch + number / 7 for number, name in enumerate(COLUMNS)}
    return {**values, "epoch": epoch, "seconds": epoch / 4}


# --- the file -------------------------------------------------------------------------------------
def test_history_is_a_table_with_the_arguments_on_top(tmp_path: Path, capsys) -> None:
    path = tmp_path / "outputs" / "run.dat"
    with Log(path, SETTINGS, 2, []) as log:
        for epoch in (1, 2):
            log(**{name: epoch * 1.5 for name in COLUMNS} | {"epoch": epoch})
    table = pd.read_table(path, comment="#")
    assert list(table.columns) == list(COLUMNS)
    assert table["epoch"].tolist() == [1, 2]
    assert table["val_loss"].tolist() == [1.5, 3.0]
    assert path.read_text().startswith("# rho: 0.05\n")
    assert "# command: a\\nb\n" in path.read_text()  # one line, whatever was typed
    assert len(capsys.readouterr().out.splitlines()) == 3  # plain lines in a pipe


def test_rows_gone_on_from_are_written_first_and_shown_no_more(tmp_path: Path, capsys) -> None:
    rows = [row(1), row(2)]
    with Log(tmp_path / "run.dat", SETTINGS, 3, rows) as log:
        log(**row(3))
    assert pd.read_table(log.path, comment="#")["epoch"].tolist() == [1, 2, 3]
    head, line = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["epoch", "rate"] and line.split()[0] == "3"


def test_a_quiet_one_writes_and_shows_nothing(tmp_path: Path, capsys) -> None:
    rows: list[dict[str, Any]] = []
    path = tmp_path / "run.dat"
    with Log(path, SETTINGS, 3, rows, tensorboard=True, quiet=True) as log:
        log(**row(1))
        log.say("a")
    assert len(rows) == 1 and not os.listdir(tmp_path)
    assert capsys.readouterr().out == ""


def test_a_file_in_the_way_is_found_before_the_first_epoch(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("in the way")
    log = Log(tmp_path / "outputs" / "run.dat", SETTINGS, 3, [])
    with pytest.raises(OSError, match="outputs"), log:
        raise AssertionError("trained")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0499, "0.05 s"), (9.999, "10.0 s"), (59.94, "59.9 s"), (61, "1:01"), (3600, "1:00:00"),
     (119.6, "2:00"), (90061, "25:01:01")],
)  # fmt: skip
def test_times_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_time_left_is_that_of_this_runs_mean_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(log_module.time, "monotonic", lambda: now[0])
    log = Log(tmp_path / "run.dat", SETTINGS, 10, [row(1), row(2), row(3)])
    with log:
        now[0] += 30  # epochs 4 and 5
        log(**row(4))
        log(**row(5))
        assert log.left() == 15 * 5


# --- the screen -----------------------------------------------------------------------------------
SHOW = """
from pathlib import Path
from utilities.log import Log
with Log(Path({path!r}), {settings}, 20, []) as log:
    log.say("a line " + "of words " * 8 + "\\u00fc" * {accents})
    for row in {rows}:
        log(**row)
"""


def on_terminal(path: Path, columns: int, lines: int = 24, ascii_only: bool = False, **env) -> str:
    """What a run of 20 epochs writes to a pseudo-terminal of this size."""
    rows = [row(epoch) for epoch in range(1, 21)]
    code = SHOW.format(path=str(path), settings=SETTINGS, rows=rows, accents=int(not ascii_only))
    child, terminal = pty.fork()
    if child == 0:
        size = struct.pack("HHHH", lines, columns, 0, 0)
        fcntl.ioctl(0, termios.TIOCSWINSZ, size)
        unset = {"COLUMNS", "LINES", "NO_COLOR"}
        kept = {k: v for k, v in os.environ.items() if k not in unset}
        os.execvpe(sys.executable, [sys.executable, "-c", code], kept | {"TERM": "xterm"} | env)
    output = b""
    with contextlib.suppress(OSError):  # at the child's end
        while part := os.read(terminal, 65536):
            output += part
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, output.decode()
    return output.decode()


def last_frame(output: str) -> list[str]:
    """The lines that stay on the screen, without control sequences."""
    frame = re.split(r"(?:\x1b\[2K|\x1b\[1A|\r(?!\n))+", output)[-1]
    return re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", frame).replace("\r", "").splitlines()


def numbers(text: str) -> list[str]:
    return re.findall(r"\d+\.?\d*", text)


@pytest.mark.parametrize(("columns", "lines"), [(120, 24), (40, 24), (120, 10)])
def test_a_terminal_shows_a_live_table_that_fits(columns: int, lines: int, tmp_path: Path) -> None:
    output = on_terminal(tmp_path / "run.dat", columns, lines)
    frame = last_frame(output)
    assert "\x1b[1A" in output  # drawn over itself
    assert 3 < len(frame) < lines and max(map(len, frame)) <= columns
    text = "\n".join(frame)
    assert "epoch 20 of 20, 0.00 s left" in text and "\u2026" not in text
    values = row(20)
    shown = [f"{values[name]:.4f}" for name in ("train_loss", "val_loss")]
    shown += [f"{values[name]:.2f}" for name in ("train_acc", "val_acc", "val_f1")]
    for number in ["20", "200", *shown, "5.00"]:  # the same on every width
        assert number in numbers(text)
    assert ("train loss" in frame[1]) == (columns == 120)  # a row an epoch, or a column


def test_no_color_and_an_ascii_terminal(tmp_path: Path) -> None:
    output = on_terminal(
        tmp_path / "run.dat", 120, ascii_only=True,
        LC_ALL="C", NO_COLOR="1", PYTHONIOENCODING="ascii",
    )  # fmt: skip
    assert output.isascii()
    assert not re.search(r"\x1b\[[\d;]*(3[0-7]|4[0-7]|38;|9[0-7])[\d;]*m", output)  # a colour
    assert f"{row(20)['val_loss']:.4f}" in numbers("\n".join(last_frame(output)))


def test_a_dumb_terminal_gets_lines(tmp_path: Path) -> None:
    output = on_terminal(tmp_path / "run.dat", 120, TERM="dumb")
    assert "\x1b" not in output
    assert len(output.splitlines()) == 1 + 1 + 20


# --- TensorBoard ----------------------------------------------------------------------------------
def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    reader.Reload()
    names = reader.Tags()["scalars"]
    return {name: [(event.step, event.value) for event in reader.Scalars(name)] for name in names}


def test_event_files_hold_the_historys_numbers(tmp_path: Path) -> None:
    with Log(tmp_path / "run.dat", SETTINGS, 3, [], tensorboard=True) as log:
        for epoch in (1, 2, 3):
            log(**row(epoch))
    assert log.files == [tmp_path / "run.dat", tmp_path / "tensorboard" / "run"]
    table = pd.read_table(log.path, comment="#")
    found = events(log.files[1])
    assert sorted(found) == sorted(set(COLUMNS) - {"epoch"})
    for name, points in found.items():
        assert [step for step, _ in points] == [1, 2, 3]
        assert [value for _, value in points] == pytest.approx(table[name].tolist(), rel=1e-6)


def test_after_a_kill_no_step_is_doubled_or_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Files sort by second and by this counter: within a second, 10 would come before 9.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    make = partial(Log, tmp_path / "run.dat", SETTINGS, 5, tensorboard=True)
    killed = make([])
    for epoch in (1, 2, 3):
        killed(**row(epoch))
    assert killed.events is not None
    killed.events.flush()  # three epochs are in the file, of which two were saved
    open_board = EventAccumulator(str(killed.files[1]))
    open_board.Reload()
    with make([row(1), row(2)]) as log:
        for epoch in (3, 4, 5):
            log(**row(epoch) | {"val_loss": 7.0})
    steps = events(log.files[1])["val_loss"]
    assert [step for step, _ in steps] == [1, 2, 3, 4, 5]
    assert [value for _, value in steps[2:]] == [7.0] * 3
    open_board.Reload()
    assert [event.step for event in open_board.Scalars("val_loss")] == [1, 2, 3, 4, 5]
    with make([]) as log:  # --overwrite
        log(**row(1))
    assert [step for step, _ in events(log.files[1])["val_loss"]] == [1]


def test_without_tensorboard_the_flag_is_one_line(tmp_path: Path, monkeypatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith(("tensorboard", "torch.utils.tensorboard")):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match="--tensorboard: pip install tensorboard") as error:
        Log(tmp_path / "run.dat", SETTINGS, 3, [], tensorboard=True)
    assert "\n" not in str(error.value)
    Log(tmp_path / "run.dat", SETTINGS, 3, [])
