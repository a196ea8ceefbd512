r"""Draw the largest eigenvalue of the Hessian along a training, with its edge of stability.

    python loss_landscape/plot_sharpness.py to_plot/model_GCN_SGD_rho0.0_epoch*.pt
    python loss_landscape/plot_sharpness.py to_plot/model_GCN_S*_epoch*.pt --output plots/both.png

takes the epochs that a training with ``--keep_epochs 5`` kept, of one run or of several, writes the
values to ``Eigenvalues/<name>_<optimizer>_sharpness_epochs.json`` and draws them to
``plots/sharpness_<name>_<optimizer>.png``. The edge is that of the run's own optimizer:
``sharpness_measures/edges.py`` says how it follows, and where it doesn't hold. Epochs that are
there already are not measured again, and a run that was killed goes on.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from textwrap import fill, shorten
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loss_landscape.my_pyhessian.operators import HessianOperator
from loss_landscape.own_model.model import is_own
from loss_landscape.restore import Restored, add_restore_flags, restore
from loss_landscape.sharpness_measures.edges import Edge, edge_of, rates
from loss_landscape.sharpness_measures.epoch_sharpness import (
    ENDING,
    REMEDY,
    EpochsFile,
    Row,
    epochs_path,
    largest_eigenvalue,
)
from utilities import checkpoint
from utilities.cli import Parser, add_run_flags, positive_float, positive_int, report_files, run
from utilities.files import locked, sha256_of, target
from utilities.pictures import COLOURS, picture_path, save_picture
from utilities.progress import Progress
from utilities.ranks import refuse_several
from utilities.runs import Run, differing, run_settings
from utilities.tables import table

UNRECORDED = ("model_file", "data_dir", "out_dir", "overwrite", "device", "threads", "output")
EMPTY = 3.0  # times the largest eigenvalue: an edge above is left out of the picture


@dataclass
class Kept:
    """The kept epochs of one run.

    Attributes:
        files: by epoch, in order.
        content: of the first one's checkpoint; None for a user's own model.
    """

    files: dict[int, Path]
    content: dict[str, Any] | None = None


@dataclass
class Curve:
    """What is drawn of a run: its rows by epoch, in order, and its edge where it has one."""

    title: str
    rows: dict[int, Row]
    edge: Edge
    edges: dict[int, float]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    add_restore_flags(parser, batch_size=256, several=True, name="model_file")
    group = parser.add_argument_group("eigenvalue")
    group.add_argument("--split", choices=["train", "val", "test"], default="train")
    group.add_argument("--max_steps", type=positive_int, default=160, help="most products an epoch")
    group.add_argument(
        "--tol", type=positive_float, default=1e-3, help="residual over the largest eigenvalue"
    )
    group = parser.add_argument_group("results")
    group.add_argument("--output", type=picture_path, help="picture (needed for several runs)")
    group.add_argument(
        "--overwrite",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="replace what was measured with other settings",
    )
    add_run_flags(parser, seed=0)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> Path:
    """Measure and draw as the command line says; return the picture's path."""
    args = parse_args(argv)
    refuse_several()
    runs = own_epochs(args.model_file) if is_own(args.model) else kept_epochs(args.model_file)
    if len(runs) > 1 and args.output is None:
        raise ValueError(f"the files are of {len(runs)} runs; name their picture with --output")
    paths, curves = [], []
    for kept in runs:
        path, curve = measure_run(args, kept)
        paths.append(path)
        curves.append(curve)
    name = paths[0].name.removesuffix(ENDING)
    picture = args.output or args.out_dir / "plots" / f"sharpness_{name}.png"
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    draw(figure.subplots(), curves)
    save_picture(figure, picture)
    report_files([*paths, picture])
    return picture


# --- which files ----------------------------------------------------------------------------------
def kept_epochs(files: Sequence[Path]) -> list[Kept]:
    """The checkpoints by run and epoch, in the order in which runs are named.

    Raises:
        FileNotFoundError: one is not there.
        ValueError: two of one epoch of a run, or one that is damaged.
    """
    runs: list[Kept] = []
    for path in dict.fromkeys(files):
        content = checkpoint.load(path)
        settings = run_settings(content)
        same = (k for k in runs if not differing(run_settings(k.content or {}), settings))
        kept = next(same, None)
        if kept is None:
            kept = Kept({}, content)
            runs.append(kept)
        _add(kept, content["epoch"], path)
    return [Kept(dict(sorted(kept.files.items())), kept.content) for kept in runs]


def own_epochs(files: Sequence[Path]) -> list[Kept]:
    """A user's own state dicts as one run; the last number in a name is the epoch.

    Raises:
        ValueError: a name without a number, or two with one.
    """
    kept = Kept({})
    for path in dict.fromkeys(files):
        numbers = re.findall(r"\d+", path.stem, re.ASCII)
        if not numbers:
            raise ValueError(f"{path}: no number in its name; end it in its epoch, as in net_5.pt")
        _add(kept, int(numbers[-1]), path)
    return [Kept(dict(sorted(kept.files.items())))]


def _add(kept: Kept, epoch: int, path: Path) -> None:
    if epoch in kept.files:
        raise ValueError(f"{path}: of epoch {epoch}, as {kept.files[epoch]}; name one of them")
    kept.files[epoch] = path


# --- measured -------------------------------------------------------------------------------------
def measure_run(args: argparse.Namespace, kept: Kept) -> tuple[Path, Curve]:
    """Measure the epochs that the run's file doesn't have; its path, and what is to be drawn.

    Raises:
        ValueError: the file holds other settings', or weights or losses are not finite.
    """
    first = next(iter(kept.files.values()))
    restored = restore(argparse.Namespace(**{**vars(args), "model_file": first}))
    whole = whole_run(restored)
    path = target(epochs_path(whole.spectrum))
    batches = restored.batches(args.split, args.samples, args.batch_size)
    settings = {
        **{f"--{k}": v for k, v in vars(args).items() if k not in UNRECORDED},
        **{k: str(v) for k, v in restored.settings.items()},
        **({} if kept.content is None else {"run": run_settings(kept.content)}),
    }
    with locked(path, "--out_dir puts this one elsewhere"):
        file = EpochsFile.open(path, settings, args.overwrite)
        _measure_missing(args, kept, restored, batches, file)
        # The edge of all epochs that the file has, of which some may not be drawn now.
        curve = _curve(kept, restored, dict(sorted(file.rows.items())), whole.title)
        file.add_edge(curve.edge.formula, curve.edge.why, curve.edges)
    rows = {epoch: curve.rows[epoch] for epoch in kept.files}
    edges = {epoch: edge for epoch, edge in curve.edges.items() if epoch in rows}
    curve = replace(curve, rows=rows, edges=edges)
    print("\n".join([whole.title, *summary(curve)]))
    return path, curve


def _measure_missing(
    args: argparse.Namespace,
    kept: Kept,
    restored: Restored,
    batches: list[Any],
    file: EpochsFile,
) -> None:
    digests = {e: sha256_of(p) for e, p in kept.files.items()}
    for epoch in file.rows.keys() & kept.files.keys():
        if file.rows[epoch]["checkpoint_sha256"] != digests[epoch]:
            raise ValueError(
                f"{kept.files[epoch]}: other weights than those that {file.path} has of epoch "
                f"{epoch}; {REMEDY}"
            )
    missing = [epoch for epoch in kept.files if epoch not in file.rows]
    if len(missing) < len(kept.files):
        print(f"{file.path}: {len(kept.files) - len(missing)} epochs are there already")
    with Progress(f"epochs of {len(kept.files)}, with their Hessians", len(missing)) as progress:
        for epoch in missing:
            path = kept.files[epoch]
            restored.model.load_state_dict(restored.read_weights(path))
            # A new one sees that the loss is finite at these weights.
            operator = HessianOperator(restored.model, restored.loss, batches, restored.forward)
            # Another random vector each time: what one has nothing of, the next one sees.
            how = (operator.flat, args.max_steps, args.tol, args.seed + epoch)
            row = largest_eigenvalue(operator, *how)
            row |= {
                "gradient_norm": float(operator.gradient().double().norm()),
                "checkpoint_sha256": digests[epoch],
                "samples": operator.samples,
            }
            file.add(epoch, row)
            progress.update()


def _curve(kept: Kept, restored: Restored, rows: dict[int, Row], title: str) -> Curve:
    """Rows with their edges, and why there is none."""
    content = kept.content
    if content is None:
        unknown = "a file of weights doesn't say by which optimizer they were trained"
        return Curve(title, rows, Edge("", (unknown,)), {})
    sizes = restored.data.sizes  # type: ignore[union-attr]
    edge = edge_of(content, sizes["train"])
    if not edge.formula:
        return Curve(title, rows, edge, {})
    first = next(iter(kept.files.values()))
    by_epoch = rates(content, first.parent.parent)
    if isinstance(by_epoch, str):
        return Curve(title, rows, Edge("", (by_epoch,)), {})
    part = next(iter(rows.values()))["samples"]
    if part < sizes["train"]:
        more = (
            f"the eigenvalue is that of {part} of {sizes['train']} samples; those of few are larger"
        )
        edge = edge._replace(why=(*edge.why, more))
    lacking = [str(epoch) for epoch in rows if epoch not in by_epoch]
    if lacking:
        why = f"no edge without the learning rates: the history lacks epochs {', '.join(lacking)}"
        return Curve(title, rows, Edge("", (why,)), {})
    edges = {e: edge.at(by_epoch[e], row["gradient_norm"]) for e, row in rows.items()}
    return Curve(title, rows, edge, edges)


def whole_run(restored: Restored) -> Any:
    """What names the run's files, without the epoch that the first checkpoint is of."""
    if isinstance(restored.run, Run):
        return replace(restored.run, epoch=None, is_state=False)
    stem = re.sub(r"[-_.]*(epoch)?[-_.]*\d+\D*$", "", restored.path.stem) or restored.path.stem
    return replace(restored.run, model_file=restored.path.with_name(stem + restored.path.suffix))


# --- shown ----------------------------------------------------------------------------------------
def summary(curve: Curve) -> list[str]:
    """A row an epoch, the number of products, and what is to be known of the edge."""
    rows = [
        [
            str(epoch),
            f"{row['lambda_max']:.4g}",
            f"{row['residual']:.1g}",
            f"{row['gradient_norm']:.3g}",
            f"{curve.edges[epoch]:.4g}" if epoch in curve.edges else "-",
            str(row["products"]),
        ]
        for epoch, row in curve.rows.items()
    ]
    products = [row["products"] for row in curve.rows.values()]
    lines = [
        table(["epoch", "lambda_max", "residual", "norm of g", "edge", "products"], rows),
        f"{sum(products)} products with the Hessian for {len(products)} epochs, the first with "
        f"{products[0]}",
    ]
    rough = [str(epoch) for epoch, row in curve.rows.items() if not row["converged"]]
    if rough:
        lines.append(
            f"not known within --tol, or not to be the largest, at epochs {', '.join(rough)}"
        )
    return [*lines, *(f"note: {why}" for why in curve.edge.why)]


def draw(axes: Axes, curves: Sequence[Curve]) -> None:
    """The largest eigenvalues of runs over their epochs, edges dashed in the run's colour."""
    highest = max(row["lambda_max"] for curve in curves for row in curve.rows.values())
    for curve, colour in zip(curves, cycle(COLOURS), strict=False):
        epochs = list(curve.rows)
        values = [row["lambda_max"] for row in curve.rows.values()]
        style: dict[str, Any] = {"marker": "o", "ms": 3} if len(epochs) < 60 else {}
        axes.plot(epochs, values, color=colour, lw=1.4, label=curve.title, **style)
        if curve.edges:
            edges = np.array(list(curve.edges.values()))
            label = f"edge of stability: {curve.edge.formula}"
            if edges.min() > EMPTY * highest:
                label += f", {edges.min():.3g} and more, above the picture"
            axes.plot(epochs, edges, "--", color=colour, lw=1.2, label=label)
        else:
            label = shorten(f"no edge: {curve.edge.why[0]}", 110, placeholder=" ...")
            axes.plot([], [], "--", color=colour, label=fill(label, 58))
    seen = [edge for c in curves for edge in c.edges.values() if edge <= EMPTY * highest]
    lowest = min(row["lambda_max"] for curve in curves for row in curve.rows.values())
    axes.set_ylim(min(0.0, 1.1 * lowest), 1.1 * max([highest, *seen]) or 1.0)
    axes.set_xlabel("epoch")
    axes.set_ylabel("largest eigenvalue of the Hessian")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


if __name__ == "__main__":
    run(main)
