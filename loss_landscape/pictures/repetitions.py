"""How the settings of the minima in a picture do over other seeds and folds.

A picture of two minima is of one run each, and one run of a small test set says nothing of the
optimizers: of 19 test graphs a single one is 5 points of accuracy.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from DatasetClass.splits import INNER_FOLDS
from utilities import checkpoint
from utilities.pictures import COLOURS
from utilities.runs import identity, run_settings
from utilities.statistics import Estimate, held_out_ratio, mean_interval, paired

ONE = re.compile(r"(seed|fold) \d+")  # in labels
OVER = ("seed", "fold", "tag")  # in which the repetitions of a minimum may differ from it


@dataclass(frozen=True)
class Repetitions:
    """Finished runs that differ in seed or fold alone.

    Attributes:
        accuracies: test accuracy in percent, by seed and fold.
        samples: of each run's test set, sorted.
        test_to_train: size of a test set over that of its training set; 0 without folds.
    """

    accuracies: dict[Hashable, float]
    samples: list[int]
    test_to_train: float

    @property
    def mean(self) -> Estimate:
        return mean_interval(list(self.accuracies.values()), self.test_to_train)


def read_repetitions(files: Sequence[Path], minima: Sequence[dict[str, Any]]) -> list[Repetitions]:
    """The repetitions of each minimum.

    Args:
        files: best checkpoints of finished runs.
        minima: contents of the checkpoints whose repetitions they are.

    Raises:
        ValueError: a file is no finished run, or a repetition of no minimum; a minimum has none.
    """
    if any("train_args" not in content for content in minima):
        raise ValueError(
            "--repetitions: takes runs of this project's trainings, not others' models"
        )
    settings = [identity(run_settings(content), OVER) for content in minima]
    found: list[dict[Hashable, dict[str, Any]]] = [{} for _ in minima]
    for path in files:
        content = checkpoint.load(path)
        if "test_confusion" not in content or "resume" in content or content.get("kept"):
            raise ValueError(f"{path}: not the best checkpoint of a finished run")
        said = identity(run_settings(content), OVER)
        if said not in settings:
            raise ValueError(f"{path}: differs in more than seed and fold from each of the minima")
        args = content["train_args"]
        found[settings.index(said)][args["seed"], args.get("fold")] = content
    return [_repetitions(contents) for contents in found]


def _repetitions(contents: dict[Hashable, dict[str, Any]]) -> Repetitions:
    if not contents:
        raise ValueError("--repetitions: none of them has the settings of one of the minima")
    accuracies = {key: float(content["metrics"]["test_acc"]) for key, content in contents.items()}
    samples = sorted(sum(map(sum, content["test_confusion"])) for content in contents.values())
    folds = next(iter(contents.values()))["train_args"].get("folds", 0)
    in_folds = all(content["train_args"].get("fold") is not None for content in contents.values())
    ratio = held_out_ratio(folds, INNER_FOLDS) if in_folds else 0.0
    return Repetitions(accuracies, samples, ratio)


def draw_repetitions(axes: Axes, repetitions: Sequence[Repetitions], labels: Sequence[str]) -> None:
    """A row for each minimum, a dot for each run, a grey line for runs of one seed and fold.

    The diamond is the mean, with its 95 % interval; the title says how the last differs from the
    first. Of the labels only what tells them apart is shown, and of no seed or fold.
    """
    labels = [", ".join(p for p in label.split(", ") if not ONE.fullmatch(p)) for label in labels]
    for row, (upper, lower) in enumerate(pairwise(repetitions)):
        for key in upper.accuracies.keys() & lower.accuracies.keys():
            pair = (upper.accuracies[key], lower.accuracies[key])
            axes.plot(pair, (row, row + 1), color="0.6", alpha=0.5, lw=1, zorder=0)
    for row, (runs, colour) in enumerate(zip(repetitions, COLOURS, strict=False)):
        values = list(runs.accuracies.values())
        axes.plot(values, [row] * len(values), "o", color=colour, ms=6, alpha=0.4, mew=0)
        mean, away = runs.mean, -0.25 if row == 0 else 0.25
        half = None if mean.reason else (mean.high - mean.low) / 2
        axes.errorbar(mean.value, row + away, xerr=half, fmt="D", color=colour, ms=5, capsize=4)
    axes.set_yticks(range(len(labels)), apart(labels))
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlabel(f"test accuracy (%); {worth(repetitions)}")
    axes.set_title(difference(repetitions, labels), fontsize=9)


def apart(labels: Sequence[str]) -> list[str]:
    """Of each label what comes after that which all begin with, such as model and data set."""
    parts = [label.split(", ") for label in labels]
    while all(len(part) > 1 and part[0] == parts[0][0] for part in parts):
        parts = [part[1:] for part in parts]
    return [", ".join(part) for part in parts]


def worth(repetitions: Sequence[Repetitions]) -> str:
    """What one sample is worth, since accuracies of small test sets go in steps."""
    samples = [n for runs in repetitions for n in runs.samples]
    return f"one sample of {min(samples)} is {100 / min(samples):.2g} points"


def difference(repetitions: Sequence[Repetitions], labels: Sequence[str]) -> str:
    """The paired difference of the last to the first, in words that its interval carries."""
    first, last, labels = repetitions[0], repetitions[-1], apart(labels)
    differences, _ = paired(last.accuracies, first.accuracies)
    if len(repetitions) < 2 or not len(differences):
        return "a dot a run; diamonds: mean and 95 % interval"
    estimate = mean_interval(differences, last.test_to_train)
    said = f"{labels[-1]} less {labels[0]}: {estimate.value:+.1f} points over {estimate.n} runs"
    if estimate.reason:
        return f"{said} ({estimate.reason})"
    verdict = "can't be told apart" if estimate.low <= 0 <= estimate.high else "they differ"
    return f"{said}\n(95 % interval {estimate.low:+.1f} to {estimate.high:+.1f}): {verdict}"
