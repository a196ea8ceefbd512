"""Choosing each optimizer's value of its tuned flag, by its trials' results on validation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from studies.table import Optimizer, Study
from utilities.files import atomic_write
from utilities.tables import table

Results = Mapping[float, Sequence[float]]  # of each value, on validation, a trial each


@dataclass(frozen=True)
class Choice:
    """What the trials chose.

    Attributes:
        data, optimizer: their names.
        flag, value: what was chosen.
        means: of the values, on validation, in percent; empty for one that was given.
    """

    data: str
    optimizer: str
    flag: str
    value: float
    means: Mapping[float, float]

    @property
    def at_edge(self) -> bool:
        """Whether a value beyond those tried may be better."""
        return len(self.means) > 1 and self.value in (min(self.means), max(self.means))


def choose(data: str, optimizer: Optimizer, results: Results) -> Choice:
    """The value with the best mean; of equal ones the first listed, which is the smallest.

    Means are sums rounded once, so that the same results in another order tie too.
    """
    if not optimizer.has_trials:
        return Choice(data, optimizer.name, optimizer.tuned, optimizer.values[0], {})
    means = {value: fmean(results[value]) for value in optimizer.values}
    best = max(optimizer.values, key=lambda value: means[value])
    return Choice(data, optimizer.name, optimizer.tuned, best, means)


def write_choices(
    path: Path, study: Study, choices: Sequence[Choice], results: Sequence[Results]
) -> None:
    """Write what was chosen, with all the trials' values.

    Raises:
        OSError: it can't be written.
    """
    record = {
        "study": study.name,
        "select": study.trials.select,
        "trial_seeds": study.trials.seeds,
        "trial_folds": study.trials.folds,
        "choices": [
            {
                "data": choice.data,
                "optimizer": choice.optimizer,
                "flag": choice.flag,
                "value": choice.value,
                "at_edge": choice.at_edge,
                study.trials.select: [
                    {"value": value, "mean": choice.means[value], "trials": list(each[value])}
                    for value in choice.means
                ],
            }
            for choice, each in zip(choices, results, strict=True)
        ],
    }
    with atomic_write(path) as part:
        part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def as_table(choices: Sequence[Choice], select: str) -> str:
    """What was chosen, for people, with a line on choices at the edge of what was tried."""
    rows = [
        [
            choice.data,
            choice.optimizer,
            f"{choice.flag} {choice.value:g}",
            ", ".join(f"{value:g}: {mean:.2f}" for value, mean in choice.means.items()) or "given",
        ]
        for choice in choices
    ]
    lines = [table(["data", "optimizer", "chosen", f"mean {select} of the trials, %"], rows)]
    edges = [f"{choice.optimizer} on {choice.data}" for choice in choices if choice.at_edge]
    if edges:
        lines.append(
            f"at the edge of what was tried, so that more may be better: {'; '.join(edges)}"
        )
    return "\n".join(lines)
