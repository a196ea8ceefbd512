"""The minima of two optimizers side by side, as ``compare.py`` draws them, from a study's files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from loss_landscape import compare
from loss_landscape.epoch_sharpness import Row, epochs_path
from loss_landscape.my_pyhessian import density_plot
from loss_landscape.my_pyhessian.spectrum_file import spectrum_paths
from loss_landscape.plot_2D import grid
from loss_landscape.repetitions import read_repetitions
from loss_landscape.scale import make_scale
from loss_landscape.together import refuse_different
from studies.comparisons import pair_text
from studies.minima_files import MinimaFiles, Minimum, read_along
from utilities.runs import Run


@dataclass(frozen=True)
class Beside:
    """A picture of two minima.

    Attributes:
        which: seed and fold, for people.
        paths: the two checkpoints.
        runs: how many runs its panel of test accuracies has of each.
    """

    figure: Figure
    which: str
    paths: list[Path]
    runs: list[int]


def beside(files: MinimaFiles, data: str, optimizers: Sequence[str]) -> Beside | None:
    """Surfaces, spectra and, where it was measured, sharpness along the trainings of two minima.

    Below them are the test accuracies of all the optimizers' runs.

    Args:
        files: of the study; gets a note where the files don't go together.
        data: the data set.
        optimizers: two.

    Returns:
        The picture, or None where no seed and fold has a surface and a spectrum of both.
    """
    groups = [files.of(data).get(name, []) for name in optimizers]
    by_pair = [{m.row.pair: m for m in group if _is_measured(m.files)} for group in groups]
    pair = next((pair for pair in by_pair[0] if pair in by_pair[1]), None)
    if pair is None:
        return None
    two = [minima[pair] for minima in by_pair]
    repeated = [[minimum.files.best for minimum in group] for group in groups]
    try:
        figure = _draw(two, [path for paths in repeated for path in paths], _along(files, two))
    except (ValueError, OSError) as error:
        files.notes.append(f"no picture of {' beside '.join(optimizers)} on {data}: {error}")
        return None
    return Beside(
        figure, pair_text(pair), [minimum.files.best for minimum in two], list(map(len, repeated))
    )


def _is_measured(run: Run) -> bool:
    return all(path.is_file() for path in (run.surface, *spectrum_paths(run.spectrum)))


def _along(files: MinimaFiles, two: Sequence[Minimum]) -> list[dict[int, Row]]:
    """What was measured along both trainings; nothing where it wasn't, or isn't of these runs."""
    paths = [epochs_path(minimum.files.spectrum) for minimum in two]
    if not all(path.is_file() for path in paths):
        return []
    try:
        read = [read_along(path, minimum) for path, minimum in zip(paths, two, strict=True)]
    except (ValueError, OSError) as error:
        files.notes.append(str(error))
        return []
    return [{epoch: {"lambda_max": v} for epoch, v in each.values.items()} for each in read]


def _draw(
    two: Sequence[Minimum], repeated: Sequence[Path], along: Sequence[dict[int, Row]]
) -> Figure:
    runs = [minimum.files for minimum in two]
    surfaces = [run.surface for run in runs]
    minima = [compare.read_minimum(run.best, run.surface, run.out_dir) for run in runs]
    refuse_different(surfaces, [m.surface for m in minima])
    spectra = [m.spectrum for m in minima if m.spectrum is not None]
    density_plot.refuse_different([f"spectrum of {run.best.name}" for run in runs], spectra)
    repetitions = read_repetitions(repeated, [m.content for m in minima])
    scale = make_scale([grid(m.surface, "train_loss").filled(np.nan) for m in minima])
    return compare.draw(minima, "train_loss", scale, repetitions, along)
