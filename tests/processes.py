"""Trainings of several processes, forked with the environment that torchrun sets.

Importing torch takes seconds, which forks need not. Without torchrun nobody ends a process that
waits for one that is gone.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import SMALL

import DatasetClass.TUD  # noqa: F401 - its PyTorch Geometric is imported here, for all forks
from trainings import my_train_cifar, my_train_GCN, my_train_mitbih
from utilities import checkpoint, cli

MAINS = {"cifar": my_train_cifar.main, "mitbih": my_train_mitbih.main, "GCN": my_train_GCN.main}
LIMIT = 60  # seconds after which processes count as hanging
Prepare = Callable[[int], None]  # what to change in a process, by its rank, before it trains


def flags(name: str, data_dir: Path, out: Path, *more: object) -> list[str]:
    common = ("--data_dir", data_dir, "--out_dir", out, "--threads", 1, "--device", "cpu", *more)
    return [str(flag) for flag in (*SMALL[name], *common)]


def start(
    name: str, argv: list[str], out: Path, world: int = 2, prepare: Prepare = lambda rank: None
) -> list[int]:
    """Start a training of ``world`` processes; what each prints is in ``out``/<rank>.txt."""
    out.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                text = os.open(out / f"{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(text, 1)
                os.dup2(text, 2)
                sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
                sys.argv = [f"trainings/my_train_{name}.py", *argv]
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                os.environ |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                cli.GRACE = 0.0
                prepare(rank)
                cli.run(MAINS[name])
                code = 0
            except SystemExit as ended:
                code = int(ended.code or 0)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    return children


def wait(children: list[int]) -> list[int]:
    """Their exit codes; fails where one doesn't end."""
    codes: dict[int, int] = {}
    until = time.monotonic() + LIMIT
    while len(codes) < len(children):
        for child in set(children) - codes.keys():
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                codes[child] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            for child in set(children) - codes.keys():
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            pytest.fail("a process hangs")
        time.sleep(0.01)
    return [codes[child] for child in children]


def train(name: str, argv: list[str], out: Path, world: int = 2, **more) -> None:
    assert wait(start(name, argv, out, world, **more)) == [0] * world, printed(out)


def printed(out: Path) -> list[str]:
    return [path.read_text() for path in sorted(out.glob("[0-9].txt"))]


def best_of(out: Path) -> dict:
    return checkpoint.load(next(p for p in out.glob("to_plot/*.pt") if "_last" not in p.name))


def last_of(out: Path) -> dict:
    return checkpoint.load(next(out.glob("to_plot/*_last.pt")))


def history(out: Path) -> pd.DataFrame:
    return pd.read_table(next(out.glob("outputs/*.dat")), comment="#").drop(columns="seconds")


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
