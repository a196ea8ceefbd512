"""The sections of a report in Markdown, each made from numbers alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
from studies.markdown import text
from studies.runs_file import LAMBDA_MAX_ERROR
from studies.sentences import (
    carries,
    comparison_sentence,
    correlation_sentence,
    list_text,
    numbers,
    p_number,
    rounded,
)
from utilities.statistics import Estimate
from utilities.tables import table

NONE = "-"
TRAINED = "SAM"  # whose minima the first question is about

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
- A minimum is the network of the epoch that validation chose, which may be an early one. Train
  accuracy is the mean over that epoch's steps, as they see the training samples: with dropout,
  augmentation and the weights of each step. So it can be below the test accuracy, and the
  generalisation gap, their difference, below 0.
- The test error is what is missing to 100 % of the accuracy, or of macro F1 where validation
  chose by that. Tau is Kendall's tau-b of it and a measure of sharpness over all minima of a data
  set; above 0, flatter minima have the lower error. Its interval leaves out one seed and fold at a
  time (jackknife of Fisher's z), as their minima share a split. Psi is tau within the groups in
  which only the optimizer, only the seed or only the fold varies, and the mean of these (Jiang et
  al. 2020): where tau comes from one of them alone, psi tells. All of them are correlations: they
  can't say that flatness is the cause.
- What was tuned was chosen on validation of seeds that are not compared. With folds the samples
  that trials validate on are test samples of other folds and seeds, for all optimizers alike.
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

    @property
    def judged(self) -> list[Comparison]:
        """The comparisons of the study's score."""
        return self.differences.get(self.results.score.name, [])

    def correlations_of(self, data: str) -> list[Correlation]:
        return [c for c in self.correlations if c.data == data]


# --- numbers -------------------------------------------------------------------------------------
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
    if not -3 <= digits <= 5 or abs(estimate.value) >= 1e5:
        return f"{estimate.value:.3g} ± {half:.2g}"
    mean, half = round(estimate.value, digits) + 0.0, round(half, digits)  # never -0
    return f"{mean:.{max(0, digits)}f} ± {half:.{max(0, digits)}f}"


def _seconds(value: float) -> str:
    """Three digits, but all before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


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
            f"; of {len(correlations)} measures a smaller value can be told to go with the lower "
            f"test error in {lower} and with the higher one in {len(claimed) - lower}"
        )
    return said


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
        time = _seconds(float(np.median(seconds))) if seconds else NONE
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


def samples_note(results: Results, data: str) -> str:
    """What other samples would make of a minimum's lambda_max; "" where no run says it."""
    name, error = LAMBDA_MAX.name, LAMBDA_MAX_ERROR
    measured = [r.numbers for r in results.runs if r.data == data and r.numbers.get(name)]
    shares = [each[error] / abs(each[name]) for each in measured if error in each]
    if not shares:
        return ""
    return text(
        f"{LAMBDA_MAX.text} has a standard error of {np.median(shares):.0%} over draws of as many "
        f"samples (to first order; median over {len(shares)} of {len(measured)} minima); minima of "
        "a pair share their samples."
    )


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
