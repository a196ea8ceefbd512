"""One process alone, and what torchrun's environment says; test_distributed has the rest."""

from __future__ import annotations

import atexit
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import multiprocessing, nn

from utilities import ranks as module
from utilities.files import ROOT
from utilities.ranks import Ranks, launcher, rank_and_world


def test_one_process_needs_no_group_even_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    ranks, model = Ranks(torch.device("cpu")), nn.Linear(2, 2)
    assert rank_and_world() == (0, 1) and launcher() == ["python"] and ranks.writer
    assert ranks.wrap(model, sync_batch_norm=False) is model
    assert ranks.gather(3) == [3] and ranks.from_writer(lambda: 4) == 4
    with ranks.in_turn():
        ranks.close()
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("machines", "words"),
    [
        ("1", ["torchrun", "--nproc_per_node=4"]),
        ("2", ["torchrun", "--nnodes=2", "--nproc_per_node=4"]),
    ],
)
def test_the_launcher_is_that_of_the_run(
    machines: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"WORLD_SIZE": "8", "RANK": "5", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GROUP_WORLD_SIZE", machines)
    assert rank_and_world() == (5, 8) and launcher() == words


def test_a_device_that_cant_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="--device mps: several processes need cpu or cuda"):
        Ranks(torch.device("mps"))
    monkeypatch.setenv("LOCAL_RANK", str(torch.cuda.device_count()))
    with pytest.raises(ValueError, match="has no GPU of its own"):
        Ranks(torch.device("cuda"))


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return str(free.getsockname()[1])


def threads() -> list[str]:
    """Names of this process's threads, as Linux knows them."""
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]


def reduce_and_end(rank: int, folder: str, stopped: bool) -> None:
    """One of two processes that average gradients; it writes which threads see its end."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    os.environ["MASTER_PORT"] = Path(folder, "port").read_text()
    atexit.register(lambda: Path(folder, f"{rank}.json").write_text(json.dumps([*seen, threads()])))
    ranks = Ranks(torch.device("cpu"))
    model = ranks.wrap(nn.Linear(2, 2), sync_batch_norm=False)
    model.itself = [model]  # a cycle, which only the collector frees
    model(torch.ones(1, 2)).sum().backward()
    seen = [threads()]
    if stopped:  # as by a signal, when nobody closes
        sys.exit()
    ranks.close()


@pytest.mark.skipif(sys.platform != "linux", reason="threads are read from /proc")
@pytest.mark.parametrize("stopped", [False, True])
def test_no_thread_of_gloo_is_left_when_python_shuts_down(tmp_path: Path, stopped: bool) -> None:
    """Such a thread now and then ends a process that has done its work with SIGABRT."""
    (tmp_path / "port").write_text(free_port())
    multiprocessing.spawn(reduce_and_end, args=(str(tmp_path), stopped), nprocs=2)
    for rank in (0, 1):
        before, at_end = json.loads((tmp_path / f"{rank}.json").read_text())
        assert any("gloo" in name for name in before)
        assert not any("gloo" in name for name in at_end)


FAILING = """
import sys, torch
from utilities.ranks import Ranks
ranks = Ranks(torch.device("cpu"))
ranks.gather(0)
if ranks.writer:
    sys.stdin.read()
else:
    torch.distributed.all_reduce(torch.ones(1), async_op=True)
    raise RuntimeError("out of memory, say")
"""


def test_a_failed_process_does_not_wait_for_the_others() -> None:
    """Torchrun stops them only once it is gone; until then they may wait for it."""
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": free_port()}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", FAILING],
            env={**os.environ, **group, "RANK": rank, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in "01"
    ]
    try:
        errors = both[1].communicate(timeout=60)[1]
        assert both[1].returncode == 1 and b"out of memory, say" in errors
    finally:
        for process in both:
            process.kill()
            process.communicate()


def test_at_pythons_end_a_group_with_nccl_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """To end it waits for kernels that the other processes may never join."""
    ended: list[bool] = []
    monkeypatch.setattr(module.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(module.distributed, "destroy_process_group", lambda: ended.append(True))
    monkeypatch.setattr(sys, "last_value", None, raising=False)
    module._end_with_python("cpu:gloo,cuda:nccl")
    assert not ended
    module._end_with_python("gloo")
    assert ended
