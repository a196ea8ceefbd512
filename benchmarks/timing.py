"""Timing of alternatives in turns, so that a machine's slow minutes fall on all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from utilities.machine import processor

RESAMPLES = 2000  # of the bootstrap


def in_turns(
    alternatives: dict[str, Callable[[], float | None]], rounds: int, warmup: int = 2
) -> dict[str, np.ndarray]:
    """Call each alternative once a round.

    Args:
        alternatives: by name; one that times a part of itself returns its seconds, else None.
        rounds: measurements of each.
        warmup: rounds before them that don't count.

    Returns:
        Seconds of each call, shape (rounds,).
    """
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for turn in range(warmup + rounds):
        for name, call in alternatives.items():
            start = now()
            own = call()
            taken = now() - start if own is None else own
            if turn >= warmup:
                seconds[name].append(taken)
    return {name: np.array(values) for name, values in seconds.items()}


def now() -> float:
    """Seconds on a clock, when all work given to an accelerator so far is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def ratio(above: np.ndarray, below: np.ndarray) -> tuple[float, float, float]:
    """Ratio of medians and its 95 % interval, bootstrapped over rounds."""
    rng = np.random.default_rng(0)
    rounds = rng.integers(len(above), size=(RESAMPLES, len(above)))
    ratios = np.median(above[rounds], axis=1) / np.median(below[rounds], axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(np.median(above) / np.median(below)), float(low), float(high)


def machine() -> str:
    """The processor, the instructions that decide about bf16, threads and torch, in one line."""
    return f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
