"""Trainings of several processes, forked with the environment that torchrun sets.

Without torchrun nobody ends a process that waits for one that is gone.
"""

from __future__ import annotations

import importlib
import os
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import forks
import pandas as pd
import torch
from conftest import SMALL

from utilities import checkpoint, cli

# What to change in a process, by its rank, before it trains; a function of a module.
Prepare = Callable[[int], None]


def flags(name: str, data_dir: Path, out: Path, *more: object) -> list[str]:
    common = ("--data_dir", data_dir, "--out_dir", out, "--threads", 1, "--device", "cpu", *more)
    return [str(flag) for flag in (*SMALL[name], *common)]


def unchanged(rank: int) -> None:
    """Train as the scripts do."""


def start(
    name: str, argv: list[str], out: Path, world: int = 2, prepare: Prepare = unchanged
) -> list[BaseProcess]:
    """Start a training of ``world`` processes; what each prints is in ``out``/<rank>.txt."""
    out.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    torchrun |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [{"RANK": rank, "LOCAL_RANK": rank, **torchrun} for rank in range(world)]
    return [forks.start(_train, name, argv, out, rank, prepare) for rank in ranks]


def _train(
    name: str, argv: list[str], out: Path, environment: dict[str, object], prepare: Prepare
) -> None:
    os.environ |= {key: str(value) for key, value in environment.items()}
    rank = int(os.environ["RANK"])
    text = os.open(out / f"{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(text, 1)
    os.dup2(text, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    sys.argv = [f"trainings/my_train_{name}.py", *argv]
    cli.GRACE = 0.0
    prepare(rank)
    cli.run(importlib.import_module(forks.SCRIPTS.get(name, name)).main)


def wait(children: list[BaseProcess]) -> list[int]:
    """Their exit codes; fails where one doesn't end."""
    until = time.monotonic() + forks.LIMIT
    for child in children:
        child.join(max(0.0, until - time.monotonic()))
    hanging = [child for child in children if child.is_alive()]
    for child in hanging:
        child.kill()
        child.join()
    assert not hanging, "a process hangs"
    return [forks.end(child) for child in children]


def train(name: str, argv: list[str], out: Path, world: int = 2, **more) -> None:
    codes = wait(start(name, argv, out, world, **more))
    assert codes == [0] * world, (codes, printed(out))


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
