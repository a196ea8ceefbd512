"""Look at the data, or hand them on.

    python -m DatasetClass describe --dataset mitbih     # or cifar10, cifar100, MUTAG, ...
    python -m DatasetClass export --folder kaggle        # heartbeats in Kaggle's layout

The first prints classes, splits, shapes, source and licence, and shows samples in
plots/data_<name>.png.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from DatasetClass.describe.command import describe
from DatasetClass.patients import random_split
from DatasetClass.raw.kaggle import kaggle_files, refuse_existing, write_kaggle
from DatasetClass.raw.physionet import read_physionet
from utilities.cli import Parser, report_files, run, seed_number
from utilities.files import ROOT, locked


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command named first; it reads the flags after it."""
    words = list(sys.argv[1:] if argv is None else argv)
    commands = {"describe": describe, "export": export}
    if words and words[0] in commands:
        commands[words[0]](words[1:])
        return
    parser = Parser(__doc__)
    parser.add_argument("command", choices=list(commands), help="its flags: describe --help")
    parser.parse_args(words)


def export(argv: Sequence[str] | None = None) -> None:
    """Write the heartbeats cut from PhysioNet's records as Kaggle's two files."""
    parser = Parser(export.__doc__)
    parser.add_argument("--data_dir", type=Path, default=ROOT / "data", help="folder of mitdb/")
    parser.add_argument(
        "--folder",
        type=Path,
        required=True,
        help="where mitbih_train.csv and mitbih_test.csv go, 310 MB; never over files there",
    )
    parser.add_argument("--seed", type=seed_number, default=42, help="of the split")
    args = parser.parse_args(argv)
    report_files(export_kaggle(args.data_dir, args.folder, args.seed))


def export_kaggle(data_dir: Path, folder: Path, seed: int = 42) -> list[Path]:
    """Write the beats of PhysioNet's records as ``mitbih_train.csv`` and ``mitbih_test.csv``.

    The test beats are those of the random split with this seed: 21,892, and 87,554 for training,
    class by class as many as in Kaggle's files.

    Args:
        data_dir: folder of ``mitdb/``.
        folder: where the files go; once they are in ``data_dir``, "auto" takes them.
        seed: of the split.

    Returns:
        The paths written.

    Raises:
        FileExistsError: a file is there already.
        FileNotFoundError, ValueError: the records can't be had or are damaged.
        ValueError: another process is exporting into ``folder``.
    """
    files = kaggle_files(folder)
    for path in files:
        refuse_existing(path)
    with locked(files[0], "name another --folder"):  # both files are of one split
        arrays = read_physionet(data_dir)
        splits = random_split(torch.from_numpy(np.array(arrays["labels"])), seed)
        training = torch.cat([splits["train"], splits["val"]]).sort().values
        for path, part in zip(files, (training, splits["test"]), strict=True):
            write_kaggle(path, arrays["beats"][part.numpy()], arrays["labels"][part.numpy()])
    return files


if __name__ == "__main__":
    sys.argv[0] = "DatasetClass"  # the name that help and errors show; Python put __main__.py
    run(main)
