"""What a training shows and keeps: a live table on a terminal, plain lines in a pipe, a .dat file.

The history (``outputs/*.dat``) is a tab-separated table with a header, one row an epoch, below
the run's arguments as ``# key: value`` lines: ``pandas.read_table(path, comment="#")`` reads it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from utilities.files import atomic_write

COLUMNS = {
    "epoch": "d",
    "learning_rate": ".3g",
    "train_loss": ".4f",
    "train_acc": ".2f",
    "val_loss": ".4f",
    "val_acc": ".2f",
    "seconds": ".1f",
}
LINES = 12  # rows of the live table: it must fit the screen


class Log:
    """Progress and history of one run; use it as a context manager.

    Args:
        path: the history file.
        settings: the run's arguments, for the lines on top.
        epochs: number of epochs of the whole run.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], epochs: int) -> None:
        self.path, self.epochs = path, epochs
        self.settings = settings
        self.rows: list[dict[str, Any]] = []
        self.console = Console(highlight=False)
        self.live = Live(console=self.console, auto_refresh=False)
        self.started = time.monotonic()

    def __enter__(self) -> Log:
        self._write()  # an unwritable folder is found before the training, not after
        if self.console.is_terminal:
            self.live.start()
        else:
            print("  ".join(f"{name:>13}" for name in COLUMNS))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.live.stop()

    def __call__(self, **row: Any) -> None:
        """Add an epoch's row (the keys are ``COLUMNS``): write it to disk and show it.

        Raises:
            OSError: the history can't be written.
        """
        self.rows.append(row)
        self._write()
        if self.console.is_terminal:
            self.live.update(self._table(), refresh=True)
        else:
            print("  ".join(f"{row[k]:>13{form}}" for k, form in COLUMNS.items()), flush=True)

    def _table(self) -> Table:
        left = (time.monotonic() - self.started) / len(self.rows) * (self.epochs - len(self.rows))
        table = Table(caption=f"epoch {len(self.rows)} of {self.epochs}, {left:.0f} s left")
        for name in COLUMNS:
            table.add_column(name.replace("_", " "), justify="right")
        for row in self.rows[-LINES:]:
            table.add_row(*(format(row[name], form) for name, form in COLUMNS.items()))
        return table

    def _write(self) -> None:
        lines = [f"# {key}: {value}" for key, value in self.settings.items()]
        lines.append("\t".join(COLUMNS))
        lines += ["\t".join(str(row[name]) for name in COLUMNS) for row in self.rows]
        with atomic_write(self.path) as part:
            part.write_text("\n".join(lines) + "\n", encoding="utf-8")
