"""Ctrl-C and SIGTERM as a request to save and leave, not as a sudden end."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from utilities.ranks import Ranks

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):  # noqa: N818 - it is no error
    """A run was asked to stop and has saved what it had.

    Args:
        number: of the signal; scripts exit with 128 + number, as shells expect.
        message: one line that says how to go on.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.code = 128 + number


class Interruption:
    """Remember the first signal; a second one ends the process as it always would.

    Use as a context manager in the main thread; elsewhere it changes nothing. Of several
    processes each remembers all signals: torchrun passes on what schedulers have sent already,
    and kills for good after 30 seconds.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.number, self.ranks = 0, ranks
        self.alone = ranks.world == 1
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()
        if isinstance(error, Interrupted):  # which all processes have agreed on
            self.ranks.close()
        if self.number and not self.alone and isinstance(error, RuntimeError):
            # The others were sooner to leave, so meeting them failed: it was the signal, no error.
            signal.raise_signal(self.number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        if self.alone:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
