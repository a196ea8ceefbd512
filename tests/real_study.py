"""A study whose runs were trained and measured, in a few seconds, and reports on it."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest
from study_runs import rows, write

from loss_landscape import plot_sharpness, plot_surface
from loss_landscape.my_pyhessian import hessian
from studies import report
from studies.comparisons import Results
from studies.minima_files import MinimaFiles
from studies.runs_file import read_runs
from studies.table import read_study
from trainings import my_train_GCN
from utilities import checkpoint, cli


def carry_out(data_dir: Path, folder: Path) -> None:
    """Two optimizers and one seed, with surfaces and spectra."""
    made = [row for row in rows(["MUTAG"]) if (row["seed"], row["fold"]) == (1, 0)]
    made = [row for row in made if row["optimizer"] in ("ADAM", "SAM")]
    common = [f"--data_dir={data_dir}", f"--out_dir={folder}", "--threads=1"]
    for row in made:
        training = ["--dataset=TINY", "--seed=1", "--fold=0", "--epochs=2", "--hidden_channels=8"]
        training += [f"--optimizer={row['optimizer']}", "--keep_epochs=1", *common]
        run_main(my_train_GCN.main, training)
        (best,) = (folder / "to_plot").glob(f"model_GCN_{row['optimizer']}_*_seed1.pt")
        row["test_acc"] = checkpoint.load(best)["metrics"]["test_acc"]
        file = f"--model_file={best}"
        run_main(plot_surface.main, [file, "--x=-1:1:3", "--y=-1:1:3", *common])
        few = ["--probes=2", "--trace_probes=2", "--lanczos_steps=5", "--top_n=1"]
        run_main(hessian.main, [file, *few, *common])
        kept = sorted(map(str, best.parent.glob(f"{best.stem}_epoch*.pt")))
        run_main(plot_sharpness.main, [*kept, *common])
        row |= {"checkpoint": str(best.relative_to(folder)), "sha256": digest(best)}
    write(folder, made)


def words(folder: Path, output: Path) -> list[str]:
    """The command line of a report on the made table in ``folder``."""
    files = ["--runs", str(folder / "runs.csv"), "--out_dir", str(folder)]
    return [str(folder / "small.toml"), *files, "--output", str(output)]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run_main(main: cli.Main, argv: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["script.py", *argv])
        main(argv)


def report_of(folder: Path, output: Path) -> str:
    report.main(words(folder, output))
    return (output / "report.md").read_text("utf-8").replace("\\", "")


def files_of(folder: Path) -> MinimaFiles:
    results = Results(read_study(folder / "small.toml"), read_runs(folder / "runs.csv"))
    return MinimaFiles(results, folder)
