"""Small studies for tests: a table, and a CSV of runs that are made of numbers alone."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from studies.runs_file import COLUMNS

TABLE = """
title = "A small study"
note = "Made of numbers alone."
task = "GCN"
base = "ADAM"
seeds = [1, 2]
folds = [0, 1, 2]
flags = { epochs = 10 }
[data.MUTAG]
flags = { dataset = "MUTAG" }
[data."A | B <i>"]
flags = { dataset = "PROTEINS", folds = 5 }
[optimizers.ADAM]
flags = { optimizer = "ADAM" }
tune = { learning_rate = [0.003, 0.01, 0.03] }
[optimizers."ADAM, twice the epochs"]
like = "ADAM"
times_epochs = 2
[optimizers.SAM]
flags = { optimizer = "SAM" }
tune = { rho = [0.02, 0.05, 0.1] }
[trials]
select = "val_acc"
seeds = [100]
folds = [0]
"""
DATA = ("MUTAG", "A | B <i>")
OPTIMIZERS = {"ADAM": (10, 10), "ADAM, twice the epochs": (20, 20), "SAM": (10, 20)}
SHARPNESS = "sharpness:worst case"
OF_SAMPLES = "sharpness_se:lambda_max"


def rows(data: Sequence[str] = DATA, **advantage: float) -> list[dict[str, Any]]:
    """Rows of all planned runs; an optimizer's test accuracy is by its ``advantage`` higher."""
    found = []
    for name in data:
        for seed in (1, 2):
            for fold in (0, 1, 2):
                rng = np.random.default_rng([seed, fold, len(name)])
                hard = rng.normal(0, 5)
                for optimizer, (epochs, passes) in OPTIMIZERS.items():
                    own = rng.normal(0, 0.5) + advantage.get(optimizer, 0.0)
                    flat = 0.25 if optimizer == "SAM" else 1.0
                    value = 20 * flat * float(np.exp(rng.normal(0, 0.1)))
                    found.append(
                        {
                            "study": "small",
                            "stage": "run",
                            "data": name,
                            "optimizer": optimizer,
                            "base": "" if optimizer == "ADAM" else "ADAM",
                            "seed": seed,
                            "fold": fold,
                            "chosen": "rho=0.1" if optimizer == "SAM" else "learning_rate=0.01",
                            "epochs": epochs,
                            "passes": passes,
                            "val_acc": 75 + hard,
                            "val_f1": 70 + hard,
                            "test_acc": 74 + hard + own,
                            "test_f1": 70 + hard + own,
                            "test_loss": 0.6 - own / 100,
                            "train_acc": 80.0,
                            "train_loss": 0.4,
                            "best_epoch": 7,
                            "seconds": 1.5 * passes,
                            "lambda_max": value,
                            "lambda_5": value / 4,
                            "trace": 3 * value,
                            "trace_standard_error": 1,
                            SHARPNESS: value**2,
                            "command": f"python trainings/my_train_GCN.py --seed={seed}",
                            "sharpness_command": "",
                        }
                    )
    return found


def write(folder: Path, made: Sequence[dict[str, Any]]) -> Path:
    """Write table and CSV into ``folder``; return the table's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "small.toml").write_text(TABLE, encoding="utf-8")
    with (folder / "runs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*COLUMNS, SHARPNESS, OF_SAMPLES])
        writer.writeheader()
        writer.writerows(made)
    return folder / "small.toml"
