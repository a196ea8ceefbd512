"""The minima of two optimizers side by side, as ``compare.py`` draws them, from a study's files."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from loss_landscape import compare
from loss_landscape.my_pyhessian import density_plot
from loss_landscape.my_pyhessian.spectrum_file import spectrum_paths
from loss_landscape.pictures.repetitions import Repetitions
from loss_landscape.pictures.scale import make_scale
from loss_landscape.pictures.surface_picture import grid
from loss_landscape.pictures.together import refuse_different
from loss_landscape.sharpness_measures.epoch_sharpness import Row, epochs_path
from studies.comparisons import pair_text
from studies.minima_files import MinimaFiles, Minimum, read_along
from utilities.runs import Run


@dataclass(frozen=True)
class Beside:
    """A picture of two minima.

    Attributes:
        which: seed and fold, for people.
        paths: the two checkpoints, and what was measured along both trainings where that is shown.
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
    repetitions = [_repetitions(files, data, name) for name in optimizers]
    along = _along(files, two)
    try:
        figure = _draw(two, repetitions, along)
    except (ValueError, OSError) as error:
        files.notes.append(f"no picture of {' beside '.join(optimizers)} on {data}: {error}")
        return None
    runs = [len(each.accuracies) for each in repetitions]
    paths = [minimum.files.best for minimum in two]
    paths += [epochs_path(minimum.files.spectrum) for minimum in two] if along else []
    return Beside(figure, pair_text(pair), paths, runs)


def _is_measured(run: Run) -> bool:
    return all(path.is_file() for path in (run.surface, *spectrum_paths(run.spectrum)))


def _repetitions(files: MinimaFiles, data: str, optimizer: str) -> Repetitions:
    """All runs in the table, those whose checkpoints are gone among them."""
    results = files.results
    accuracies: dict[Hashable, float] = {}
    for run in results.of(data, optimizer):
        accuracies[run.pair] = run.numbers["test_acc"]
    return Repetitions(accuracies, files.tested(data), results.test_to_train(data))


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
    two: Sequence[Minimum], repetitions: Sequence[Repetitions], along: Sequence[dict[int, Row]]
) -> Figure:
    runs = [minimum.files for minimum in two]
    surfaces = [run.surface for run in runs]
    minima = [compare.read_minimum(run.best, run.surface, run.out_dir) for run in runs]
    refuse_different(surfaces, [m.surface for m in minima])
    spectra = [m.spectrum for m in minima if m.spectrum is not None]
    density_plot.refuse_different([f"spectrum of {run.best.name}" for run in runs], spectra)
    scale = make_scale([grid(m.surface, "train_loss").filled(np.nan) for m in minima])
    return compare.draw(minima, "train_loss", scale, repetitions, along)
