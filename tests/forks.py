"""Child processes that tests can kill, started without importing torch each time.

They are forked from a process that has done nothing but import. A fork of the test process itself
can hang, once torch has started threads in it: they don't survive the fork, their locks do. What a
child runs is a function of a module, as are the functions among its arguments.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from utilities import cli
from utilities.files import ROOT

LIMIT = 300  # seconds after which a process counts as hanging: many, as the machine may be busy
SCRIPTS = {name: f"trainings.my_train_{name}" for name in ("cifar", "mitbih", "GCN")}
SERVER = multiprocessing.get_context("forkserver")
DATA = ("DatasetClass.TUD", "DatasetClass.mitbih", "wfdb")
TOOLS = ("benchmarks.fuzz_readers", "benchmarks.kill_saves", "h5py", "pytest")
LANDSCAPES = ("loss_landscape.evaluation", "loss_landscape.my_pyhessian.hessian")
SERVER.set_forkserver_preload([*SCRIPTS.values(), *DATA, *TOOLS, *LANDSCAPES])


def start(target: Callable[..., Any], *args: Any) -> BaseProcess:
    """Start ``target``, a function of a module, in a child process."""
    process = SERVER.Process(target=target, args=args)
    process.start()
    return process


def training(name: str, argv: list[str]) -> BaseProcess:
    """Start a training script, its output dropped."""
    return start(_train, SCRIPTS[name], argv)


def script(name: str, argv: list[str], output: Path, largest: int = 0) -> BaseProcess:
    """Start a training script as its command line does, but for a new interpreter.

    Args:
        name: of the task.
        argv: its flags.
        output: file for its standard output; its errors go beside, to ``<output>.err``.
        largest: in bytes, a file that it may write; 0 for any.
    """
    return start(_run_script, name, argv, output, largest)


def end(process: BaseProcess) -> int:
    """Wait for a process; return its exit code, minus the signal's number if one killed it."""
    process.join(timeout=LIMIT)
    process.kill()  # nothing to one that has ended
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def result_of(function: Callable[..., Any], *args: Any) -> Any:
    """What ``function`` returns in a child process, which may fork in its turn."""
    ours, theirs = SERVER.Pipe(duplex=False)
    process = start(_send_result, theirs, function, args)
    theirs.close()
    try:
        assert ours.poll(LIMIT), f"{function.__name__} hangs"
        result, failure = ours.recv()
        assert not failure, failure
        return result
    finally:
        process.kill()
        process.join()


def await_saves(out: Path, count: int, processes: list[BaseProcess]) -> None:
    """Wait until a run has saved its state ``count`` times, or one of its processes has ended."""

    def saved() -> list[int]:
        return [path.stat().st_mtime_ns for path in out.glob("to_plot/*_last.pt")]

    seen, deadline = saved(), time.monotonic() + LIMIT
    while count and all(process.is_alive() for process in processes):
        assert time.monotonic() < deadline, "the run hangs"
        now = saved()
        count, seen = count - (now != seen), now
        time.sleep(0.002)


def killed_after_a_save(
    name: str, argv: list[str], out: Path, saves: int = 1, seconds: float = 0.0
) -> bool:
    """Kill a run some ``seconds`` after its first ``saves``; False if it ended before."""
    process = training(name, argv)
    await_saves(out, saves, [process])
    time.sleep(seconds)
    process.kill()
    return end(process) == -9


def _train(script: str, argv: list[str]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    importlib.import_module(script).main(argv)


def _run_script(name: str, argv: list[str], output: Path, largest: int) -> None:
    for number, path in ((1, output), (2, Path(f"{output}.err"))):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = [str(ROOT / f"trainings/my_train_{name}.py"), *argv]
    if largest:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error in place of a signal
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    cli.run(importlib.import_module(SCRIPTS[name]).main)


def _send_result(pipe: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        pipe.send((function(*args), ""))
    except BaseException:
        pipe.send((None, traceback.format_exc()))
