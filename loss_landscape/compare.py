r"""Put several minima side by side: surfaces on one scale, spectra overlaid, a table.

    python loss_landscape/compare.py --model_files to_plot/model_GCN_ADAM_rho0.0.pt \
        to_plot/model_GCN_SAM_rho0.05.pt --output plots/demo_GCN.png --html plots/demo_GCN.html

Reads what plot_surface.py and hessian.py wrote for each checkpoint and computes nothing itself. The
page of ``--html`` is one file that needs no network: surfaces to turn, values under the mouse.
"""

from __future__ import annotations

import argparse
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loss_landscape.my_pyhessian import density_plot
from loss_landscape.my_pyhessian.density_plot import draw_density
from loss_landscape.my_pyhessian.spectrum_file import Spectrum, lambda_max_error, read_spectrum
from loss_landscape.own_model.model import is_own
from loss_landscape.pictures import sharpness_table
from loss_landscape.pictures.page import MOST_SCENES, page, page_path
from loss_landscape.pictures.page_figures import (
    along_figure,
    layers_figure,
    spectra_figure,
    surface_figure,
)
from loss_landscape.pictures.picture_flags import add_scale_flags, check_scale_flags
from loss_landscape.pictures.repetitions import (
    Repetitions,
    apart,
    difference,
    draw_repetitions,
    read_repetitions,
)
from loss_landscape.pictures.scale import Scale, make_scale
from loss_landscape.pictures.sharpness_table import read_sharpness_of
from loss_landscape.pictures.surface_picture import (
    NAMES,
    add_colour_bar,
    draw_3d,
    draw_surface,
    grid,
    title,
)
from loss_landscape.pictures.together import refuse_different, settings
from loss_landscape.sharpness_measures.epoch_sharpness import Row, epochs_path, read_epochs
from loss_landscape.surface_file import Surface, read_surface
from utilities import checkpoint
from utilities.cli import Parser, report_files, run
from utilities.files import ROOT, atomic_write, sha256_of
from utilities.pictures import line_style, picture_path, plain_number, save_picture
from utilities.runs import Run, differing, run_settings

METRICS = ("test_acc", "test_loss", "train_loss")
CURVATURE = ("lambda_max", "trace", "trace_standard_error")
COLUMNS = ("minimum", "test acc. (%)", "test loss", "running train loss", "lambda_max", "trace")
CAPTION = "One run each: no error bars over runs, so no verdict"
ERRORS = "+- of lambda_max: over samples; of trace: over random vectors"
MOST_ABREAST = 4
WIDTH = 38  # letters of a title beside which another's has room
OWN_DIRECTIONS = {  # of --directions
    "eigenvectors": "eigenvectors of the Hessian",
    "gradient": "gradient and eigenvector of the Hessian",
    "pca": "principal components of the path",
}


@dataclass
class Minimum:
    """One checkpoint with its surface and its spectrum.

    Attributes:
        label: for people.
        content: the checkpoint's; of a user's own model ``model`` and ``model_args`` alone.
        surface: computed from it.
        spectrum: computed from it, or None where none is shown.
        stem: of the spectrum's name.
        numbers: its ``METRICS``, unless it is of a user's own model, whose file has none, and the
            ``CURVATURE`` of its spectrum.
    """

    label: str
    content: dict[str, Any]
    surface: Surface
    spectrum: Spectrum | None
    stem: Path
    numbers: dict[str, float]


def read_minimum(
    model_file: Path, surf_file: Path, out_dir: Path, with_spectrum: bool = True
) -> Minimum:
    """Read what belongs to one checkpoint: its surface and, below ``out_dir``, its spectrum.

    Raises:
        FileNotFoundError: no checkpoint, surface or spectrum of it.
        ValueError: one is damaged, or was computed from another checkpoint.
    """
    surface = read_surface(surf_file)
    own = is_own(str(surface.attributes.get("model")))
    if own:  # whose file holds weights alone
        content: dict[str, Any] = {
            name: surface.attributes.get(name) for name in ("model", "model_args")
        }
        stem = out_dir / "Eigenvalues" / model_file.stem
    else:
        content = checkpoint.load(model_file)
        stem = Run.from_checkpoint(content, out_dir).spectrum
    spectrum = read_spectrum(stem) if with_spectrum else None
    identity = sha256_of(model_file)
    computed = [(surf_file, surface.attributes)]
    if spectrum is not None:
        computed.append((stem, spectrum.record))
    for path, said in computed:
        if said.get("checkpoint_sha256") != identity:
            raise ValueError(
                f"{model_file}: {path} is of another checkpoint, or of this one before it was "
                "trained again; compute it anew"
            )
    names = () if own else METRICS
    numbers = {n: _number(content["metrics"], n, f"{model_file}, metrics") for n in names}
    if spectrum is not None:
        numbers |= {n: _number(spectrum.record, n, f"{stem}.json") for n in CURVATURE}
    return Minimum(title(surface) or model_file.stem, content, surface, spectrum, stem, numbers)


def _number(values: dict[str, Any], name: str, where: str) -> float:
    """One number of a file; NaN for the standard error of a single sample, which JSON has not."""
    value = values.get(name)
    if value is None and name == "trace_standard_error":
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(
            f"{where}: {name} is {str(value)[:40]!r}, not a number; is the run finished, the "
            "spectrum complete?"
        )
    return float(value)


def read_epochs_of(minimum: Minimum) -> dict[int, Row]:
    """What plot_sharpness.py measured at the epochs that the minimum's training kept.

    Raises:
        FileNotFoundError: nothing.
        ValueError: damaged, of another run, or the minimum is of a user's own model.
    """
    if "train_args" not in minimum.content:
        raise ValueError("--along: takes runs of this project's trainings, not others' models")
    path = epochs_path(minimum.stem)
    if not path.exists():
        raise FileNotFoundError(f"{path}: not there; loss_landscape/plot_sharpness.py writes it")
    said, rows = read_epochs(path)
    different = differing(said.get("run", {}), run_settings(minimum.content))
    if different:
        raise ValueError(f"{path}: of another run, by {', '.join(different)}; measure it anew")
    return rows


def draw_along(axes: Any, curves: Sequence[dict[int, Row]], labels: Sequence[str]) -> None:
    """The largest eigenvalue over the epochs of each training."""
    for i, (rows, label) in enumerate(zip(curves, labels, strict=True)):
        values = [row["lambda_max"] for row in rows.values()]
        axes.plot(list(rows), values, **line_style(i), marker="o", ms=3, lw=1.4, label=label)
    axes.set(xlabel="epoch", ylabel="largest eigenvalue")
    axes.set_title("Sharpness along the training", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def draw(
    minima: Sequence[Minimum],
    name: str,
    scale: Scale,
    repetitions: Sequence[Repetitions] = (),
    along: Sequence[dict[int, Row]] = (),
) -> Figure:
    """Surfaces above, from the top and in 3D, on one scale; below what else is given."""
    floors = -(-len(minima) // MOST_ABREAST)
    abreast = -(-len(minima) // floors)
    spectra = [m.spectrum for m in minima if m.spectrum is not None]
    # Below the surfaces a margin, as the layout knows nothing of the labels of axes in 3D.
    below = [3.0] * bool(spectra) + [2.6] * bool(along)
    below += [0.9 + 0.45 * len(minima)] * bool(repetitions)
    ratios = (6.4 * floors, *(below or [0.3]))
    figure = Figure(figsize=(max(4.3 * abreast, 6.0), sum(ratios)), layout="constrained")
    parts = figure.subfigures(len(ratios), 1, height_ratios=ratios, squeeze=False)[:, 0]
    every: list[Any] = []
    for i, minimum in enumerate(minima):
        row, column = 2 * (i // abreast), i % abreast
        flat = parts[0].add_subplot(2 * floors, abreast, row * abreast + column + 1)
        tall = parts[0].add_subplot(
            2 * floors, abreast, (row + 1) * abreast + column + 1, projection="3d"
        )
        draw_surface(flat, minimum.surface, name, scale)
        flat.set_title(heading(minimum), fontsize=11)
        flat.set_aspect("equal")
        draw_3d(tall, minimum.surface, name, scale)
        every += [flat, tall]
    add_colour_bar(parts[0], scale, every, f"{NAMES.get(name, name)} (one scale; + the checkpoint)")
    if spectra:
        draw_density(parts[1].subplots(), spectra, apart([m.label for m in minima]))
    if along:
        draw_along(parts[1 + bool(spectra)].subplots(), along, apart([m.label for m in minima]))
    if repetitions:
        draw_repetitions(parts[-1].subplots(), repetitions, [m.label for m in minima])
    figure.suptitle(headline(minima))
    return figure


def heading(minimum: Minimum) -> str:
    """Whose surface it is, with the numbers that say most."""
    numbers = minimum.numbers
    said = []
    if "test_acc" in numbers:
        samples = sum(map(sum, minimum.content.get("test_confusion", [])))
        said.append(f"test accuracy {numbers['test_acc']:.1f} %" + f" of {samples}" * bool(samples))
    if "lambda_max" in numbers:
        said.append(f"$\\lambda_{{max}}$ {plain_number(numbers['lambda_max'])}")
    label = textwrap.wrap(minimum.label, WIDTH, break_on_hyphens=False)
    lines = [*label, ", ".join(said), minimum.surface.interpolation.split(", ")[0]]
    return "\n".join(filter(None, lines))


def headline(minima: Sequence[Minimum]) -> str:
    """What is side by side; models of other sizes draw other numbers from one seed."""
    models = [(m.content["model"], m.content["model_args"]) for m in minima]
    same = all(model == models[0] for model in models)
    along = "the same random draws" if same else "draws of one seed"
    said = settings(minima[0].surface)
    if said["directions"] != "random":
        along = f"each one's own {OWN_DIRECTIONS.get(said['directions'], 'directions')}"
    elif any(said[key] for key in ("model_file2", "model_file3", "dir_file")):
        along = "directions that were given"
    text = f"Loss surfaces along {along}"
    return text + (" and spectra of the Hessian" if minima[0].spectrum else "")


def caption(minima: Sequence[Minimum]) -> str:
    """What stands over a table of one run each."""
    spectra = [m.spectrum for m in minima if m.spectrum is not None]
    known = any(lambda_max_error(spectrum.record) is not None for spectrum in spectra)
    return f"{CAPTION}. {ERRORS}" if known else CAPTION


def rows(minima: Sequence[Minimum]) -> list[list[str]]:
    """Of each minimum its ``COLUMNS``, as text."""
    result = []
    for minimum in minima:
        numbers = minimum.numbers
        row = [minimum.label.replace(r"\$", "$")]
        digits = zip(METRICS, (2, 4, 4), strict=True)
        row += [f"{numbers[name]:.{n}f}" if name in numbers else "-" for name, n in digits]
        if minimum.spectrum is not None:
            errors = lambda_max_error(minimum.spectrum.record), numbers["trace_standard_error"]
            for name, error in zip(("lambda_max", "trace"), errors, strict=True):
                known = error is not None and not math.isnan(error)
                row.append(f"{numbers[name]:.4g}" + (f" +- {error:.2g}" if known else ""))
        result.append(row)
    return result


def table(minima: Sequence[Minimum]) -> Table:
    """Test accuracy, losses, largest eigenvalue and trace (+- standard errors) of each."""
    body = rows(minima)
    result = Table(title=caption(minima))
    for i, name in enumerate(COLUMNS[: len(body[0])]):
        result.add_column(name, justify="right" if i else "left", no_wrap=bool(i))
    for row in body:
        result.add_row(*map(escape, row))
    return result


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("--model_files", type=Path, nargs="+", required=True, help="checkpoints")
    parser.add_argument(
        "--surf_files", type=Path, nargs="+", help="their surfaces, if not named as they are"
    )
    parser.add_argument("--surf_name", default="train_loss", help="which values to draw")
    parser.add_argument(
        "--spectra",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="show the spectra of the Hessian, too",
    )
    parser.add_argument(
        "--output", type=picture_path, required=True, help="the picture (.png, .pdf ...)"
    )
    _add_extra_flags(parser)
    add_scale_flags(parser)
    parser.add_argument(
        "--out_dir", type=Path, default=ROOT, help="folder that holds to_plot/ and Eigenvalues/"
    )
    args = parser.parse_args(argv)
    check_scale_flags(args)
    if args.sharpness and not args.html:
        raise ValueError("--sharpness: is a table on the page; name that too, with --html")
    if args.html and len(args.model_files) > MOST_SCENES:
        raise ValueError(
            f"--html: {len(args.model_files)} surfaces; a browser turns {MOST_SCENES} at a time, "
            "so make several pages"
        )
    return args


def _add_extra_flags(parser: Any) -> None:
    """Add the flags of what is shown beside surfaces and spectra, or on a page."""
    parser.add_argument("--html", type=page_path, help="an interactive page, too")
    parser.add_argument(
        "--repetitions",
        type=Path,
        nargs="+",
        help="best checkpoints of the same settings with other seeds and folds: a dot each in a "
        "panel of test accuracies",
    )
    parser.add_argument(
        "--along",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="show the largest eigenvalue along the trainings, too, as plot_sharpness.py wrote it",
    )
    parser.add_argument(
        "--sharpness",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="show the measures of sharpness on the page, too, as sharpness.py wrote them",
    )


def main(argv: Sequence[str] | None = None) -> Path:
    """Compare as the command line says; return the picture's path."""
    args = parse_args(argv)
    folder = args.out_dir / "to_plot"
    surfaces = args.surf_files or [folder / f"{file.stem}.h5" for file in args.model_files]
    if len(surfaces) != len(args.model_files):
        raise ValueError(f"{len(args.model_files)} --model_files but {len(surfaces)} --surf_files")
    minima = [
        read_minimum(model, surface, args.out_dir, args.spectra)
        for model, surface in zip(args.model_files, surfaces, strict=True)
    ]
    refuse_different(surfaces, [m.surface for m in minima])
    contents = [m.content for m in minima]
    repeated = read_repetitions(args.repetitions, contents) if args.repetitions else []
    spectra = [m.spectrum for m in minima if m.spectrum is not None]
    if spectra:
        density_plot.refuse_different([f"spectrum of {file}" for file in args.model_files], spectra)
    along = [read_epochs_of(m) for m in minima] if args.along else []
    measured = []
    if args.sharpness:
        pairs = zip(minima, args.model_files, strict=True)
        measured = [read_sharpness_of(m.stem, file) for m, file in pairs]
        sharpness_table.refuse_different([f"sharpness of {f}" for f in args.model_files], measured)
    values = [grid(m.surface, args.surf_name).filled(np.nan) for m in minima]
    scale = make_scale(values, args.vmin, args.vmax, args.vlevel, args.log)
    figure = draw(minima, args.surf_name, scale, repeated, along)
    written = [save_picture(figure, args.output)]
    if args.html:
        said = difference(repeated, [m.label for m in minima]) if repeated else ""
        text = caption(minima).replace("+-", "±")
        extra = (f"{text}. {said}" if said else text, along, measured)
        written.append(write_page(minima, args.surf_name, scale, args.html, *extra))
    # A pipe has no width: without one rich would cut the table to 80 columns.
    console = Console()
    (console if console.is_terminal else Console(width=120)).print(table(minima))
    report_files(written)
    return args.output


def write_page(
    minima: Sequence[Minimum],
    name: str,
    scale: Scale,
    path: Path,
    said: str = CAPTION,
    along: Sequence[dict[int, Row]] = (),
    measured: Sequence[dict[str, Any]] = (),
) -> Path:
    """Write the interactive page of ``--html``; return its path."""
    surfaces = [surface_figure(m.surface, name, scale, NAMES.get(name, name)) for m in minima]
    labels = [m.label.replace(r"\$", "$") for m in minima]
    spectra = [m.spectrum for m in minima if m.spectrum is not None]
    body = [[cell.replace("+-", "±") for cell in row] for row in rows(minima)]
    text = page(
        headline(minima),
        list(zip(labels, surfaces, strict=True)),
        spectra_figure(spectra, labels) if spectra else None,
        [list(COLUMNS[: len(body[0])]), *body],
        said,
        layers_figure(spectra, labels) if spectra else None,
        along_figure(along, apart(labels)) if along else None,
        sharpness_table.sharpness_table(measured, labels) if measured else "",
    )
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")
    return path


if __name__ == "__main__":
    run(main)
