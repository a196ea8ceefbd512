"""What every script's command line has in common.

A script ends in ``if __name__ == "__main__": run(main)``. Bad input is reported as a ValueError
or an OSError whose message names the file or flag, the cause and the remedy; ``run`` prints it
as one line and exits with code 2. Set SAM_TRACEBACK=1 to see where it was raised.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import select
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO

import torch

from utilities.files import ROOT
from utilities.interrupt import Interrupted
from utilities.ranks import rank_and_world

GRACE = 10.0  # seconds: within them the first has ended, and torchrun ends the others
UNREAD = 141  # 128 + SIGPIPE's number, as of tools that this signal ends
Main = Callable[[Sequence[str] | None], Any]


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Show the module's docstring as written and every flag's true default."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default == "":
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that shows defaults, takes no abbreviated flags and errs in one line."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=_Formatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        _let_the_first_speak()
        self.exit(2, f"{self.prog}: error: {_one_line(message)} (--help lists the flags)\n")


def run(main: Main) -> None:
    """Call ``main`` with the command line; report bad input in one line with exit code 2.

    An interrupted script exits with 128 + the signal's number: 130 after Ctrl-C, and without a word
    141 where what read its output has left, as ``head`` does. Of several processes the first speaks
    for all, and another only of an error that it has alone.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # LANG=C must not end a run over a file's name
        sys.stdout.reconfigure(errors="backslashreplace")
    rank, _ = rank_and_world()
    if rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the process's life
        warnings.simplefilter("ignore")
    name = Path(sys.argv[0]).name + (f", process {rank}" if rank else "")
    try:
        main(None)
        print(end="", flush=True)
    except (Interrupted, KeyboardInterrupt) as error:
        if not rank:
            _say_error(f"{name}: {_one_line(str(error)) or 'interrupted'}")
        sys.exit(getattr(error, "code", 130))
    except Exception as error:
        if isinstance(error, BrokenPipeError) and (_unread(sys.stdout) or _unread(sys.stderr)):
            sys.exit(UNREAD)  # Python ignores SIGPIPE and raises this instead
        _let_the_first_speak()
        if not isinstance(error, ValueError | OSError) or os.environ.get("SAM_TRACEBACK"):
            raise
        _say_error(f"{name}: error: {_one_line(str(error)) or type(error).__name__}")
        sys.exit(2)
    finally:
        for stream in (sys.stdout, sys.stderr):
            if _unread(stream):  # what is left would be a complaint at the interpreter's end
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _say_error(line: str) -> None:
    """Say it where that is read; where nothing reads it, the exit code still tells."""
    with suppress(BrokenPipeError):
        print(line, file=sys.stderr)


def _unread(stream: TextIO | None) -> bool:
    """Whether a stream is a pipe that nothing reads any more; Windows doesn't say it."""
    if stream is None or not hasattr(select, "poll"):
        return False
    poller = select.poll()
    try:
        poller.register(stream, select.POLLOUT)
    except (OSError, ValueError, TypeError):  # no file, as in a notebook, or closed
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poller.poll(0))


def _let_the_first_speak() -> None:
    if rank_and_world()[0]:
        time.sleep(GRACE)


def _one_line(message: str) -> str:
    return " ".join(message.split())


# --- types for argparse: each refuses nan, inf and what is out of range ---------------------------
LARGEST_INT = 2**62
LARGEST_SEED = 2**32 - 1  # torch's generator takes the lower 32 bits, so that others would recur
MOST_THREADS = 1024  # OpenMP crashes where the system lets it have no more


def _number(text: str, kind: type, low: float, open_low: bool, high: float, name: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    # Compared before anything else is asked: an int may be too large to become a float.
    inside = (low < value if open_low else low <= value) and value <= high
    if not (inside and math.isfinite(value)):
        shown = text if len(text) <= 60 else f"{text[:60]}..."
        raise argparse.ArgumentTypeError(f"{shown!r} is not {name}")
    return value


def positive_int(text: str) -> int:
    return _number(text, int, 0, True, LARGEST_INT, "a whole number of 1 or more")


def two_or_more(text: str) -> int:
    return _number(text, int, 2, False, LARGEST_INT, "a whole number of 2 or more")


def non_negative_int(text: str) -> int:
    return _number(text, int, 0, False, LARGEST_INT, "a whole number of 0 or more")


def seed_number(text: str) -> int:
    return _number(text, int, 0, False, LARGEST_SEED, f"a whole number from 0 to {LARGEST_SEED}")


def thread_count(text: str) -> int:
    return _number(text, int, 0, False, MOST_THREADS, f"a whole number from 0 to {MOST_THREADS}")


def positive_float(text: str) -> float:
    return _number(text, float, 0, True, math.inf, "a finite number above 0")


def non_negative_float(text: str) -> float:
    return _number(text, float, 0, False, math.inf, "a finite number of 0 or more")


def finite_float(text: str) -> float:
    return _number(text, float, -math.inf, True, math.inf, "a finite number")


def fraction(text: str) -> float:
    return _number(text, float, 0, False, 1, "a number from 0 to 1")


# --- flags that more than one script takes --------------------------------------------------------
def add_run_flags(parser: Parser, seed: int) -> None:
    """Add the flags about the machine and the folders, the same in every script."""
    group = parser.add_argument_group("run")
    group.add_argument("--seed", type=seed_number, default=seed, help="of everything random")
    group.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:1 ...; auto takes a GPU if any"
    )
    group.add_argument(
        "--threads", type=thread_count, default=0, help="CPU threads; 0 leaves torch's choice"
    )
    group.add_argument(
        "--data_dir", type=Path, default=ROOT / "data", help="folder of the data sets"
    )
    group.add_argument(
        "--out_dir",
        type=Path,
        default=ROOT,
        help="folder that holds outputs/, to_plot/, Eigenvalues/ and plots/",
    )


def prepare_device(name: str, threads: int) -> torch.device:
    """Return the device that ``--device`` names and set the number of CPU threads.

    Raises:
        ValueError: no such device here.
    """
    if threads:
        torch.set_num_threads(threads)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"--device {name}: can't be used here ({reason}); try --device cpu"
        ) from error
    return device


def report_files(paths: Sequence[Path]) -> None:
    """Print the files that a script wrote, as every script does at its end."""
    print("files written:")
    for path in paths:
        print(f"  {_relative(path)}")


def _relative(path: Path) -> Path:
    try:
        return path.resolve().relative_to(Path.cwd())
    except ValueError:
        return path
