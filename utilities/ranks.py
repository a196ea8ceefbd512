"""One process, or several that torchrun started and that train one model together."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")
NEW_STORE = os.environ.get("TORCH_DISABLE_SHARE_RDZV_TCP_STORE") == "1"


def rank_and_world() -> tuple[int, int]:
    """Number of this process and how many there are, as torchrun says; (0, 1) for one alone."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    return (int(os.environ.get("RANK", 0)), world) if world > 1 else (0, 1)


def refuse_several() -> None:
    """Stop a script that torchrun started several times, as each would do and write the whole.

    Raises:
        ValueError: there is another process.
    """
    if rank_and_world()[1] > 1:
        raise ValueError(
            "torchrun: this script is for one process, so start it with python; trainings and "
            "hessian.py are shared out"
        )


def launcher() -> list[str]:
    """The words by which a script is started as this process was."""
    if rank_and_world()[1] == 1:
        return ["python"]
    here = os.environ.get("LOCAL_WORLD_SIZE", rank_and_world()[1])
    machines = os.environ.get("GROUP_WORLD_SIZE", "1")
    several = [] if machines == "1" else [f"--nnodes={machines}"]
    return ["torchrun", *several, f"--nproc_per_node={here}"]


def _join(backend: str) -> None:
    """Meet the other processes, also after a restart by torchrun.

    Its store still holds the addresses of those that died (github.com/pytorch/pytorch/issues/
    135712); a prefix leaves them behind. On several machines the counts of restarts differ, so
    there torchrun must be told to make a new store each time.

    A gloo thread that lets go of a tensor while Python shuts down ends the process with SIGABRT,
    though all is written (github.com/pytorch/pytorch/issues/190489). The threads end with their
    group, so nothing may hold it then: neither the default arguments of a module that torch
    imports later, nor a DistributedDataParallel that waits to be collected.
    """
    import torch.distributed.nn.functional  # noqa: F401

    atexit.register(_end_with_python, backend)
    store, rank, world = next(distributed.rendezvous("env://"))
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        restarts = "all"
        if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0" and not (rank or NEW_STORE):
            print("note: --max_restarts needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on all nodes")
    store = distributed.PrefixStore(f"restart {restarts}", store)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=world)


def _end_with_python(backend: str) -> None:
    """End gloo's group where nobody has, as after an error that was reported in a line.

    To end a group is to wait for what it has begun, which the others, who know of no failure, may
    never join (github.com/pytorch/torchtitan/pull/1342), and torchrun stops them only once this
    process is gone. So the group stays after an exception that nobody caught, and with NCCL.
    """
    if backend == "gloo" and getattr(sys, "last_value", None) is None:
        _leave()
    gc.collect()


def _leave() -> None:
    """End the group, and the threads with it."""
    if distributed.is_initialized():
        distributed.destroy_process_group()
    gc.collect()


class Ranks:
    """The processes of this run: gloo on CPUs, NCCL on GPUs, nothing at all for one alone.

    What lies on the CPU goes through gloo in any case: it never makes a GPU wait.

    Attributes:
        rank, world: this process's number and how many there are.
        device: this process's own.

    Raises:
        ValueError: there are too few GPUs, or the device is neither CPU nor NVIDIA GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank, self.world = rank_and_world()
        self.local = int(os.environ.get("LOCAL_RANK", self.rank))
        self.device = device
        if self.world == 1:
            return
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"--device {device}: several processes need cpu or cuda")
        if device.type == "cuda":
            self.device = self._gpu_of_process()
        if not distributed.is_initialized():
            _join("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")

    def _gpu_of_process(self) -> torch.device:
        if self.local >= torch.cuda.device_count():
            raise ValueError(
                f"--nproc_per_node: process {self.local} has no GPU of its own, there are "
                f"{torch.cuda.device_count()}; start fewer, or use --device cpu"
            )
        torch.cuda.set_device(self.local)
        return torch.device("cuda", self.local)

    @property
    def writer(self) -> bool:
        """Whether this is the one process that writes files and prints."""
        return self.rank == 0

    def wrap(self, model: nn.Module, sync_batch_norm: bool) -> nn.Module:
        """``model`` with gradients averaged over the processes; itself if there is one.

        Batch norm has three choices:

        - As it is, each process normalises by its own part of the batch: with N processes a
          batch's statistics are those of batch_size / N samples. The running statistics are
          the first process's, which DistributedDataParallel hands to the others before each
          forward pass and ``broadcast_buffers`` before each evaluation.
        - ``sync_batch_norm`` (GPUs only) normalises by the whole batch, as one process does, at
          the price of a message a layer and pass.
        - A model without it, or with layer or group norm, trains as in one process.

        Raises:
            ValueError: ``sync_batch_norm`` without a GPU.
        """
        if self.world == 1:
            return model
        if sync_batch_norm:
            if self.device.type != "cuda":
                raise ValueError("--sync_batch_norm: torch has it on GPUs only; leave it out")
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids)

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Give every process the first one's buffers, such as batch norm's running statistics."""
        if self.world > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, src=0)

    def sum(self, tensors: list[Tensor]) -> None:
        """Add each tensor up over the processes, in place."""
        if self.world > 1:
            for tensor in tensors:
                distributed.all_reduce(tensor)

    def gather(self, value: Any) -> list[Any]:
        """``value`` of every process, by rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        distributed.all_gather_object(values, value)
        return values

    def from_writer(self, make: Callable[[], T]) -> T:
        """Call ``make`` in the writer alone; every process returns, or raises, what it did there.

        So bad input ends all processes, and none waits for one that is gone.
        """
        if self.world == 1:
            return make()
        outcome: list[Any] = [None, None]
        if self.writer:
            try:
                outcome[0] = make()
            except (ValueError, OSError) as error:
                outcome[1] = error
        distributed.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Let each machine's first process through before its others: it downloads, they read."""
        if self.local:
            self._meet()
        try:
            yield
        finally:
            if not self.local:
                self._meet()

    def _meet(self) -> None:
        self.sum([torch.zeros(1)])

    def close(self) -> None:
        """Leave the group."""
        if self.world > 1:
            _leave()
