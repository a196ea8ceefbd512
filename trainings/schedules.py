"""The learning rate of each step of a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

DROPS = (0.3, 0.6, 0.8)  # fractions of the run after which the step schedule divides by 5


def _constant(progress: float) -> float:
    return 1.0


def _step(progress: float) -> float:
    return 0.2 ** sum(progress >= drop for drop in DROPS)


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


# Each gives the fraction of the first learning rate at a progress from 0 to 1.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": _constant,
    "step": _step,
    "cosine": _cosine,
}


@dataclass(frozen=True)
class Schedule:
    """A schedule after a linear warm-up (Goyal et al. 2017, arXiv:1706.02677, section 2.2).

    Attributes:
        name: one of ``SCHEDULES``.
        learning_rate: at the start.
        steps: of the whole run.
        warmup_steps: over which the rate rises to the schedule's; 0 for no warm-up.
    """

    name: str
    learning_rate: float
    steps: int
    warmup_steps: float = 0.0

    def rate(self, step: int) -> float:
        """Learning rate of the ``step``-th step of the run, counted from 0."""
        rate = self.learning_rate * SCHEDULES[self.name](step / self.steps)
        return rate * min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else rate
