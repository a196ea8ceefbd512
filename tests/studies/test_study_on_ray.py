"""A study handed to Ray: the results of one machine's processes, whoever stops or dies."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tables import write
from test_runner import assert_same

from studies import runner
from utilities.interrupt import Interrupted

# Two runs of a second each, without trials, so that they are stopped in their middle.
TWO = """
task = "GCN"
base = "ADAM"
seeds = [1]
flags = { epochs = 200, save_seconds = 0.1, dataset = "MUTAG" }
[data.MUTAG]
[optimizers.ADAM]
flags = { optimizer = "ADAM" }
tune = { learning_rate = [0.01] }
[optimizers.SAM]
flags = { optimizer = "SAM" }
tune = { rho = [0.05] }
"""


def test_without_ray_one_line_names_the_extra(tmp_path: Path, monkeypatch, run_here) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    result = run_here(runner.main, write(tmp_path), "--ray", f"--out_dir={tmp_path / 'out'}")
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert "--ray: Ray is not installed here" in result.stderr


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Ray with two workers, one cluster for all of a test's studies: starting it takes seconds."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # 15 would starve on a busy machine
    init, shutdown = ray.init, ray.shutdown

    def init_once(*args: Any, **more: Any) -> None:
        if not ray.is_initialized():
            init(*args, num_cpus=2, **more)

    monkeypatch.setattr(ray, "init", init_once)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    yield ray
    shutdown()


def test_stopped_and_with_a_killed_worker_it_ends_as_on_one_machine(tmp_path: Path, ray) -> None:
    """SIGTERM while both runs train; started again, one of the two workers is killed."""
    table, whole, out = write(tmp_path, TWO), tmp_path / "whole", tmp_path / "out"
    runner.main([str(table), "--jobs=2", f"--out_dir={whole}"])
    flags = [str(table), "--ray", f"--out_dir={out}"]

    stopper = when_both_save(out, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match="stopped, all is saved") as stopped:
        runner.main(flags)
    stopper.join()
    assert stopped.value.code == 128 + signal.SIGTERM
    ends = [log.read_text().splitlines()[-1] for log in out.glob("logs/*.log")]
    assert len(ends) == 2 and all(re.search(r"stopped in epoch \d+, saved", end) for end in ends)

    killed = list[int]()
    killer = when_both_save(out, lambda: killed.append(kill_a_worker()))
    runner.main(flags)
    killer.join()
    assert killed and all("goes on" in log.read_text() for log in out.glob("logs/*.log"))
    assert_same(out, whole)


def when_both_save(out: Path, do: Callable[[], None]) -> threading.Thread:
    """A thread that does something once both runs have saved a state from now on."""
    begun, deadline = time.time_ns(), time.monotonic() + 500

    def wait_and_do() -> None:
        while time.monotonic() < deadline:
            states = out.glob("to_plot/*_last.pt")
            if sum(state.stat().st_mtime_ns > begun for state in states) == 2:
                return do()
            time.sleep(0.002)

    thread = threading.Thread(target=wait_and_do)
    thread.start()
    return thread


def kill_a_worker() -> int:
    worker = workers()[0]
    os.kill(worker, signal.SIGKILL)
    return worker


def workers() -> list[int]:
    """Processes of Ray that train: children of a child of this process."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text().rsplit(")")[-1]
            parents[int(folder.name)] = int(stat.split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_text()
        except OSError:  # it has ended
            continue
    found = [pid for pid, name in names.items() if name.startswith("ray::carry_out")]
    return [pid for pid in found if parents.get(parents[pid]) == os.getpid()]
