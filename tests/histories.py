"""Histories as runs write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from utilities.history import COLUMNS
from utilities.log import Log

VALUES = dict.fromkeys(COLUMNS, 0.0)


def write(path: Path, rows: list[dict], **more: object) -> Path:
    """A history as a run writes it."""
    settings = {**more, "command": "python x.py --out_dir '#\t\"'"}
    with Log(path, settings, len(rows), []) as log:
        for number, row in enumerate(rows, start=1):
            log(**{**VALUES, "epoch": number, **row})
    return path


def run_rows(seed: int, epochs: int = 4) -> list[dict]:
    """Rows of random numbers."""
    rng = np.random.default_rng(seed)
    names = [name for name in COLUMNS if name != "epoch"]
    return [{name: float(rng.random()) for name in names} for _ in range(epochs)]
