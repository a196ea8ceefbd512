"""Tables of small studies."""

from __future__ import annotations

from pathlib import Path

SMALL = """
task = "GCN"
base = "ADAM"
seeds = [1, 2]
folds = [0, 1]
flags = { epochs = 4, save_seconds = 0.0 }
[data.MUTAG]
flags = { dataset = "MUTAG" }
[optimizers.ADAM]
flags = { optimizer = "ADAM" }
tune = { learning_rate = [0.003, 0.01] }
[optimizers."ADAM, twice the epochs"]
like = "ADAM"
times_epochs = 2
[optimizers.SAM]
flags = { optimizer = "SAM" }
tune = { rho = [0.02, 0.05] }
[trials]
select = "val_acc"
seeds = [100]
folds = [0]
[measures.spectrum]
flags = { samples = 32, probes = 1, lanczos_steps = 4, trace_probes = 4, max_steps = 12 }
seeds = [1]
folds = [1]
[measures.sharpness]
flags = { measures = ["lambda_max", "lambda_max_over_lambda_5", "m_sharpness"], samples = 32 }
seeds = [1]
folds = [0]
[measures.surface]
flags = { samples = 32, x = "-1:1:3", y = "-1:1:3" }
seeds = [1]
folds = [0]
optimizers = ["SAM"]
[measures.along_training]
flags = { samples = 32, max_steps = 12 }
keep_epochs = 2
seeds = [1]
folds = [1]
optimizers = ["ADAM", "SAM"]
"""


def write(folder: Path, text: str = SMALL, name: str = "small.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path
