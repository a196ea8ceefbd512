"""A study handed to Ray: the results of one machine's processes, whoever dies."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from tables import write
from test_runner import assert_same

from studies import runner

# Two runs of a second each, without trials, so that one is killed in its middle.
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


def test_a_killed_worker_leaves_the_results_of_one_machine(tmp_path: Path, monkeypatch) -> None:
    """Two workers, one of them killed while it trains."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # 15 would starve on a busy machine
    init, killed = ray.init, list[int]()
    monkeypatch.setattr(ray, "init", lambda *args, **more: init(*args, num_cpus=2, **more))
    table, whole, out = write(tmp_path, TWO), tmp_path / "whole", tmp_path / "out"
    runner.main([str(table), "--jobs=2", f"--out_dir={whole}"])

    def kill_one() -> None:
        deadline = time.monotonic() + 500
        while not killed and time.monotonic() < deadline:
            # Each has written a state, from which the killed one's run goes on.
            states = list(out.glob("to_plot/*_last.pt"))
            for worker in workers()[:1] if len(states) == 2 else []:
                os.kill(worker, signal.SIGKILL)
                killed.append(worker)
            time.sleep(0.002)

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        runner.main([str(table), "--ray", f"--out_dir={out}"])
    finally:
        killed.append(0)  # ends the thread
        killer.join()
    assert killed[0], "no worker was at work"
    assert any("goes on" in log.read_text() for log in out.glob("logs/*.log"))
    assert_same(out, whole)


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
