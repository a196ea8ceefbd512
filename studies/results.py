"""A table of finished trainings: test accuracy and macro F1, mean and 95 % interval over runs.

    python -m studies.results to_plot/model_GCN_*_PROTEINS_fold*.pt

States (``*_last.pt``) and kept epochs (``*_epoch<k>.pt``) are passed over. Runs that differ in
nothing but seed, fold and tag are one row. The interval is Student's, of the mean over runs; over
folds it is only a guide, since their training sets overlap. Seconds are those of an epoch, the
median, on the machine where the runs were made, with whatever else ran there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from studies.plot_history import mean_and_band
from utilities import checkpoint
from utilities.cli import Parser, run
from utilities.history import read_history
from utilities.runs import Run, identity, run_settings
from utilities.tables import table

FLAGS = ("optimizer", "rho", "epochs", "average")  # that a row shows
OVER = ("seed", "fold", "tag")  # in which the runs of one row may differ
COLUMNS = ("test_acc", "test_f1", "val_acc", "val_f1")


def interval(values: Sequence[float]) -> str:
    """Mean and half width of its 95 % t interval, as text; of one run the value alone."""
    (mean,), (half,) = mean_and_band(np.array(values)[:, None])
    return f"{mean:.2f}" if len(values) == 1 else f"{mean:.2f} ± {half:.2f}"


def row(paths: list[Path], contents: list[dict[str, Any]]) -> list[str]:
    """One group of runs as cells."""
    first = contents[0]
    args, data = first["train_args"], first["data_args"]
    label = " ".join(filter(None, (first["dataset"], str(data.get("split", "")))))
    seconds = [
        np.median(read_history(Run.from_checkpoint(content, path.parents[1]).history)[1]["seconds"])
        for path, content in zip(paths, contents, strict=True)
    ]
    return [
        label,
        *(str(args[flag]) for flag in FLAGS),
        str(len(contents)),
        *(interval([content["metrics"][name] for content in contents]) for name in COLUMNS),
        f"{np.mean([content['epoch'] for content in contents]):.0f}",
        f"{np.mean(seconds):.2g}",
    ]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="best checkpoints of finished runs")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    groups: dict[str, tuple[list[Path], list[dict[str, Any]]]] = {}
    for path in parse_args(argv).files:
        content = checkpoint.load(path)
        if "resume" in content or content.get("kept"):
            continue
        if "test_acc" not in content["metrics"]:
            raise ValueError(f"{path}: not the best checkpoint of a finished run")
        key = repr(identity(run_settings(content), OVER))
        paths, contents = groups.setdefault(key, ([], []))
        paths.append(path.resolve())
        contents.append(content)
    if not groups:
        raise ValueError("no finished run's best checkpoint among the files")
    names = [name.replace("_acc", " %").replace("_f1", " macro F1 %") for name in COLUMNS]
    header = ["data", *FLAGS, "runs", *names, "best epoch", "s/epoch"]
    print(table(header, [row(*group) for group in groups.values()]))


if __name__ == "__main__":
    run(main)
