"""Show how far a long job is: a bar on a terminal, plain lines in a pipe, both with the time left.

``Progress`` is told by its owner how far it is; ``track`` counts what a loop goes through.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

PAUSE = 10.0  # seconds between two lines in a pipe
Item = TypeVar("Item")


class Progress:
    """How far one job is; use it as a context manager.

    A terminal gets a bar that goes when the job is done; a pipe a line at the start and one every
    ten seconds; both get a last line with the time taken, but not after an exception. The methods
    and ``total`` are tqdm's, so that pooch takes one as its ``progressbar``.

    Args:
        what: is counted, such as "rows of the surface"; the lines begin with it.
        total: how many there will be; None if that is not known. May be set later.
        size: what is counted are bytes, shown as kB, MB and GB.
        at_most: there may be fewer than ``total``.

    Attributes:
        count: of what is done.
        note: what else is shown, such as an estimate so far; may be set at any time.
    """

    def __init__(
        self, what: str, total: int | None = None, size: bool = False, at_most: bool = False
    ) -> None:
        self.what, self.total, self.size, self.count = what, total, size, 0
        self.of, self.note = "of at most" if at_most else "of", ""
        console = Console(highlight=False)
        columns = (TextColumn("{task.description}", markup=False), BarColumn())
        state = TextColumn("{task.fields[state]}", markup=False)
        self.on_terminal = is_terminal(console)
        self.bar = Bar(*columns, state, console=console, transient=True)
        self.task = self.bar.add_task(what, total=None, state="")

    def __enter__(self) -> Progress:
        self.started = self.shown = time.monotonic()
        if self.on_terminal:
            self.bar.start()
        else:
            print(f"{self.what} ...", flush=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.on_terminal:
            self.bar.stop()
        if error is None:
            self._say(f"in {duration(time.monotonic() - self.started)}")

    def update(self, n: int = 1) -> None:
        """Count ``n`` more."""
        self.count += n
        self.show()

    def show(self) -> None:
        """Show how far the job is, in a pipe if it is time to."""
        rest = self.rest()
        if self.on_terminal:
            shown = f"{self.counted()}, {rest}" if rest else self.counted()
            self.bar.update(self.task, total=self.total, completed=self.count, state=shown)
        elif self.count != self.total and time.monotonic() - self.shown >= PAUSE:
            self._say(rest)

    def reset(self) -> None:
        """Count from 0 again."""
        self.count = 0

    def close(self) -> None:
        """Nothing: the context ends the display, also on an error."""

    def rest(self) -> str:
        """For people: the time left, "" where that can't be said."""
        left = time_left(time.monotonic() - self.started, self.count, self.total)
        return "" if left is None else f"{duration(left)} left"

    def counted(self) -> str:
        """For people: how much is done."""
        count, total = (
            None if number is None else decimal(number) if self.size else f"{number:,}"
            for number in (self.count, self.total or None)
        )
        counted = f"{count}" if total is None else f"{count} {self.of} {total}"
        return f"{counted}, {self.note}" if self.note else counted

    def _say(self, rest: str) -> None:
        self.shown = time.monotonic()
        print(f"{self.what}: {self.counted()}{', ' if rest else ''}{rest}", flush=True)


def track(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """Yield ``items`` and show how many of them are done.

    Args:
        items: anything; its length is the total if it has one and ``total`` is not given.
        what: see ``Progress``.
        total: see ``Progress``.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    with Progress(what, total) as progress:
        for item in items:
            yield item
            progress.update()


def is_terminal(console: Console) -> bool:
    """Whether what ``console`` shows can be drawn over: not a file, a pipe or a dumb terminal."""
    # Not console.is_terminal, which FORCE_COLOR makes true in a pipe too.
    return console.file.isatty() and not console.is_dumb_terminal


def time_left(seconds: float, count: int, total: int | None) -> float | None:
    """Seconds that the rest takes at the mean speed so far; None where that can't be said."""
    if not count or not total:
        return None
    return seconds / count * max(total - count, 0)


def duration(seconds: float) -> str:
    """A time for people: 0.05 s, 12.3 s, 4:05, 1:02:03."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
