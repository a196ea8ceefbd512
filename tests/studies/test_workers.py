"""Jobs end with their study, whatever they do at that time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import forks
import pytest

from studies import workers
from studies.plan import Command, Job

STUBBORN = """
import os, signal, time
from pathlib import Path

def main(argv=None):
    signal.signal(signal.SIGTERM, lambda number, frame: Path("asked").touch())
    Path("begun").write_text(str(os.getpid()))
    while True:
        time.sleep(0.1)
"""


def _study(folder: str) -> None:
    """A study whose only job takes no SIGTERM; it is killed once that has begun."""
    os.chdir(folder)
    sys.path.insert(0, folder)
    processes = workers.Processes(1, [], grace=0.5)
    job = Job("runs", "training", "data", "SGD", 1, None)
    begun = Path("begun")
    processes.start(job, Command("stubborn.py", (), ()), Path("job.log"))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (begun.is_file() and begun.read_text()):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_job_that_does_not_leave_is_ended_when_its_study_is_gone(tmp_path: Path) -> None:
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    study = forks.start(_study, str(tmp_path))
    assert forks.end(study) == -signal.SIGKILL
    job, deadline = int((tmp_path / "begun").read_text()), time.monotonic() + 20
    try:
        while _runs(job):
            assert time.monotonic() < deadline, "the job outlives its study"
            time.sleep(0.05)
    finally:
        if _runs(job):
            os.kill(job, signal.SIGKILL)
    assert (tmp_path / "asked").is_file()  # to save, first


def _runs(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_job_ends_with_the_process_that_forked_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The study lives, but takes the job for ended then, and would start another in its place."""
    ours, theirs = multiprocessing.Pipe()
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: SimpleNamespace(sentinel=ours))
    monkeypatch.setattr(workers, "TICK", 0.01)
    parents, done = iter([7, 7, 1]), []
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    monkeypatch.setattr(os, "kill", lambda number, which: done.append((number, which)))
    monkeypatch.setattr(os, "_exit", done.append)
    workers._end_with_the_study(7, 0.0)
    assert done == [(os.getpid(), signal.SIGTERM), 128 + signal.SIGTERM]
    theirs.close()
