"""What a training shows and keeps: a live table on a terminal, plain lines in a pipe, a history."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from utilities.cli import report_files
from utilities.history import COLUMNS, write_history
from utilities.metrics import class_report
from utilities.progress import duration, is_terminal, time_left

# What a person sees of the history, in which form, and how long the rest will take.
SHOWN = {
    "epoch": ("epoch", "d"),
    "learning_rate": ("rate", ".3g"),
    "train_loss": ("train loss", ".4f"),
    "train_acc": ("train %", ".2f"),
    "val_loss": ("val loss", ".4f"),
    "val_acc": ("val %", ".2f"),
    "val_f1": ("val F1 %", ".2f"),
}
TITLES = [*(title for title, _ in SHOWN.values()), "time", "left"]
LINES = 12  # rows of the live table, if the screen is high enough
FRAME = 6  # lines of the screen for the table's frame and the prompt
PAUSE = 1.0  # seconds between two writes of the history: an epoch may take milliseconds


class Log:
    """Progress and history of one run; use it as a context manager.

    Args:
        path: the history.
        settings: of the run, for the history's first lines.
        epochs: how many there will be.
        rows: of the epochs that are done already; new ones are added to this list.
        tensorboard: write event files too.
        quiet: show and write nothing: this process is not the run's writer.

    Attributes:
        files: what it writes.

    Raises:
        ValueError: ``--tensorboard`` without tensorboard.
        OSError: the event files can't be written.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        epochs: int,
        rows: list[dict[str, Any]],
        tensorboard: bool = False,
        quiet: bool = False,
    ) -> None:
        self.path, self.settings, self.epochs = path, settings, epochs
        self.rows, self.quiet = rows, quiet
        self.console = Console(highlight=False)
        self.table = is_terminal(self.console)
        self.live = Live(console=self.console, auto_refresh=False)
        self.started, self.written, self.done = time.monotonic(), 0.0, len(rows)
        self.events, self.files = None, [path]
        if tensorboard and not quiet:
            folder = path.parent / "tensorboard" / path.stem
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
            lines.insert(0, TITLES)
        widths = [max(len(title), 7) for title in TITLES]
        for cells in lines:
            padded = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
            print("  ".join(padded), flush=True)

    def say(self, text: str) -> None:
        """Print a message, above the table if there is one."""
        if not self.quiet:
            self.console.print(text, soft_wrap=True, markup=False)

    def report(
        self,
        best: Mapping[str, Any],
        class_names: Sequence[str],
        skipped: int,
        checkpoints: Sequence[Path],
    ) -> None:
        """Say what came out of the run, class by class, and which files hold it.

        Args:
            best: the best checkpoint, with its test's result.
            class_names: by label; empty where the classes have no names.
            skipped: steps that were left out.
            checkpoints: the files, beside those that the log wrote itself.
        """
        metrics = best["metrics"]
        self.say(f"best epoch on validation: {best['epoch']} of {self.epochs}; with its weights")
        for part, name in (("val", "validation"), ("test", "test")):
            acc, f1, loss = (metrics[f"{part}_{key}"] for key in ("acc", "f1", "loss"))
            self.say(f"{name:>10}: {acc:.2f} %, macro F1 {f1:.2f} %, loss {loss:.4f}")
        self.say("test by class, in percent:")
        self.say(class_report(best["test_confusion"], class_names))
        if skipped:
            self.say(f"{skipped} steps were left out: their gradient was not finite")
        if not self.quiet:
            report_files([*self.files, *checkpoints])

    def left(self) -> float:
        """Seconds that the rest of the run will take at this run's mean speed."""
        count, rest = len(self.rows) - self.done, self.epochs - len(self.rows)
        seconds = time_left(time.monotonic() - self.started, count, count + rest)
        return 0.0 if seconds is None else seconds

    def _cells(self, row: dict[str, Any], left: float | None) -> list[str]:
        cells = [format(row[name], form) for name, (_, form) in SHOWN.items()]
        return [*cells, duration(row["seconds"]), "" if left is None else duration(left)]

    def _table(self) -> Table:
        """The last epochs, a row each; on a screen too narrow for that a column each."""
        lines = [self._cells(row, None) for row in self.rows[:-1][-LINES:]]
        lines.append(self._cells(self.rows[-1], self.left()))
        rows = max(min(LINES, self.console.height - FRAME), 1)
        table = _grid(TITLES, lines[-rows:])
        unbounded = self.console.options.update(max_width=1000)
        if self.console.measure(table, options=unbounded).maximum > self.console.width:
            columns = max((self.console.width - 14) // 11, 1)
            shown = zip(TITLES, *lines[-columns:], strict=True)
            (head, *cells), *rest = ([*entry] for entry in shown)
            table = _grid([head, *cells], rest)
        table.caption = f"epoch {len(self.rows)} of {self.epochs}, {duration(self.left())} left"
        return table

    def _add_events(self, row: dict[str, Any]) -> None:
        assert self.events is not None
        for name in [name for name in COLUMNS if name != "epoch"]:
            self.events.add_scalar(name, row[name], row["epoch"])

    def _write(self) -> None:
        write_history(self.path, self.settings, self.rows)
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
