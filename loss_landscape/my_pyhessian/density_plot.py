r"""Draw the eigenvalue spectral density that hessian.py wrote, of one checkpoint or several.

    python loss_landscape/my_pyhessian/density_plot.py --spectrum Eigenvalues/GCN_SAM
    python loss_landscape/my_pyhessian/density_plot.py --spectrum Eigenvalues/GCN_ADAM \
        Eigenvalues/GCN_SAM --output plots/eig_GCN.png

One spectrum goes to ``plots/eig_<name>_<optimizer>.png``. ``--per_layer`` draws the layers' largest
eigenvalues and traces instead, which ``hessian.py --per_layer`` found.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from loss_landscape.my_pyhessian.spectral_density import (
    Band,
    Kernel,
    band,
    choose_kernel,
    density,
)
from loss_landscape.my_pyhessian.spectrum_file import Spectrum, read_spectrum, stem_of
from utilities.cli import Parser, positive_float, report_files, run
from utilities.files import ROOT
from utilities.pictures import STYLES, line_style, picture_path, save_picture
from utilities.runs import flag_differences
from utilities.statistics import CONFIDENCE

MATRICES = {"hessian": "Hessian", "ggn": "Gauss-Newton matrix", "fisher": "empirical Fisher matrix"}
FEWEST_TICKS = 4  # below which 2 and 5 times a power of ten get one, too
LOPSIDED = 20  # times the median bar that the largest is where a linear axis hides most layers
# What has to be the same in spectra of one picture, with the value of files that don't say it.
SETTINGS: dict[str, Any] = {
    **{"matrix": "hessian", "layers": None, "samples": None, "split": "train"},
    "loss_name": None,
}


# --- which spectra --------------------------------------------------------------------------------
def refuse_different(names: Sequence[str], spectra: Sequence[Spectrum]) -> None:
    """Refuse spectra that were not taken in the same way.

    Args:
        names: of the spectra, for the message.
        spectra: what they hold.

    Raises:
        ValueError: names two that differ, and the flags.
    """
    first = _taken(spectra[0])
    for name, spectrum in zip(names[1:], spectra[1:], strict=True):
        other = _taken(spectrum)
        # Older files don't say which data set they are of.
        known = [key for key in first if "dataset" not in key or (first[key] and other[key])]
        different = flag_differences({k: first[k] for k in known}, {k: other[k] for k in known})
        if different:
            raise ValueError(
                f"{name}: differs from {names[0]} in {', '.join(different)}, so one picture of "
                "both would mislead; compute one of them anew as the other"
            )


def _taken(spectrum: Spectrum) -> dict[str, Any]:
    """How a spectrum was taken, by flag."""
    given = spectrum.record.get("arguments", {})
    said = {key: given.get(key, value) for key, value in SETTINGS.items()}
    return {**said, "bn": bn_of(spectrum), "dataset": spectrum.record.get("dataset")}


def bn_of(spectrum: Spectrum) -> str:
    """Which statistics batch norm took, as ``--bn`` says it; older files took the checkpoint's."""
    return str(spectrum.record.get("bn", "eval"))


def matrix_of(spectrum: Spectrum) -> str:
    """The matrix in a reader's words."""
    return MATRICES[_taken(spectrum)["matrix"]]


def styles(spectra: Sequence[Spectrum]) -> list[dict[str, Any]]:
    """Of each curve its colour, one for each optimizer, and its style, one for each run of it."""
    colours: dict[str, str] = {}
    runs: dict[str, int] = {}
    found = []
    for i, spectrum in enumerate(spectra):
        optimizer = str(spectrum.record.get("optimizer") or i)
        colour = colours.setdefault(optimizer, line_style(len(colours))["color"])
        run = runs[optimizer] = runs.get(optimizer, -1) + 1
        found.append({"color": colour, "linestyle": STYLES[run % len(STYLES)]})
    return found


# --- the density ----------------------------------------------------------------------------------
def kernel_of(spectra: Sequence[Spectrum], sigma: float | None = None) -> Kernel:
    """The kernel for all of them, or a Gaussian of ``sigma``, in the eigenvalues' units.

    Raises:
        ValueError: eigenvalues or ``sigma`` are too large, or it is too small, to be drawn.
    """
    low, high = _range(spectra)
    with np.errstate(over="ignore"):
        width = max(high - low, 1e-12 * max(abs(low), abs(high)), 1e-12) / 100
    given = width if sigma is None else sigma
    if not (0 < width < 1e250 and 1e-6 <= given / width <= 1e6 and given > 1e-250):
        raise ValueError(
            f"the spectrum goes from {low:.3g} to {high:.3g}: no smoothing with sigma = {given:.3g}"
            f" can be drawn; leave --sigma out, or compute the spectrum again"
        )
    if sigma is not None:
        return Kernel(math.inf, sigma)
    return choose_kernel([s.nodes for s in spectra], [s.weights for s in spectra])


def _range(spectra: Sequence[Spectrum]) -> tuple[float, float]:
    return min(float(s.nodes.min()) for s in spectra), max(float(s.nodes.max()) for s in spectra)


def grid_of(spectra: Sequence[Spectrum], kernel: Kernel, points: int = 2000) -> np.ndarray:
    """Eigenvalues at which to draw: close enough for the kernel, with every node among them."""
    low, high = kernel.place(np.array(_range(spectra)))
    reach = 6 * kernel.width
    grid = kernel.value(np.linspace(low - reach, high + reach, points))
    # A peak narrower than the grid's steps would fall between two of them.
    return np.union1d(grid, np.concatenate([s.nodes.ravel() for s in spectra]))


def floor_of(spectra: Sequence[Spectrum], kernel: Kernel) -> float:
    """Below this is nothing but the smoothing's tail: a tenth of one eigenvalue's peak."""
    parameters = max(int(s.record.get("parameters", 1_000_000)) for s in spectra)
    slope = float(kernel.slope(np.array(_range(spectra))).min())
    return 0.1 * slope / (parameters * kernel.width * math.sqrt(2 * math.pi))


def band_of(spectrum: Spectrum, grid: np.ndarray, kernel: Kernel) -> Band:
    """The smoothed density with its band."""
    return band(density(spectrum.nodes, spectrum.weights, grid, kernel))


def rug_of(spectrum: Spectrum) -> tuple[np.ndarray, np.ndarray]:
    """Ritz values of all probes, and of each how high its mark is, from 0 to 1.

    A known eigenvalue and one that a probe gives the weight of a single eigenvalue have 0.2; ten
    times the weight is 0.2 more.
    """
    used = spectrum.weights > 1e-12
    values, first = np.unique(spectrum.nodes[used], return_index=True)
    weights = spectrum.weights[used][first]
    one = 1 / int(spectrum.record.get("parameters", 1_000_000))
    return values, np.clip(0.2 + 0.2 * np.log10(weights / one), 0.1, 1.0)


def described(spectra: Sequence[Spectrum], kernel: Kernel) -> str:
    """What the picture shows beside the curves."""
    probes = sorted({len(s.nodes) for s in spectra})
    among = f"{probes[0]}" if len(probes) == 1 else f"{probes[0]} to {probes[-1]}"
    of = f"band: {100 * CONFIDENCE:.0f} % over {among} probes; " if probes[-1] > 1 else ""
    return f"{normalised(spectra[0])}{of}ticks: Ritz values; smoothed with {kernel}"


def normalised(spectrum: Spectrum) -> str:
    """A line on batch norm for a title, where it isn't in eval mode."""
    return "" if bn_of(spectrum) == "eval" else f"batch norm: {bn_of(spectrum)}\n"


def draw_density(
    axes: Axes, spectra: Sequence[Spectrum], labels: Sequence[str], sigma: float | None = None
) -> None:
    """Overlay the densities on logarithmic axes, each with its band and its Ritz values.

    The eigenvalues' axis is linear up to a magnitude that is chosen from the spectra, and
    logarithmic beyond. All Ritz values are in the picture.

    Raises:
        ValueError: see ``kernel_of``.
    """
    kernel = kernel_of(spectra, sigma)
    axis = kernel if sigma is None else kernel_of(spectra)
    floor, grid = floor_of(spectra, kernel), grid_of(spectra, kernel)
    for i, (spectrum, label) in enumerate(zip(spectra, labels, strict=True)):
        look = styles(spectra)[i]
        found = band_of(spectrum, grid, kernel)
        shown = np.where(found.mean < floor, np.nan, found.mean)
        axes.semilogy(grid, shown, **look, label=label, lw=1.4)
        lower, upper = np.maximum(found.lower, floor), np.maximum(found.upper, floor)
        axes.fill_between(grid, lower, upper, upper > floor, color=look["color"], alpha=0.2, lw=0)
        values, heights = rug_of(spectrum)
        foot = 0.05 * i
        marks = [[(x, foot), (x, foot + 0.045 * h)] for x, h in zip(values, heights, strict=True)]
        place = axes.get_xaxis_transform()
        axes.add_collection(
            LineCollection(marks, colors=look["color"], lw=0.7, alpha=0.6, transform=place),
            autolim=False,
        )
    top = axes.get_ylim()[1]
    # The marks have their room below the curves.
    axes.set_ylim(floor * (floor / top) ** (0.05 * len(spectra)), None)
    limits = (grid[0], grid[-1])
    kind = matrix_of(spectra[0])
    axes.set_xlim(*limits)
    if math.isinf(axis.linear):
        axes.set_xlabel(f"eigenvalue of the {kind}")
    else:
        _bend_axis(axes, axis)
        axes.set_xlabel(f"eigenvalue of the {kind} (axis linear within ±{axis.linear:.2g})")
    axes.set_ylabel("spectral density")
    axes.set_title(described(spectra, kernel), fontsize=9)
    axes.legend()


def ticks_of(kernel: Kernel, low: float, high: float) -> np.ndarray:
    """0 and powers of ten, and a number on each side that has room; round numbers if linear."""
    if math.isinf(kernel.linear):
        return np.asarray(MaxNLocator(7).tick_values(low, high))
    last = math.ceil(math.log10(max(abs(low), abs(high))))
    first = math.ceil(math.log10(2 * kernel.linear))
    powers = 10.0 ** np.arange(first, last + 1)
    more = np.outer(10.0 ** np.arange(first - 1, last + 1), [1, 2, 5]).ravel()
    more = more[more >= 2 * kernel.linear]
    for steps in (powers, more):
        ticks = np.concatenate([-steps[::-1], [0.0], steps])
        ticks = ticks[(low <= ticks) & (ticks <= high)]
        if len(ticks) >= FEWEST_TICKS:
            break
    for side, end in ((-1, -low), (1, high)):
        if (more <= end).any() and not (side * ticks > 0).any():
            ticks = np.append(ticks, side * more[more <= end].max())
    return np.sort(ticks)


def get_esd_plot(eigenvalues: Any, weights: Any) -> Path:
    """PyHessian's function: draw what ``hessian.density`` returns, to ``example.pdf``."""
    spectrum = Spectrum(np.array(eigenvalues, float), np.array(weights, float), {})
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    draw_density(figure.subplots(), [spectrum], ["density"])
    return save_picture(figure, Path("example.pdf"))


# --- the layers -----------------------------------------------------------------------------------
def draw_layers(figure: Figure, spectra: Sequence[Spectrum], labels: Sequence[str]) -> None:
    """Bars of each layer's largest eigenvalue and trace, with the errors of ``bars_of``.

    Raises:
        ValueError: a spectrum has no layers, or others than the first.
    """
    tables = [layers_of(spectrum, label) for spectrum, label in zip(spectra, labels, strict=True)]
    names = [row["layer"] for row in tables[0]]
    for label, table in zip(labels, tables, strict=True):
        if [row["layer"] for row in table] != names:
            raise ValueError(f"{label}: has other layers than {labels[0]}; draw them apart")
    height = 0.8 / len(tables)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (measure, error, text) in zip(panels, bars_of(tables), strict=True):
        for i, (table, label) in enumerate(zip(tables, labels, strict=True)):
            places = np.arange(len(names)) + (i - (len(tables) - 1) / 2) * height
            values = [row[measure] for row in table]
            errors = [row[error] or 0.0 for row in table]
            look = {"color": styles(spectra)[i]["color"], "error_kw": {"lw": 1, "capsize": 2}}
            axes.barh(places, values, height, xerr=errors, label=label, **look)
        rows = [row for table in tables for row in table]
        kernel = scale_of_bars([row[measure] for row in rows])
        if not math.isinf(kernel.linear):
            ends = [row[measure] + k * (row[error] or 0.0) for row in rows for k in (-1, 1)]
            low, high = kernel.place(np.array([min(0.0, *ends), max(0.0, *ends)]))
            margin = 0.03 * (high - low)
            axes.set_xlim(*kernel.value(np.array([low - margin * (low < 0), high + margin])))
            _bend_axis(axes, kernel)
            text += f"\n(axis linear within ±{kernel.linear:.2g})"
        axes.set_xlabel(text)
        axes.set_axisbelow(True)
        axes.grid(axis="x", alpha=0.3)
    parameters = [row["parameters"] for row in tables[0]]
    ticks = [f"{name} ({size:,})" for name, size in zip(names, parameters, strict=True)]
    panels[0].set_yticks(np.arange(len(names)), ticks)
    panels[0].set_ylabel("layer (its parameters)")
    panels[0].set_ylim(len(names) - 0.4, -0.6)  # the first layer on top
    _say_whose(figure, panels[0], normalised(spectra[0]).strip(), labels)


def bars_of(tables: Sequence[Sequence[dict[str, Any]]]) -> list[tuple[str, str, str]]:
    """What is drawn of the layers' rows: a value, its error, and both in words, a line each.

    Of an eigenvalue that is its standard error over samples, or the residual where a layer has
    none, as in files of older versions.
    """
    every = all(row.get("standard_error") is not None for table in tables for row in table)
    error, said = ("standard_error", "standard error over samples") if every else ("residual",) * 2
    return [
        ("lambda_max", error, f"largest eigenvalue of the layer's block\n(± {said})"),
        ("trace", "trace_standard_error", "trace\n(± standard error)"),
    ]


def _say_whose(figure: Figure, axes: Axes, heading: str, labels: Sequence[str]) -> None:
    """Above all panels, a legend of what ``axes`` shows; of one spectrum a title."""
    if len(labels) > 1:
        names_of = axes.get_legend_handles_labels()
        look: dict[str, Any] = {"loc": "outside upper center", "fontsize": 8, "title_fontsize": 8}
        figure.legend(*names_of, title=heading or None, **look)
    else:
        figure.suptitle("\n".join(filter(None, (labels[0], heading))), fontsize=10)


def scale_of_bars(values: Sequence[float]) -> Kernel:
    """A linear axis, or one on which the bars of most layers can be seen beside the largest."""
    sizes = np.abs(values)
    median = float(np.median(sizes))
    linear = median / 2 if 0 < median < sizes.max() / LOPSIDED else math.inf
    return Kernel(linear, 1.0)


def _bend_axis(axes: Axes, kernel: Kernel) -> None:
    """Make an axis linear in asinh(value / linear), with ticks at 0 and powers of ten."""
    limits = axes.get_xlim()
    axes.set_xscale("asinh", linear_width=kernel.linear)
    axes.set_xlim(*limits)
    ticks = ticks_of(kernel, *limits)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


def layers_of(spectrum: Spectrum, label: str) -> list[dict[str, Any]]:
    """A row a layer.

    Raises:
        ValueError: the spectrum has none.
    """
    rows = spectrum.record.get("per_layer")
    if not rows:
        raise ValueError(f"{label}: has no layers; hessian.py --per_layer finds them")
    return list(rows)


# --- command line ---------------------------------------------------------------------------------
def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--spectrum",
        type=Path,
        nargs="+",
        required=True,
        help="names of spectra, with or without _eigen.npy or .json",
    )
    parser.add_argument("--output", type=picture_path, help="picture (needed for several spectra)")
    parser.add_argument(
        "--sigma",
        type=positive_float,
        help="smooth all eigenvalues with this standard deviation; chosen from the spectra, and "
        "growing with the eigenvalue, if not given",
    )
    parser.add_argument(
        "--per_layer",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="draw the layers' largest eigenvalues and traces instead",
    )
    parser.add_argument("--out_dir", type=Path, default=ROOT, help="folder that holds plots/")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> Path:
    """Draw as the command line says; return the picture's path."""
    args = parse_args(argv)
    stems = list(dict.fromkeys(map(stem_of, args.spectrum)))  # X* names each of them three times
    if args.output is None and len(stems) > 1:
        raise ValueError("several --spectrum need --output, the picture's name")
    ending = "_layers" if args.per_layer else ""
    output = args.output or args.out_dir / "plots" / f"eig_{stems[0].name}{ending}.png"
    spectra = [read_spectrum(stem) for stem in stems]
    refuse_different([str(stem) for stem in stems], spectra)
    labels = [s.title or stem.name for s, stem in zip(spectra, stems, strict=True)]
    if args.per_layer:
        count = len(layers_of(spectra[0], labels[0]))
        size = (9, max(2.5, 1.2 + count * (0.16 + 0.1 * len(spectra))))
        figure = Figure(figsize=size, layout="constrained")
        draw_layers(figure, spectra, labels)
    else:
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        draw_density(figure.subplots(), spectra, labels, args.sigma)
        print(described(spectra, kernel_of(spectra, args.sigma)))
    save_picture(figure, output)
    report_files([output])
    return output


if __name__ == "__main__":
    run(main)
