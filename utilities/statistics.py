"""The statistics of a study: means, paired differences and rank correlations, with intervals.

All intervals are of 95 %. Where the values carry none there is none, and the estimate says why:
of one value, of values that are all the same (a spread of 0 would make any difference certain),
or of ranks that agree wholly. A NaN is refused; what was not measured is left out by the caller.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy import stats

Key = TypeVar("Key", bound=Hashable)
CONFIDENCE = 0.95
SAME = 1e-9  # of the spread of values over the largest: below it they are one value


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Attributes:
        value: the mean or the correlation; NaN if there is none.
        low, high: the interval's ends; NaN if there is none.
        p: two-sided, of the hypothesis that the number is 0; NaN if there is none.
        n: values, or pairs of values, that it is of.
        reason: why there is no interval; "" if there is one.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    n: int = 0
    reason: str = ""


def mean_interval(values: Sequence[float] | np.ndarray, test_to_train: float = 0.0) -> Estimate:
    """Mean, its t interval and the p-value of a mean of 0.

    Of independent runs, such as seeds on one split, this is Student's (1908). Of the folds of a
    cross-validation the training sets overlap, so that the variance of the mean is taken as
    (1 / n + test / train) s^2 (Nadeau and Bengio 2003, Inference for the generalization error,
    equation 9), for a cross-validation that is repeated with other seeds too (Bouckaert and Frank
    2004, section 3.3); n is then folds times seeds. Both have n - 1 degrees of freedom.

    Args:
        values: (n,), of runs, or of differences of paired runs.
        test_to_train: size of a test set over that of its training set; 0 for independent runs.

    Raises:
        ValueError: no values, or one that isn't finite.
    """
    array = _finite(values)
    n, mean = len(array), float(array.mean())
    if n == 1:
        return Estimate(mean, n=n, reason="one run")
    if np.ptp(array) <= SAME * np.abs(array).max():
        return Estimate(mean, n=n, reason=f"all {n} values are the same")
    error = math.sqrt((1 / n + test_to_train) * array.var(ddof=1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, n - 1))
    return Estimate(mean, mean - half, mean + half, p, n)


def half_width(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Half of Student's (1908) 95 % interval of the mean of independent values.

    Args:
        values: (n, ...), of which the mean is taken over the first axis.

    Returns:
        (...), of 0 dimensions for n numbers; NaN for a single value, which tells of no other.
    """
    array = np.asarray(values, dtype=float)
    n = len(array)
    if n < 2:
        return np.full(array.shape[1:], math.nan)
    error = array.std(axis=0, ddof=1) / math.sqrt(n)
    return np.asarray(error * stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))


def held_out_ratio(folds: int, inner_folds: int) -> float:
    """Size of a fold's test set over that of its training set.

    Of the other folds ``1 / inner_folds`` is for validation, so it is neither.

    Raises:
        ValueError: fewer than two folds.
    """
    if folds < 2 or inner_folds < 2:
        raise ValueError(f"{folds} folds and {inner_folds} within them; 2 or more are needed")
    return 1 / ((folds - 1) * (1 - 1 / inner_folds))


def paired(values: Mapping[Key, float], base: Mapping[Key, float]) -> tuple[np.ndarray, list[Key]]:
    """Differences to the base of the runs that both have, such as those of one seed and fold.

    Returns:
        ``values - base`` (n,), and the keys that only one of them has.
    """
    both = [key for key in values if key in base]
    alone = [key for key in values if key not in base] + [k for k in base if k not in values]
    return np.array([values[key] - base[key] for key in both]), alone


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm 1979); a NaN is no comparison and stays NaN."""
    p = np.asarray(p_values, dtype=float)
    made = np.flatnonzero(~np.isnan(p))
    order = made[np.argsort(p[made], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected = np.full(len(p), np.nan)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return corrected.tolist()


def kendall(
    x: Sequence[float], y: Sequence[float], clusters: Sequence[Hashable] | None = None
) -> Estimate:
    """Kendall's tau-b, with an interval that lets the minima of a cluster be alike.

    Minima of one seed and fold share their split and where they began, so they are no
    independent pairs. The standard error of Fisher's z = artanh(tau), whose variance hardly
    depends on tau (Fieller, Hartley and Pearson 1957), is the jackknife's that leaves out a
    cluster at a time (Arvesen 1969), with Student's t of one degree of freedom less than there
    are clusters. A bootstrap of clusters has too narrow intervals where there are few of them.

    Args:
        x: (n,), such as sharpness.
        y: (n,), such as the test error.
        clusters: (n,), which of them each pair is of; None if each is its own.

    Returns:
        ``n`` is that of pairs; ``p`` tests tau = 0 by the same t.

    Raises:
        ValueError: lengths differ, or a value isn't finite.
    """
    xs, ys = _finite(x), _finite(y)
    labels = list(range(len(xs))) if clusters is None else list(clusters)
    if not len(xs) == len(ys) == len(labels):
        raise ValueError(f"{len(xs)} values of x, {len(ys)} of y, {len(labels)} clusters")
    n, count = len(xs), len(set(labels))
    if n < 2 or np.ptp(xs) == 0 or np.ptp(ys) == 0:
        return Estimate(math.nan, n=n, reason="all values are the same")
    tau = float(stats.kendalltau(xs, ys, variant="b").statistic)
    if count < 3:
        return Estimate(tau, n=n, reason=f"minima of {count} seeds or folds; 3 are needed")
    without = _taus_without(xs, ys, labels)
    if not (np.abs([tau, *without]) < 1).all():
        return Estimate(tau, n=n, reason="too few values that differ")
    z = np.arctanh(without)
    error = math.sqrt((count - 1) / count * float(((z - z.mean()) ** 2).sum()))
    if error <= SAME:
        return Estimate(tau, n=n, reason="no cluster changes it")
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error
    ends = np.tanh([math.atanh(tau) - half, math.atanh(tau) + half])
    p = 2 * float(stats.t.sf(abs(math.atanh(tau)) / error, count - 1))
    return Estimate(tau, float(ends[0]), float(ends[1]), p, n)


def _taus_without(x: np.ndarray, y: np.ndarray, labels: Sequence[Hashable]) -> np.ndarray:
    """Tau-b of all pairs but those of a cluster, for each cluster; NaN where all is one value."""
    names = list(dict.fromkeys(labels))
    member = np.array([[label == name for name in names] for label in labels], dtype=float)  # n, k
    signs = [np.sign(values[:, None] - values) for values in (x, y)]
    sums = []
    for matrix in (signs[0] * signs[1], signs[0] ** 2, signs[1] ** 2):
        between = member.T @ matrix @ member  # (k, k), sums over the pairs of two clusters
        sums.append(between.sum() - 2 * between.sum(axis=1) + between.diagonal())
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[0] / np.sqrt(sums[1] * sums[2])


def granulated_kendall(
    x: Sequence[float], y: Sequence[float], settings: Sequence[Mapping[str, Hashable]]
) -> dict[str, np.ndarray]:
    """Kendall's tau within the groups in which one setting alone varies, for each setting.

    A group's tau is the mean of sign(x_i - x_j) sign(y_i - y_j) over its pairs, so that a tie is
    0; the mean over groups is psi of that setting, and the mean of those over settings is Psi
    (Jiang et al. 2020, arXiv:1912.02178, equations 4 and 5). A relation that only comes from one
    setting, say from folds with hard test sets, does not pass for one of sharpness.

    Args:
        x: (n,), such as sharpness.
        y: (n,), such as the test error.
        settings: (n,), each with the same names.

    Returns:
        By setting its groups' taus (groups,); settings that vary in no group are left out.

    Raises:
        ValueError: two are of the same settings, or a value isn't finite.
    """
    xs, ys = _finite(x), _finite(y)
    whole = [tuple(sorted(each.items())) for each in settings]
    if len(set(whole)) < len(whole):
        raise ValueError("two minima have the same settings, so nothing tells them apart")
    taus = {}
    for axis in settings[0]:
        groups: dict[Hashable, list[int]] = {}
        for i, each in enumerate(settings):
            rest = tuple(sorted((k, v) for k, v in each.items() if k != axis))
            groups.setdefault(rest, []).append(i)
        members = [group for group in groups.values() if len(group) > 1]
        if members:
            taus[axis] = np.array([_tau_a(xs[group], ys[group]) for group in members])
    return taus


def _tau_a(x: np.ndarray, y: np.ndarray) -> float:
    n = len(x)
    signs = np.sign(x[:, None] - x) * np.sign(y[:, None] - y)
    return float(signs.sum()) / (n * (n - 1))


def _finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise ValueError(f"{array.tolist()!r:.60}: a list of finite numbers is needed")
    return array
