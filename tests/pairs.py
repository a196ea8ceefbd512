"""Two processes of one gloo group, for tests of what SAM does under DDP and FSDP."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import distributed, multiprocessing

Work = Callable[[int, str], None]  # of a rank and a folder; a function of a module


def in_two_processes(work: Work, folder: Path) -> None:
    """Call ``work`` in both processes; an error in one is raised here."""
    multiprocessing.spawn(_process, args=(work, str(folder)), nprocs=2)


def _process(rank: int, work: Work, folder: str) -> None:
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{folder}/store", 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    work(rank, folder)
    distributed.destroy_process_group()
    sys.stdout.flush()
    # Python's shutdown can abort while a gloo thread lives (pytorch issue 190489).
    os._exit(0)
