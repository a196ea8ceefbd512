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
from utilities.progress import duration, is_terminal

COLUMNS = {
    "epoch": "d",
    "learning_rate": ".3g",
    "train_loss": ".4f",
    "train_acc": ".2f",
    "train_f1": ".2f",
    "val_loss": ".4f",
    "val_acc": ".2f",
    "val_f1": ".2f",
    "seconds": "",
}
# What a person sees of them, and how long the rest will take.
SHOWN = {"epoch": "epoch", "learning_rate": "rate", "train_loss": "train loss"} | {
    "train_acc": "train %", "val_loss": "val loss", "val_acc": "val %", "val_f1": "val F1 %"
} | {"seconds": "time", "left": "left"}  # fmt: skip
LINES = 12  # rows of the live table, if the screen is high enough
FRAME = 6  # lines of the screen for the table's frame and the prompt
PAUSE = 1.0  # seconds between two writes of the history: an epoch may take milliseconds


class Log:
    """Progress and history of one run; use it as a context manager.

    Args:
        args: of the run: ``history`` (the file), ``epochs``, ``tensorboard``.
        content: of the run: ``train_args`` and ``record``, for the lines on top.
        rows: of the epochs that are done already; new ones are added to this list.
        quiet: show and write nothing: this process is not the run's writer.

    Attributes:
        files: what it writes.

    Raises:
        ValueError: ``--tensorboard`` without tensorboard.
        OSError: the event files can't be written.
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
        self.table = is_terminal(self.console)
        self.live = Live(console=self.console, auto_refresh=False)
        self.started, self.written, self.done = time.monotonic(), 0.0, len(rows)
        self.events, self.files = None, [self.path]
        if args.tensorboard and not quiet:
            folder = self.path.parent / "tensorboard" / self.path.stem
            self.events = _event_writer(folder)
            self.files.append(folder)
            for row in rows:
                self._add_events(row)

    def __enter__(self) -> Log:
        if self.quiet:
            return self
        self._write()  # an unwritable folder is found before the training, not after
        if self.table:
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.live.stop()
        if not self.quiet and not isinstance(error, OSError):  # that may be this file's own
            self._write()
        if self.events is not None:
            self.events.close()

    def __call__(self, **row: Any) -> None:
        """Add an epoch's row (the keys are ``COLUMNS``): write it to disk and show it.

        Raises:
            OSError: the history can't be written.
        """
        row["seconds"] = round(row["seconds"], 3)
        self.rows.append(row)
        if self.quiet:
            return
        if self.events is not None:
            self._add_events(row)
        if time.monotonic() - self.written >= PAUSE:
            self._write()
        if self.table:
            self.live.update(self._table(), refresh=True)
            return
        lines = [self._cells(row, self.left())]
        if len(self.rows) == self.done + 1:
            lines.insert(0, list(SHOWN.values()))
        widths = [max(len(title), 7) for title in SHOWN.values()]
        for cells in lines:
            padded = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
            print("  ".join(padded), flush=True)

    def say(self, text: str) -> None:
        """Print a message, above the table if there is one."""
        if not self.quiet:
            self.console.print(text, soft_wrap=True, markup=False)

    def left(self) -> float:
        """Seconds that the rest of the run will take at this run's mean speed."""
        done = len(self.rows) - self.done
        return (time.monotonic() - self.started) / max(done, 1) * (self.epochs - len(self.rows))

    def _cells(self, row: dict[str, Any], left: float | None) -> list[str]:
        row = {**row, "seconds": duration(row["seconds"])}
        cells = [format(row[name], form) for name, form in COLUMNS.items() if name in SHOWN]
        return [*cells, "" if left is None else duration(left)]

    def _table(self) -> Table:
        """The last epochs, a row each; on a screen too narrow for that a column each."""
        lines = [self._cells(row, None) for row in self.rows[:-1][-LINES:]]
        lines.append(self._cells(self.rows[-1], self.left()))
        rows = max(min(LINES, self.console.height - FRAME), 1)
        table = _grid(list(SHOWN.values()), lines[-rows:])
        unbounded = self.console.options.update(max_width=1000)
        if self.console.measure(table, options=unbounded).maximum > self.console.width:
            columns = max((self.console.width - 14) // 11, 1)
            shown = zip(SHOWN.values(), *lines[-columns:], strict=True)
            (head, *cells), *rest = ([*entry] for entry in shown)
            table = _grid([head, *cells], rest)
        table.caption = f"epoch {len(self.rows)} of {self.epochs}, {duration(self.left())} left"
        return table

    def _add_events(self, row: dict[str, Any]) -> None:
        assert self.events is not None
        for name in [name for name in COLUMNS if name != "epoch"]:
            self.events.add_scalar(name, row[name], row["epoch"])

    def _write(self) -> None:
        lines = [
            f"# {k}: {v}".replace("\n", "\\n").replace("\r", "\\r")
            for k, v in self.settings.items()
        ]
        lines.append("\t".join(COLUMNS))
        lines += ["\t".join(str(row[name]) for name in COLUMNS) for row in self.rows]
        with atomic_write(self.path) as part:
            part.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace")
        if self.events is not None:
            self.events.flush()
        self.written = time.monotonic()


def _grid(head: list[str], rows: list[list[str]]) -> Table:
    table = Table()
    for name in head:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _event_writer(folder: Path) -> Any:
    """A writer of a new event file, which makes TensorBoard forget the older ones in the folder.

    All rows are written again: a killed run may have written more or fewer than it goes on from.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("--tensorboard: pip install tensorboard, or leave the flag out") from error
    return SummaryWriter(str(folder), purge_step=1)
