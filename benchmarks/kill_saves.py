"""Kill a process that saves again and again, at random moments, and look at what it leaves.

    python benchmarks/kill_saves.py                      # 1,000 kills of ours: 3 minutes
    python benchmarks/kill_saves.py --kills=20 --others=10

After each SIGKILL the file is read: counted is how often it is unreadable, and how often a save
that had returned is not in it (lost). Ours are ``utilities.checkpoint.save`` alone, with weights
and momentum of a WRN-16-2, and a real training of the GCN that saves after each step and goes on
with ``--resume`` after each kill. For comparison: files written in place, as most programs do. A
kill ends a process, not the machine: it says nothing on power cuts, against which file and folder
are synced.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import h5py
import numpy as np
import torch

import DatasetClass.TUD  # noqa: F401 - before the forks, which then need not
import models
from benchmarks.timing import machine
from trainings import my_train_GCN
from trainings.files import RunFiles
from trainings.state import TrainingState
from utilities import checkpoint
from utilities.cli import Parser, add_run_flags, non_negative_int, positive_float, run
from utilities.files import remove_parts
from utilities.tables import table

Acknowledge = Callable[[int], None]  # called with a save's number when the save has returned
NUMBER = 8  # bytes of one in the pipe


class Victim(NamedTuple):
    """What saves.

    Attributes:
        save: saves for ever and acknowledges each save.
        read: number of the save that the files hold; raises if they are damaged.
        path: the file.
    """

    name: str
    save: Callable[[Acknowledge], None]
    read: Callable[[], int]
    path: Path


class Outcome(NamedTuple):
    """What the kills of one victim left."""

    name: str
    size: int  # bytes of the file
    kills: int
    saves: int  # that returned, all in all
    unreadable: int
    lost: int
    parts: int


def kill(victim: Victim, seconds: float) -> list[int]:
    """Fork, let it save, kill it ``seconds`` after its first save; the acknowledged numbers.

    Raises:
        RuntimeError: it ended by itself.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            victim.save(lambda number: _tell(write_end, number))
        except BaseException as error:
            print(f"{victim.name}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(1)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        told = pipe.read(NUMBER)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        told += pipe.read()
    if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
        raise RuntimeError(f"{victim.name}: ended before it was killed")
    return np.frombuffer(told, dtype=np.int64).tolist()


def _tell(pipe: int, number: int) -> None:
    os.write(pipe, number.to_bytes(NUMBER, sys.byteorder))


def kill_often(victim: Victim, kills: int, window: float, moments: random.Random) -> Outcome:
    """Kill ``victim`` at random moments and read its files after each time.

    Args:
        victim: what saves.
        kills: how often.
        window: seconds after a first save within which the kill falls, uniformly.
        moments: the generator of the moments.
    """
    unreadable = lost = parts = saves = size = 0
    for _ in range(kills):
        numbers = kill(victim, moments.uniform(0, window))
        saves += len(numbers)
        size = max(size, victim.path.stat().st_size)
        try:
            # The save that was killed may have come through without having told so.
            lost += victim.read() < numbers[-1]
        except Exception:  # whatever a reader says of a damaged file
            unreadable += 1
            lost += 1
            victim.path.unlink()
        parts += len(list(victim.path.parent.glob(".*.part*")))
        for path in victim.path.parent.iterdir():
            remove_parts(path)
    return Outcome(victim.name, size, kills, saves, unreadable, lost, parts)


# --- ours -----------------------------------------------------------------------------------------
def alone(folder: Path) -> Victim:
    """``checkpoint.save`` of weights and momentum of a WRN-16-2, all filled with the number."""
    path = folder / "model.pt"
    weights = models.build("cifar", depth=16, width_factor=2).state_dict()
    texts = {"task": "cifar", "model": "cifar", "dataset": "cifar10"}
    dicts = {key: {} for key in ("model_args", "data_args", "train_args", "metrics")}

    def save(acknowledge: Acknowledge) -> None:
        number = read() if path.exists() else 0
        while True:
            number += 1
            state = {k: torch.full_like(v, number) for k, v in weights.items()}
            resume = {"momentum": [value.clone() for value in state.values()]}
            content = {**texts, **dicts, "state_dict": state, "resume": resume}
            checkpoint.save(path, {**content, "epoch": number})
            acknowledge(number)

    def read() -> int:
        content = checkpoint.load(path)
        number = content["epoch"]
        if not all(torch.all(value == number) for value in content["state_dict"].values()):
            raise ValueError("weights of another save")
        return number

    return Victim("checkpoint.save", save, read, path)


def training(folder: Path) -> Victim:
    """The GCN's training on MUTAG, which saves after each step; a save's number is its step's."""
    argv = ["--epochs=1000000", "--save_seconds=0", "--resume", "--threads=1"]
    argv += [f"--data_dir={folder}", f"--out_dir={folder}", "--optimizer=SAM"]
    trained = my_train_GCN.parse_args(argv).run

    def save(acknowledge: Acknowledge) -> None:
        original = RunFiles.save

        def and_tell(files: RunFiles, state: TrainingState) -> None:
            original(files, state)
            acknowledge(state.steps)

        with (
            Path(os.devnull).open("w") as nowhere,
            redirect_stdout(nowhere),
            mock.patch.object(RunFiles, "save", and_tell),
        ):
            my_train_GCN.main(argv)

    def read() -> int:
        last = checkpoint.load(trained.last)
        best = last["resume"]["best"]
        if best and checkpoint.load(trained.best)["epoch"] < best["epoch"]:
            raise ValueError("the best epoch's weights are lost")
        return last["resume"]["steps"]

    return Victim("a GCN's training, resumed", save, read, trained.last)


# --- in place -------------------------------------------------------------------------------------
def in_place(
    name: str, path: Path, write: Callable[[Path, Any], object], read: Callable[[Path], Any]
) -> Victim:
    """Write the same bytes as ``alone`` over the old file.

    Args:
        name: of the writer.
        path: the file.
        write: writes a float32 array.
        read: reads it, or raises.
    """
    floats = 2 * sum(p.numel() for p in models.build("cifar", width_factor=2).parameters())

    def save(acknowledge: Acknowledge) -> None:
        number = 0
        while True:
            number += 1
            write(path, np.full(floats, number, dtype=np.float32))
            acknowledge(number)

    def number() -> int:
        values = np.asarray(read(path))
        if len(values) != floats or not np.all(values == values[0]):
            raise ValueError("a mixture of two saves")
        return int(values[0])

    return Victim(name, save, number, path)


def write_h5(path: Path, values: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file["values"] = values


def read_h5(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        return file["values"][:]


def others(folder: Path) -> list[Victim]:
    """Writers that most programs use."""
    return [
        in_place("torch.save in place", folder / "in_place.pt", _torch_save, torch.load),
        in_place("np.save in place", folder / "in_place.npy", np.save, np.load),
        in_place("h5py in place", folder / "in_place.h5", write_h5, read_h5),
    ]


def _torch_save(path: Path, values: np.ndarray) -> None:
    torch.save(torch.from_numpy(values), path)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    kills = parser.add_argument
    kills("--kills", type=non_negative_int, default=1000, help="of ours, half of each kind")
    kills("--others", type=non_negative_int, default=60, help="of each writer in place")
    kills("--window", type=positive_float, default=0.1, help="s after a save in which a kill falls")
    add_run_flags(parser, seed=0)
    parser.set_defaults(threads=1)  # a fork keeps no threads
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> list[Outcome]:
    """Kill, count and print the table."""
    args = parse_args(argv)
    torch.set_num_threads(1)
    checkpoint.commit()  # asks git once, before the forks
    moments, began = random.Random(args.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours = [alone(folder), training(folder)]
        counts = (args.kills - args.kills // 2, args.kills // 2)
        plan = [*zip(ours, counts, strict=True), *((v, args.others) for v in others(folder))]
        outcomes = [kill_often(v, kills, args.window, moments) for v, kills in plan if kills]
    print(f"{machine()}; {time.monotonic() - began:.0f} s for all\n")
    header = ["writer", "MB", "kills", "saves", "unreadable", "lost saves", "part files left"]
    rows = [[f.name, f"{f.size / 1e6:.2f}", *(f"{n:,}" for n in f[2:])] for f in outcomes]
    print(table(header, rows))
    return outcomes


if __name__ == "__main__":
    run(main)
