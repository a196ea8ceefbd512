"""The files of a study's runs that a report draws: histories, surfaces and spectra.

A file counts only if it belongs to the very checkpoint that the table of runs names: after a
training was repeated, or a file damaged, it is left out and a note says so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from loss_landscape.my_pyhessian.spectrum_file import Spectrum, read_spectrum
from loss_landscape.pictures.together import refuse_different
from loss_landscape.sharpness_measures.epoch_sharpness import (
    EdgeRead,
    epochs_path,
    read_edge,
    read_epochs,
)
from loss_landscape.surface_file import Surface, read_surface
from studies.comparisons import Results, pair_text
from studies.plan import KEPT
from studies.plot_history import Curve, read_curves
from studies.runs_file import TrainedRun
from studies.table import ALONG, Study
from utilities import checkpoint
from utilities.files import sha256_of
from utilities.runs import Run, differing, run_settings

T = TypeVar("T")
OVER = ("seed", "fold", "tag")  # in which the runs of one curve may differ


@dataclass(frozen=True)
class Minimum:
    """A run whose checkpoint is there.

    Attributes:
        row: of the table of runs.
        files: the names of its files.
        origin: versions, machine and commit that its checkpoint says.
        tested: number of its test samples; 0 if the checkpoint doesn't say it.
    """

    row: TrainedRun
    files: Run
    origin: dict[str, str]
    tested: int

    @property
    def again(self) -> Run:
        """The files of the same training run once more to keep epochs, if it was."""
        return replace(self.files, out_dir=self.files.out_dir / KEPT)


@dataclass(frozen=True)
class AlongTraining:
    """The largest eigenvalue at the epochs that a training kept, and its edge of stability.

    Attributes:
        values: by epoch.
        edge: None where the file doesn't say one.
        lacking: epochs that the study's table asks for and the file doesn't have.
    """

    values: dict[int, float]
    edge: EdgeRead | None = None
    lacking: tuple[int, ...] = ()


@dataclass
class Together(dict[str, T]):
    """Files of one seed and fold, by optimizer.

    Attributes:
        which: seed and fold, for people.
        paths: of the files.
    """

    which: str = ""
    paths: list[Path] = field(default_factory=list)


class MinimaFiles:
    """What lies beside a table of runs.

    Args:
        results: the runs.
        out_dir: folder that their checkpoints' paths begin in.

    Attributes:
        minima: the runs whose checkpoints are there.
        notes: what was left out, and why.
    """

    def __init__(self, results: Results, out_dir: Path) -> None:
        self.results, self.out_dir = results, out_dir
        self.notes: list[str] = []
        found = [self._find(run) for run in results.runs if run.checkpoint]
        self.minima = [minimum for minimum in found if minimum is not None]

    def _find(self, row: TrainedRun) -> Minimum | None:
        path = self.out_dir / row.checkpoint
        if not path.is_file():
            return None
        if sha256_of(path) != row.sha256:
            self.notes.append(f"{row.checkpoint} has changed since the table of runs was written")
            return None
        try:
            content = checkpoint.load(path)
            files = Run.from_checkpoint(content, path.resolve().parents[1])
        except ValueError as error:
            self.notes.append(str(error))
            return None
        tested = sum(map(sum, content.get("test_confusion", [])))
        return Minimum(row, files, checkpoint.origin(content), tested)

    def of(self, data: str) -> dict[str, list[Minimum]]:
        """The minima of a data set by optimizer."""
        groups: dict[str, list[Minimum]] = {}
        for name in self.results.optimizers:
            own = [m for m in self.minima if (m.row.data, m.row.optimizer) == (data, name)]
            if own:
                groups[name] = own
        return groups

    def origins(self) -> Mapping[str, list[str]]:
        """Each thing that the checkpoints say of where they are from, in all its values."""
        names = dict.fromkeys(key for minimum in self.minima for key in minimum.origin)
        return {
            name: list(dict.fromkeys(m.origin[name] for m in self.minima if name in m.origin))
            for name in names
        }

    def tested(self, data: str) -> list[int]:
        """The different numbers of test samples that a data set's runs have, rising."""
        return sorted({m.tested for m in self.minima if m.row.data == data and m.tested})

    # --- what is drawn ----------------------------------------------------------------------------
    def curves(self, data: str, numbers: Mapping[str, int]) -> tuple[list[Curve], list[Path]]:
        """The learning curves, an optimizer each, and their files."""
        curves, paths = [], []
        for name, minima in self.of(data).items():
            own = [m.files.history for m in minima if m.files.history.is_file()]
            if not own:
                continue
            read = read_curves(own, OVER)
            for curve in read:
                runs = len(curve.values["epoch"])
                tuned = "" if len(read) == 1 else f", {curve.label}"
                curve.label, curve.number = f"{name}{tuned} (n={runs})", numbers[name]
            curves += read
            paths += own
        return curves, paths

    def surfaces(self, data: str) -> Together[Surface]:
        """Surfaces of one seed and fold, all taken in one way."""
        read = self._together(data, lambda files: files.surface, _surface)
        try:
            if read:
                refuse_different(read.paths, list(read.values()))
        except ValueError as error:
            self.notes.append(f"no picture of surfaces of {data}: {error}")
            return Together()
        return read

    def spectra(self, data: str) -> Together[Spectrum]:
        """Spectra of one seed and fold."""
        return self._together(data, lambda files: beside(files.spectrum, ".json"), _spectrum)

    def along_training(self, data: str) -> Together[AlongTraining]:
        """Largest eigenvalues at the epochs that runs of one seed and fold kept."""
        found = self._together(data, lambda files: epochs_path(files.spectrum), read_along)
        for name, each in found.items():
            asked = self._epochs_asked(data, name)
            lacking = tuple(epoch for epoch in asked if epoch not in each.values)
            found[name] = replace(each, lacking=lacking)
        return found if any(len(each.values) > 1 for each in found.values()) else Together()

    def _epochs_asked(self, data: str, optimizer: str) -> Sequence[int]:
        """At which epochs the table has an optimizer's trainings measured, if at any."""
        study = self.results.study
        measures = next((each for each in study.measures if each.kind == ALONG), None)
        if measures is None or data not in measures.data or optimizer not in measures.optimizers:
            return ()
        kept = study.flags_of(data, optimizer).get("keep_epochs", measures.keep_epochs)
        epochs = self.results.of(data, optimizer)[0].numbers.get("epochs", 0)
        return range(0, int(epochs) + 1, int(str(kept)))

    def _together(
        self, data: str, path_of: Callable[[Run], Path], read: Callable[[Path, Minimum], T]
    ) -> Together[T]:
        """The files of that seed and fold of which most optimizers have one."""
        by_pair: dict[tuple[int, int | None], list[Minimum]] = {}
        for minima in self.of(data).values():
            for minimum in minima:
                if path_of(minimum.files).is_file():
                    by_pair.setdefault(minimum.row.pair, []).append(minimum)
        result: Together[T] = Together()
        if not by_pair:
            return result
        pair = max(by_pair, key=lambda key: len(by_pair[key]))
        result.which = pair_text(pair)
        for minimum in by_pair[pair]:
            path = path_of(minimum.files)
            try:
                result[minimum.row.optimizer] = read(path, minimum)
            except (ValueError, OSError) as error:
                self.notes.append(str(error))
                continue
            result.paths.append(path)
        return result


def _surface(path: Path, minimum: Minimum) -> Surface:
    surface = read_surface(path)
    if surface.y is None:
        raise ValueError(f"{path.name} is a line, no surface, and is not drawn")
    _refuse_other(path, surface.attributes, minimum.row.sha256)
    return surface


def _spectrum(path: Path, minimum: Minimum) -> Spectrum:
    spectrum = read_spectrum(path)
    _refuse_other(path, spectrum.record, minimum.row.sha256)
    return spectrum


def read_along(path: Path, minimum: Minimum) -> AlongTraining:
    """What was measured along the training of a minimum, and of no other.

    Raises:
        OSError, ValueError: not there, damaged, of other settings, or of other weights than those
            that are still there.
    """
    said, rows = read_epochs(path)
    best = checkpoint.load(minimum.files.best)
    if differing(said.get("run", {}), run_settings(best)):
        raise ValueError(f"{path.name} is of another training than the one that is there")
    if minimum.again.best.is_file():
        _refuse_unlike(minimum.again.best, best)
    for epoch, row in rows.items():
        for kept in (minimum.files.kept(epoch), minimum.again.kept(epoch)):
            if kept.is_file():
                _refuse_other(path, row, sha256_of(kept))
    values = {epoch: float(row["lambda_max"]) for epoch, row in sorted(rows.items())}
    try:
        return AlongTraining(values, read_edge(path))
    except ValueError:  # written before files had edges
        return AlongTraining(values)


def _refuse_unlike(path: Path, best: Mapping[str, Any]) -> None:
    """Refuse a training run once more that didn't end as the run did, as on another machine."""
    again, first = checkpoint.load(path)["state_dict"], best["state_dict"]
    if again.keys() != first.keys() or not all(torch.equal(again[k], first[k]) for k in first):
        raise ValueError(
            f"{KEPT}/to_plot/{path.name}, run once more to keep epochs, has other weights than the "
            "run itself; keep_epochs among its optimizer's flags keeps the run's own"
        )


def _refuse_other(path: Path, said: Mapping[str, Any], sha256: str) -> None:
    if said.get("checkpoint_sha256") != sha256:
        raise ValueError(f"{path.name} is of another checkpoint than the one that is there")


def beside(stem: Path, ending: str) -> Path:
    """The file of a spectrum's name with an ending."""
    return stem.with_name(stem.name + ending)


def names(paths: Sequence[Path], most: int = 12) -> str:
    """The files' names, for a caption; of many the first ones."""
    shown = ", ".join(f"`{path.name}`" for path in paths[:most])
    return shown + (f" and {len(paths) - most} more" if len(paths) > most else "")


def said_of_none(study: Study, data: str, kind: str, drawn: Collection[str]) -> str:
    """Which optimizers a picture lacks of those that the table asks for; "" if none."""
    asked = [
        name for m in study.measures if m.kind == kind and data in m.data for name in m.optimizers
    ]
    lacking = [name for name in asked if name not in drawn]
    return f"Not there, though the table asks for it: {', '.join(lacking)}." if lacking else ""


def said_of_edges(runs: Mapping[str, AlongTraining]) -> str:
    """What edges of stability a picture has, why a run has none, and what else is to be known."""
    drawn = any(run.edge and run.edge.values for run in runs.values())
    said = ["Without marks: edges of stability, above which steps would grow."] if drawn else []
    by_reason: dict[str, list[str]] = {}
    for name, run in runs.items():
        for why in run.edge.why if run.edge else ():
            by_reason.setdefault(why, []).append(name)
    said += [f"{', '.join(names)}: {why}." for why, names in by_reason.items()]
    return " ".join(said)


def said_of_lacking(runs: Mapping[str, AlongTraining], most: int = 5) -> str:
    """Which epochs a picture lacks of those that the table asks for; of many the first ones."""
    said = []
    for name, run in runs.items():
        shown = ", ".join(map(str, run.lacking[:most]))
        more = len(run.lacking) - most
        shown += f" and {more} more" if more > 0 else ""
        said += [f"{name}: not measured at epochs {shown}, as the table asks."] if shown else []
    return " ".join(said)
