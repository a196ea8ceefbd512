"""Train a graph network on MUTAG with Adam and with SAM, and look at both minima.

    python demo.py        # or: make demo; about a minute on 2 cores, no network

Each step is a script of this repository; its command line is printed, so that it can be run alone.
The minima that are looked at are one run each. Ten folds beside them show what such a run is worth.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from loss_landscape import compare, plot_sharpness, plot_surface, sharpness
from loss_landscape.my_pyhessian import density_plot, hessian
from trainings import my_train_GCN
from utilities.cli import Parser, positive_int, run, two_or_more
from utilities.files import ROOT, locked

PICTURE = "demo_GCN.png"


def step(title: str, script: ModuleType, flags: list[str], common: list[str]) -> None:
    """Run one script in this process, after its title and command line."""
    started, name = time.monotonic(), script.__name__.replace(".", "/")
    print(f"\n=== {title}\n$ python {name}.py {' '.join(flags)}", flush=True)
    script.main([*flags, *common])
    print(f"({time.monotonic() - started:.0f} s)", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the demo."""
    parser = Parser(__doc__)
    parser.add_argument("--out_dir", type=Path, default=ROOT, help="folder for the results")
    parser.add_argument("--data_dir", type=Path, default=ROOT / "data", help="data sets")
    parser.add_argument("--epochs", type=positive_int, default=150, help="of each training")
    parser.add_argument("--folds", type=two_or_more, default=10, help="of the cross-validation")
    parser.add_argument("--points", type=two_or_more, default=31, help="of the grid, each way")
    parser.add_argument("--probes", type=positive_int, default=10, help="of the spectra")
    args = parser.parse_args(argv)
    # Each script locks its own results; this keeps those of one demo together.
    with locked(args.out_dir / "plots" / PICTURE, "give this one another --out_dir"):
        run_all(args)


def repeat(train: list[str], common: list[str], folds: int) -> list[str]:
    """Train on each fold, a line for each; return the best checkpoints."""
    files = []
    print(f"\n=== the same over {folds} folds")
    for fold in range(folds):
        flags = [*train, f"--fold={fold}"]
        with contextlib.redirect_stdout(io.StringIO()):
            metrics = my_train_GCN.main([*flags, *common])
        print(f"$ python trainings/my_train_GCN.py {' '.join(flags)}", end=": ")
        print(f"test accuracy {metrics['test_acc']:.1f} %", flush=True)
        files.append(str(my_train_GCN.parse_args([*flags, *common]).run.best))
    return files


def run_all(args: argparse.Namespace) -> None:
    """Train, look and compare, script by script."""
    results = ["--out_dir", str(args.out_dir)]
    # The graphs are small: a second thread gains nothing, and on a busy machine costs minutes.
    folders = [*results, "--data_dir", str(args.data_dir), "--threads=1"]
    started = time.monotonic()
    files, surfaces, repeated = [], [], []
    for optimizer, rho in (("ADAM", 0.0), ("SAM", 0.05)):
        # A demo that is run again starts anew; the flag says so.
        train = [f"--optimizer={optimizer}", f"--rho={rho}", f"--epochs={args.epochs}"]
        # The first is of no fold, but has their number too, so that the others repeat it.
        train += ["--overwrite", f"--folds={args.folds}"]
        surface = args.out_dir / "to_plot" / f"demo_GCN_{optimizer}.h5"
        files.append(str(train_and_look(args, optimizer, train, surface, folders)))
        surfaces.append(str(surface))
        repeated += repeat(train, folders, args.folds)
    picture = args.out_dir / "plots" / PICTURE
    page = picture.with_suffix(".html")
    flags = ["--model_files", *files, "--surf_files", *surfaces]
    flags += ["--along", "--sharpness", "--repetitions", *repeated]
    flags += [f"--output={picture}", f"--html={page}"]
    step("compare", compare, flags, results)
    print(f"demo done in {time.monotonic() - started:.0f} s: look at {picture} and {page}")


def train_and_look(
    args: argparse.Namespace, optimizer: str, train: list[str], surface: Path, folders: list[str]
) -> Path:
    """Train one network, measure its minimum and the way there; return its checkpoint."""
    trained = my_train_GCN.parse_args([*train, *folders]).run
    model, grid = f"--model_file={trained.best}", f"-1:1:{args.points}"
    keep = f"--keep_epochs={max(args.epochs // 15, 1)}"
    step(f"train with {optimizer}", my_train_GCN, [*train, keep], folders)
    flags = [model, f"--x={grid}", f"--y={grid}", f"--surf_file={surface}", "--overwrite"]
    step(f"loss surface, {optimizer}", plot_surface, flags, folders)
    flags = [model, f"--probes={args.probes}", "--overwrite"]
    step(f"spectrum of the Hessian, {optimizer}", hessian, flags, folders)
    flags = [f"--spectrum={trained.spectrum}"]
    step(f"draw the spectrum, {optimizer}", density_plot, flags, [f"--out_dir={args.out_dir}"])
    flags = [model, "--m=32", "--overwrite"]
    step(f"measures of sharpness, {optimizer}", sharpness, flags, folders)
    flags = [*map(str, trained.kept_epochs().values()), "--overwrite"]
    step(f"sharpness along the training, {optimizer}", plot_sharpness, flags, folders)
    return trained.best


if __name__ == "__main__":
    run(main)
