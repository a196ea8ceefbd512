"""What a training shows and keeps: a live table on a terminal, plain lines in a pipe, a .dat file.

The history (``outputs/*.dat``) is a tab-separated table with a header, one row an epoch, below
the run's arguments as ``# key: value`` lines: ``pandas.read_table(path, comment="#")`` reads it.
"""

from __future__ import annotations

import argparse
import time
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
    "train_f1": ".2f",
    "val_loss": ".4f",
    "val_acc": ".2f",
    "val_f1": ".2f",
    "seconds": ".1f",
}
SHOWN = {"epoch": "epoch", "learning_rate": "rate", "train_loss": "train loss"} | {
    "train_acc": "train %", "val_loss": "val loss", "val_acc": "val %", "val_f1": "val F1 %"
} | {"seconds": "s", "left": "s left"}  # fmt: skip
LINES = 12  # rows of the live table: it must fit the screen
PAUSE = 1.0  # seconds between two writes of the history: an epoch may take milliseconds


class Log:
    """Progress and history of one run; use it as a context manager.

    Args:
        args: of the run: ``history`` (the file), ``epochs``, ``tensorboard``.
        content: of the run: ``train_args`` and ``record``, for the lines on top.
        rows: of the epochs that are done already; new ones are added to this list.
        quiet: show and write nothing: this process is not the run's writer.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        content: dict[str, Any],
        rows: list[dict[str, Any]],
        quiet: bool = False,
    ) -> None:
        self.path, self.epochs, self.rows, self.quiet = args.history, args.epochs, rows, quiet
        self.settings = {**content["train_args"], **content["record"]}
        self.console = Console(highlight=False)
        self.live = Live(console=self.console, auto_refresh=False)
        self.started, self.written, self.done = time.monotonic(), 0.0, len(rows)
        self.events = None
        if args.tensorboard and not quiet:
            folder = self.path.parent / "tensorboard" / self.path.stem
            self.events = _event_writer(folder, len(rows))

    def __enter__(self) -> Log:
        if self.quiet:
            return self
        self._write()  # an unwritable folder is found before the training, not after
        if self.console.is_terminal:
            self.live.start()
        else:
            print("  ".join(f"{name:>10}" for name in SHOWN.values()))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.live.stop()
        if self.events is not None:
            self.events.close()
        if not self.quiet and not isinstance(error, OSError):  # that may be this file's own
            self._write()

    def __call__(self, **row: Any) -> None:
        """Add an epoch's row (the keys are ``COLUMNS``): write it to disk and show it.

        Raises:
            OSError: the history can't be written.
        """
        row["seconds"] = round(row["seconds"], 3)
        self.rows.append(row)
        if self.quiet:
            return
        if time.monotonic() - self.written >= PAUSE:
            self._write()
        if self.events is not None:
            for name in row.keys() - {"epoch"}:
                self.events.add_scalar(name, row[name], row["epoch"])
        if self.console.is_terminal:
            self.live.update(self._table(), refresh=True)
        else:
            print("  ".join(f"{cell:>10}" for cell in self._cells(row, self.left())), flush=True)

    def say(self, text: str) -> None:
        """Print a message, above the table if there is one."""
        if not self.quiet:
            self.console.print(text, soft_wrap=True, markup=False)

    def left(self) -> float:
        """Seconds that the rest of the run will take at this run's mean speed."""
        done = len(self.rows) - self.done
        return (time.monotonic() - self.started) / max(done, 1) * (self.epochs - len(self.rows))

    def _cells(self, row: dict[str, Any], left: float | None) -> list[str]:
        cells = [format(row[name], form) for name, form in COLUMNS.items() if name in SHOWN]
        return [*cells, "" if left is None else f"{left:.0f}"]

    def _table(self) -> Table:
        table = Table(caption=f"epoch {len(self.rows)} of {self.epochs}, {self.left():.0f} s left")
        for name in SHOWN.values():
            table.add_column(name, justify="right")
        for row in self.rows[-LINES:]:
            table.add_row(*self._cells(row, self.left() if row is self.rows[-1] else None))
        return table

    def _write(self) -> None:
        lines = [f"# {k}: {v}".replace("\n", "\\n") for k, v in self.settings.items()]
        lines.append("\t".join(COLUMNS))
        lines += ["\t".join(str(row[name]) for name in COLUMNS) for row in self.rows]
        with atomic_write(self.path) as part:
            part.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.written = time.monotonic()


def _event_writer(folder: Path, epochs: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("--tensorboard: pip install tensorboard, or leave the flag out") from error
    return SummaryWriter(str(folder), purge_step=epochs + 1 if epochs else None)
