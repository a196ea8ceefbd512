"""Sentences made from numbers, which claim no more than these carry.

A difference is claimed only where its 95 % interval is without 0 and its p-value, corrected for
the number of comparisons, is below 0.05. Else two "can't be told apart", which does not say that
they are equal: the interval says how far apart they may be.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace

from studies.comparisons import Comparison, Correlation
from utilities.statistics import Estimate

LEVEL = 0.05


def carries(estimate: Estimate, corrected: float) -> bool:
    """Whether the numbers carry a claim that something isn't 0."""
    outside = estimate.low > 0 or estimate.high < 0  # False for NaN
    return bool(outside and corrected < LEVEL)


def comparison_sentence(comparison: Comparison) -> str:
    """What an optimizer does better, worse, flatter or sharper than another, if it can be said."""
    c = comparison
    whose, others = _of(c.optimizer, f" {c.quantity.text}", "the"), _of(c.against, "", "that")
    if math.isnan(c.estimate.low):
        return f"{whose} can't be judged beside {others}: {c.estimate.reason} ({effect(c)})"
    if not carries(c.estimate, c.corrected):
        return f"{whose} can't be told apart from {others}: {effect(c)} ({evidence(c)})"
    word = c.quantity.more if c.estimate.value > 0 else c.quantity.less
    if c.ratio:
        minima, others = _of(c.optimizer, " minima", "the"), _of(c.against, "", "those")
        return f"{minima} are {word} than {others}: {effect(c)} ({evidence(c)})"
    e = c.estimate
    if e.value < 0:  # the word says the direction
        e = replace(e, value=-e.value, low=-e.high, high=-e.low)
    size, low, high = rounded([e.value, e.low, e.high], [e.value, e.low, e.high], 0.0)
    size += f" {c.quantity.unit}" if c.quantity.unit else ""
    return f"{whose} is {word} than {others} by {size} ({evidence(c, low, high)})"


def _of(name: str, what: str, article: str) -> str:
    """As in "SAM's minima", or in 'the minima of "SAM, late"' where a name is more than a word."""
    return f"{name}'s{what}" if re.fullmatch(r"[\w+-]+", name) else f'{article}{what} of "{name}"'


def effect(c: Comparison) -> str:
    """The difference, or the ratio."""
    (value,) = numbers(c, [c.estimate.value])
    if c.ratio:
        return f"{c.quantity.text} is {value} times as large"
    return f"difference {value}" + (f" {c.quantity.unit}" if c.quantity.unit else "")


def evidence(c: Comparison, low: str = "", high: str = "") -> str:
    """Interval, p-value and number of pairs."""
    if not low:
        low, high = numbers(c, [c.estimate.low, c.estimate.high])
    pairs = f"{c.estimate.n} pairs of runs"
    return f"95 % interval {low} to {high}, {p_text(c)}, {pairs}"


def numbers(c: Comparison, values: list[float]) -> list[str]:
    """Values of a comparison as text; no rounding moves an end of the interval over 0 or 1."""
    e = c.estimate
    known = [v for v in (e.value, e.low, e.high) if not math.isnan(v)]
    if c.ratio:
        return rounded([_exp(v) for v in values], [_exp(v) for v in known], 1.0, 2)
    return rounded(values, known, 0.0, sign=True)


def rounded(
    values: list[float], known: list[float], neutral: float, digits: int = 1, sign: bool = False
) -> list[str]:
    """``values`` with so many digits that each of ``known`` stays on its side of ``neutral``.

    Args:
        values: to be written, all with as many digits after the point where that can be.
        known: value and ends of one interval.
        neutral: what says "no difference".
        digits: after the point, at least.
        sign: whether to write a plus.
    """
    plus = "+" if sign else ""
    far = [abs(v - neutral) for v in known if v != neutral]
    if any(d < 1e-6 or d >= 1e6 for d in far):
        return [_significant(v, neutral, plus) for v in values]
    while any(d <= 0.5 * 10.0**-digits for d in far):
        digits += 1
    return [f"{v:{plus}.{digits}f}" for v in values]


def _significant(value: float, neutral: float, plus: str) -> str:
    texts = (f"{value:{plus}.{digits}g}" for digits in range(3, 18))
    return next(t for t in texts if (float(t) == neutral) == (value == neutral))


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))


def p_text(c: Comparison | Correlation) -> str:
    """The corrected p-value, and over how many comparisons."""
    kind = "comparison" if isinstance(c, Comparison) else "correlation"
    over = f"{c.family} {kind}" + ("" if c.family == 1 else "s")
    return f"{p_number(c.corrected)} after Holm over {over}"


def p_number(p: float) -> str:
    """Rounded so that no p moves over the level at which a claim is made."""
    if math.isnan(p):
        return "no p"
    if p < 0.001:
        return "p < 0.001"
    text = f"{p:.2g}" if p < 0.1 else f"{p:.2f}"
    return f"p = {text if (float(text) < LEVEL) == (p < LEVEL) else f'{p:.5f}'}"


def correlation_sentence(correlation: Correlation) -> str:
    """Whether minima that are flatter in a measure have the lower test error."""
    c, tau = correlation, correlation.tau
    name = c.quantity.text
    if math.isnan(tau.value):
        return f"nothing can be said of {name} and the test error: {tau.reason}"
    if math.isnan(tau.low):
        return (
            f"nothing can be said of {name} and the test error: {tau.reason} (tau {tau.value:.2f} "
            f"over {tau.n} minima)"
        )
    value, low, high = rounded(
        [tau.value, tau.low, tau.high], [tau.value, tau.low, tau.high], 0.0, 2, sign=True
    )
    said = f"(tau {value}, 95 % interval {low} to {high}, {p_text(c)}, {tau.n} minima)"
    if not carries(tau, c.corrected):
        return f"no relation of {name} and the test error can be told {said}"
    flatter = "lower" if tau.value > 0 else "higher"
    return f"minima with a smaller {name} have the {flatter} test error {said}"


def list_text(names: list[str]) -> str:
    """Names as a reader would write them: "A, B and C"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else "none"
