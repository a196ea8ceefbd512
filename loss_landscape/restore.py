"""From a checkpoint file back to its model, its data and its loss.

A checkpoint of this project says all of them. For a user's own weights the command line does:
``--model package.module:factory --dataset package.module:loader``, and ``--forward`` where a batch
is no pair (inputs, targets).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import DatasetClass
import models
from DatasetClass.batches import Dataset
from loss_landscape.my_pyhessian.batches import Forward, forward_pair
from loss_landscape.own_model.data import OwnData
from loss_landscape.own_model.loss_functions import LOSSES, correct
from loss_landscape.own_model.losses import OwnBatches, OwnLosses
from loss_landscape.own_model.model import (
    blamed,
    build,
    import_named,
    is_own,
    keyword_arguments,
    read_weights,
)
from loss_landscape.plane.direction_flags import read_checkpoint
from models.smooth_crossentropy import smooth_crossentropy
from utilities import checkpoint
from utilities.cli import Parser, non_negative_int, positive_int, prepare_device
from utilities.runs import OwnRun, Run

Criterion = Callable[[Any, Any], Tensor]  # (outputs, targets) -> (batch,)
OWN_FLAGS = ("model_args", "dataset_args", "forward")


@dataclass
class Restored:
    """A trained model in eval mode, with its loss and its data in fixed order on the device.

    Attributes:
        path: the checkpoint.
        run: names the results and their pictures.
        model: float32 or float64.
        forward: (model, batch) -> (outputs, targets), for any batch of ``batches``.
        loss: (outputs, targets) -> one value a sample, (batch,).
        correct: (outputs, targets) -> share of a sample's answers that are right, (batch,); None
            where the model doesn't classify.
        data: with the splits.
        read_weights: of another file, by the model's names.
        loss_name: of ``loss``.
        described: what else a result is of.
    """

    path: Path
    run: Run | OwnRun
    model: torch.nn.Module
    forward: Forward
    loss: Criterion
    correct: Criterion | None
    data: Dataset | OwnBatches
    read_weights: Callable[[Path], Mapping[str, Tensor]]
    loss_name: str
    described: dict[str, Any]

    def batches(
        self,
        split: str,
        samples: int | None,
        batch_size: int,
        part: tuple[int, int] = (0, 1),
    ) -> list[Any]:
        """``split`` without augmentation or shuffling; ``samples`` 0 or None takes all of it.

        ``part``: of the split, as ``Dataset.fixed`` takes it.
        """
        return self.data.fixed(split, batch_size, samples or None, part)

    def keeps_batches(self, split: str, samples: int | None) -> bool:
        """Whether ``batches``, once they are loaded, are those that a user's loader gives."""
        return isinstance(self.data, OwnBatches) and self.data.keeps_batches(split, samples or None)

    def groups(
        self, split: str, samples: int | None, batch_size: int, count: int
    ) -> Iterator[list[Any]]:
        """The samples of ``batches`` at random in ``count`` groups, of each its batches."""
        for number in range(count):
            yield self.data.fixed(split, batch_size, samples or None, group=(number, count))

    @property
    def digests(self) -> dict[str, str]:
        """Of a user's own data, as far as they are loaded: nothing else says what they were."""
        return self.data.digests if isinstance(self.data, OwnBatches) else {}

    @property
    def settings(self) -> dict[str, Any]:
        """What makes two results those of one model, data and loss, beside the checkpoint."""
        return {"loss_name": self.loss_name, **self.described, **self.digests}


def add_restore_flags(
    parser: Parser,
    batch_size: int,
    samples: int | None = None,
    several: bool = False,
    name: str = "--model_file",
) -> None:
    """Add the flags that say which checkpoint, data and loss to look at.

    Args:
        parser: takes them.
        batch_size: its default.
        samples: their default number; None takes all.
        several: whether the checkpoint's flag takes one or more, a list.
        name: of that flag; "model_file" for no flag but a position.
    """
    group = parser.add_argument_group("checkpoint and data")
    required: dict[str, Any] = {"required": True} if name.startswith("-") else {}
    group.add_argument(
        name,
        type=Path,
        nargs="+" if several else None,
        **required,
        help="the checkpoint (.pt), or a state dict of your own model (.pt, .pth, .safetensors)",
    )
    _add_own_flags(group)
    group.add_argument(
        "--loss_name",
        "-l",
        choices=["smooth_crossentropy", *LOSSES],
        help="smooth_crossentropy, which smooths the labels as the training did; for your own "
        "models crossentropy",
    )
    group.add_argument(
        "--batch_size", type=positive_int, default=batch_size, help="samples a forward pass"
    )
    group.add_argument(
        "--samples",
        type=positive_int if samples is None else non_negative_int,
        default=samples,
        help="look at this many samples of the split, drawn once ("
        + ("all if not given)" if samples is None else "0: all)"),
    )


def _add_own_flags(group: Any) -> None:
    """Add the flags that name a user's own model and data, or that ours have to be of."""
    group.add_argument(
        "--model",
        help="your own model, package.module:factory; of our checkpoints the model's name, which "
        "they know, so that a wrong one is refused",
    )
    group.add_argument(
        "--dataset",
        help="your own data, package.module:loader, which gives batches (inputs, targets); of our "
        "checkpoints the data set's name",
    )
    group.add_argument("--model_args", help="of the factory, such as \"depth=20, act='relu'\"")
    group.add_argument("--dataset_args", help="of the loader, in the same form")
    group.add_argument(
        "--forward",
        help="package.module:function of (model, batch) that gives one loss a sample, or "
        "(outputs, targets), for your batches that are no pairs",
    )


def restore(args: argparse.Namespace) -> Restored:
    """Rebuild what ``--model_file`` holds, or fill the model that ``--model`` makes with it.

    Raises:
        FileNotFoundError: no such checkpoint, or its data are neither here nor to be had.
        ValueError: damaged checkpoint, not of the model or data set that the flags name, or a
            user's own model, data or losses fail or can't be right.
    """
    if is_own(args.model):
        return _restore_own(args)
    given = [f"--{flag}" for flag in OWN_FLAGS if getattr(args, flag)]
    if given or is_own(args.dataset):
        raise ValueError(
            f"{(given or ['--dataset'])[0]}: is for a model of your own; name that too, with "
            "--model package.module:factory"
        )
    return _restore_ours(args)


def _restore_ours(args: argparse.Namespace) -> Restored:
    device = prepare_device(args.device, args.threads)
    content = checkpoint.load(args.model_file)
    for flag in ("model", "dataset"):
        asked = getattr(args, flag)
        if asked is not None and asked != content[flag]:
            raise ValueError(
                f"{args.model_file}: holds --{flag} {content[flag]}, not --{flag} {asked}"
            )
    if is_own(content["model"]):
        raise ValueError(
            f"{args.model_file}: is of a model of your own; only the command line may name what is "
            f"imported, so add --model {content['model']} --dataset package.module:loader"
        )
    loss_name = args.loss_name or "smooth_crossentropy"
    if loss_name == "mse":
        raise ValueError(f"--loss_name mse: {args.model_file} classifies; take a crossentropy")
    dataset = DatasetClass.load(
        content["dataset"], data_dir=args.data_dir, device=device, **content["data_args"]
    )
    model = models.build(content["model"], **content["model_args"])
    checkpoint.load_weights(model, content, args.model_file)
    named, train_args = {n: content[n] for n in ("model", "dataset")}, content["train_args"]
    smoothing = train_args["label_smoothing"] if loss_name == "smooth_crossentropy" else 0.0
    return Restored(
        path=args.model_file,
        run=Run.from_checkpoint(content, args.out_dir),
        model=model.to(device).eval(),
        forward=forward_pair,
        loss=partial(smooth_crossentropy, smoothing=smoothing),
        correct=correct,
        data=dataset,
        read_weights=read_checkpoint,
        loss_name=loss_name,
        described={**named, "optimizer": train_args["optimizer"], "rho": train_args["rho"]},
    )


# --- a user's own ---------------------------------------------------------------------------------
def _restore_own(args: argparse.Namespace) -> Restored:
    if args.dataset is None:
        raise ValueError("--model: names your own model; name its data too, with --dataset")
    if args.loss_name == "smooth_crossentropy":
        raise ValueError(
            "--loss_name smooth_crossentropy: your file doesn't say how much the training smoothed;"
            " take crossentropy, or --forward package.module:function"
        )
    loss_name = args.loss_name or "crossentropy"
    device = prepare_device(args.device, args.threads)
    model_args = keyword_arguments("--model_args", args.model_args)
    dataset_args = keyword_arguments("--dataset_args", args.dataset_args)
    function = import_named("--forward", args.forward) if args.forward else None
    model = build(args.model, model_args)
    model.load_state_dict(read_weights(args.model_file, model))
    losses = OwnLosses(model.to(device).eval(), function, loss_name)
    data, first = _data_of(args, dataset_args, device)
    losses.settle(first)
    if losses.are_given and args.loss_name:
        raise ValueError(f"--loss_name {loss_name}: --forward gives the losses; leave one out")
    model_name, data_name = (name.split(":")[-1] for name in (args.model, args.dataset))
    return Restored(
        path=args.model_file,
        run=OwnRun(args.model_file, model_name, data_name, args.out_dir),
        model=losses.model,
        forward=losses.forward,
        loss=losses.loss,
        correct=losses.correct,
        data=OwnBatches(data, losses),
        read_weights=partial(read_weights, model=model),
        loss_name=loss_name,
        described={
            "model": args.model,
            "model_args": repr(model_args),
            "dataset": args.dataset,
            "dataset_args": repr(dataset_args),
            "forward": args.forward or "",
        },
    )


def _data_of(
    args: argparse.Namespace, arguments: dict[str, Any], device: torch.device
) -> tuple[OwnData | Dataset, Any]:
    """A user's own data, or this project's, and a batch to try the model on."""
    split = getattr(args, "split", "train")
    if is_own(args.dataset):
        own = OwnData(args.dataset, arguments)
        return own, own.fixed(split, args.batch_size)[0]
    with blamed(f"--dataset {args.dataset}: fails with --dataset_args {arguments}"):
        ours = DatasetClass.load(args.dataset, args.data_dir, device=device, **arguments)
    return ours, ours.fixed(split, args.batch_size, args.batch_size)[0]
