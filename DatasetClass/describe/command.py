"""Describe a data set: counts by class and split, shapes, source, licence, and a picture.

python -m DatasetClass describe --dataset cifar10
python -m DatasetClass describe --dataset PROTEINS --node_attributes
python -m DatasetClass describe --dataset mitbih --split inter_patient
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import DatasetClass
from DatasetClass.batches import Dataset
from DatasetClass.describe.sources import source_of
from utilities.cli import (
    Parser,
    add_run_flags,
    non_negative_int,
    positive_int,
    prepare_device,
    report_files,
)

SPLITS = ("train", "val", "test")
SEED = 42


def counts(dataset: Dataset) -> list[list[int]]:
    """Samples of each class, a list a split."""
    labels: Tensor = dataset.labels.cpu()
    parts = [labels[getattr(dataset, split).indices] for split in SPLITS]
    return [part.bincount(minlength=dataset.num_classes).tolist() for part in parts]


def class_names(dataset: Dataset) -> tuple[str, ...]:
    """The names of the classes, which are numbers where nobody names them."""
    return dataset.class_names or tuple(f"class {i}" for i in range(dataset.num_classes))


def lines(dataset: Dataset) -> list[str]:
    """The description as text."""
    source, names = source_of(dataset.name), class_names(dataset)
    by_class = dict(zip(names, zip(*counts(dataset), strict=True), strict=True))
    every = [sum(column) for column in zip(*by_class.values(), strict=True)]
    width = max(5, *map(len, names))
    text = [
        dataset.describe(),
        f"inputs   {shapes(dataset)}",
        f"model    {', '.join(f'{k}={v}' for k, v in dataset.model_args.items())}",
        f"source   {source.citation}",
        f"licence  {source.licence}",
        "",
        f"{'class':{width}}" + "".join(f"{name:>10}" for name in (*SPLITS, "all", "share")),
    ]
    for name, row in [*by_class.items(), ("all", every)]:
        cells = "".join(f"{n:10,}" for n in (*row, sum(row)))
        text.append(f"{name:{width}}{cells}{100 * sum(row) / sum(every):8.2f} %")
    return text


def shapes(dataset: Dataset) -> str:
    """Shape and type of one input, or the sizes of the graphs."""
    inputs, _ = dataset.fetch(dataset.train.indices[:1])
    if isinstance(inputs, Tensor):
        return f"{' x '.join(map(str, inputs.shape[1:]))} {str(inputs.dtype).split('.')[-1]}"
    every = torch.cat([getattr(dataset, split).indices for split in SPLITS])
    graphs, _ = dataset.fetch(every)
    nodes = graphs.ptr.diff().float()
    edges = graphs.batch[graphs.edge_index[0]].bincount(minlength=len(nodes)).float() / 2
    return f"graphs of {_range(nodes)} nodes and {_range(edges)} edges, {graphs.x.size(1)} features"


def _range(values: Tensor) -> str:
    low, middle, high = values.min(), values.median(), values.max()
    return f"{low:g} to {high:g} (median {middle:g})"


# --- command line ---------------------------------------------------------------------------------
def parse_args(argv: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """All flags, and those given for the data set as its arguments."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--dataset", required=True, help="cifar10, cifar100, mitbih or a TUDataset such as MUTAG"
    )
    group = parser.add_argument_group("of the data set, as in the trainings")
    of_set = [
        group.add_argument("--train_samples", type=positive_int, help="use only so many"),
        group.add_argument("--source", help="of mitbih: kaggle, physionet or auto"),
        group.add_argument("--split", help="of mitbih: random or inter_patient"),
        group.add_argument("--fold", type=non_negative_int, help="of graphs: the one to test on"),
        group.add_argument("--folds", type=positive_int, help="of graphs: their number"),
        group.add_argument("--node_attributes", action="store_true", help="of graphs: use them"),
    ]
    for action in of_set:
        action.default = argparse.SUPPRESS  # the class has the defaults, and not all take each
    add_run_flags(parser, SEED)
    args = parser.parse_args(argv)
    given = {action.dest for action in of_set} | ({"seed"} if args.seed != SEED else set())
    return args, {name: value for name, value in vars(args).items() if name in given}


def load(args: argparse.Namespace, data_args: dict[str, Any]) -> Dataset:
    """Load the data set.

    Raises:
        ValueError: it doesn't take one of the flags; and what ``DatasetClass.load`` raises.
    """
    device = prepare_device(args.device, args.threads)
    try:
        return DatasetClass.load(args.dataset, args.data_dir, device=device, **data_args)
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if not unknown or unknown[1] not in data_args:
            raise
        raise ValueError(f"--{unknown[1]}: {args.dataset} takes no such flag") from error


def describe(argv: Sequence[str] | None = None) -> None:
    """Describe and picture one data set."""
    args, data_args = parse_args(argv)
    dataset = load(args, data_args)
    print("\n".join(lines(dataset)), flush=True)
    # Here, because matplotlib takes a second.
    from DatasetClass.describe.pictures import picture_samples
    from utilities.pictures import save_picture

    flags = "".join(f"_{name}{value}" for name, value in data_args.items())
    stem = re.sub(r"[^\w.-]", "-", f"data_{dataset.name}{flags}")
    picture: Path = args.out_dir / "plots" / f"{stem}.png"
    figure = picture_samples(dataset, class_names(dataset), args.seed)
    report_files([save_picture(figure, picture)])
