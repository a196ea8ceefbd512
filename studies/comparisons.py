"""What a report compares: each optimizer's runs with the base's, and sharpness with test error.

Runs are paired by seed and fold. There are two fair comparisons, at equal epochs and at equal
passes through the network, of which SAM takes two a step; with a base that also ran for more
epochs, both are made. P-values are corrected by Holm's method over all comparisons of one
quantity in the report, and those of rank correlations over all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from DatasetClass.splits import INNER_FOLDS
from studies.runs_file import TrainedRun
from studies.table import Study
from utilities.statistics import (
    Estimate,
    granulated_kendall,
    held_out_ratio,
    holm,
    kendall,
    mean_interval,
    paired,
)

FOLDS = 10  # of trainings/my_train_GCN.py without --folds
EQUAL = 0.02  # of passes: batches that don't fill an epoch make a few more or less


@dataclass(frozen=True)
class Quantity:
    """What is measured of a run.

    Attributes:
        name: of its column, or "gap".
        text: for people.
        unit: of a difference; "" for a ratio or a plain number.
        more, less: what a run with more or less of it is, in a sentence.
        ratio: compared by its ratio, as eigenvalues are, which differ by factors.
        digits: after the point, of a mean in a table; None for three significant ones.
    """

    name: str
    text: str
    unit: str = ""
    more: str = "higher"
    less: str = "lower"
    ratio: bool = False
    digits: int | None = None

    def of(self, run: TrainedRun) -> float | None:
        """Its value, or None where it was not measured."""
        numbers = run.numbers
        if self.name != "gap":
            return numbers.get(self.name)
        both = [numbers.get(name) for name in ("train_acc", "test_acc")]
        return None if None in both else float(both[0]) - float(both[1])  # type: ignore[arg-type]


ACCURACY = Quantity("test_acc", "test accuracy", "points", "better", "worse", digits=2)
F1 = Quantity("test_f1", "test macro F1", "points", "better", "worse", digits=2)
GAP = Quantity("gap", "generalisation gap", "points", "larger", "smaller", digits=2)
LAMBDA_MAX = Quantity("lambda_max", "lambda_max", "", "sharper", "flatter", ratio=True)
TRACE = Quantity("trace", "trace", "", "sharper", "flatter", ratio=True)
PREFIX = "sharpness:"


def flatness_quantities(runs: Sequence[TrainedRun]) -> list[Quantity]:
    """lambda_max, trace and the measures of sharpness, those that any run has."""
    names = dict.fromkeys(name for run in runs for name in run.numbers if name.startswith(PREFIX))
    measures = [
        Quantity(name, name.removeprefix(PREFIX), "", "sharper", "flatter", ratio=True)
        for name in names
    ]
    return [q for q in (LAMBDA_MAX, TRACE, *measures) if any(q.of(r) is not None for r in runs)]


@dataclass(frozen=True)
class Comparison:
    """An optimizer beside the base, in one quantity on one data set.

    Attributes:
        against: the base, or the base of more epochs.
        kind: "equal epochs", "equal passes", both, or how many times the epochs.
        estimate: of the paired differences; with ``ratio`` those of logarithms.
        corrected: its p-value after Holm; NaN where there is none.
        family: over how many comparisons; 0 before the correction.
        unpaired: runs of either that the other has no partner for.
    """

    data: str
    optimizer: str
    against: str
    kind: str
    quantity: Quantity
    estimate: Estimate
    ratio: bool
    unpaired: tuple[str, ...] = ()
    corrected: float = math.nan
    family: int = 0


@dataclass(frozen=True)
class Correlation:
    """Kendall's tau of a measure of sharpness with the test error on one data set.

    Attributes:
        tau: over all minima.
        corrected: its p-value after Holm over ``family`` correlations.
        by_axis: psi of optimizer, seed and fold, of groups in which only that one varies.
        psi: their mean.
    """

    data: str
    quantity: Quantity
    tau: Estimate
    by_axis: dict[str, Estimate] = field(default_factory=dict)
    psi: float = math.nan
    corrected: float = math.nan
    family: int = 0


class Results:
    """The runs of a study that are compared, by data set and optimizer.

    Args:
        study: its table, which says in which order names are shown.
        runs: of the CSV, trials too.

    Attributes:
        runs, trials: those that are compared, and those that chose values.
        data, optimizers: the names that any run has, in the table's order.
        score: what "better" is of, and the test error what is missing of it to 100 %.

    Raises:
        ValueError: a run's data set or optimizer is none of the table's, or there is no run.
    """

    def __init__(self, study: Study, runs: Sequence[TrainedRun]) -> None:
        self.study = study
        self.runs = [run for run in runs if run.stage == "run"]
        self.trials = [run for run in runs if run.stage == "trial"]
        known = {
            "data": [d.name for d in study.data],
            "optimizer": [o.name for o in study.optimizers],
        }
        for run in runs:
            for name, names in known.items():
                if getattr(run, name) not in names:
                    raise ValueError(
                        f"{study.path}: has no {name} {getattr(run, name)!r}, of which the file of "
                        "runs has one; is it another study's?"
                    )
        # By what validation chose, test samples judge too: heartbeats' accuracy says little.
        self.score = F1 if study.trials.select == "val_f1" else ACCURACY
        if not self.runs:
            raise ValueError(f"{study.path}: no finished run to report on yet, only trials")
        self.data = [name for name in known["data"] if any(r.data == name for r in self.runs)]
        self.optimizers = [
            name for name in known["optimizer"] if any(r.optimizer == name for r in self.runs)
        ]

    def of(self, data: str, optimizer: str) -> list[TrainedRun]:
        return [run for run in self.runs if (run.data, run.optimizer) == (data, optimizer)]

    def test_to_train(self, data: str) -> float:
        """Size of a fold's test set over its training set's; 0 where there are no folds."""
        if all(run.fold is None for run in self.runs if run.data == data):
            return 0.0
        flags = next(d.flags for d in self.study.data if d.name == data)
        folds = {**self.study.flags, **flags, **self.study.changes}.get("folds", FOLDS)
        return held_out_ratio(int(str(folds)), INNER_FOLDS)

    def mean(self, data: str, optimizer: str, quantity: Quantity) -> Estimate | None:
        """Over the optimizer's runs in which it was measured; None where in none."""
        values = [quantity.of(run) for run in self.of(data, optimizer)]
        measured = [value for value in values if value is not None]
        return mean_interval(measured, self.test_to_train(data)) if measured else None

    # --- who is compared to whom ------------------------------------------------------------------
    def partners(self, data: str, optimizer: str) -> dict[str, str]:
        """Whom an optimizer is compared to, and how: by kind, in the order of a table.

        The base itself has none; the base of more epochs is compared to the base.
        """
        base = self.study.base
        if optimizer == base or not self.of(data, base):
            return {}
        family = [name for name in self.optimizers if self._is_base(name) and self.of(data, name)]
        if optimizer in family:
            times = self._budget(data, optimizer, "epochs") / self._budget(data, base, "epochs")
            return {f"{times:.3g} x the epochs": base}
        found: dict[str, list[str]] = {}
        for kind in ("epochs", "passes"):
            mine = self._budget(data, optimizer, kind)
            equal = [
                name
                for name in family
                if abs(self._budget(data, name, kind) - mine) <= EQUAL * mine
            ]
            if equal:
                found.setdefault(equal[0], []).append(kind)
        return {f"equal {' and '.join(kinds)}": name for name, kinds in found.items()}

    def _is_base(self, name: str) -> bool:
        """Whether it is the base, trained for as long as it usually is or for longer."""
        base, other = self.study.optimizer(self.study.base), self.study.optimizer(name)
        return other.chosen_for == base.chosen_for and dict(other.flags) == dict(base.flags)

    def _budget(self, data: str, optimizer: str, kind: str) -> float:
        values = [run.numbers[kind] for run in self.of(data, optimizer) if kind in run.numbers]
        return float(np.median(values)) if values else math.nan

    # --- comparisons ------------------------------------------------------------------------------
    def comparisons(self, quantity: Quantity) -> list[Comparison]:
        """All of one quantity, corrected for their number."""
        made = [
            comparison
            for data in self.data
            for optimizer in self.optimizers
            for kind, against in self.partners(data, optimizer).items()
            if (comparison := self._compare(data, optimizer, against, kind, quantity))
        ]
        corrected = holm([c.estimate.p for c in made])
        family = sum(not math.isnan(p) for p in corrected)
        return [
            replace(c, corrected=p, family=family) for c, p in zip(made, corrected, strict=True)
        ]

    def _compare(
        self, data: str, optimizer: str, against: str, kind: str, quantity: Quantity
    ) -> Comparison | None:
        by_pair = []
        for name in (optimizer, against):
            measured = {run.pair: quantity.of(run) for run in self.of(data, name)}
            by_pair.append({pair: v for pair, v in measured.items() if v is not None})
        # One for a whole column of a table: a trace may be below 0 in a single run.
        ratio = quantity.ratio and all(value > 0 for _, value in self._measured(data, quantity))
        if ratio:
            by_pair = [{pair: math.log(v) for pair, v in values.items()} for values in by_pair]
        differences, alone = paired(by_pair[0], by_pair[1])
        if not len(differences):
            return None
        names = tuple(
            f"{optimizer if pair in by_pair[0] else against}, {pair_text(pair)}" for pair in alone
        )
        estimate = mean_interval(differences, self.test_to_train(data))
        return Comparison(data, optimizer, against, kind, quantity, estimate, ratio, names)

    # --- rank correlations ------------------------------------------------------------------------
    def correlations(self, quantities: Sequence[Quantity]) -> list[Correlation]:
        """Of each measure with the test error, on each data set, corrected for their number."""
        found = [
            correlation
            for data in self.data
            for quantity in quantities
            if (correlation := self._correlate(data, quantity)) is not None
        ]
        corrected = holm([c.tau.p for c in found])
        family = sum(not math.isnan(p) for p in corrected)
        return [
            replace(c, corrected=p, family=family) for c, p in zip(found, corrected, strict=True)
        ]

    def _correlate(self, data: str, quantity: Quantity) -> Correlation | None:
        minima = self.minima(data, quantity)
        if len(minima) < 2:
            return None
        sharpness = [value for _, value, _ in minima]
        errors = [error for _, _, error in minima]
        runs = [run for run, _, _ in minima]
        settings = [{"optimizer": r.optimizer, "seed": r.seed, "fold": r.fold} for r in runs]
        taus = granulated_kendall(sharpness, errors, settings)
        by_axis = {axis: Estimate(float(v.mean()), n=len(v)) for axis, v in taus.items()}
        if "optimizer" in taus:
            # A group has one seed and fold to itself, so that groups are as independent as folds;
            # those in which seed or fold varies share them, and their mean gets no interval.
            by_axis["optimizer"] = mean_interval(taus["optimizer"], self.test_to_train(data))
        psi = float(np.mean([each.value for each in by_axis.values()])) if by_axis else math.nan
        tau = kendall(sharpness, errors, [run.pair for run in runs])
        return Correlation(data, quantity, tau, by_axis, psi)

    def minima(self, data: str, quantity: Quantity) -> list[tuple[TrainedRun, float, float]]:
        """The runs in which it was measured, with its value and the test error in percent."""
        found = [(run, value, self.score.of(run)) for run, value in self._measured(data, quantity)]
        return [(run, value, 100 - score) for run, value, score in found if score is not None]

    def _measured(self, data: str, quantity: Quantity) -> list[tuple[TrainedRun, float]]:
        values = [(run, quantity.of(run)) for run in self.runs if run.data == data]
        return [(run, value) for run, value in values if value is not None]


def pair_text(pair: tuple[int, int | None]) -> str:
    """Seed and fold for people."""
    seed, fold = pair
    return f"seed {seed}" if fold is None else f"seed {seed}, fold {fold}"
