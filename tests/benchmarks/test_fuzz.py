"""Damaged files for every reader, and proof that the fuzzer sees what readers do wrong."""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from random import Random

import numpy as np
import pytest
from forks import LIMIT, result_of

from benchmarks import fuzz_readers
from benchmarks.fuzz_readers import ALLOWED, READERS, Job, Reader, Result, fuzz
from benchmarks.mutations import RAW, mutate, payload


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused_in_one_line(name: str) -> None:
    """In a process of its own with a limit: HDF5 may crash, and torch take gigabytes."""
    seed = Random().randrange(2**32)  # other damage each time
    result = result_of(fuzz, Job(name, files=100, seed=seed, patience=LIMIT))
    assert set(result.outcomes) <= set(ALLOWED), (seed, result.notes)
    assert result.outcomes.total() == 100
    assert name != "h5" or result.megabytes < 100


# --- the fuzzer itself ----------------------------------------------------------------------------
def read_well(path: Path) -> None:
    if path.read_bytes() != b"whole":
        raise ValueError(f"{path}: damaged")


def raise_key_error(path: Path) -> None:
    if path.read_bytes() != b"whole":
        raise KeyError("format")


def name_no_file(path: Path) -> None:
    if path.read_bytes() != b"whole":
        raise ValueError("damaged")


def run_code(path: Path) -> None:
    try:
        pickle.loads(path.read_bytes())
    except Exception as error:
        raise ValueError(f"{path}: damaged") from error


def crash(path: Path) -> None:
    if path.read_bytes() != b"whole":
        os.kill(os.getpid(), signal.SIGSEGV)


def hang(path: Path) -> None:
    if path.read_bytes() != b"whole":
        time.sleep(2 * LIMIT)


def waste(path: Path) -> None:
    np.ones(30_000_000)  # 240 MB


def fuzz_bad(read: Callable[[Path], object], job: Job, memory: int = fuzz_readers.MEMORY) -> Result:
    """Run ``job`` for a reader of this file, called bad, in a child process."""
    whole = pickle.dumps(1) if read is run_code else b"whole"
    READERS["bad"] = lambda: Reader(read, "a", [{"a": whole}])
    fuzz_readers.MEMORY = memory
    return fuzz(job)


@pytest.mark.parametrize(
    ("read", "outcome", "patience"),
    [
        (read_well, "refused", LIMIT),
        (raise_key_error, "traceback", LIMIT),
        (name_no_file, "unnamed", LIMIT),
        (run_code, "executed", LIMIT),
        (crash, "crash", LIMIT),
        (hang, "timeout", 0.5),
    ],
)
def test_the_fuzzer_sees_it(read, outcome: str, patience: float) -> None:
    files = 5 if outcome != "executed" else 60
    result = result_of(fuzz_bad, read, Job("bad", files=files, seed=0, patience=patience))
    assert result.outcomes.total() >= 5
    assert result.outcomes[outcome] >= 1
    assert set(result.outcomes) <= {outcome, "read", "refused"}
    assert all(kind.startswith(outcome) for kind in result.notes)
    assert bool(result.notes) == (outcome != "refused")


def test_the_fuzzer_sees_memory_and_stops_at_too_much() -> None:
    job = Job("bad", files=2, seed=0, patience=LIMIT)
    assert result_of(fuzz_bad, waste, job).megabytes > 200
    result = result_of(fuzz_bad, waste, job, 2**27)
    assert result.outcomes == {"traceback": 2}
    assert "MemoryError" in next(iter(result.notes))


def command(reader: str) -> tuple[object, str]:
    """The command's exit code and what it prints of one reader, which may be bad."""
    READERS["bad"] = lambda: Reader(raise_key_error, "a", [{"a": b"whole"}])
    with redirect_stdout(StringIO()) as printed:
        try:
            fuzz_readers.main(["--files", "5", "--readers", reader])
        except SystemExit as stop:
            return stop.code, printed.getvalue()
    return 0, printed.getvalue()


def test_the_command_prints_a_table_and_fails_on_a_bad_reader() -> None:
    code, printed = result_of(command, "npy")
    assert code == 0 and "| npy |" in printed
    code, printed = result_of(command, "bad")
    assert code == 1 and "KeyError at test_fuzz.py" in printed


def test_damage_is_the_seeds_and_changes_files(tmp_path: Path) -> None:
    data = READERS["pt"]().samples[0]["a.pt"]
    damaged = [mutate(data, Random(seed), tmp_path / "canary") for seed in range(50)]
    assert damaged == [mutate(data, Random(seed), tmp_path / "canary") for seed in range(50)]
    assert sum(new != data for new in damaged) >= 45
    for mutation in RAW:
        for seed in range(20):
            mutation(b"", Random(seed))
            mutation(b"1", Random(seed))


def test_a_payload_would_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for seed in range(40):
        code = payload(b"", Random(seed), canary)
        pickle.loads(code[code.index(b"\n") + 1 :] if code.startswith(b"\x93NUMPY") else code)
        assert canary.exists()
        canary.unlink()
