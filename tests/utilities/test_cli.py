"""Numbers on a command line: taken as they are or refused in one line, where they enter."""

from __future__ import annotations

import argparse
import math

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
