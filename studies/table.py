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
    [trials]                           # by which the tuned values are chosen, on validation
    select = "val_acc"
    seeds = [100]
    folds = [0, 1]
    flags = { epochs = 50 }
    [measures.spectrum]                # spectrum, surface or sharpness, of each minimum
    flags = { samples = 1000 }
    seeds = [1]                        # and folds, optimizers, data: only of these

Whatever is misspelt or can't be right is refused before anything runs.
"""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from utilities.cli import LARGEST_SEED
from utilities.files import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Flag = bool | int | float | str
Flags = Mapping[str, Flag | Sequence[Flag]]
MAX_BYTES = 2**20
MOST = 1000  # seeds, folds or values in a list
LONGEST = 60  # characters of a name
SCRIPTS = {
    "surface": "loss_landscape/plot_surface.py",
    "spectrum": "loss_landscape/my_pyhessian/hessian.py",
    "sharpness": "loss_landscape/sharpness.py",
}
SELECT = {"val_acc": "accuracy on validation", "val_f1": "macro F1 on validation"}
# What a study sets itself, in each command line.
OWN_FLAGS = frozenset(
    {
        *("seed", "fold", "tag", "threads", "data_dir", "out_dir", "resume", "overwrite"),
        *("model_file", "surf_file", "help"),
    }
)


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
    """What is measured of minima, and of which; names and numbers as in the study."""

    kind: str
    flags: Flags
    seeds: tuple[int, ...]
    folds: tuple[int | None, ...]
    optimizers: tuple[str, ...]
    data: tuple[str, ...]

    def are_of(self, seed: int, fold: int | None, data: str, optimizer: str) -> bool:
        """Whether they are of that run's minimum."""
        named = seed in self.seeds and fold in self.folds
        return named and data in self.data and optimizer in self.optimizers


@dataclass(frozen=True)
class Study:
    """A table as read; ``path`` is its file, ``changes`` what ``--set`` put in place of flags."""

    path: Path
    title: str
    note: str
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

    def planned(self) -> dict[str, int]:
        """How many trials, runs and measures the whole study has."""
        per_trial = len(self.data) * len(self.trials.seeds) * len(self.trials.folds)
        tuned = sum(len(o.values) for o in self.optimizers if o.has_trials)
        runs = len(self.data) * len(self.optimizers) * len(self.seeds) * len(self.folds)
        measures = sum(
            len(m.data) * len(m.optimizers) * len(m.seeds) * len(m.folds) for m in self.measures
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
    return _study(_Section(f"{path}", content), path, changes or {})


def _study(top: _Section, path: Path, changes: Flags) -> Study:
    task = top.text("task")
    if not re.fullmatch(r"\w+", task) or not (ROOT / training_script(task)).is_file():
        known = [p.stem.removeprefix("my_train_") for p in ROOT.glob(training_script("*"))]
        raise top.error("task", f"{task!r} has no script; known are {', '.join(sorted(known))}")
    seeds, folds = top.numbers("seeds", LARGEST_SEED), top.folds(None)
    title, note = top.text("title", path.stem), top.text("note", "")
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
    return Study(
        *(path, title, note, task, base, flags, seeds, folds, data, optimizers, trials),
        tuple(measures),
        changes,
    )


def _data(section: _Section) -> Data:
    data = Data(section.name, section.flags())
    section.end()
    return data


def _optimizers(sections: Sequence[_Section]) -> tuple[Optimizer, ...]:
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
    top: _Section,
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
    section: _Section,
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
    section.end()
    return measures


class _Section:
    """One table of the file; each method takes a key of it, ``end`` refuses those not taken."""

    def __init__(self, where: str, content: Mapping[str, Any], name: str = "") -> None:
        self.where, self.content, self.name = where, content, name
        self.taken: set[str] = set()

    def error(self, key: str, problem: str) -> ValueError:
        where = f"{self.where}, {key}" if key else self.where
        return ValueError(f"{where}: {problem}")

    def take(self, key: str, default: Any = None) -> Any:
        self.taken.add(key)
        value = self.content.get(key, default)
        if value is None:
            raise self.error(key, "is missing")
        return value

    def end(self) -> None:
        for key in self.content:
            if key not in self.taken:
                near = difflib.get_close_matches(key, self.taken, 1)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(self.taken)}"
                raise self.error(_shown(key), f"is no key of a study's table; {hint}")

    def table(self, key: str, default: Any = None) -> Mapping[str, Any]:
        value = self.take(key, default)
        if not isinstance(value, dict):
            raise self.error(key, f"{_shown(value)} is no table of names and values")
        return value

    def section(self, key: str) -> _Section:
        return _Section(f"{self.where}, {key}", self.table(key), key)

    def sections(self, key: str, optional: bool = False) -> list[_Section]:
        """The tables [key.<name>], in the file's order."""
        tables = self.table(key, {} if optional else None)
        if not tables and not optional:
            raise self.error(key, f"is empty; write [{key}.<name>] for each")
        sections = []
        for name, content in tables.items():
            where = f"{key}.{_shown(name)}"
            if not re.search(r"[A-Za-z0-9]", name) or len(name) > LONGEST or "\n" in name:
                raise self.error(where, f"a name has letters and at most {LONGEST} characters")
            if not isinstance(content, dict):
                raise self.error(where, f"{_shown(content)} is no table; write [{key}.<name>]")
            sections.append(_Section(f"{self.where}, {where}", content, name))
        return sections

    def text(self, key: str, default: str | None = None) -> str:
        value = self.take(key, default)
        if not isinstance(value, str) or not value.isprintable():
            raise self.error(key, f"{_shown(value)} is no text of one line")
        return value

    def one_of(self, key: str, known: Sequence[str]) -> str:
        value = self.text(key)
        if value not in known:
            raise self.error(key, f"{_shown(value)} is none of {', '.join(known) or 'nothing yet'}")
        return value

    def number(self, key: str, default: int, most: int) -> int:
        value = self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise self.error(key, f"{_shown(value)} is no whole number from 1 to {most}")
        return value

    def numbers(self, key: str, most: int) -> tuple[int, ...]:
        """Whole numbers from 0, each once."""
        value = self.take(key)
        numbers: list[Any] = value if isinstance(value, list) else [None]
        right = (isinstance(n, int) and not isinstance(n, bool) for n in numbers)
        if not all(right) or not all(0 <= n <= most for n in numbers):
            raise self.error(key, f"{_shown(value)} is no list of whole numbers from 0 to {most}")
        return tuple(self._each_once(key, numbers))

    def folds(self, usual: tuple[int | None, ...] | None) -> tuple[int | None, ...]:
        """The key ``folds``; without it ``usual``, or no cross-validation."""
        if "folds" not in self.content:
            return usual or (None,)
        if usual == (None,):
            raise self.error("folds", "the study has none; leave them out here too")
        return self.numbers("folds", MOST)

    def some_of(self, key: str, known: tuple[Any, ...]) -> tuple[Any, ...]:
        """Those of ``known`` that the key lists, in the study's order; all without the key."""
        chosen = self.take(key, list(known))
        if not isinstance(chosen, list):
            raise self.error(key, f"{_shown(chosen)} is no list")
        for each in chosen:
            if isinstance(each, bool) or each not in known:
                raise self.error(key, f"{_shown(each)} is none of the study's {key}")
        return tuple(each for each in known if each in self._each_once(key, chosen))

    def rising(self, key: str, values: Any) -> tuple[float, ...]:
        """Values to choose from: of two that are equally good the first, smaller one is taken."""
        numbers: list[Any] = values if isinstance(values, list) else [None]
        right = (isinstance(v, int | float) and not isinstance(v, bool) for v in numbers)
        if not all(right) or not all(0 <= v < math.inf for v in numbers):
            raise self.error(key, f"{_shown(values)} is no list of numbers of 0 or more")
        if list(self._each_once(key, numbers)) != sorted(numbers):
            raise self.error(key, f"{_shown(values)}: list the values in rising order")
        return tuple(numbers)

    def flags(self) -> Flags:
        """The key ``flags``: of a command line, without those that a study sets itself."""
        flags = self.table("flags", {})
        for name, value in flags.items():
            self.check_flag("flags", name)
            values = value if isinstance(value, list) and len(value) <= MOST else [value]
            if not values or not all(map(_is_plain, values)):
                raise self.error(f"flags.{name}", f"{_shown(value)} is no value of a flag")
        return flags

    def check_flag(self, key: str, name: str) -> None:
        if name in OWN_FLAGS:
            raise self.error(f"{key}.{name}", "is set by the study itself; leave it out")
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,40}", name):
            raise self.error(f"{key}.{_shown(name)}", "is no flag's name; write it without --")

    def _each_once(self, key: str, values: list[Any]) -> list[Any]:
        if not values or len(values) > MOST:
            raise self.error(key, f"has {len(values)} entries; 1 to {MOST} are possible")
        if len(set(values)) < len(values):
            raise self.error(key, f"{_shown(values)} lists one twice")
        return values


def _is_plain(value: Any) -> bool:
    """Whether a command line can have the value."""
    if isinstance(value, str):
        return value.isprintable() and len(value) <= MOST
    return isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
