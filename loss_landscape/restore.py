"""From a checkpoint file back to its model, its data and its loss."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import DatasetClass
import models
from DatasetClass.batches import Batch
from models.smooth_crossentropy import Loss, smooth_crossentropy
from utilities import checkpoint
from utilities.cli import Parser, positive_int, prepare_device


@dataclass
class Restored:
    """A trained model in eval mode, with its loss and its data in fixed order on the device."""

    path: Path
    content: dict[str, Any]
    model: torch.nn.Module
    loss: Loss  # (logits (batch, classes), targets (batch,)) -> (batch,)
    dataset: Any

    def batches(
        self,
        split: str,
        samples: int | None,
        batch_size: int,
        part: tuple[int, int] = (0, 1),
    ) -> list[Batch]:
        """``split`` without augmentation or shuffling; ``samples`` 0 or None takes all of it.

        ``part``: of the split, as ``Dataset.fixed`` takes it.
        """
        return self.dataset.fixed(split, batch_size, samples or None, part)


def add_restore_flags(parser: Parser, batch_size: int) -> None:
    """Add the flags that say which checkpoint, data and loss to look at."""
    group = parser.add_argument_group("checkpoint and data")
    group.add_argument("--model_file", type=Path, required=True, help="the checkpoint (.pt)")
    group.add_argument(
        "--model", help="its model's name; the checkpoint knows it, a wrong one is refused"
    )
    group.add_argument(
        "--dataset", help="its data set's name; the checkpoint knows it, a wrong one is refused"
    )
    group.add_argument(
        "--loss_name",
        "-l",
        choices=["smooth_crossentropy", "crossentropy"],
        default="smooth_crossentropy",
        help="smooth_crossentropy smooths the labels as the training did",
    )
    group.add_argument(
        "--batch_size", type=positive_int, default=batch_size, help="samples a forward pass"
    )
    group.add_argument(
        "--samples",
        type=positive_int,
        help="look at this many samples of the split, drawn once (all if not given)",
    )


def restore(args: argparse.Namespace) -> Restored:
    """Rebuild what ``--model_file`` holds.

    Raises:
        FileNotFoundError: no such checkpoint, or its data are neither here nor to be had.
        ValueError: damaged checkpoint, or not of the model or data set that the flags name.
    """
    device = prepare_device(args.device, args.threads)
    content = checkpoint.load(args.model_file)
    for flag in ("model", "dataset"):
        asked = getattr(args, flag)
        if asked is not None and asked != content[flag]:
            raise ValueError(
                f"{args.model_file}: holds --{flag} {content[flag]}, not --{flag} {asked}"
            )
    dataset = DatasetClass.load(
        content["dataset"], data_dir=args.data_dir, device=device, **content["data_args"]
    )
    model = models.build(content["model"], **content["model_args"])
    checkpoint.load_weights(model, content, args.model_file)
    smoothing = 0.0
    if args.loss_name == "smooth_crossentropy":
        smoothing = content["train_args"]["label_smoothing"]
    return Restored(
        path=args.model_file,
        content=content,
        model=model.to(device).eval(),
        loss=partial(smooth_crossentropy, smoothing=smoothing),
        dataset=dataset,
    )
