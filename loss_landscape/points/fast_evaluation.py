"""A ``Measure`` that takes a faster way than the model itself, where it gives the same values.

At the centre, where all steps are zero, the model itself is always asked, in float32, so that a
surface holds the checkpoint's loss bit for bit. Everywhere else a stand-in is, which is compared
with the model at the centre and at a random point before it is taken; if it differs, the model is
asked everywhere and a line says so. The way is chosen once a surface, by its number of points and
by timing, and kept in its file: a surface that is gone on with goes the same way, bit for bit.

Batches are prepared once and stay in memory, so that it makes no difference to a CPU whether
points or batches are the outer loop; the points are, because weights are folded once a point then.
"""

from __future__ import annotations

import json
import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from loss_landscape.evaluation import Visits, loss_and_accuracy, moved
from loss_landscape.forward_pass.merged_graphs import MergedGCN
from loss_landscape.forward_pass.stand_ins import Folded, StandIn, UnsuitedError
from loss_landscape.restore import Restored
from loss_landscape.surface_file import Surface
from utilities.precision import compile_options, resolve

STAND_INS: dict[str, type[StandIn]] = {"merged": MergedGCN, "folded": Folded, "model": StandIn}
SAME = {"fp32": 1e-5, "bf16": 1e-2}  # how far a loss may be off, of 1 or of itself if it is larger
PASSES = (0, 64)  # samples a forward pass that are tried; 0: a whole batch
FEWEST = 24  # points below which looking for a faster way takes longer than it saves
COMPILING = 40.0  # seconds that torch.compile takes on two cores, more or less
SAVED = 0.15  # share of the time that compiling saves at least where it pays
MOST_SHAPES = 3  # of batches, each of which is compiled
ROUNDS = 5  # of timing
# What is timed has to be faster than a stand-in made for the model by so much: a few calls are
# timed with noise, and the unfused model rounds more often in bf16.
HANDICAP = {"merged": 1.0, "folded": 1.0, "plain": 1.03, "model": 1.15}
GAIN = 0.95  # of the time, at most, that a compiled way has to take
RECHECKED = 10  # one point of so many is measured in float32 too

AtPoint = Callable[[], dict[str, float]]


class Way(NamedTuple):
    """How the points of a surface are measured.

    Attributes:
        stand_in: one of ``STAND_INS``; "plain" is the model on the batches as they are.
        samples: a forward pass, 0 for a whole batch.
        compiled: by torch.compile.
        precision: "fp32" or "bf16".
    """

    stand_in: str = "plain"
    samples: int = 0
    compiled: bool = False
    precision: str = "fp32"

    def __str__(self) -> str:
        """As the file keeps it."""
        return json.dumps(self._asdict())

    @classmethod
    def read(cls, text: str) -> Way:
        """Back from the file's text.

        Raises:
            ValueError: it is none.
        """
        try:
            way = cls(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise ValueError(f"the surface's way, {text[:60]!r}, is none") from error
        known = way.stand_in == "plain" or way.stand_in in STAND_INS
        if not (known and way.precision in SAME and isinstance(way.samples, int)):
            raise ValueError(f"the surface's way, {text[:60]!r}, is unknown")
        return way

    @property
    def said(self) -> str:
        """For people."""
        words = {"plain": "the model itself", "model": "the model itself", "merged": "nodes merged"}
        words["folded"] = "convolutions folded, channels_last"
        parts = [words[self.stand_in], self.precision]
        parts += [f"{self.samples} samples a pass"] * bool(self.samples)
        return ", ".join(parts + ["compiled"] * self.compiled)


PLAIN = Way()


@dataclass
class Task:
    """What is measured at a point.

    Attributes:
        restored: model and loss.
        batches: of each split.
        around: what is done to the model at each point before it is measured, such as taking its
            batch norms' statistics anew: of (measuring) gives (measuring).
        plain: the measure that a faster one must agree with.
    """

    restored: Restored
    batches: Mapping[str, Sequence[Any]]
    plain: Visits
    around: Callable[[AtPoint], AtPoint] = lambda at_point: at_point

    def at_point(self, way: Way) -> AtPoint:
        """What measures at the point where the model stands.

        Raises:
            Exception: of torch or of a user's model, if it doesn't go this way.
        """
        if way == PLAIN:
            return self.plain.at_point
        stand_in = STAND_INS[way.stand_in](self.restored.model, way.precision, way.compiled).eval()
        batches = {
            split: [_prepared(stand_in, batch) for whole in part for batch in _parts(whole, way)]
            for split, part in self.batches.items()
        }
        module: Any = stand_in
        if way.compiled:
            options = compile_options(way.precision, stand_in.device)
            module = torch.compile(stand_in, dynamic=False, options=options)
        restored = replace(self.restored, model=module)

        def measured() -> dict[str, float]:
            stand_in.refresh()
            return loss_and_accuracy(restored, batches)

        return self.around(measured)

    def first(self) -> Task:
        """The same of one batch, to be timed."""
        split, part = next(iter(self.batches.items()))
        return replace(self, batches={split: part[:1]})


def _parts(batch: Any, way: Way) -> list[Any]:
    """A batch of tensors in parts of ``way.samples``; any other in one."""
    is_pair = isinstance(batch, tuple | list) and len(batch) == 2
    if not (way.samples and is_pair and all(isinstance(part, Tensor) for part in batch)):
        return [batch]
    return list(zip(*(part.split(way.samples) for part in batch), strict=True))


def _prepared(stand_in: StandIn, batch: Any) -> Any:
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return stand_in.prepare(batch[0]), batch[1]
    return batch


class FastVisits:
    """A ``Measure`` that goes one way at all points but the centre, where it goes the plain one.

    In bf16 it goes the same way in fp32 too at one point of ten, drawn by the point's coordinates;
    the value there is bf16's, and ``<split>_loss_deviation`` says how far it is off. It is NaN at
    the others.

    Args:
        task: what is measured.
        way: how.
    """

    block = 1

    def __init__(self, task: Task, way: Way) -> None:
        self.plain, self.way = task.plain, way
        self.fast = task.at_point(way)
        self.recheck = task.at_point(way._replace(precision="fp32")) if self.deviates else None
        losses = [name for name in task.plain.names if name.endswith("_loss")]
        self.deviations = tuple(f"{name}_deviation" for name in losses) if self.deviates else ()
        self.names = task.plain.names + self.deviations

    @property
    def deviates(self) -> bool:
        return self.way.precision != "fp32"

    def __call__(self, points: np.ndarray) -> dict[str, np.ndarray]:
        """See ``Measure``."""
        visited = [self._visit(point) for point in points]
        return {name: np.array([values[name] for values in visited]) for name in self.names}

    def everywhere(self, points: np.ndarray) -> dict[str, np.ndarray]:
        """Values at ``points`` (k, axes) without an exception for the centre."""
        visits = Visits(self.plain.weights, self.plain.directions, self.plain.names, self.fast)
        return visits(points)

    def _visit(self, point: np.ndarray) -> dict[str, float]:
        is_centre = not point.any()
        exact: dict[str, float] = {}
        with moved(self.plain.weights, self.plain.directions, point.tolist()):
            values = self.fast() if self.deviates or not is_centre else {}
            if is_centre:
                exact = self.plain.at_point()
            elif self.recheck is not None and zlib.crc32(point.tobytes()) % RECHECKED == 0:
                exact = self.recheck()
        for name in self.deviations:
            loss = name.removesuffix("_deviation")
            values[name] = values[loss] - exact[loss] if exact else np.nan
        return values | exact if is_centre else values


def faster(task: Task, surface: Surface, precision: str, kept: str | None = None) -> FastVisits:
    """The fastest way through a surface, of those that agree with the plain one.

    Args:
        task: what is measured.
        surface: its points.
        precision: "fp32", "bf16", or "auto" for what the hardware is fast in.
        kept: the way that the file of a surface holds that is gone on with, "" of one without.

    Raises:
        ValueError: ``kept`` can't be gone here.
    """
    trial = Trial(task, surface)
    if kept is not None:
        fast, reason = trial.attempt(Way.read(kept) if kept else PLAIN)
        if fast is None:
            raise ValueError(f"the surface can't be gone on with the way it was begun: {reason}")
        return fast
    precision = resolve(precision, task.plain.weights[0].device)
    if trial.count < FEWEST and precision == "fp32":
        return FastVisits(task, PLAIN)
    fast = trial.best(precision)
    print(f"measured by {fast.way.said}")
    return fast


class Trial:
    """Ways to measure a surface, tried.

    Args:
        task: what is measured.
        surface: its points.

    Attributes:
        count: of the points.
        points: (2, axes), the centre and a random one within the surface.
    """

    def __init__(self, task: Task, surface: Surface) -> None:
        self.task = task
        axes = [axis for axis in (surface.x, surface.y) if axis is not None]
        self.count = int(np.prod([len(axis) for axis in axes]))
        draw = np.random.default_rng(0).uniform
        drawn = [draw(axis.min(), axis.max()) for axis in axes]
        self.points = np.array([np.zeros(len(axes)), drawn])

    @cached_property
    def expected(self) -> dict[str, np.ndarray]:
        return self.task.plain(self.points)

    def attempt(self, way: Way) -> tuple[FastVisits | None, str]:
        """A measure that agrees with the plain one at ``points``, or None and why there is none."""
        if way == PLAIN:
            return FastVisits(self.task, way), ""
        try:
            fast = FastVisits(self.task, way)
            found = fast.everywhere(self.points)
        except Exception as error:  # of torch, or of a user's model: the plain way is still there
            return None, _first_line(error)
        for name in (name for name in self.expected if name.endswith("_loss")):
            for one, other in zip(found[name], self.expected[name], strict=True):
                if not _close(one, other, SAME[way.precision]):
                    return None, f"{name} is {one:.8g} instead of {other:.8g} at a point"
        return fast, ""

    def best(self, precision: str) -> FastVisits:
        """The fastest, found on one batch; compiled where that pays over all points."""
        seconds = self.timed(precision)
        fast, way = None, PLAIN
        for way in sorted(seconds, key=lambda way: seconds[way] * HANDICAP[way.stand_in]):
            fast, reason = self.attempt(way)
            if fast is not None:
                break
            print(f"not measured by {way.said}: {reason}")
        assert fast is not None  # the plain one always agrees with itself
        batches = sum(len(part) for part in self.task.batches.values())
        if seconds[way] * batches * self.count * SAVED > COMPILING and self._compiles(way):
            return self.compiled(fast)
        return fast

    def timed(self, precision: str) -> dict[Way, float]:
        """Seconds of each way on one batch, at the centre; ways that fail are left out."""
        first = self.task.first()
        calls: dict[Way, AtPoint] = {}
        for way in candidates(precision, next(iter(first.batches.values()))[0]):
            try:
                calls[way] = first.at_point(way)
                calls[way]()
            except Exception as error:  # of torch, or of a user's model
                calls.pop(way, None)
                if not isinstance(error, UnsuitedError):
                    print(f"not measured by {way.said}: {_first_line(error)}")
        seconds = dict.fromkeys(calls, math.inf)
        for _ in range(ROUNDS):
            for way, call in calls.items():
                start = time.perf_counter()
                call()
                seconds[way] = min(seconds[way], time.perf_counter() - start)
        return seconds

    def _compiles(self, way: Way) -> bool:
        """Whether all batches are alike enough for one or two compiled graphs."""
        leaves = (
            tuple(leaf.shape if isinstance(leaf, Tensor) else type(leaf) for leaf in tree_leaves(b))
            for part in self.task.batches.values()
            for whole in part
            for b in _parts(whole, way)
        )
        return way.stand_in != "merged" and len(set(leaves)) <= MOST_SHAPES

    def compiled(self, fast: FastVisits) -> FastVisits:
        """``fast`` compiled if it is faster then and agrees, else ``fast`` itself."""
        way = fast.way
        way = way._replace(stand_in="model" if way == PLAIN else way.stand_in, compiled=True)
        print(f"compiling for {self.count:,} points ...", flush=True)
        quicker, reason = self.attempt(way)
        if quicker is None:
            print(f"not compiled: {reason}")
            return fast
        seconds = dict.fromkeys((fast, quicker), math.inf)
        for _ in range(ROUNDS):
            for measure in seconds:
                start = time.perf_counter()
                measure.everywhere(self.points[1:])
                seconds[measure] = min(seconds[measure], time.perf_counter() - start)
        return quicker if seconds[quicker] < GAIN * seconds[fast] else fast


def candidates(precision: str, batch: Any) -> list[Way]:
    """Ways to try on batches like ``batch``, the plain one first."""
    precisions = ("fp32",) if precision == "fp32" else ("fp32", precision)
    ways = [
        Way(stand_in, samples, False, name)
        for stand_in in STAND_INS
        for samples in PASSES
        for name in precisions
    ]
    same = Way("model")  # as the plain one, by another name
    parted = [way for way in ways if not way.samples or len(_parts(batch, way)) > 1]
    return [PLAIN, *(way for way in parted if way != same)]


def _close(one: float, other: float, tolerance: float) -> bool:
    """Whether two losses are the same but for rounding; NaN is NaN, infinity infinity."""
    return bool(np.isclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
