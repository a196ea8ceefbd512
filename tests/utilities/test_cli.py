"""Numbers on a command line: taken as they are or refused in one line, where they enter."""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import forks
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utilities import cli

KINDS = {
    cli.positive_int: (1, cli.LARGEST_INT, int),
    cli.two_or_more: (2, cli.LARGEST_INT, int),
    cli.non_negative_int: (0, cli.LARGEST_INT, int),
    cli.seed_number: (0, 2**32 - 1, int),
    cli.thread_count: (0, cli.MOST_THREADS, int),
    cli.positive_float: (5e-324, 1.7976931348623157e308, float),
    cli.non_negative_float: (0.0, 1.7976931348623157e308, float),
    cli.finite_float: (-1.7976931348623157e308, 1.7976931348623157e308, float),
    cli.fraction: (0.0, 1.0, float),
}
NUMBERS = st.integers() | st.floats() | st.integers(10**300, 10**400) | st.integers(-3, 3)
WORDS = st.sampled_from(["nan", "inf", "-inf", "1e999", "-1e-400", "", "null", "text", "1" * 5000])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(text=NUMBERS.map(str) | WORDS)
def test_a_number_is_taken_as_it_is_or_refused(kind, text: str) -> None:
    """The kind: nan, infinite, out of range, and integers too large to become a float."""
    low, high, python = KINDS[kind]
    try:
        expected = python(text)
    except ValueError:
        expected = math.nan
    if low <= expected <= high:
        assert kind(text) == expected
        return
    with pytest.raises(argparse.ArgumentTypeError, match="is not a") as error:
        kind(text)
    assert len(str(error.value)) < 150


def test_more_threads_than_a_system_starts_are_refused_not_tried(capsys) -> None:
    """A million crashed the process."""
    parser = cli.Parser(None)
    cli.add_run_flags(parser, seed=0)
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["--threads", "1000000"])
    assert "--threads: '1000000' is not a whole number from 0 to 1024" in capsys.readouterr().err


# --- output that nothing reads --------------------------------------------------------------------
MUCH = 20_000  # lines, more than a pipe holds


def prints_much(argv: Sequence[str] | None) -> None:
    for number in range(MUCH):
        print(number)


def prints_little(argv: Sequence[str] | None) -> None:
    print("one line, which is written when the interpreter ends")


def shows_its_help(argv: Sequence[str] | None) -> None:
    cli.Parser("A script.").parse_args(["--help"])


def is_refused(argv: Sequence[str] | None) -> None:
    print("a note before it")
    raise ValueError("--epochs 0: none")


def breaks_a_pipe_of_its_own(argv: Sequence[str] | None) -> None:
    read, write = os.pipe()
    os.close(read)
    os.write(write, b"x")


def run_into(main: cli.Main, unread: bool, errors: Path) -> None:
    """As a command whose output goes to a pipe, errors to a file."""
    read, write = os.pipe()
    if unread:
        os.close(read)
    os.dup2(write, 1)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
    sys.stdout, sys.stderr = open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
    sys.argv = ["script.py"]
    cli.run(main)


@pytest.mark.skipif(os.name == "nt", reason="Windows doesn't say that nothing reads a pipe")
@pytest.mark.parametrize(
    ("main", "unread", "code", "said"),
    [
        (prints_much, True, 141, ""),
        (prints_little, True, 141, ""),
        (prints_little, False, 0, ""),
        (shows_its_help, True, 0, ""),
        (is_refused, True, 2, "script.py: error: --epochs 0: none\n"),
        (breaks_a_pipe_of_its_own, False, 2, "script.py: error: [Errno 32] Broken pipe\n"),
    ],
)
def test_a_script_that_nothing_reads_ends_quietly(
    main: cli.Main, unread: bool, code: int, said: str, tmp_path: Path
) -> None:
    """As tools do that SIGPIPE ends; what is wrong is still said."""
    errors = tmp_path / "errors"
    process = forks.start(run_into, main, unread, errors)
    assert (forks.end(process), errors.read_text()) == (code, said)


@pytest.mark.skipif(os.name == "nt", reason="Windows doesn't say that nothing reads a pipe")
def test_the_interpreter_says_nothing_either() -> None:
    """It writes what is left when it ends."""
    script = "from utilities.cli import run; run(lambda _: [print(i) for i in range(20000)])"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr and process.stdout.readline() == b"0\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.skipif(os.name == "nt", reason="Windows doesn't say that nothing reads a pipe")
@pytest.mark.parametrize(
    ("error", "code"), [("ValueError('--epochs 0: none')", 2), ("KeyboardInterrupt", 130)]
)
def test_the_exit_code_tells_where_nothing_reads_the_error(error: str, code: int) -> None:
    script = f"from utilities.cli import run\ndef main(_):\n    raise {error}\nrun(main)"
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run([sys.executable, "-c", script], stderr=write, timeout=300)
    os.close(write)
    assert process.returncode == code
