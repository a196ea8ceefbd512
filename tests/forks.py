"""Trainings in child processes that tests can kill, started without importing torch each time.

They are forked from a process that has done nothing but import. A fork of the test process itself
can hang, once torch has started threads in it: they don't survive the fork, their locks do.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

SCRIPTS = {name: f"trainings.my_train_{name}" for name in ("cifar", "mitbih", "GCN")}
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [*SCRIPTS.values(), "loss_landscape.evaluation", "DatasetClass.TUD", "DatasetClass.mitbih"]
)


def start(target: Any, *args: Any) -> BaseProcess:
    """Start ``target``, a function of a module, in a child process."""
    process = SERVER.Process(target=target, args=args)
    process.start()
    return process


def training(name: str, argv: list[str]) -> BaseProcess:
    """Start a training script, its output dropped."""
    return start(_train, SCRIPTS[name], argv)


def end(process: BaseProcess) -> int:
    """Wait for a process; return its exit code, minus the signal's number if one killed it."""
    process.join(timeout=120)
    process.kill()  # nothing to one that has ended
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def killed_after_a_save(name: str, argv: list[str], out: Path, seconds: float) -> bool:
    """Kill a run some ``seconds`` after it first saved; False if it ended before."""

    def saved() -> list[int]:
        return [path.stat().st_mtime_ns for path in out.glob("to_plot/*_last.pt")]

    before, process = saved(), training(name, argv)
    deadline = time.monotonic() + 120
    while saved() == before and process.is_alive():
        assert time.monotonic() < deadline, "the run hangs"
        time.sleep(0.002)
    time.sleep(seconds)
    process.kill()
    return end(process) == -9


def _train(script: str, argv: list[str]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    importlib.import_module(script).main(argv)
