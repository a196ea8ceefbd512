"""Points handed out to Ray's workers: the same values, whoever dies; clear words without Ray."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_spectra import choose_merged, contents, flags_of

from loss_landscape import plot_surface
from loss_landscape.my_pyhessian import hessian, probes_on_ray
from loss_landscape.points import on_ray
from loss_landscape.surface_file import done, read_surface
from utilities import ray_cluster


def test_without_ray_one_line_names_the_extra(
    trained, data_dir: Path, tmp_path: Path, monkeypatch, run_here
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    flags = ["--model_file", trained["GCN"], "--data_dir", data_dir, "--out_dir", tmp_path]
    result = run_here(plot_surface.main, *flags, "--ray")
    assert result.returncode == 2
    assert "--ray: Ray is not installed here" in result.stderr
    assert "pip install 'sam-optimizer[ray]'" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def one_cluster() -> Iterator[Any]:
    """Two workers of this machine, started once: that takes longer than all that they do here.

    Within, a script that asks for a cluster is given this one, and leaves it running.
    """
    ray = pytest.importorskip("ray")
    init = ray.init
    with pytest.MonkeyPatch.context() as patch:
        # Ray's 15 makes a worker wait on a busy machine until nobody else has anything to do.
        patch.setenv("RAY_worker_niceness", "0")
        patch.setattr(ray, "init", lambda *args, **more: init(*args, num_cpus=2, **more))
        with ray_cluster.cluster(""):
            patch.setattr(ray, "init", lambda *args, **more: None)
            patch.setattr(ray, "shutdown", lambda: None)
            yield ray
            patch.undo()


def test_probes_and_layers_of_workers_are_those_of_one_process(
    one_cluster, trained, data_dir: Path, tmp_path: Path, monkeypatch
) -> None:
    """Bit for bit, in the way of making products that one process has chosen."""
    monkeypatch.setattr(hessian, "choose", choose_merged)
    made, here = [], probes_on_ray.fetched

    def fetched(ray: Any, result: Any) -> Any:
        found = here(ray, result)
        made.append(found[1])
        return found

    monkeypatch.setattr(probes_on_ray, "fetched", fetched)
    for name, more in (("alone", []), ("shared", ["--ray"])):
        hessian.main(flags_of(trained, data_dir, tmp_path / name, "--per_layer", *more))
        assert bool(made) == bool(more)
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")
    record = json.loads(contents(tmp_path / "shared")["GCN_SAM_TINY.json"])
    assert "merged" in record["products_by"]
    # All of them: the density's probes, more samples of the trace, and the layers.
    assert len(made) == 4 + record["products"]["trace"] + len(record["per_layer"])


def test_a_killed_worker_leaves_the_surface_of_one_process(
    one_cluster, trained, data_dir: Path, tmp_path: Path, monkeypatch
) -> None:
    """One of two workers is killed while it measures."""
    killed: list[int] = []
    flags = ["--model_file", str(trained["GCN"]), "--data_dir", str(data_dir)]
    flags += ["--x=-1:1:24", "--y=-1:1:16", "--threads=1", "--test", "--no-fast"]
    alone, shared = tmp_path / "alone.h5", tmp_path / "shared.h5"
    plot_surface.main([*flags, "--surf_file", str(alone)])

    def kill_one() -> None:
        deadline, writes = time.monotonic() + 200, set()
        while not killed and time.monotonic() < deadline:
            # Not read: HDF5 can't open a file in two ways in one process.
            writes |= {shared.stat().st_mtime_ns} if shared.exists() else set()
            if len(writes) > 3:
                for worker in workers()[:1]:
                    os.kill(worker, signal.SIGKILL)
                    killed.append(worker)
            time.sleep(0.002)

    monkeypatch.setattr("loss_landscape.evaluation.PAUSE", 0.0)
    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        plot_surface.main([*flags, "--surf_file", str(shared), "--ray"])
    finally:
        killed.append(0)  # ends the thread
        killer.join()
    assert killed[0], "no worker was at work"
    one, other = read_surface(alone), read_surface(shared)
    assert done(shared).all() and len(one.values) == 4
    for name, values in one.values.items():
        np.testing.assert_array_equal(other.values[name], values)


def workers() -> list[int]:
    """Processes of Ray that measure points: children of a child of this process."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int(
                (folder / "stat").read_text().rsplit(")")[-1].split()[1]
            )
            names[int(folder.name)] = (folder / "cmdline").read_text()
        except OSError:  # it has ended
            continue
    found = [pid for pid, name in names.items() if name.startswith("ray::measure_chunk")]
    return [pid for pid in found if parents.get(parents[pid]) == os.getpid()]


class Numbers:
    """A measure that has what it gives: the points' first coordinate and more."""

    names, block, way = ("train_loss",), 1, "plain"

    def __init__(self, more: float) -> None:
        self.more = more

    def __call__(self, points: np.ndarray) -> dict[str, np.ndarray]:
        return {"train_loss": points[:, 0] + self.more}


class NoCluster:
    """Ray's part that a measure calls, in this process."""

    class exceptions:  # noqa: N801 - Ray's name
        RayTaskError, RayError = KeyError, LookupError

    def __init__(self, fail: Exception | None = None) -> None:
        self.fail = fail

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 4.0}

    def put(self, value):
        return value

    def remote(self, **options):
        def make(function):
            class Task:
                remote = staticmethod(function)

            return Task

        return make

    def get(self, results):
        if self.fail:
            raise self.fail
        return results


@pytest.mark.parametrize(
    ("there", "more", "message"),
    [
        ({"checkpoint_sha256": "b"}, 1.0, "a worker has other checkpoint_sha256 than this"),
        ({"checkpoint_sha256": "a"}, 1.1, "a worker has other data than this process"),
        ({"checkpoint_sha256": "a"}, 1.0, ""),
    ],
)
def test_workers_with_something_else_are_refused(there, more, message, monkeypatch) -> None:
    """The kind: another machine's file of the same name."""
    at_checkpoint = Numbers(more)(np.zeros((1, 1)))
    monkeypatch.setattr(on_ray, "_restored", lambda work: (there, Numbers(1.0), at_checkpoint))
    args = argparse.Namespace(ray="", threads=1, device="cpu")
    measure = on_ray._OnRay(NoCluster(), args, [[]], Numbers(1.0), {"checkpoint_sha256": "a"})
    points = np.arange(20.0)[:, None]
    if message:
        with pytest.raises(ValueError, match=message):
            measure(points)
    else:
        np.testing.assert_array_equal(measure(points)["train_loss"], np.arange(20.0) + 1)


def test_a_cluster_that_is_gone_is_one_line(monkeypatch) -> None:
    monkeypatch.setattr(on_ray, "_restored", lambda work: ({}, Numbers(0.0), {}))
    args = argparse.Namespace(ray="", threads=1, device="cpu")
    measure = on_ray._OnRay(NoCluster(LookupError("node died\nmore")), args, [[]], Numbers(0.0), {})
    with pytest.raises(OSError, match=r"is gone .*node died\); what is finished is kept"):
        measure(np.zeros((3, 1)))
