"""The data sets, by the names that ``--dataset`` takes and checkpoints hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from DatasetClass.batches import Dataset


def load(
    name: str,
    data_dir: Path,
    batch_size: int = 128,
    device: torch.device | str = "cpu",
    **data_args: Any,
) -> Dataset:
    """Load a data set with its splits.

    Args:
        name: "cifar10", "cifar100", "mitbih", or any TUDataset's name such as "MUTAG".
        data_dir: folder of the data sets; what is not there is downloaded to it.
        batch_size: samples a batch of ``train``, ``val`` and ``test``.
        device: where the batches lie.
        data_args: the arguments of its class, such as ``seed`` and ``train_samples``.

    Raises:
        FileNotFoundError: the data are neither there nor to be downloaded.
        ValueError: damaged files, or an unknown argument.
    """
    # Imported when asked for: each set has readers (wfdb, torchvision) that take seconds to load.
    device = torch.device(device)
    if name in ("cifar10", "cifar100"):
        from DatasetClass.cifar import Cifar

        return Cifar(name, data_dir, batch_size, device, **data_args)
    if name == "mitbih":
        from DatasetClass.mitbih import MitBih

        return MitBih(data_dir, batch_size, device, **data_args)
    from DatasetClass.TUD import TUD

    return TUD(name, data_dir, batch_size, device, **data_args)
