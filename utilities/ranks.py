"""One process, or several that torchrun started and that train one model together."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel


class Ranks:
    """The processes of this run: gloo on CPUs, NCCL on GPUs, nothing at all for one alone.

    Attributes:
        rank, world: this process's number and how many there are.
        device: this process's own.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.rank = int(os.environ.get("RANK", 0))
        self.world = int(os.environ.get("WORLD_SIZE", 1))
        if self.world == 1:
            self.rank = 0
            return
        if device.type == "cuda":
            local = int(os.environ["LOCAL_RANK"])
            if local >= torch.cuda.device_count():
                raise ValueError(
                    f"--nproc_per_node: process {local} has no GPU of its own, there are "
                    f"{torch.cuda.device_count()}; start fewer, or use --device cpu"
                )
            self.device = torch.device("cuda", local)
            torch.cuda.set_device(self.device)
        if not distributed.is_initialized():
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")

    @property
    def writer(self) -> bool:
        """Whether this is the one process that writes files and prints."""
        return self.rank == 0

    def wrap(self, model: nn.Module, sync_batch_norm: bool) -> nn.Module:
        """``model`` with gradients averaged over the processes; itself if there is one.

        Batch norm normalises by each process's own part of the batch and keeps the first's
        running statistics, unless ``sync_batch_norm`` (GPUs only).

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

    def agree(self, value: Any) -> Any:
        """The writer's ``value``, in every process."""
        if self.world == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0, device=self.device)
        return values[0]

    def close(self) -> None:
        """Leave the group."""
        if self.world > 1 and distributed.is_initialized():
            distributed.destroy_process_group()
