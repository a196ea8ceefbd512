"""Tiny data in the official formats, and scripts called through their real command lines."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import wfdb

from utilities import cli
from utilities.files import ROOT

torch.set_num_threads(1)  # tests are small; threads cost more than they give

Run = Callable[..., subprocess.CompletedProcess]

if not hasattr(os, "fork"):  # Windows: without what forks, and what imports a benchmark that does
    POSIX = ("fork", "import fcntl", "import pty", "import resource", "getrusage", "benchmarks")
    TESTS = {path: path.read_text("utf-8") for path in Path(__file__).parent.rglob("test_*.py")}
    collect_ignore = [str(p) for p, text in TESTS.items() if any(word in text for word in POSIX)]


def run_script(script: str, *flags: object, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """Run a script of the project as a user does."""
    command = [sys.executable, str(ROOT / script), *map(str, flags)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=cwd, env=one_thread, capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Run:
    """As ``run_script``, but in this process, which saves seconds: takes a script's ``main``."""

    def run(main: cli.Main, *flags: object) -> subprocess.CompletedProcess:
        argv = ["script.py", *map(str, flags)]
        monkeypatch.setattr(sys, "argv", argv)
        capsys.readouterr()
        code = 0
        try:
            cli.run(main)
        except SystemExit as end:
            code = int(end.code or 0)
        return subprocess.CompletedProcess(argv, code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder: cifar10.npz, Kaggle's heartbeat files, one PhysioNet record, a TUDataset."""
    folder = tmp_path_factory.mktemp("data")
    make_cifar(folder)
    make_kaggle(folder)
    make_record(folder)
    make_tudataset(folder)
    return folder


def make_cifar(folder: Path) -> None:
    """200 and 40 images whose mean colour tells the class."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 200), ("test", 40)):
        labels = np.arange(count) % 10
        noise = rng.integers(0, 60, (count, 32, 32, 3))
        arrays[f"x_{part}"] = (noise + 19 * labels[:, None, None, None]).astype(np.uint8)
        arrays[f"y_{part}"] = labels.astype(np.int64)
    np.savez(folder / "cifar10.npz", **arrays)


def make_kaggle(folder: Path) -> None:
    """Beats as Kaggle has them: 187 values from 0 to 1 and the label, no header."""
    rng = np.random.default_rng(1)
    time = np.arange(187)
    for part, count in (("train", 100), ("test", 40)):
        labels = np.arange(count) % 5
        waves = 0.5 + 0.4 * np.sin(time * (1 + labels[:, None]) / 10)
        beats = np.clip(waves + 0.05 * rng.standard_normal(waves.shape), 0, 1)
        table = np.column_stack([beats, labels])
        np.savetxt(folder / f"mitbih_{part}.csv", table, fmt="%.6e", delimiter=",")


def make_record(folder: Path) -> None:
    """One record of 60 s at 360 Hz with an annotated R peak each 0.8 s, written by wfdb."""
    mitdb = folder / "mitdb"
    mitdb.mkdir()
    rate, seconds = 360, 60
    time = np.arange(rate * seconds) / rate
    peaks = np.arange(0.4, seconds - 1, 0.8)
    signal = np.exp(-(((time[:, None] - peaks) / 0.02) ** 2)).sum(axis=1)
    wfdb.wrsamp(
        "100",
        fs=rate,
        units=["mV", "mV"],
        sig_name=["V5", "MLII"],
        p_signal=np.column_stack([np.zeros_like(signal), signal]),
        fmt=["212", "212"],
        adc_gain=[200, 200],
        baseline=[0, 0],
        write_dir=str(mitdb),
    )
    codes = np.array(["N", "A", "V", "F", "Q"] * len(peaks))[: len(peaks)]
    samples = np.round(peaks * rate).astype(int)
    rhythm = np.array([5])  # a rhythm change, which is no beat
    wfdb.wrann(
        "100",
        "atr",
        np.concatenate([rhythm, samples]),
        np.concatenate([["+"], codes]),
        write_dir=str(mitdb),
    )
    (mitdb / "RECORDS").write_text("100\n")


def make_tudataset(folder: Path, name: str = "TINY", graphs: int = 40) -> None:
    """Rings (class 1) and paths (class 2) of 4 to 7 nodes without labels or attributes.

    The last graph is a single node without edges.
    """
    raw = folder / "TUDataset" / name / "raw"
    raw.mkdir(parents=True)
    edges, indicator, labels, first = [], [], [], 1
    for graph in range(1, graphs + 1):
        size, ring = 4 + graph % 4, graph % 2
        if graph == graphs:
            size = 1
        pairs = [(first + i, first + i + 1) for i in range(size - 1)]
        if ring and size > 2:
            pairs.append((first + size - 1, first))
        edges += [pair for a, b in pairs for pair in ((a, b), (b, a))]
        indicator += [graph] * size
        labels.append(1 if ring else 2)
        first += size
    (raw / f"{name}_A.txt").write_text("".join(f"{a}, {b}\n" for a, b in edges))
    (raw / f"{name}_graph_indicator.txt").write_text("".join(f"{i}\n" for i in indicator))
    (raw / f"{name}_graph_labels.txt").write_text("".join(f"{i}\n" for i in labels))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The real data sets; tests that need them are skipped where they are absent."""
    if not (ROOT / "data" / "mitdb" / "RECORDS").is_file():
        pytest.skip("no real data below data/")
    return ROOT / "data"


@pytest.fixture(scope="session")
def real_records(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the real heartbeat records, without anyone's cache."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "mitdb").symlink_to((real_data / "mitdb").resolve())
    return folder


@pytest.fixture
def record(data_dir: Path, tmp_path: Path) -> Path:
    """A copy of the record 100 of ``data_dir``, to be damaged."""
    shutil.copytree(data_dir / "mitdb", tmp_path / "mitdb")
    return tmp_path / "mitdb" / "100"


SMALL = {
    "GCN": ("--dataset", "TINY", "--hidden_channels", 8),
    "mitbih": ("--dim", 8, "--heads", 2, "--layers", 1, "--feedforward", 8, "--patch", 17),
    "cifar": ("--depth", 10, "--width_factor", 1, "--learning_rate", 0.01),
}


@pytest.fixture(scope="session")
def trained(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For each task a checkpoint of 2 epochs with SAM, made by the script in this process."""
    checkpoints = {}
    for name, flags in SMALL.items():
        out = tmp_path_factory.mktemp(name)
        common = ("--data_dir", data_dir, "--out_dir", out, "--epochs", 2, "--threads", 1)
        script = str(ROOT / f"trainings/my_train_{name}.py")
        with pytest.MonkeyPatch.context() as patch:
            argv = [script, "--optimizer", "SAM", *map(str, (*flags, *common))]
            patch.setattr(sys, "argv", argv)
            cli.run(importlib.import_module(f"trainings.my_train_{name}").main)
        suffix = "_TINY" if name == "GCN" else ""
        checkpoints[name] = out / "to_plot" / f"model_{name}_SAM_rho0.05{suffix}.pt"
    return checkpoints


@pytest.fixture(scope="session")
def carried_out(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The small study, carried out in this process: its table and its folder."""
    import tables

    from studies import runner

    folder = tmp_path_factory.mktemp("study")
    table, out = tables.write(folder), folder / "out"
    runner.main([str(table), "--jobs=2", f"--out_dir={out}"])
    return table, out


@pytest.fixture(scope="session")
def real(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study whose runs were trained and measured; tests leave it as it is."""
    import real_study

    folder = tmp_path_factory.mktemp("real")
    real_study.carry_out(data_dir, folder)
    return folder
