"""The first signal is a wish, the second an order, and handlers are left as they were found."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import LIMIT, SERVER, end, start

from trainings import fit, my_train_GCN
from utilities import checkpoint, cli
from utilities.interrupt import SIGNALS, Interrupted, Interruption
from utilities.ranks import Ranks

ALONE = Ranks(torch.device("cpu"))


def handlers() -> list:
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted_and_the_second_gets_the_old_handler(number: int) -> None:
    seen: list[int] = []
    before = signal.signal(number, lambda found, frame: seen.append(found))
    try:
        found = handlers()
        with Interruption(ALONE) as interruption:
            assert interruption.number == 0 and handlers() != found
            signal.raise_signal(number)
            assert interruption.number == number and seen == []
            assert handlers() == found
            signal.raise_signal(number)
            assert seen == [number]
        assert handlers() == found
    finally:
        signal.signal(number, before)


def test_handlers_are_restored_after_an_exception() -> None:
    found = handlers()
    with pytest.raises(RuntimeError), Interruption(ALONE):
        raise RuntimeError
    assert handlers() == found


def test_processes_that_stop_together_leave_their_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that fails alone must not wait for the others; what it leaves, Python's end sees to."""
    closed: list[bool] = []
    monkeypatch.setattr(ALONE, "close", lambda: closed.append(True))
    with pytest.raises(ValueError, match="bad"), Interruption(ALONE):
        raise ValueError("bad")
    assert not closed
    with pytest.raises(Interrupted), Interruption(ALONE):
        raise Interrupted(signal.SIGTERM, "stopped")
    assert closed


def test_in_another_thread_nothing_changes() -> None:
    found, inside = handlers(), []

    def enter() -> None:
        with Interruption(ALONE):
            inside.append(handlers())

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert inside == [found] and handlers() == found


def test_of_several_processes_each_remembers_every_signal() -> None:
    """A scheduler's signal comes twice: from it, and passed on by torchrun."""
    several = Ranks(torch.device("cpu"))
    several.world = 2
    found = handlers()
    with Interruption(several) as interruption:
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
            assert interruption.number == signal.SIGTERM and handlers() != found
    assert handlers() == found


@pytest.mark.parametrize("error", [None, RuntimeError, ValueError, KeyError])
@pytest.mark.parametrize("number", [0, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("world", [1, 2])
def test_a_signal_among_several_processes_is_raised_again_where_meeting_them_failed(
    error, number: int, world: int
) -> None:
    """Only there: the others left on the signal first, and a lost connection is no error then.

    The kind: what was remembered is never dropped for what followed from it.
    """
    ranks, seen = Ranks(torch.device("cpu")), []
    ranks.world = world
    before = [signal.signal(n, lambda found, frame: seen.append(found)) for n in SIGNALS]
    try:
        with contextlib.suppress(RuntimeError, ValueError, KeyError), Interruption(ranks):
            if number:
                signal.raise_signal(number)
            if error:
                raise error("Connection closed by peer")
        assert seen == ([number] if number and world == 2 and error is RuntimeError else [])
    finally:
        for n, handler in zip(SIGNALS, before, strict=True):
            signal.signal(n, handler)


def test_a_scripts_exit_code_is_128_and_the_signals_number() -> None:
    assert Interrupted(signal.SIGTERM, "stopped").code == 143
    assert Interrupted(signal.SIGINT, "stopped").code == 130


def with_usual_handlers(work: Callable[..., None], *args: Any) -> None:
    """Call ``work`` in this child process, whatever the handlers that it was started with."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        work(*args)
    except KeyboardInterrupt:
        sys.exit(9)


def save_slowly(pipe: Connection) -> None:
    with Interruption(ALONE) as interruption:
        pipe.send("training")
        while not interruption.number:
            time.sleep(0.001)
        pipe.send("saving")
        time.sleep(2 * LIMIT)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 9), (signal.SIGTERM, -15)])
def test_a_second_signal_ends_a_save_that_takes_long(number: int, code: int) -> None:
    ours, theirs = SERVER.Pipe(duplex=False)
    child = start(with_usual_handlers, save_slowly, theirs)
    for state in ("training", "saving"):
        assert ours.poll(LIMIT) and ours.recv() == state
        os.kill(child.pid, number)
    assert end(child) == code


def train_with_two_signals_in_a_step(folder: Path) -> None:
    def twice(*rest: object) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    fit.pause = twice
    sys.stdout, sys.stderr = ((folder / name).open("w") for name in ("stdout", "stderr"))
    argv = ["--data_dir", folder, "--out_dir", folder, "--epochs=3", "--threads=1"]
    sys.argv = ["my_train_GCN.py", *map(str, argv)]
    cli.run(my_train_GCN.main)


def test_a_script_stopped_twice_leaves_at_once_with_one_line(tmp_path: Path) -> None:
    """With both signals within a step: the second comes before the save."""
    child = start(with_usual_handlers, train_with_two_signals_in_a_step, tmp_path)
    assert end(child) == 130
    assert (tmp_path / "stderr").read_text() == "my_train_GCN.py: interrupted\n"
    (path,) = tmp_path.glob("to_plot/*.pt")
    assert checkpoint.load(path)["resume"]["steps"] == 0  # that from before the first step
