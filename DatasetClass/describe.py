"""Describe a data set: counts by class and split, shapes, source, licence, and a picture.

    python -m DatasetClass describe --dataset cifar10
    python -m DatasetClass describe --dataset PROTEINS --node_attributes True

Flags of the data set itself, such as those of the trainings (--train_samples, --source, ...), go
to its class.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import DatasetClass
from DatasetClass.batches import Dataset
from DatasetClass.facts import Facts, facts_of
from utilities.cli import Parser, add_run_flags, prepare_device, report_files, run
from utilities.files import atomic_write

SPLITS = ("train", "val", "test")
SEED = 42


def counts(dataset: Dataset) -> list[list[int]]:
    """Samples of each class, a list a split."""
    labels: Tensor = dataset.labels.cpu()  # type: ignore[attr-defined]
    parts = [labels[getattr(dataset, split).indices] for split in SPLITS]
    return [part.bincount(minlength=dataset.num_classes).tolist() for part in parts]


def lines(dataset: Dataset, facts: Facts) -> list[str]:
    """The description as text."""
    by_class = dict(zip(facts.classes, zip(*counts(dataset), strict=True), strict=True))
    every = [sum(column) for column in zip(*by_class.values(), strict=True)]
    width = max(5, *map(len, facts.classes))
    text = [
        dataset.describe(),
        f"inputs   {shapes(dataset)}",
        f"model    {', '.join(f'{k}={v}' for k, v in dataset.model_args.items())}",
        f"source   {facts.source}",
        f"licence  {facts.licence}",
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
def parse_args(argv: Sequence[str] | None) -> tuple[Any, dict[str, Any]]:
    """Our own flags, and the others as arguments of the data set."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--dataset", required=True, help="cifar10, cifar100, mitbih or a TUDataset such as MUTAG"
    )
    add_run_flags(parser, SEED)
    args, rest = parser.parse_known_args(argv)
    data_args: dict[str, Any] = {} if args.seed == SEED else {"seed": args.seed}
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if not re.fullmatch(r"--[a-z_]+", flag):
            parser.error(f"{flag!r}: no flag")
        if not equals:
            if not rest:
                parser.error(f"{flag} lacks its value")
            value = rest.pop(0)
        data_args[flag[2:]] = _value(value)
    return args, data_args


def _value(text: str) -> Any:
    """A number, True, False or None where it reads as one, else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text


def load(args: Any, data_args: dict[str, Any]) -> Dataset:
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


def main(argv: Sequence[str] | None = None) -> None:
    """Describe and draw one data set."""
    args, data_args = parse_args(argv)
    dataset = load(args, data_args)
    facts = facts_of(dataset)
    print("\n".join(lines(dataset, facts)), flush=True)
    from DatasetClass.pictures import draw

    own = "".join(f"_{name}{value}" for name, value in data_args.items())
    stem = re.sub(r"[^\w.-]", "-", f"data_{dataset.name}{own}")
    picture: Path = args.out_dir / "plots" / f"{stem}.png"
    with atomic_write(picture) as part:
        draw(dataset, facts, args.seed).savefig(part, dpi=150)
    report_files([picture])


if __name__ == "__main__":
    run(main)
