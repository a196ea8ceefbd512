"""The sections of a report on what was run, and on what of the plan is not there."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress

from studies.comparisons import Comparison, Results
from studies.markdown import code, text
from studies.other_values import other_values
from studies.plan import Plan, words
from studies.runs_file import TrainedRun
from studies.section import Flags
from studies.table import SELECT, Optimizer
from utilities.files import ROOT
from utilities.tables import table

NONE = "-"
SHOWN_UNPAIRED = 12


# --- what was run ---------------------------------------------------------------------------------
def plan(results: Results) -> str:
    """Seeds, folds and flags of the trainings, and of the trials that chose values."""
    study = results.study
    trials = study.trials
    lines = [
        f"Trainings: {_which(study.seeds, study.folds)}{_flags({**study.flags, **study.changes})}.",
        f"Trials: {_which(trials.seeds, trials.folds)}{_flags(trials.flags)}; of the values tried "
        f"for an optimizer, the one with the best {SELECT[trials.select]} is taken for its runs.",
    ]
    for data in study.data:
        lines.append(f"{text(data.name)}: {code(_flag_text(data.flags))}.")
    return "\n".join(f"- {line}" for line in lines)


def _which(seeds: Sequence[int], folds: Sequence[int | None]) -> str:
    said = f"seeds {', '.join(map(str, seeds))}"
    known = [str(fold) for fold in folds if fold is not None]
    return said + (f"; folds {', '.join(known)}" if known else "; no cross-validation")


def _flags(flags: Flags) -> str:
    return f"; {code(_flag_text(flags))}" if flags else ""


def _flag_text(flags: Flags) -> str:
    parts = (word.partition("=") for word in words(flags))
    said = (
        f"{name}={shlex.quote(value)}" if equals else shlex.quote(name)
        for name, equals, value in parts
    )
    return " ".join(said) or "the task's defaults"


def settings(results: Results) -> str:
    """The optimizers, what was tuned, and what validation chose on each data set."""
    header = ["optimizer", "flags", "tuned", "tried", "trials"]
    header += [*map(text, results.data), "epochs", "passes"]
    rows = []
    for name in results.optimizers:
        optimizer = results.study.optimizer(name)
        tried = ", ".join(f"{value:g}" for value in optimizer.values)
        rows.append(
            [
                text(name),
                code(_flag_text(optimizer.flags)),
                text(optimizer.tuned),
                tried,
                str(sum(run.optimizer == optimizer.chosen_for for run in results.trials)),
                *(_chosen(results, data, optimizer) for data in results.data),
                _budget(results, name, "epochs"),
                _budget(results, name, "passes"),
            ]
        )
    return table(header, rows)


def _chosen(results: Results, data: str, optimizer: Optimizer) -> str:
    runs = results.of(data, optimizer.name)
    chosen = list(dict.fromkeys(run.chosen for run in runs))
    shown = []
    for each in chosen:
        _, _, value = each.partition("=")
        shown.append(text(value or each or NONE) + (" (edge)" if at_edge(value, optimizer) else ""))
    return ", ".join(shown) or NONE


def at_edge(value: str, optimizer: Optimizer) -> bool:
    """Whether a chosen value is the first or last of those tried, so that a better may be beyond.

    A first value of 0 is no edge: nothing lies beyond. Nor is a single one, which nobody chose.
    """
    if len(optimizer.values) < 2:
        return False
    try:
        number = float(value)
    except ValueError:
        return False
    first, last = optimizer.values[0], optimizer.values[-1]
    return (math.isclose(number, first) and first > 0) or math.isclose(number, last)


def _budget(results: Results, name: str, kind: str) -> str:
    values = {r.numbers[kind] for r in results.runs if r.optimizer == name and kind in r.numbers}
    ends = [f"{value:g}" for value in (min(values), max(values))] if values else [NONE]
    return " to ".join(dict.fromkeys(ends))


def edges(results: Results) -> str:
    """A sentence on the values that were chosen at an edge of those tried."""
    found = [
        f"{text(name)} on {text(data)}"
        for data in results.data
        for name in results.optimizers
        if "(edge)" in _chosen(results, data, results.study.optimizer(name))
    ]
    if not found:
        return "No chosen value is at an edge of those tried."
    return (
        f"Chosen at an edge of the values tried, so that a better one may lie beyond: "
        f"{'; '.join(found)}."
    )


def machines(results: Results) -> str:
    """On what the runs were trained, as their records say, or the table for those without."""
    counts = Counter(_machine(run, results.study.machine) for run in results.runs)
    if len(counts) == 1:
        return f"They ran on {text(*counts)}."
    said = "; ".join(f"{count} on {text(name)}" for name, count in counts.most_common())
    return f"Of the runs, {said}."


def _machine(run: TrainedRun, unrecorded: str) -> str:
    if not run.processor:
        return unrecorded or "a machine that was not recorded"
    threads = f", {run.threads} thread{'s' * (run.threads != '1')}" if run.threads else ""
    return f"{run.processor}{threads}, torch {run.torch}"


def rates(results: Results) -> str:
    """A sentence on each optimizer that trains at another value than was chosen for the base."""
    study, chosen = results.study, dict[tuple[str, str], float]()
    for run in results.runs:
        optimizer = study.optimizer(run.optimizer)
        with suppress(ValueError):  # of a table that people have changed
            value = float(run.chosen.removeprefix(f"{optimizer.tuned}="))
            chosen.setdefault((run.data, optimizer.chosen_for), value)
    lines = other_values(Plan(study, ROOT, ROOT), chosen)
    return "\n".join(f"- {text(line[0].upper() + line[1:])}." for line in lines)


# --- what is missing ------------------------------------------------------------------------------
def completeness(results: Results) -> str:
    """How many of the planned runs are in the report."""
    planned = results.study.planned()
    said = f"{len(results.runs)} of {planned['runs']} planned runs are in this report"
    trials = f"{len(results.trials)} of {planned['trials']} trials"
    measured = sum("lambda_max" in run.numbers for run in results.runs)
    return f"{said}, and {trials}; lambda\\_max was measured of {measured} of the runs."


def missing(results: Results, comparisons: Sequence[Comparison]) -> str:
    """Which planned runs are not there, by data set and optimizer, and which have no partner."""
    study = results.study
    planned = len(study.seeds) * len(study.folds)
    lines = []
    for data in study.data:
        short = [
            f"{text(o.name)} {planned - count}"
            for o in study.optimizers
            if (count := len(results.of(data.name, o.name))) < planned
        ]
        lines += [f"- {text(data.name)}: {', '.join(short)}"] if short else []
    said = ["Planned runs that are not there:", "", *lines] if lines else []
    unpaired = {f"{text(c.data)}, {text(name)}": None for c in comparisons for name in c.unpaired}
    if unpaired:
        shown = list(unpaired)[:SHOWN_UNPAIRED]
        more = len(unpaired) - len(shown)
        said += ["", "Left out of the paired differences, since the partner is not there: "]
        said[-1] += "; ".join(shown) + (f"; and {more} more." if more else ".")
    return "\n".join(said)


def example_commands(runs: Sequence[TrainedRun], optimizers: Sequence[str]) -> Mapping[str, str]:
    """A command line of each optimizer."""
    first: dict[str, str] = {}
    for name in optimizers:
        commands = [run.command for run in runs if run.optimizer == name and run.command]
        if commands:
            first[name] = commands[0]
    return first
