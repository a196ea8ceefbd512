"""The sections of a report in Markdown, each made from numbers alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from studies.comparisons import (
    ACCURACY,
    F1,
    GAP,
    LAMBDA_MAX,
    Comparison,
    Correlation,
    Quantity,
    Results,
    flatness_quantities,
)
from studies.runs_file import TrainedRun
from studies.sentences import (
    carries,
    comparison_sentence,
    correlation_sentence,
    list_text,
    numbers,
    p_number,
    rounded,
)
from studies.statistics import Estimate
from studies.table import SELECT, Optimizer
from utilities.tables import table

NONE = "-"
TRAINED = "SAM"  # whose minima the first question is about
SHOWN_UNPAIRED = 12

METHODS = """
- Intervals are of 95 %, of the mean over runs, by Student's t. Over the folds of a
  cross-validation, whose training sets overlap, the variance is corrected as Nadeau and Bengio
  (2003) have it, n being folds times seeds.
  Without folds all seeds have the same test
  samples: the interval is that of other seeds, not that of other samples.
- Differences are of runs of one seed and one fold, which share split and first weights. P-values
  are corrected by Holm's method over all comparisons of one quantity in this report. Bold, or a
  filled mark, is what interval and corrected p-value both carry; all else can't be told apart,
  which does not say that it is equal. Eigenvalues and sharpness are compared by their ratio, where
  they are above 0.
- Equal epochs give SAM two passes through the network a step where its base takes one; at equal
  passes the base trains for more epochs.
- The test error is what is missing to 100 % of the accuracy, or of macro F1 where validation
  chose by that. Tau is Kendall's tau-b of it and a measure of sharpness over all minima of a data
  set; above 0, flatter minima have the lower error. Its interval leaves out one seed and fold at a
  time (jackknife of Fisher's z), as their minima share a split. Psi is tau within the groups in
  which only the optimizer, only the seed or only the fold varies, and the mean of these (Jiang et
  al. 2020): where tau comes from one of them alone, psi tells. All of them are correlations: they
  can't say that flatness is the cause.
- What was tuned was chosen on validation; test samples chose nothing.
"""


@dataclass
class Analysis:
    """All that a report says in numbers; each corrected once, over the whole report."""

    results: Results
    quantities: list[Quantity] = field(init=False)
    differences: dict[str, list[Comparison]] = field(init=False)
    correlations: list[Correlation] = field(init=False)

    def __post_init__(self) -> None:
        runs = self.results.runs
        self.quantities = flatness_quantities(runs)
        compared = [q for q in (ACCURACY, F1, GAP) if any(q.of(run) is not None for run in runs)]
        self.differences = {
            q.name: self.results.comparisons(q) for q in (*compared, *self.quantities)
        }
        self.correlations = self.results.correlations(self.quantities)

    def of(self, quantity: Quantity, data: str) -> list[Comparison]:
        """A data set's comparisons in one quantity."""
        return [c for c in self.differences.get(quantity.name, []) if c.data == data]

    def correlations_of(self, data: str) -> list[Correlation]:
        return [c for c in self.correlations if c.data == data]


# --- Markdown -------------------------------------------------------------------------------------
def text(value: str) -> str:
    """A name from a file as plain text in Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>|#$~&])", r"\\\1", " ".join(value.split()))


def code(value: str) -> str:
    """A name from a file as code, in a table too."""
    return f"`{' '.join(value.split()).replace('`', chr(39)).replace('|', '/')}`"


def mean_text(estimate: Estimate | None, digits: int | None = 2) -> str:
    """A mean and half the width of its interval; "no interval" is said by its absence."""
    if estimate is None:
        return NONE
    if digits is None:
        return _significant(estimate)
    half = (estimate.high - estimate.low) / 2
    return f"{estimate.value:.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")


def _significant(estimate: Estimate) -> str:
    """With two significant digits of the half width, or three of the mean without one."""
    half = (estimate.high - estimate.low) / 2
    if math.isnan(half) or not 1e-300 < half < 1e300:
        return f"{estimate.value:.3g}"
    digits = 1 - math.floor(math.log10(half))
    if not 0 <= digits <= 5 or abs(estimate.value) >= 1e5:
        return f"{estimate.value:.3g} ± {half:.2g}"
    return f"{estimate.value:.{digits}f} ± {half:.{digits}f}"


def difference_text(c: Comparison | None) -> str:
    """A difference or ratio and its interval, bold where it is claimed."""
    if c is None:
        return NONE
    e = c.estimate
    if math.isnan(e.low):
        return f"{numbers(c, [e.value])[0]} ({text(e.reason)})"
    value, low, high = numbers(c, [e.value, e.low, e.high])
    shown = f"{value} ({low} to {high})"
    return f"**{shown}**" if carries(e, c.corrected) else shown


# --- the answers ----------------------------------------------------------------------------------
def answers(analysis: Analysis) -> str:
    """The two questions, and whether it pays, each one sentence a data set."""
    score = analysis.results.score
    parts = [
        ("Is SAM flatter?", LAMBDA_MAX, "lambda\\_max was measured of no run"),
        ("Is SAM better?", score, f"no run has a {score.text}"),
    ]
    lines = []
    for question, quantity, nothing in parts:
        lines += [f"## {question}", ""]
        for data in analysis.results.data:
            lines.append(f"- {text(data)}: {_answer(analysis, data, quantity, nothing)}.")
        lines.append("")
    lines += ["## Is flatter better?", ""]
    for data in analysis.results.data:
        lines.append(f"- {text(data)}: {_flatter_better(analysis, data)}.")
    return "\n".join(lines)


def _answer(analysis: Analysis, data: str, quantity: Quantity, nothing: str) -> str:
    comparisons = analysis.of(quantity, data)
    own = [c for c in comparisons if c.optimizer == TRAINED]
    if not own:
        missing = TRAINED not in analysis.results.optimizers
        return f"no run of {TRAINED}" if missing else nothing if not comparisons else "no pair yet"
    said = [f"at {c.kind} {text(comparison_sentence(c))}" for c in own]
    others = [
        c for c in comparisons if c.optimizer != TRAINED and c.kind.startswith("equal epochs")
    ]
    groups = {quantity.less: -1, quantity.more: 1}
    for word, sign in groups.items():
        names = [
            text(c.optimizer)
            for c in others
            if carries(c.estimate, c.corrected) and math.copysign(1, c.estimate.value) == sign
        ]
        base = text(analysis.results.study.base)
        said += [f"{word} than {base} at equal epochs: {list_text(names)}"] if names else []
    return "; ".join(said)


def _flatter_better(analysis: Analysis, data: str) -> str:
    correlations = analysis.correlations_of(data)
    if not correlations:
        return "no measure of sharpness yet"
    first = correlations[0]
    said = text(correlation_sentence(first))
    psi = first.by_axis.get("optimizer")
    if psi is not None:
        span = ""
        if not math.isnan(psi.low):
            low, high = rounded([psi.low, psi.high], [psi.low, psi.high], 0.0, 2, sign=True)
            span = f" ({low} to {high})"
        said += f"; within one seed and fold, over optimizers, {psi.value:+.2f}{span}"
    if len(correlations) > 1:
        claimed = [c for c in correlations if carries(c.tau, c.corrected)]
        lower = sum(c.tau.value > 0 for c in claimed)
        said += (
            f"; a smaller value goes with the lower test error in {lower} and with the higher one "
            f"in {len(claimed) - lower} of {len(correlations)} measures"
        )
    return said


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


def _flags(flags: Mapping[str, object]) -> str:
    return f"; {code(_flag_text(flags))}" if flags else ""


def _flag_text(flags: Mapping[str, object]) -> str:
    return " ".join(f"--{key}={value}" for key, value in flags.items()) or "the task's defaults"


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

    A first value of 0 is no edge: nothing lies beyond.
    """
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


# --- a data set -----------------------------------------------------------------------------------
TEST = (
    ACCURACY,
    F1,
    Quantity("test_loss", "test loss", digits=4),
    GAP,
    Quantity("train_acc", "train accuracy", digits=2),
    Quantity("val_acc", "val accuracy", digits=2),
    Quantity("best_epoch", "best epoch", digits=0),
)


def results_table(results: Results, data: str) -> str:
    """Means and intervals over runs, and the median time of a run."""
    header = ["optimizer", "runs", *(_head(q) for q in TEST), "seconds"]
    rows = []
    for name in results.optimizers:
        runs = results.of(data, name)
        if not runs:
            continue
        means = [mean_text(results.mean(data, name, q), q.digits) for q in TEST]
        means = [
            m if q.name != "best_epoch" else m.split()[0] for m, q in zip(means, TEST, strict=True)
        ]
        seconds = [r.numbers["seconds"] for r in runs if "seconds" in r.numbers]
        time = f"{np.median(seconds):.3g}" if seconds else NONE
        rows.append([text(name), str(len(runs)), *means, time])
    return table(header, rows)


def _head(quantity: Quantity) -> str:
    percent = quantity.unit == "points" or quantity.name in ("train_acc", "val_acc")
    unit = " (points)" if quantity.name == "gap" else " (%)" if percent else ""
    return quantity.text + unit


def differences_table(analysis: Analysis, data: str) -> str:
    """Paired differences to the base, of accuracy, macro F1 and generalisation gap."""
    columns = [q for q in (ACCURACY, F1, GAP) if analysis.of(q, data)]
    header = ["optimizer", "against", "at", "pairs"]
    header += [part for q in columns for part in (f"{q.text} (points)", "p (Holm)")]
    found = [_by_row(analysis.of(q, data)) for q in columns]
    rows = []
    for key in dict.fromkeys(key for each in found for key in each):
        made = [each.get(key) for each in found]
        pairs = max(c.estimate.n for c in made if c is not None)
        cells = [
            cell
            for c in made
            for cell in (difference_text(c), p_number(c.corrected) if c else NONE)
        ]
        rows.append([*map(text, key), str(pairs), *(_short_p(cell) for cell in cells)])
    return table(header, rows) if rows else "No pair of runs yet."


def _short_p(cell: str) -> str:
    return cell.removeprefix("p = ").replace("p <", "<").replace("no p", NONE)


def _by_row(comparisons: Sequence[Comparison]) -> dict[tuple[str, str, str], Comparison]:
    return {(c.optimizer, c.against, c.kind): c for c in comparisons}


def in_words(analysis: Analysis, data: str) -> str:
    """A sentence for each comparison of the score."""
    return "\n".join(
        f"- At {c.kind}: {text(comparison_sentence(c))}."
        for c in analysis.of(analysis.results.score, data)
    )


def sharpness_table(analysis: Analysis, data: str) -> str:
    """The mean of each measure over an optimizer's minima."""
    results = analysis.results
    rows = []
    for name in results.optimizers:
        means = [results.mean(data, name, q) for q in analysis.quantities]
        if any(means):
            count = max(mean.n for mean in means if mean)
            rows.append([text(name), str(count), *(mean_text(mean, None) for mean in means)])
    return table(["optimizer", "minima", *(text(q.text) for q in analysis.quantities)], rows)


def ratios_table(analysis: Analysis, data: str) -> str:
    """How many times the base's each measure is; the difference where it is not above 0."""
    found = [_by_row(analysis.of(q, data)) for q in analysis.quantities]
    keys = list(dict.fromkeys(key for each in found for key in each))
    rows = [[*map(text, key), *(difference_text(each.get(key)) for each in found)] for key in keys]
    heads = []
    for quantity, each in zip(analysis.quantities, found, strict=True):
        ratio = all(c.ratio for c in each.values())
        heads.append(text(quantity.text) + ("" if ratio else " (difference)"))
    return table(["optimizer", "against", "at", *heads], rows)


def correlations_table(analysis: Analysis, data: str) -> str:
    """Tau of each measure with the test error, and psi by what varies."""
    axes = ("optimizer", "seed", "fold")
    header = ["measure", "minima", "tau (95 % interval)", "p (Holm)"]
    header += [f"psi, {axis} varies" for axis in axes] + ["Psi"]
    rows = []
    for c in analysis.correlations_of(data):
        psi = [_psi(c.by_axis.get(axis)) for axis in axes]
        tau = _tau(c.tau)
        shown = f"**{tau}**" if carries(c.tau, c.corrected) else tau
        p = _short_p(p_number(c.corrected))
        mean = NONE if math.isnan(c.psi) else f"{c.psi:+.2f}"
        rows.append([text(c.quantity.text), str(c.tau.n), shown, p, *psi, mean])
    return table(header, rows)


def _tau(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return f"none ({text(estimate.reason)})"
    ends = [estimate.value, estimate.low, estimate.high]
    if math.isnan(estimate.low):
        return f"{estimate.value:+.2f} ({text(estimate.reason)})"
    value, low, high = rounded(ends, ends, 0.0, 2, sign=True)
    return f"{value} ({low} to {high})"


def _psi(estimate: Estimate | None) -> str:
    if estimate is None:
        return NONE
    return f"{estimate.value:+.2f}" if math.isnan(estimate.low) else _tau(estimate)


# --- what is missing ------------------------------------------------------------------------------
def completeness(results: Results) -> str:
    """How many of the planned runs are in the report."""
    planned = results.study.planned()
    said = f"{len(results.runs)} of {planned['runs']} planned runs are in this report"
    trials = f"{len(results.trials)} of {planned['trials']} trials"
    measured = sum("lambda_max" in run.numbers for run in results.runs)
    return f"{said}, and {trials}; lambda\\_max was measured of {measured} of the runs."


def missing(analysis: Analysis) -> str:
    """Which planned runs are not there, by data set and optimizer, and which have no partner."""
    results, study = analysis.results, analysis.results.study
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
    unpaired = {
        f"{text(c.data)}, {text(name)}": None
        for c in analysis.differences.get(results.score.name, [])
        for name in c.unpaired
    }
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
