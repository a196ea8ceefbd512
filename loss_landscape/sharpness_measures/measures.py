r"""Measures of sharpness: what each is, in which unit, what it costs and what its error is of.

Two kinds. Those of the Hessian H of the mean loss L over all samples come from products with it:
``lambda_max``, ``eigenvalue_ratio``, ``trace``, ``frobenius_norm``. The others are rises of the
loss near the weights w: ``epsilon_sharpness`` over all samples, ``average_case``, ``worst_case``
and ``m_sharpness`` as a mean over subsets S of m samples, each of which has its own L_S.

Where two layers follow each other over a ReLU, multiplying the one by a and the other by 1 / a
leaves the network as it is (Dinh et al. 2017). Of these measures only ``average_case`` and
``worst_case`` with ``scale`` = \|w\| (the elementwise adaptive ones) stay as they are too.

A *pass* is a forward pass over all samples, a *gradient* costs about three, a *product* with H
about ten.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from loss_landscape.my_pyhessian.lanczos import (
    Eigenpairs,
    Matvec,
    Tick,
    extreme_eigenvalues,
    no_tick,
    without_autocast,
)
from loss_landscape.my_pyhessian.sample_error import Quotients
from loss_landscape.my_pyhessian.stochastic import outside, rademacher, standard_error
from loss_landscape.sharpness_measures.nearby_loss import NearbyLoss

Subsets = Sequence[Sequence[Any]]  # of each subset of m samples its batches
FIRST_LOOK = 24  # random vectors
MOMENTUM = 0.75  # of APGD, as are the next two (Croce & Hein 2020, section 3.2)
FIRST_CHECK, SHORTER, SHORTEST = 0.22, 0.03, 0.06  # parts of the iterations
SUCCESS = 0.75  # share of the iterations that must raise the loss, lest the step is halved


@dataclass(frozen=True)
class Measured:
    """A measure's value.

    Attributes:
        value: None where there is none; ``remark`` says why.
        standard_error: None where there is none.
        bound: how far the value may be off at most, for those that are no estimates.
        remark: what else has to be known.
    """

    value: float | None
    standard_error: float | None = None
    bound: float | None = None
    remark: str = ""


# --- of the Hessian -------------------------------------------------------------------------------
def largest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the ``count`` largest values, the largest first; for ``extreme_eigenvalues``."""
    return np.argsort(-values, kind="stable")[:count]


def top_eigenpairs(
    matvec: Matvec,
    start: Tensor,
    count: int = 5,
    max_products: int = 160,
    tol: float = 1e-3,
    tick: Tick = no_tick,
) -> Eigenpairs:
    """The ``count`` largest eigenvalues, not the largest in magnitude, by Lanczos.

    Raises:
        ValueError: see ``extreme_eigenvalues``.
    """
    count = min(count, start.numel())
    return extreme_eigenvalues(matvec, start, count, max_products, tol, tick, select=largest)


def lambda_max(pairs: Eigenpairs, quotients: Quotients | None = None) -> Measured:
    """The largest eigenvalue of H, in units of the loss over those of a weight squared.

    H has an eigenvalue within ``bound``, the residual |Hv - lambda v|; the value itself is never
    above the true one. Other samples have another H; the standard error is over them, to first
    order (``my_pyhessian/sample_error.py``). Of few samples the largest eigenvalue is too large in
    the mean, too, as it is convex in H. Costs 10 to 60 products, until the residual is small
    enough, and two for the standard error.

    Args:
        pairs: the largest first.
        quotients: of the first and the fifth eigenvector; no standard error without it.
    """
    remark = "" if pairs.converged else "not converged; raise --max_steps"
    error = None if quotients is None else _number(quotients.errors()[0])
    value, bound = float(pairs.values[0]), float(pairs.residuals[0])
    return Measured(value, error, bound, remark)


def eigenvalue_ratio(pairs: Eigenpairs, quotients: Quotients | None = None) -> Measured:
    """lambda_1 / lambda_5, a pure number (Foret et al. 2021, section 4.2, after Jastrzebski 2020).

    How far the largest eigenvalue stands out of the bulk. The ``bound`` follows from the residuals
    of both, the standard error from what other samples do to both, to first order: too large where
    the fifth eigenvalue has neighbours, which to second order hold it in its place. No products
    beyond those of ``lambda_max``, whose Lanczos looks for five.

    Args:
        pairs: the largest first.
        quotients: see ``lambda_max``.
    """
    if len(pairs.values) < 5:
        return Measured(None, remark=f"{len(pairs.values)} weights have no fifth eigenvalue")
    (first, fifth), (one, five) = pairs.values[[0, 4]], pairs.residuals[[0, 4]]
    least = max(five, 100 * torch.finfo(pairs.vectors.dtype).eps * abs(first))
    if fifth <= least:
        return Measured(None, remark=f"lambda_5 is {fifth:.3g}, not known to be above {least:.1g}")
    ratio = float(first / fifth)
    remark = "" if pairs.converged else "not converged; raise --max_steps"
    error = None
    if quotients is not None:
        one_by_one = quotients.values[:, 0] / first - quotients.values[:, -1] / fifth
        error = _number(ratio * quotients.errors(one_by_one))
    return Measured(ratio, error, ratio * float(one / first + five / fifth), remark)


@dataclass(frozen=True)
class Probes:
    """What products with random vectors say of H; each sample's mean is the whole's.

    Attributes:
        traces: (probes,), of the trace.
        squares: (probes,), of the squared Frobenius norm.
    """

    traces: np.ndarray
    squares: np.ndarray


@without_autocast
def probe(
    matvec: Matvec,
    pairs: Eigenpairs,
    generator: torch.Generator,
    probes: int = 100,
    accuracy: float = 0.02,
    tick: Tick = no_tick,
) -> Probes:
    """Hutchinson's estimators of trace and Frobenius norm from the same products.

    With V the Ritz vectors of ``pairs`` (orthonormal, HV = V Theta + R with R'V = 0) and random
    signs v of which only z = (I - VV')v is used, tr H = sum theta + E z'Hz and
    |H|_F^2 = sum (theta^2 + |r|^2) + E |Hz|^2: both are exact, and the few large eigenvalues, from
    which most of the variance would come, are no longer random (Meyer et al. 2021).

    Args:
        matvec: product with H.
        pairs: found without the signs that are drawn here.
        generator: of the signs.
        probes: most products.
        accuracy: standard error over value at which both are known well enough; seen after 24,
            because a look at fewer stops where chance made the error small.
        tick: called after each product.
    """
    basis = pairs.vectors
    found: list[tuple[float, float]] = []
    known = float(pairs.values.sum()), float(np.square([pairs.values, pairs.residuals]).sum())
    for _ in range(probes):
        z = outside(basis, rademacher(basis.shape[1], basis, generator))
        product = matvec(z).double()
        tick()
        found.append((float(z.double() @ product), float(product @ product)))
        estimates = Probes(*(np.array(found) + known).T)
        if len(found) >= FIRST_LOOK and all(
            abs(one.standard_error or 0) <= accuracy * abs(one.value or 0)
            for one in (trace(estimates), frobenius_norm(estimates))
        ):
            break
    return estimates


def trace(probes: Probes) -> Measured:
    """The sum of H's eigenvalues, in units of the loss over those of a weight squared.

    P / 2 times the mean rise of the quadratic approximation at distance 1. Standard error over the
    random vectors (Hutchinson 1990); that of another set of samples is not in it. Costs a product a
    random vector.
    """
    return Measured(float(probes.traces.mean()), _standard_error(probes.traces))


def frobenius_norm(probes: Probes) -> Measured:
    """sqrt(E |Hv|^2) over random signs v, the root of the sum of squared eigenvalues.

    In units of the loss over those of a weight squared. It is the root of Hutchinson's estimate of
    tr H^2, whose standard error over the random vectors is halved and divided by the norm, as the
    root's derivative says. No products beyond those of ``trace``.
    """
    norm = math.sqrt(probes.squares.mean())
    error = _standard_error(probes.squares)
    return Measured(norm, None if error is None or not norm else error / (2 * norm))


# --- rises of the loss near the weights -----------------------------------------------------------
def m_sharpness(
    loss: NearbyLoss, subsets: Subsets, rho: float = 0.05, tick: Tick = no_tick
) -> Measured:
    """What SAM lowers beside the loss: mean over S of L_S(w + rho g / |g|) - L_S(w), g = grad L_S.

    Foret et al. 2021, equation 2 and section 4.1, in units of the loss; S has m samples. One step
    of gradient ascent, so no maximum. Standard error over the subsets, as draws of m samples. Costs
    a gradient and a pass.
    """
    rises = []
    for batches in subsets:
        before, gradient = loss.with_gradient(batches)
        norm = float(gradient.double().norm())
        step = gradient * (rho / norm) if norm else gradient
        rises.append(_finite(loss(batches, step), f"--rho {rho:g}") - before)
        tick()
    return _mean(rises)


def average_case(
    loss: NearbyLoss,
    subsets: Subsets,
    scale: Tensor,
    rho: float,
    generator: torch.Generator,
    draws: int = 10,
    tick: Tick = no_tick,
) -> Measured:
    """Mean over S and d of L_S(w + d) - L_S(w), d Gaussian with standard deviation rho ``scale``.

    Andriushchenko et al. 2023, equation 1, in units of the loss: with ``scale`` = |w| the
    elementwise adaptive one. For small rho it is rho^2 / 2 times the sum of scale^2 H_ii. Each
    subset has its own ``draws``, and of each the opposite too: the mean of both is without the
    linear part of the loss, which only adds noise. Standard error over the subsets, so of samples
    and draws together; of a single subset over the draws. Costs two passes a draw, and one.

    Args:
        loss: at the weights.
        subsets: of m samples each.
        scale: (P,), 0 or above.
        rho: relative to it.
        generator: of the draws.
        draws: pairs a subset.
        tick: called after each subset.
    """
    rises = np.empty((len(subsets), draws))
    for row, batches in zip(rises, subsets, strict=True):
        before = loss(batches)
        for i in range(draws):
            step = rho * scale * torch.randn(len(scale), generator=generator).to(scale)
            both = (loss(batches, step) + loss(batches, -step)) / 2
            row[i] = _finite(both, f"--average_rho {rho:g}") - before
        tick()
    return _mean(rises.mean(axis=1) if len(rises) > 1 else rises[0])


def worst_case(
    loss: NearbyLoss,
    subsets: Subsets,
    scale: Tensor,
    rho: float,
    norm: str = "linf",
    iterations: int = 20,
    tick: Tick = no_tick,
) -> Measured:
    """Mean over S of the largest L_S(w + d) - L_S(w) with |d / scale|_p <= rho, by ``ascend``.

    Andriushchenko et al. 2023, equation 2, in units of the loss: with ``scale`` = |w| the
    elementwise adaptive one. As ascent may miss the maximum, a lower bound of it. Standard error
    over the subsets, as draws of m samples. Costs ``iterations`` gradients and a pass.
    """
    rises = []
    for batches in subsets:
        before, highest = ascend(loss, batches, rho * scale, norm, iterations, tick)
        rises.append(highest - before)
    return _mean(rises)


def epsilon_sharpness(
    loss: NearbyLoss,
    batches: Sequence[Any],
    epsilon: float = 1e-3,
    iterations: int = 20,
    tick: Tick = no_tick,
) -> Measured:
    """100 (max L(w + d) - L(w)) / (1 + L(w)) with |d_i| <= epsilon (|w_i| + 1), in percent.

    Keskar et al. 2017, metric 2.1 in the full space (A the identity), over all samples. They
    maximise by ten iterations of L-BFGS-B; ``ascend`` finds more in a box. A lower bound of the
    maximum either way, without a standard error. Costs ``iterations`` gradients and a pass.
    """
    box = epsilon * (loss.weights.abs() + 1)
    before, highest = ascend(loss, batches, box, "linf", iterations, tick)
    return Measured(100 * (highest - before) / (1 + before))


def ascend(
    loss: NearbyLoss,
    batches: Sequence[Any],
    radius: Tensor,
    norm: str,
    iterations: int = 20,
    tick: Tick = no_tick,
) -> tuple[float, float]:
    """The loss at w, and the largest one found at w + d with |d / radius|_p <= 1.

    APGD (Croce & Hein 2020, algorithm 1) from d = 0, in the coordinates u = d / radius: so that the
    steps know of no other scale, and rescaled layers change nothing. Momentum and checks are those
    of the authors' code of Andriushchenko et al. 2023, of which this is what it does with
    norm="linf", but for two things: where the step is halved, it goes on from the best point (there
    only the gradient is taken at it), and with norm="l2" steps and projection are in u, too.
    Where the gradient at w is zero, the first step is the corner of all ones.

    Args:
        loss: to be raised.
        batches: over whose samples.
        radius: (P,), 0 or above, in units of the weights.
        norm: p, "linf" or "l2".
        iterations: gradients to take.
        tick: called after each.

    Raises:
        ValueError: another norm, or a loss that isn't finite.
    """
    if norm not in ("linf", "l2"):
        raise ValueError(f"norm {norm!r}: must be linf or l2")
    u = earlier = best_u = torch.zeros_like(radius)
    before, gradient = loss.with_gradient(batches)
    best, best_gradient = before, gradient
    length, best_then, risen, last_check, just_halved = 2.0, before, 0, 0, False
    checks = _checks(iterations)
    for i in range(iterations):
        climbed = _into_ball(u + length * _uphill(radius * gradient, norm), norm)
        u, earlier = MOMENTUM * climbed + (1 - MOMENTUM) * earlier, u
        if i < iterations - 1:
            found, gradient = loss.with_gradient(batches, radius * u)
        else:
            found = loss(batches, radius * u)
        tick()
        if _finite(found, "--worst_rho or --epsilon") > best:
            best, best_u, best_gradient, risen = found, u, gradient, risen + 1
        if i in checks:
            stuck = best == best_then and not just_halved
            just_halved = stuck or risen < SUCCESS * (i - last_check)
            best_then, risen, last_check = best, 0, i
            if just_halved:
                length, u, gradient = length / 2, best_u, best_gradient
    return before, best


def _checks(iterations: int) -> set[int]:
    """After which iterations APGD sees whether its step is too long."""
    parts, checks = [0.0, FIRST_CHECK], [0, math.ceil(iterations * FIRST_CHECK)]
    while checks[-1] < iterations and checks[-1] != checks[-2]:
        parts.append(parts[-1] + max(parts[-1] - parts[-2] - SHORTER, SHORTEST))
        checks.append(math.ceil(parts[-1] * iterations))
    return set(checks[1:])


def _uphill(slope: Tensor, norm: str) -> Tensor:
    """The step of length 1 along which a linear function with this gradient rises most."""
    if not slope.any():
        slope = torch.ones_like(slope)
    return slope.sign() if norm == "linf" else slope / slope.norm()


def _into_ball(u: Tensor, norm: str) -> Tensor:
    return u.clamp(-1, 1) if norm == "linf" else u / u.norm().clamp_min(1)


def _finite(loss: float, flag: str) -> float:
    if not math.isfinite(loss):
        raise ValueError(f"the loss is {loss} near the weights; lower {flag}")
    return loss


def _mean(rises: Sequence[float] | np.ndarray) -> Measured:
    return Measured(float(np.mean(rises)), _standard_error(np.asarray(rises)))


def _standard_error(samples: np.ndarray) -> float | None:
    """None for one sample."""
    return _number(standard_error(samples))


def _number(error: float | np.ndarray) -> float | None:
    """None for NaN."""
    return None if np.isnan(error) else float(error)
