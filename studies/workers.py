"""Where a study's jobs are carried out: processes of this machine, or tasks of a Ray cluster.

A job is a script's ``main`` with a command line, in a process that is forked from one which has
done nothing but import: importing torch takes longer than training a small network. joblib and
concurrent.futures hand jobs to workers that live on, where what one leaves behind (threads, seeds,
memory) reaches the next, and neither says which job a killed worker had.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

from studies.plan import Command, Job
from utilities import cli
from utilities.ray_cluster import RETRIES, cluster

GRACE = 60.0  # seconds in which a job saves and leaves when its study is gone
TICK = 1.0  # seconds between two looks at whether the process that forked it lives
Ended = list[tuple[Job, int]]  # jobs and their exit codes, minus a signal's number if one killed it


class Workers(Protocol):
    """What carries out jobs, at most ``slots`` at once."""

    slots: int

    def start(self, job: Job, command: Command, log: Path) -> None:
        """Begin a job, whose output goes to ``log``."""

    def ended(self, seconds: float) -> Ended:
        """The jobs that have ended since the last call; waits for one, but not longer."""

    def stop(self) -> None:
        """Ask all jobs to save and leave."""


# --- processes ------------------------------------------------------------------------------------
class Processes:
    """Jobs as processes of this machine, one each.

    Args:
        slots: at once.
        modules: of the scripts, imported once.
        grace: seconds in which a job saves and leaves when its study is gone.
    """

    def __init__(self, slots: int, modules: Sequence[str], grace: float = GRACE) -> None:
        self.slots, self.running, self.grace = slots, dict[Job, BaseProcess](), grace
        forks = "forkserver" in multiprocessing.get_all_start_methods()
        self.context = multiprocessing.get_context("forkserver" if forks else "spawn")
        if forks:
            self.context.set_forkserver_preload(list(modules))

    def start(self, job: Job, command: Command, log: Path) -> None:
        process = self.context.Process(  # type: ignore[attr-defined]
            target=_alone, args=(command, log, self.grace)
        )
        process.start()
        self.running[job] = process

    def ended(self, seconds: float) -> Ended:
        connection.wait([process.sentinel for process in self.running.values()], seconds)
        ended = [job for job, process in self.running.items() if not process.is_alive()]
        return [(job, self.running.pop(job).exitcode or 0) for job in ended]

    def stop(self) -> None:
        for process in self.running.values():
            process.terminate()


def _alone(command: Command, log: Path, grace: float) -> None:
    """Carry out a command in a process of its own, which ends with the study's."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C is for the study's process, which passes it on
    threading.Thread(target=_end_with_the_study, args=(os.getppid(), grace), daemon=True).start()
    sys.exit(carry_out(command, log))


def _end_with_the_study(parent: int, grace: float) -> None:
    """Save and leave when the study's process is gone, so that a new one finds no run locked.

    Without the process that forked it (``parent``) the study takes the job for ended, too. What
    doesn't leave, because it is past its last step or hangs, is ended; its files are whole.
    """
    study = multiprocessing.parent_process()
    if study is None:
        return
    while not connection.wait([study.sentinel], TICK) and os.getppid() == parent:
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    os._exit(128 + signal.SIGTERM)


def carry_out(command: Command, log: Path) -> int:
    """Run a script's ``main`` in this process as its command line would; return the exit code."""
    with _output_to(log):
        before, sys.argv = sys.argv, [command.script, *command.argv]
        try:
            cli.run(importlib.import_module(command.module).main)
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else int(end.code is not None)
        except Exception:
            traceback.print_exc()  # a fault of the script; its study goes on
            return 1
        finally:
            sys.argv = before
    return 0


@contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Within, what the process or a library of C prints goes to ``log``; it is begun anew."""
    log.parent.mkdir(parents=True, exist_ok=True)
    kept, streams = [os.dup(1), os.dup(2)], (sys.stdout, sys.stderr)
    with log.open("w", encoding="utf-8", buffering=1, errors="backslashreplace") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = file
        try:
            yield
        finally:
            sys.stdout, sys.stderr = streams
            for number, old in zip((1, 2), kept, strict=True):
                os.dup2(old, number)
                os.close(old)


# --- Ray ------------------------------------------------------------------------------------------
class RayTasks:
    """Jobs as tasks of the cluster that ``ray`` is connected to; folders are shared by all.

    Ray starts the job of a worker that dies again, elsewhere; ``--resume`` in its command line has
    it go on.
    """

    def __init__(self, ray: object, slots: int, threads: int, gpu: bool) -> None:
        self.ray, self.slots = ray, slots
        self.running: dict[object, Job] = {}
        self.task = ray.remote(  # type: ignore[attr-defined]
            num_cpus=threads, num_gpus=int(gpu), max_retries=RETRIES, max_calls=0
        )(carry_out)

    def start(self, job: Job, command: Command, log: Path) -> None:
        self.running[self.task.remote(command, log.absolute())] = job

    def ended(self, seconds: float) -> Ended:
        ray = self.ray
        ready, _ = ray.wait(list(self.running), timeout=seconds)  # type: ignore[attr-defined]
        return [(self.running.pop(each), self._code(each)) for each in ready]

    def _code(self, task: object) -> int:
        try:
            return self.ray.get(task)  # type: ignore[attr-defined]
        except self.ray.exceptions.RayError:  # type: ignore[attr-defined]
            return 1

    def stop(self) -> None:
        for task in self.running:
            self.ray.cancel(task)  # type: ignore[attr-defined]


@contextmanager
def on_cluster(address: str, threads: int, gpu: bool) -> Iterator[RayTasks]:
    """Within, workers of the Ray cluster at ``address``, "" for this machine alone.

    Raises:
        ValueError: Ray isn't installed.
        OSError: no cluster answers.
    """
    with cluster(address) as ray:
        resources = ray.cluster_resources()
        slots = resources.get("GPU", 0) if gpu else resources.get("CPU", 1) // threads
        yield RayTasks(ray, max(int(slots), 1), threads, gpu)
