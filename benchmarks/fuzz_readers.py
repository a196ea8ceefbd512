"""Give damaged files to every reader of the project and count what they do.

    python benchmarks/fuzz_readers.py                                 # 10,000 files a reader
    python benchmarks/fuzz_readers.py --files 300 --readers npy h5    # a quick look

A reader may read a damaged file (a flipped bit in a sample is a sample) or refuse it in one line
that names the file. It may not raise anything else (a traceback for the user), run code from the
file, crash, hang or take memory that the file doesn't account for. Each reader works in a process
of its own whose address space may grow by 1 GiB. The seed decides the damage; the whole files
differ a little between runs where they hold paths or, as torch's old format, addresses. Exit code
1 if a reader did what it may not.

Settings (.toml) aren't here: nothing in the project reads them yet.
"""

from __future__ import annotations

import argparse
import faulthandler
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from benchmarks.mutations import mutate
from benchmarks.timing import machine
from utilities.cli import Parser, non_negative_int, positive_float, positive_int, run
from utilities.tables import table

Files = dict[str, bytes]
OUTCOMES = ("read", "refused", "unnamed", "traceback", "executed", "crash", "timeout")
ALLOWED = ("read", "refused")
MEMORY = 2**30  # bytes by which a reader's address space may grow
FORK = multiprocessing.get_context("fork")  # imports are paid once


@dataclass
class Reader:
    """A reader and small whole files for it.

    Attributes:
        read: takes the path of the file.
        path: of it, in the folder that holds ``files``.
        samples: each the files of one case by name; one of them is damaged.
    """

    read: Callable[[Path], Any]
    path: str
    samples: list[Files]


@dataclass
class Result:
    """What one reader did."""

    outcomes: Counter[str] = field(default_factory=Counter)
    notes: dict[str, str] = field(default_factory=dict)  # first of each kind of bad outcome
    megabytes: float = 0.0  # by which the reader's memory grew at most
    seconds: float = 0.0


# --- the readers ----------------------------------------------------------------------------------
def _saved(save: Callable[[Path], Any], *names: str) -> Files:
    """The files that ``save`` writes into a folder."""
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        return {name: (Path(folder) / name).read_bytes() for name in names}


def checkpoint_reader() -> Reader:
    from utilities import checkpoint

    content: dict[str, Any] = {
        "task": "GCN",
        "model": "gnc",
        "model_args": {"in_channels": 7},
        "dataset": "MUTAG",
        "data_args": {"seed": 42, "train_samples": None},
        "train_args": {"rho": 0.05, "optimizer": "SAM"},
        "epoch": 3,
        "metrics": {"val_acc": [0.5, 0.75]},
        "state_dict": {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)},
    }

    def save(folder: Path) -> None:
        checkpoint.save(folder / "a.pt", content)

    def save_old(folder: Path) -> None:  # in torch's format before 1.6, which torch still reads
        save(folder)
        whole = torch.load(folder / "a.pt", weights_only=True)
        torch.save(whole, folder / "a.pt", _use_new_zipfile_serialization=False)

    return Reader(checkpoint.load, "a.pt", [_saved(save, "a.pt"), _saved(save_old, "a.pt")])


def weights_reader(name: str) -> Reader:
    """A state dict of a user's own model."""
    from safetensors.torch import save_file

    from loss_landscape.own_model.model import read_weights

    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    weights, wrapped = model.state_dict(), {f"module.{k}": v for k, v in model.state_dict().items()}
    if name.endswith(".safetensors"):
        contents: list[Any] = [weights, wrapped]
        samples = [_saved(lambda f, c=c: save_file(c, f / name), name) for c in contents]
    else:
        contents = [weights, {"epoch": 3, "state_dict": wrapped}]
        samples = [_saved(lambda f, c=c: torch.save(c, f / name), name) for c in contents]
    return Reader(lambda path: read_weights(path, model), name, samples)


def npy_reader() -> Reader:
    from DatasetClass.storage.arrays import read_npy

    arrays = [np.arange(12, dtype=np.float32).reshape(3, 4), np.ones((2, 3), order="F")]
    arrays += [np.array(5), np.empty((0, 4), np.uint8)]
    samples = [_saved(lambda f, a=a: np.save(f / "a.npy", a), "a.npy") for a in arrays]
    return Reader(lambda path: np.array(read_npy(path)), "a.npy", samples)


def npz_reader() -> Reader:
    from DatasetClass.storage.arrays import read_npz

    arrays: dict[str, Any] = {"x": np.arange(12, dtype=np.float32), "y": np.ones((2, 3), order="F")}
    saves = (np.savez, np.savez_compressed)
    samples = [_saved(lambda f, s=save: s(f / "a.npz", **arrays), "a.npz") for save in saves]
    return Reader(lambda path: read_npz(path, ("x", "y")), "a.npz", samples)


def history_reader() -> Reader:
    from utilities.history import read_history

    rows = ["epoch\tlearning_rate\ttrain_loss", "1\t0.1\t2.3025", "2\t0.05\t1e-05"]
    text = "\n".join(["# optimizer: SAM", "# rho: 0.05", *rows]) + "\n"
    return Reader(read_history, "run.dat", [{"run.dat": text.encode()}])


def kaggle_reader() -> Reader:
    from DatasetClass.raw.kaggle import read_kaggle

    rng = np.random.default_rng(0)
    rows = np.column_stack([rng.random((3, 187)).round(3), [0, 3, 4]])
    text = "\n".join(",".join(f"{cell:g}" for cell in row) for row in rows) + "\n"
    return Reader(read_kaggle, "mitbih_train.csv", [{"mitbih_train.csv": text.encode()}])


def batch_reader() -> Reader:
    """CIFAR's official batches are pickles; the MD5 that stands before this reader is left out."""
    from DatasetClass.raw.cifar_batches import parse_batch

    # One image of label 3, as Python 2 pickled it: its text, its name of numpy's function.
    content = (
        b"\x80\x02}(U\x06labels](K\x03eU\x04datacnumpy.core.multiarray\n_reconstruct\n"
        b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01(K\x01M\x00\x0ctcnumpy\ndtype\nU\x02u1K\x00K\x01"
        b"\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T\x00\x0c\x00\x00"
    ) + bytes(3072)
    content += b"tbu."
    return Reader(
        lambda path: parse_batch(path.read_bytes(), path, "cifar10"), "batch", [{"batch": content}]
    )


def surface_reader() -> Reader:
    from loss_landscape import surface_file as h5

    def save(folder: Path, y: np.ndarray | None) -> None:
        surface = h5.Surface(np.linspace(-1, 1, 3), y, {}, {"seed": 1, "arguments": "--x=-1:1:3"})
        directions = [[torch.ones(2, 2), torch.zeros(3)]] * (1 if y is None else 2)
        h5.create(folder / "a.h5", surface, directions, ("train_loss", "train_acc"))
        cells = np.zeros(surface.shape, dtype=bool)
        cells[0] = True  # the others stay empty
        values = {"train_loss": np.ones(surface.shape), "train_acc": np.full(surface.shape, 50.0)}
        h5.write_cells(folder / "a.h5", cells, values)

    def read(path: Path) -> Any:
        return h5.read_surface(path), h5.read_directions(path), h5.done(path)

    axes = (None, np.linspace(-1, 1, 2))
    return Reader(read, "a.h5", [_saved(lambda f, y=y: save(f, y), "a.h5") for y in axes])


def record_reader() -> Reader:
    from DatasetClass.raw.wfdb_records import read_record

    def save(folder: Path) -> None:
        import wfdb

        time_ = np.arange(720) / 360
        signal = np.column_stack([np.sin(9 * time_), np.cos(9 * time_)])
        arguments: dict[str, Any] = {"fmt": ["212"] * 2, "adc_gain": [200] * 2, "baseline": [0] * 2}
        names = ["MLII", "V1"]
        wfdb.wrsamp("100", 360, ["mV"] * 2, names, signal, write_dir=str(folder), **arguments)
        beats, codes = np.array([5, 100, 300, 500, 650]), np.array(["+", "N", "A", "V", "N"])
        wfdb.wrann("100", "atr", beats, codes, write_dir=str(folder))

    return Reader(read_record, "100", [_saved(save, "100.hea", "100.dat", "100.atr")])


def graphs_reader() -> Reader:
    from DatasetClass.raw.tu_files import read_graphs

    files = {
        "A": "1, 2\n2, 1\n2, 3\n3, 2\n4, 5\n5, 4\n",
        "graph_indicator": "1\n1\n1\n2\n2\n3\n",
        "graph_labels": "1\n-1\n1\n",
        "node_labels": "0\n1\n0\n2\n2\n1\n",
        "node_attributes": "0.5, 1\n1, 2\n0, 0\n1, 1\n-1, 2e3\n3, 4\n",
        "edge_labels": "0\n0\n1\n1\n0\n0\n",
    }
    labelled = {f"raw/X_{name}.txt": text.encode() for name, text in files.items()}
    bare = {name: labelled[name] for name in list(labelled)[:3]}
    return Reader(lambda path: read_graphs(path, "X"), "raw", [labelled, bare])


READERS: dict[str, Callable[[], Reader]] = {
    "pt": checkpoint_reader,
    "pth": partial(weights_reader, "a.pth"),
    "safetensors": partial(weights_reader, "a.safetensors"),
    "npy": npy_reader,
    "npz": npz_reader,
    "csv": kaggle_reader,
    "pickle": batch_reader,
    "dat": history_reader,
    "h5": surface_reader,
    "wfdb": record_reader,
    "tu": graphs_reader,
}


# --- one file -------------------------------------------------------------------------------------
def write_case(reader: Reader, folder: Path, files: Files) -> Path:
    """Write one case in place of the last; return the path to read."""
    for name in {name for sample in reader.samples for name in sample}:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        if name in files:
            path.write_bytes(files[name])
    return folder / reader.path


def damage(reader: Reader, rng: Random, canary: Path) -> Files:
    """A sample with one damaged file, or now and then without it."""
    files = dict(rng.choice(reader.samples))
    victim = rng.choice(list(files))
    if len(files) > 1 and rng.random() < 0.03:
        del files[victim]
    else:
        files[victim] = mutate(files[victim], rng, canary)
    return files


def try_case(reader: Reader, folder: Path, rng: Random) -> tuple[str, str]:
    """Let ``reader`` read one damaged case: the outcome and, if it isn't allowed, a note."""
    canary = folder / "canary"
    path = write_case(reader, folder, damage(reader, rng, canary))
    outcome, note = "read", ""
    try:
        reader.read(path)
    except (ValueError, OSError) as error:
        named = str(path) in str(error) and "\n" not in str(error)
        outcome, note = ("refused", "") if named else ("unnamed", _note(error))
    except Exception as error:
        outcome, note = "traceback", _note(error)
    if canary.exists():
        canary.unlink()
        return "executed", note
    return outcome, note


def _note(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())[:150]
    return f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}: {text}"


# --- many files, in a process that may die --------------------------------------------------------
@dataclass
class Job:
    """One reader's run: ``files`` cases of ``seed``, each within ``patience`` seconds."""

    name: str
    files: int
    seed: int
    patience: float


def fuzz(job: Job) -> Result:
    """Try a job's damaged files; a process that died or hangs is followed by another."""
    torch.set_num_threads(1)  # a forked process can't use the pool of its parent
    reader, result, start, done = READERS[job.name](), Result(), time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        for sample in reader.samples:  # whole ones have to be read, and imports happen here
            reader.read(write_case(reader, Path(folder), sample))
        while done < job.files:
            done = _watch(job, reader, Path(folder), done, result)
    result.seconds = time.monotonic() - start
    return result


def _watch(job: Job, reader: Reader, folder: Path, first: int, result: Result) -> int:
    """Run a process from case ``first`` on until it ends; return the case to go on with."""
    ours, theirs = FORK.Pipe(duplex=False)
    worker = FORK.Process(target=_work, args=(job, reader, folder, first, theirs))
    worker.start()
    theirs.close()
    try:
        for index in range(first, job.files):
            if not ours.poll(job.patience):
                return _count(result, index, "timeout", f"{job.patience:g} s")
            try:
                outcome, note, megabytes = ours.recv()
            except EOFError:
                worker.join()
                return _count(result, index, "crash", f"exit code {worker.exitcode}")
            _count(result, index, outcome, note)
            result.megabytes = max(result.megabytes, megabytes)
        return job.files
    finally:
        worker.kill()
        worker.join()
        ours.close()


def _count(result: Result, index: int, outcome: str, note: str) -> int:
    result.outcomes[outcome] += 1
    if outcome not in ALLOWED:
        result.notes.setdefault(f"{outcome}: {note.split(': ')[0]}", f"file {index}: {note}")
    return index + 1


def _work(job: Job, reader: Reader, folder: Path, first: int, pipe: Connection) -> None:
    """Try cases ``first`` and on, and send what each did."""
    warnings.simplefilter("ignore")
    faulthandler.disable()  # under pytest it would print for a crash that is counted
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)  # the libraries' own chatter about damaged files
    os.dup2(quiet, 2)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    before, limit = _status("VmRSS"), _status("VmSize") * 1024 + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for index in range(first, job.files):
        outcome, note = try_case(reader, folder, Random(f"{job.seed} {job.name} {index}"))
        pipe.send((outcome, note, (_status("VmHWM") - before) / 1024))


def _status(name: str) -> int:
    """A figure of this process in KiB, as Linux gives it."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{name}:")[1].split()[0])


# --- command line ---------------------------------------------------------------------------------
def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--files", type=positive_int, default=10_000, help="damaged files a reader")
    parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS))
    parser.add_argument("--seed", type=non_negative_int, default=0, help="of the damage")
    parser.add_argument(
        "--patience", type=positive_float, default=10.0, help="seconds before a file counts as hung"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Fuzz the readers and print a table."""
    args = parse_args(argv)
    header = ("reader", *OUTCOMES, "peak memory", "seconds")
    rows, bad = [], []
    for name in args.readers:
        result = fuzz(Job(name, args.files, args.seed, args.patience))
        counts = [f"{result.outcomes[outcome]:,}" for outcome in OUTCOMES]
        rows.append((name, *counts, f"+{result.megabytes:.0f} MB", f"{result.seconds:.0f}"))
        bad += [f"{name}: {kind} ({note})" for kind, note in result.notes.items()]
        print(f"{name}: {args.files:,} files, {len(result.notes)} kinds of failure", flush=True)
    print(f"\n{table(header, rows)}\n\nseed {args.seed}; {machine()}", *bad, sep="\n")
    if bad:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
