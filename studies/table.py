"""A study's table: which runs it is made of, as a TOML file that people write.

    task = "GCN"                       # trainings/my_train_GCN.py
    base = "ADAM"                      # the others are compared to it
    seeds = [1, 2, 3]
    folds = [0, 1, 2]                  # left out: no cross-validation
    flags = { epochs = 100 }           # of every training; any of the script's flags
    [data.MUTAG]                       # a name for readers
    flags = { dataset = "MUTAG" }
    [optimizers.ADAM]
    flags = { optimizer = "ADAM" }
    tune = { learning_rate = [0.003, 0.01, 0.03] }
    [optimizers."ADAM, twice the epochs"]
    like = "ADAM"                      # its flags and the value chosen for it
    times_epochs = 2
    [optimizers.SAM]
    flags = { optimizer = "SAM", learning_rate = "as chosen for ADAM" }
    tune = { rho = [0.02, 0.05, 0.1] }
    [trials]                           # by which the tuned values are chosen, on validation
    select = "val_acc"
    seeds = [100]
    folds = [0, 1]
    flags = { epochs = 50 }
    [measures.spectrum]                # spectrum, surface or sharpness, of each minimum
    flags = { samples = 1000 }
    seeds = [1]                        # and folds, optimizers, data: only of these
    [measures.along_training]          # largest eigenvalue at the epochs that a training keeps
    seeds = [1]
    keep_epochs = 5                    # of trainings whose flags keep none: they are run once more

Whatever is misspelt or can't be right is refused before anything runs.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from studies.section import Flags, Section, shown
from utilities.cli import LARGEST_SEED
from utilities.files import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_BYTES = 2**20
SCRIPTS = {
    "surface": "loss_landscape/plot_surface.py",
    "spectrum": "loss_landscape/my_pyhessian/hessian.py",
    "sharpness": "loss_landscape/sharpness.py",
    "along_training": "loss_landscape/plot_sharpness.py",
}
ALONG = "along_training"  # which is of a whole training, the others are of its minimum
MOST_KEPT = 10_000  # epochs between two that are kept
AS_CHOSEN = "as chosen for "  # and an optimizer's name: a flag's value that its trials choose
SELECT = {"val_acc": "accuracy on validation", "val_f1": "macro F1 on validation"}


@dataclass(frozen=True)
class Data:
    """A data set, or a split of one, and the flags that ask for it."""

    name: str
    flags: Flags


@dataclass(frozen=True)
class Optimizer:
    """What is compared.

    Attributes:
        name: for readers.
        flags: of its trainings.
        tuned: the flag whose value is chosen.
        values: to choose from, rising.
        chosen_for: the optimizer whose trials choose the value: itself, or another.
        times_epochs: how many times the usual epochs it trains.
    """

    name: str
    flags: Flags
    tuned: str
    values: tuple[float, ...]
    chosen_for: str
    times_epochs: int = 1

    @property
    def has_trials(self) -> bool:
        """Whether trials of its own choose its value; a single one is taken as it is."""
        return self.chosen_for == self.name and len(self.values) > 1


@dataclass(frozen=True)
class Trials:
    """The runs that choose values: their seeds are none of the study's."""

    select: str
    seeds: tuple[int, ...]
    folds: tuple[int | None, ...]
    flags: Flags


@dataclass(frozen=True)
class Measures:
    """What is measured of minima, and of which; names and numbers as in the study.

    Attributes:
        keep_epochs: each how many epochs a training whose own flags keep none is measured.
    """

    kind: str
    flags: Flags
    seeds: tuple[int, ...]
    folds: tuple[int | None, ...]
    optimizers: tuple[str, ...]
    data: tuple[str, ...]
    keep_epochs: int = 0

    def are_of(self, seed: int, fold: int | None, data: str, optimizer: str) -> bool:
        """Whether they are of that run's minimum."""
        named = seed in self.seeds and fold in self.folds
        return named and data in self.data and optimizer in self.optimizers


@dataclass(frozen=True)
class Study:
    """A table as read.

    Attributes:
        path: its file.
        title, note: for the report.
        machine: what runs were trained on whose records don't say it.
        changes: what ``--set`` put in place of flags.
    """

    path: Path
    title: str
    note: str
    machine: str
    task: str
    base: str
    flags: Flags
    seeds: tuple[int, ...]
    folds: tuple[int | None, ...]
    data: tuple[Data, ...]
    optimizers: tuple[Optimizer, ...]
    trials: Trials
    measures: tuple[Measures, ...]
    changes: Flags

    @property
    def name(self) -> str:
        """Names the folder of its results; with what ``--set`` changed, which makes it another."""
        changed = [f"{key}{value}" for key, value in self.changes.items()]
        return "_".join([self.path.stem, *(re.sub(r"[^\w.-]", "-", text) for text in changed)])

    @property
    def script(self) -> str:
        return training_script(self.task)

    def optimizer(self, name: str) -> Optimizer:
        return next(optimizer for optimizer in self.optimizers if optimizer.name == name)

    def flags_of(self, data: str, optimizer: str, trial: bool = False) -> Flags:
        """Of the trainings of an optimizer on a data set, by their names."""
        own = next(each for each in self.data if each.name == data)
        flags = {**self.flags, **own.flags, **self.optimizer(optimizer).flags}
        return {**flags, **(self.trials.flags if trial else {}), **self.changes}

    def taken(self, data: str, optimizer: str, trial: bool = False) -> dict[str, str]:
        """The optimizers for which values that these trainings take are chosen, by flag."""
        flags, tuned = self.flags_of(data, optimizer, trial), self.optimizer(optimizer).tuned
        return {
            flag: value.removeprefix(AS_CHOSEN)
            for flag, value in flags.items()
            if flag != tuned and isinstance(value, str) and value.startswith(AS_CHOSEN)
        }

    def keeps_epochs(self, data: str, optimizer: str) -> bool:
        """Whether these trainings keep epochs, so that none is run once more to be followed."""
        return "keep_epochs" in self.flags_of(data, optimizer)

    def planned(self) -> dict[str, int]:
        """How many trials, runs and measures the whole study has, trainings run once more too."""
        per_trial = len(self.data) * len(self.trials.seeds) * len(self.trials.folds)
        tuned = sum(len(o.values) for o in self.optimizers if o.has_trials)
        runs = len(self.data) * len(self.optimizers) * len(self.seeds) * len(self.folds)
        measures = sum(
            len(m.seeds) * len(m.folds) * (1 + (m.kind == ALONG and not self.keeps_epochs(d, o)))
            for m in self.measures
            for d in m.data
            for o in m.optimizers
        )
        return {"trials": tuned * per_trial, "runs": runs, "measures": measures}


def training_script(task: str) -> str:
    return f"trainings/my_train_{task}.py"


def read_study(path: Path, changes: Flags | None = None) -> Study:
    """Read a table.

    Args:
        path: the TOML file.
        changes: flags of every training that take the place of the table's.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no TOML, an unknown key, a wrong value, or what can't be meant together; the
            message names file and key.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table; those that come along are studies/*.toml")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: over {MAX_BYTES >> 20} MB, so no table of a study")
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is no TOML: {error}") from error
    return _study(Section(f"{path}", content), path, changes or {})


def _study(top: Section, path: Path, changes: Flags) -> Study:
    task = top.text("task")
    if not re.fullmatch(r"\w+", task) or not (ROOT / training_script(task)).is_file():
        known = [p.stem.removeprefix("my_train_") for p in ROOT.glob(training_script("*"))]
        raise top.error("task", f"{task!r} has no script; known are {', '.join(sorted(known))}")
    seeds, folds = top.numbers("seeds", LARGEST_SEED), top.folds(None)
    title, note = top.text("title", path.stem), top.text("note", "")
    machine = top.text("machine", "")
    flags = top.flags()
    data = tuple(_data(section) for section in top.sections("data"))
    optimizers = _optimizers(top.sections("optimizers"))
    trials = _trials(top, seeds, folds, optimizers)
    base = top.one_of("base", [optimizer.name for optimizer in optimizers])
    names = tuple(o.name for o in optimizers), tuple(d.name for d in data)
    measures = [
        _measures(section, seeds, folds, *names)
        for section in top.sections("measures", optional=True)
    ]
    top.end()
    study = Study(
        *(path, title, note, machine, task, base, flags, seeds, folds, data, optimizers, trials),
        tuple(measures),
        changes,
    )
    for each in measures:
        if each.kind == ALONG and not each.keep_epochs:
            _refuse_unkept(top, study, each)
    for name in names[1]:
        _refuse_untaken(top, study, name)
        _refuse_circle(top, study, name)
    return study


def _refuse_untaken(top: Section, study: Study, data: str) -> None:
    """Refuse what is to be as chosen for another, where nothing of that kind is."""
    tuned = {optimizer.name: optimizer.tuned for optimizer in study.optimizers}
    for name in tuned:
        taken = {**study.taken(data, name), **study.taken(data, name, trial=True)}
        for flag, other in taken.items():
            if tuned.get(other) != flag:
                what = f"tunes {tuned[other]}" if other in tuned else "is no optimizer here"
                problem = f"is for {name} {shown(AS_CHOSEN + other)}, which {what}"
                raise top.error(f"flags.{flag}", problem)


def _refuse_circle(top: Section, study: Study, data: str) -> None:
    """Refuse optimizers whose trials wait for each other's choices."""
    waits = {
        optimizer.name: {
            study.optimizer(other).chosen_for
            for other in study.taken(data, optimizer.name, trial=True).values()
        }
        for optimizer in study.optimizers
        if optimizer.has_trials
    }
    while ready := [name for name, others in waits.items() if not others & waits.keys()]:
        for name in ready:
            del waits[name]
    if waits:
        problem = f"the trials of {' and '.join(waits)} on {data} wait for each other's choices"
        raise top.error("optimizers", problem)


def _refuse_unkept(top: Section, study: Study, measures: Measures) -> None:
    pairs = ((data, optimizer) for data in measures.data for optimizer in measures.optimizers)
    unkept = next((pair for pair in pairs if not study.keeps_epochs(*pair)), None)
    if unkept:
        raise top.error(
            f"measures.{ALONG}, keep_epochs",
            f"is missing, and the trainings of {unkept[1]} on {unkept[0]} keep no epochs: "
            "keep_epochs = 5 measures each fifth",
        )


def _data(section: Section) -> Data:
    data = Data(section.name, section.flags())
    section.end()
    return data


def _optimizers(sections: Sequence[Section]) -> tuple[Optimizer, ...]:
    found: dict[str, Optimizer] = {}
    for section in sections:
        flags, times = section.flags(), section.number("times_epochs", 1, 100)
        like = section.one_of("like", list(found)) if "like" in section.content else ""
        if like:
            section.end()
            flags = {**found[like].flags, **flags}
            copied = replace(found[like], name=section.name, flags=flags, times_epochs=times)
            found[section.name] = copied
            continue
        tune = section.table("tune")
        if len(tune) != 1:
            raise section.error("tune", "names one flag and its values: { rho = [0.02, 0.05] }")
        ((flag, values),) = tune.items()
        section.check_flag("tune", flag)
        if flag in flags:
            raise section.error("tune", f"{flag} is among the flags too; name it once")
        values = section.rising(f"tune.{flag}", values)
        section.end()
        found[section.name] = Optimizer(section.name, flags, flag, values, section.name, times)
    return tuple(found.values())


def _trials(
    top: Section,
    seeds: tuple[int, ...],
    folds: tuple[int | None, ...],
    optimizers: Sequence[Optimizer],
) -> Trials:
    if "trials" not in top.content and not any(o.has_trials for o in optimizers):
        return Trials("val_acc", (), (), {})
    section = top.section("trials")
    select = section.one_of("select", list(SELECT))
    own = section.numbers("seeds", LARGEST_SEED)
    if set(own) & set(seeds):
        raise section.error("seeds", "has a seed of the study; what chooses must not be compared")
    chosen = section.folds(folds)
    flags, why = section.flags(), section.text("unequal_trials", "")
    section.end()
    counts = {o.name: len(o.values) for o in optimizers if o.chosen_for == o.name}
    if len(set(counts.values())) > 1 and not why:
        shown = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise section.error(
            "unequal_trials",
            f'values differ in number ({shown}), so that tuning may win; unequal_trials = "why"',
        )
    return Trials(select, own, chosen, flags)


def _measures(
    section: Section,
    seeds: tuple[int, ...],
    folds: tuple[int | None, ...],
    optimizers: tuple[str, ...],
    data: tuple[str, ...],
) -> Measures:
    if section.name not in SCRIPTS:
        raise section.error("", f"is no measure; known are {', '.join(SCRIPTS)}")
    if not (ROOT / SCRIPTS[section.name]).is_file():
        raise section.error("", f"{SCRIPTS[section.name]} is not there")
    measures = Measures(
        section.name,
        section.flags(),
        section.some_of("seeds", seeds),
        section.some_of("folds", folds) if folds != (None,) else folds,
        section.some_of("optimizers", optimizers),
        section.some_of("data", data),
    )
    if measures.kind == ALONG and "keep_epochs" in section.content:
        measures = replace(measures, keep_epochs=section.number("keep_epochs", 1, MOST_KEPT))
    section.end()
    return measures
