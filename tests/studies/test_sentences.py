"""No sentence claims what its interval and its corrected p-value don't carry."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from studies.comparisons import ACCURACY, LAMBDA_MAX, Comparison, Correlation
from studies.sentences import (
    comparison_sentence,
    correlation_sentence,
    list_text,
    p_number,
    rounded,
)
from utilities.statistics import Estimate, holm, mean_interval

CLAIMS = {"better": 1, "worse": -1, "sharper": 1, "flatter": -1}
NUMBER = r"[+-]?\d[\d.]*(?:e[+-]\d+)?"
INTERVAL = re.compile(rf"95 % interval ({NUMBER}) to ({NUMBER})")
P = st.one_of(st.floats(0, 1), st.sampled_from([1e-9, 0.049999, 0.05, 0.0500001, math.nan]))


@st.composite
def estimates(draw: st.DrawFn, largest: float) -> Estimate:
    """Any estimate, with or without an interval; its p is the interval's business alone."""
    low, value, high = sorted(round(draw(st.floats(-largest, largest)), 9) for _ in range(3))
    if draw(st.integers(0, 9)) == 0:
        return Estimate(value, n=1, reason="one run")
    return Estimate(value, low, high, 0.01, 7)


def comparison(values: list[float], p_values: list[float], ratio: bool) -> Comparison:
    quantity = LAMBDA_MAX if ratio else ACCURACY
    estimate = mean_interval(np.array(values) / (10 if ratio else 1), 0.1)
    corrected = holm([estimate.p, *p_values])[0]
    family = len(p_values) + 1
    words = ("MUTAG", "SAM", "ADAM, late", "equal epochs", quantity, estimate, ratio)
    return Comparison(*words, corrected=corrected, family=family)


@given(estimates(50), P, st.booleans())
def test_a_claim_has_an_interval_without_zero_and_a_small_corrected_p(
    estimate: Estimate, corrected: float, ratio: bool
) -> None:
    quantity = LAMBDA_MAX if ratio else ACCURACY
    words = ("MUTAG", "SAM", "ADAM, late", "equal epochs", quantity, estimate, ratio)
    made = Comparison(*words, corrected=corrected, family=3)
    text = comparison_sentence(made)
    claims = [word for word in CLAIMS if re.search(rf"\b{word}\b", text)]
    carried = made.corrected < 0.05 and (estimate.low > 0 or estimate.high < 0)
    assert len(claims) == carried, text
    shown = INTERVAL.search(text)
    if math.isnan(estimate.low):
        assert shown is None and "can't be judged" in text and estimate.reason in text
        return
    assert shown is not None
    low, high = map(float, shown.groups())
    neutral = 1 if ratio else 0
    if not claims:
        assert "can't be told apart" in text
        # What is printed lies on the side on which the numbers are.
        assert [np.sign(low - neutral), np.sign(high - neutral)] == [
            np.sign(estimate.low),
            np.sign(estimate.high),
        ]
        return
    assert np.sign(estimate.value) == CLAIMS[claims[0]]
    assert (low > neutral or high < neutral) and (ratio or low > 0)
    assert f"after Holm over {made.family} comparison" in text


def test_the_sentences_as_people_read_them() -> None:
    better = comparison([1.0, 1.5, 1.2, 1.4], [0.2], False)
    assert re.fullmatch(
        r"SAM's test accuracy is better than that of \"ADAM, late\" by 1\.3 points \(95 % interval "
        r"0\.9 to 1\.7, p = 0\.00\d+ after Holm over 2 comparisons, 4 pairs of runs\)",
        comparison_sentence(better),
    )
    worse = comparison([-1.0, -1.5, -1.2, -1.4], [], False)
    assert 'worse than that of "ADAM, late" by 1.3 points (95 % interval 0.9 to 1.7' in (
        comparison_sentence(worse)
    )
    flat = comparison([-7.0, -7.5, -6.8, -7.2], [], True)
    assert comparison_sentence(flat).startswith(
        'SAM\'s minima are flatter than those of "ADAM, late": lambda_max is 0.49 times as large'
    )
    same = comparison([1.0, -1.5, 1.2], [0.01], False)
    assert 'can\'t be told apart from that of "ADAM, late": difference +0.2 points (95 % ' in (
        comparison_sentence(same)
    )
    alone = comparison([2.0], [], False)
    assert comparison_sentence(alone) == (
        "SAM's test accuracy can't be judged beside that of \"ADAM, late\": one run (difference "
        "+2.0 points)"
    )


@given(estimates(1), P)
def test_a_relation_is_claimed_only_where_tau_carries_it(tau: Estimate, corrected: float) -> None:
    made = Correlation("MUTAG", LAMBDA_MAX, tau, corrected=corrected, family=3)
    text = correlation_sentence(made)
    lower, higher = "have the lower test error" in text, "have the higher test error" in text
    assert lower == bool(corrected < 0.05 and tau.low > 0)
    assert higher == bool(corrected < 0.05 and tau.high < 0)
    if math.isnan(tau.low):
        assert text.startswith("nothing can be said") and tau.reason in text


finite = st.floats(-1e12, 1e12)


@given(st.lists(finite, min_size=1, max_size=3), st.sampled_from([0.0, 1.0]), st.booleans())
def test_rounding_moves_nothing_over_the_neutral_value(
    values: list[float], neutral: float, sign: bool
) -> None:
    for text, value in zip(rounded(values, values, neutral, 1, sign), values, strict=True):
        assert np.sign(float(text) - neutral) == np.sign(value - neutral)
        assert float(text) == pytest.approx(value, rel=0.01, abs=0.06)


@given(st.floats(0, 1))
def test_no_p_is_rounded_over_the_level(p: float) -> None:
    text = p_number(p)
    if text == "p < 0.001":
        assert p < 0.001
    else:
        shown = float(text.removeprefix("p = "))
        assert (shown < 0.05) == (p < 0.05) and shown == pytest.approx(p, rel=0.06)


def test_lists_and_what_has_no_p() -> None:
    assert [list_text(n) for n in ([], ["A"], ["A", "B"], ["A", "B", "C"])] == [
        *("none", "A", "A and B", "A, B and C")
    ]
    assert p_number(math.nan) == "no p"
    nothing = Correlation("MUTAG", LAMBDA_MAX, Estimate(math.nan, n=4, reason="all the same"))
    assert correlation_sentence(nothing).endswith("all the same")
