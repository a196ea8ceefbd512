"""Intervals and p-values against scipy, statsmodels, closed forms and simulations."""

from __future__ import annotations

import math
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from utilities.statistics import (
    Estimate,
    granulated_kendall,
    half_width,
    held_out_ratio,
    holm,
    kendall,
    mean_interval,
    paired,
)

VALUES = [81.2, 79.0, 84.4, 80.1, 78.7]
numbers = st.floats(-1e6, 1e6).map(lambda v: round(v, 3))


# --- means ----------------------------------------------------------------------------------------
def test_independent_runs_get_students_interval_and_p() -> None:
    values = np.array(VALUES) - 78
    theirs, ours = stats.ttest_1samp(values, 0), mean_interval(values)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    assert (ours.value, ours.p, ours.n) == pytest.approx((values.mean(), theirs.pvalue, 5))
    assert half_width(values) == pytest.approx((ours.high - ours.low) / 2)
    assert half_width(np.stack([values, 3 * values], axis=1)) == pytest.approx(
        half_width(values) * np.array([1, 3])
    )
    assert np.isnan(half_width(values[:1])) and half_width(np.ones((1, 4))).shape == (4,)


def test_folds_get_the_variance_of_nadeau_and_bengio() -> None:
    n, ratio, spread = len(VALUES), 1 / 9, np.std(VALUES, ddof=1)
    ours = mean_interval(VALUES, ratio)
    half = 2.7764451052 * spread * math.sqrt(1 / n + ratio)  # t of 4 degrees, from a table
    assert (ours.low, ours.high) == pytest.approx((ours.value - half, ours.value + half))
    t = ours.value / (spread * math.sqrt(1 / n + ratio))
    assert ours.p == pytest.approx(2 * stats.t.sf(t, n - 1))


def test_the_share_of_a_fold_is_that_of_the_splits() -> None:
    assert held_out_ratio(10, 10) == pytest.approx(0.1 / (0.9 * 0.9))
    with pytest.raises(ValueError, match="2 or more"):
        held_out_ratio(1, 10)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([3.0], "one run"),
        ([2.5] * 4, "all 4 values are the same"),
        ([0.0, 0.0], "same"),
        ([0.1 + 0.2, 0.3], "same"),
    ],
)
def test_what_has_no_spread_has_no_interval(values: list[float], reason: str) -> None:
    ours = mean_interval(values, 0.1)
    assert math.isnan(ours.low) and math.isnan(ours.high) and math.isnan(ours.p)
    assert reason in ours.reason and ours.value == pytest.approx(values[0])


@pytest.mark.parametrize("bad", [[], [1.0, math.nan], [math.inf]])
def test_what_is_no_number_is_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="finite numbers"):
        mean_interval(bad)
    with pytest.raises(ValueError, match="finite numbers"):
        kendall(bad, [1.0] * len(bad))


def test_students_interval_covers_in_95_of_100_studies() -> None:
    rng = np.random.default_rng(0)
    found = [mean_interval(rng.normal(1, 2, 3)) for _ in range(2000)]
    assert 0.94 < np.mean([e.low <= 1 <= e.high for e in found]) < 0.96


def cross_validations(rng: np.random.Generator, ratio: float) -> tuple[bool, float]:
    """Whether the interval of a repeated cross-validation covers the learner's expected error.

    The learner predicts the mean of the samples that it has seen, of variance 1: its expected
    squared error is 1 + 1 / samples. All folds and repeats take from one set of samples.
    """
    samples, folds, repeats = 60, 10, 3
    data, errors = rng.normal(size=samples), []
    for _ in range(repeats):
        for test in np.split(rng.permutation(samples), folds):
            train = np.delete(data, test)
            errors.append(float(((data[test] - train.mean()) ** 2).mean()))
    ours = mean_interval(errors, ratio)
    return ours.low <= 1 + 1 / (samples - samples // folds) <= ours.high, ours.high - ours.low


def test_the_corrected_interval_of_folds_covers_where_students_does_not() -> None:
    rng = np.random.default_rng(1)
    shares = {r: np.mean([cross_validations(rng, r)[0] for _ in range(500)]) for r in (0, 1 / 9)}
    assert shares[0] < 0.85  # as if the 30 folds were 30 studies
    assert shares[1 / 9] > 0.93


# --- pairs ----------------------------------------------------------------------------------------
def test_only_runs_of_one_seed_and_fold_are_pairs() -> None:
    sam = {(1, 0): 80.0, (1, 1): 70.0, (2, 0): 60.0}
    adam = {(2, 0): 59.0, (1, 0): 82.0, (3, 0): 1.0}
    differences, alone = paired(sam, adam)
    assert differences.tolist() == [-2.0, 1.0]
    assert alone == [(1, 1), (3, 0)]
    assert paired(sam, {})[0].tolist() == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_is_that_of_statsmodels(p: list[float]) -> None:
    with patch("gc.collect"):  # which statsmodels calls each time, and which takes 0.2 s here
        theirs = multipletests(p, method="holm")[1]
    assert holm(p) == pytest.approx(theirs.tolist())


def test_what_has_no_p_is_no_comparison() -> None:
    assert holm([0.02, math.nan, 0.01])[::2] == pytest.approx([0.02, 0.02])
    assert math.isnan(holm([0.02, math.nan])[1]) and holm([]) == []


# --- rank correlations ----------------------------------------------------------------------------
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=25))
def test_tau_is_that_of_its_formula_with_ties(pairs: list[tuple[int, int]]) -> None:
    x, y = np.array(pairs, dtype=float).T
    ours = kendall(x, y)
    concordant = ties_x = ties_y = total = 0.0
    for i in range(len(x)):
        for j in range(i):
            concordant += np.sign(x[i] - x[j]) * np.sign(y[i] - y[j])
            ties_x, ties_y, total = ties_x + (x[i] == x[j]), ties_y + (y[i] == y[j]), total + 1
    if ties_x == total or ties_y == total:
        assert math.isnan(ours.value) and ours.reason
        return
    expected = concordant / math.sqrt((total - ties_x) * (total - ties_y))
    assert ours.value == pytest.approx(expected, abs=1e-12)
    assert math.isnan(ours.low) == bool(ours.reason)
    assert math.isnan(ours.low) or -1 <= ours.low <= ours.value <= ours.high <= 1


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        ([1, 1, 1], [1, 2, 3], "the same"),
        ([1, 2], [1, 2], "3 are needed"),
        ([1, 2, 3, 4], [1, 2, 3, 4], "too few values that differ"),
    ],
)
def test_no_interval_of_a_tau_that_carries_none(x: list, y: list, reason: str) -> None:
    ours = kendall(x, y)
    assert math.isnan(ours.low) and math.isnan(ours.p) and reason in ours.reason


def minima(
    rng: np.random.Generator, clusters: int, size: int, within: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sharpness and error of minima that share half of their variance with their cluster."""
    both = [[1, within], [within, 1]]
    shared = rng.normal(size=(clusters, 1, 2))
    own = rng.multivariate_normal([0, 0], both, (clusters, size))
    values = (shared + own).reshape(-1, 2)
    return values[:, 0], np.round(values[:, 1], 1), np.repeat(np.arange(clusters), size)


@pytest.mark.parametrize(("clusters", "size", "within"), [(3, 5, 0.0), (10, 4, 0.5), (30, 1, 0.0)])
def test_the_interval_of_tau_covers_though_minima_are_alike(
    clusters: int, size: int, within: float
) -> None:
    rng = np.random.default_rng(2)
    drawn = [minima(rng, clusters, size, within) for _ in range(1500)]
    mean = np.mean([stats.kendalltau(x, y).statistic for x, y, _ in drawn])
    found = [kendall(x, y, c.tolist()) for x, y, c in drawn[:300]]
    assert 0.93 <= np.mean([e.low <= mean <= e.high for e in found]) <= 0.99


def test_the_interval_of_tau_is_the_jackknifes_of_fishers_z() -> None:
    x, y, c = minima(np.random.default_rng(5), 7, 3, 0.5)
    ours, tau = kendall(x, y, c.tolist()), stats.kendalltau(x, y).statistic
    z = np.arctanh([stats.kendalltau(x[c != k], y[c != k]).statistic for k in range(7)])
    half = stats.t.ppf(0.975, 6) * math.sqrt(6 / 7 * ((z - z.mean()) ** 2).sum())
    expected = np.tanh([np.arctanh(tau) - half, np.arctanh(tau) + half])
    assert (ours.value, ours.low, ours.high) == pytest.approx((tau, *expected))


def test_the_p_of_tau_and_its_interval_say_the_same() -> None:
    rng = np.random.default_rng(3)
    for _ in range(100):
        x, y, c = minima(rng, 6, 3, 0.6)
        ours = kendall(x, y, c.tolist())
        assert (ours.p < 0.05) == (ours.low > 0 or ours.high < 0)


def test_granulated_tau_is_that_of_groups_in_which_one_setting_varies() -> None:
    settings = [{"optimizer": o, "fold": f} for f in (0, 1) for o in ("ADAM", "SAM", "ASAM")]
    sharpness = [3.0, 2.0, 1.0, 3.0, 1.0, 2.0]
    errors = [30.0, 20.0, 20.0, 50.0, 60.0, 40.0]
    taus = granulated_kendall(sharpness, errors, settings)
    # Fold 0: two pairs agree and one is tied. Fold 1: (3, 50), (1, 60), (2, 40): -1 + 1 - 1.
    assert taus["optimizer"].tolist() == pytest.approx([2 / 3, -1 / 3])
    # ADAM's two are tied in sharpness; SAM's: 2 > 1 but 20 < 60; ASAM's: 1 < 2 and 20 < 40.
    assert taus["fold"].tolist() == pytest.approx([0, -1, 1])
    alone = granulated_kendall([1, 2], [1, 2], [{"a": 1, "b": 1}, {"a": 2, "b": 1}])
    assert list(alone) == ["a"]
    with pytest.raises(ValueError, match="same settings"):
        granulated_kendall([1, 2], [1, 2], [{"a": 1}, {"a": 1}])


def test_folds_that_are_hard_don_t_pass_for_sharpness() -> None:
    rng = np.random.default_rng(4)
    settings = [{"optimizer": o, "fold": f} for f in range(30) for o in range(4)]
    hard = np.repeat(rng.normal(size=30), 4)
    x, y = hard + 0.1 * rng.normal(size=120), hard + 0.1 * rng.normal(size=120)
    within = mean_interval(granulated_kendall(x, y, settings)["optimizer"])
    assert kendall(x, y, np.repeat(np.arange(30), 4).tolist()).low > 0.5
    assert within.low < 0 < within.high


@given(st.lists(numbers, min_size=2, max_size=12), st.floats(0, 1))
def test_an_interval_is_around_its_mean_or_says_why_not(values: list[float], ratio: float) -> None:
    ours: Estimate = mean_interval(values, ratio)
    if ours.reason:
        assert np.ptp(values) <= 1e-8 * max(map(abs, values))
    else:
        assert ours.low < ours.value < ours.high and 0 <= ours.p <= 1
        assert (ours.p < 0.05) == (ours.low > 0 or ours.high < 0)
