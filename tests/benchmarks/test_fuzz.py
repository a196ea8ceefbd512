"""Damaged files for every reader, and proof that the fuzzer sees what readers do wrong."""

from __future__ import annotations

import os
import pickle
import signal
import time
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import fuzz_readers
from benchmarks.fuzz_readers import ALLOWED, READERS, Job, Reader, fuzz, try_case, write_case
from benchmarks.mutations import RAW, mutate, payload

IN_PROCESS = [name for name in READERS if name != "h5"]  # HDF5 may crash: in a process of its own


@pytest.mark.parametrize("name", IN_PROCESS)
def test_a_damaged_file_is_read_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    reader = READERS[name]()
    for sample in reader.samples:
        reader.read(write_case(reader, tmp_path, sample))

    @settings(max_examples=60, deadline=None)
    @given(seed=st.integers(0, 2**32))
    def check(seed: int) -> None:
        outcome, note = try_case(reader, tmp_path, Random(seed))
        assert outcome in ALLOWED, note

    check()


def test_damaged_surfaces_crash_nothing() -> None:
    result = fuzz(Job("h5", files=100, seed=0, patience=10))
    assert set(result.outcomes) <= set(ALLOWED), result.notes
    assert result.outcomes.total() == 100
    assert result.megabytes < 100


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
        time.sleep(60)


def waste(path: Path) -> None:
    np.ones(30_000_000)  # 240 MB


@pytest.mark.parametrize(
    ("read", "outcome", "patience"),
    [
        (read_well, "refused", 10),
        (raise_key_error, "traceback", 10),
        (name_no_file, "unnamed", 10),
        (run_code, "executed", 10),
        (crash, "crash", 10),
        (hang, "timeout", 0.2),
    ],
)
def test_the_fuzzer_sees_it(read, outcome: str, patience: float, monkeypatch) -> None:
    whole = pickle.dumps(1) if read is run_code else b"whole"
    monkeypatch.setitem(READERS, "bad", lambda: Reader(read, "a", [{"a": whole}]))
    result = fuzz(Job("bad", files=5 if outcome != "executed" else 60, seed=0, patience=patience))
    assert result.outcomes.total() >= 5
    assert result.outcomes[outcome] >= 1
    assert set(result.outcomes) <= {outcome, "read", "refused"}
    assert all(kind.startswith(outcome) for kind in result.notes)
    assert bool(result.notes) == (outcome != "refused")


def test_the_fuzzer_sees_memory_and_stops_at_too_much(monkeypatch) -> None:
    monkeypatch.setitem(READERS, "bad", lambda: Reader(waste, "a", [{"a": b"whole"}]))
    assert fuzz(Job("bad", files=2, seed=0, patience=10)).megabytes > 200
    monkeypatch.setattr(fuzz_readers, "MEMORY", 2**27)
    result = fuzz(Job("bad", files=2, seed=0, patience=10))
    assert result.outcomes == {"traceback": 2}
    assert "MemoryError" in next(iter(result.notes))


def test_the_command_prints_a_table_and_fails_on_a_bad_reader(monkeypatch, capsys) -> None:
    monkeypatch.setitem(READERS, "bad", lambda: Reader(raise_key_error, "a", [{"a": b"whole"}]))
    fuzz_readers.main(["--files", "5", "--readers", "npy"])
    assert "| npy |" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        fuzz_readers.main(["--files", "5", "--readers", "bad"])
    assert stop.value.code == 1
    assert "KeyError at test_fuzz.py" in capsys.readouterr().out


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
