"""A measure whose points are handed out to the workers of a Ray cluster, or of this machine.

Each worker restores the model from the command line's flags, so that checkpoint and data have to be
where they are here. Ray hands the points of a worker that dies to another one. A point's values
depend on nothing but the point, so they are those of one process with as many threads.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from loss_landscape.directions import Direction, coordinates
from loss_landscape.evaluation import Measure, same_values
from loss_landscape.points.fast_evaluation import FastVisits
from loss_landscape.points.surface_measure import grid_of, make_measure, make_task, source
from loss_landscape.restore import restore
from utilities.ray_cluster import cluster, fetched, remote, with_absolute_paths
from utilities.runs import differing

CHUNK = 4  # points at least that a worker gets at once: handing them out takes a millisecond
CHUNKS = 4  # for each worker in one call
Values = dict[str, np.ndarray]  # by name


@contextmanager
def handed_out(
    args: argparse.Namespace,
    directions: Sequence[Direction],
    measure: FastVisits,
    sources: Mapping[str, Any],
) -> Iterator[Measure]:
    """Within, a measure that hands its points to workers.

    Args:
        args: of plot_surface.py; ``--ray`` is the cluster's address, "" for this machine alone.
        directions: x first.
        measure: what this process would measure with.
        sources: which checkpoint, data and loss that takes; a worker's have to be the same.

    Raises:
        ValueError: Ray isn't installed; a worker has another checkpoint, direction or other data.
        OSError: no cluster answers, or workers die again and again.
    """
    with cluster(args.ray) as ray:
        yield _OnRay(ray, args, directions, measure, sources)


class _OnRay:
    """A ``Measure`` on the cluster that ``ray`` is connected to."""

    def __init__(
        self,
        ray: Any,
        args: argparse.Namespace,
        directions: Sequence[Direction],
        measure: FastVisits,
        sources: Mapping[str, Any],
    ) -> None:
        self.ray, self.names, self.sources = ray, measure.names, sources
        self.at_checkpoint = measure(np.zeros((1, len(directions))))
        arrays = [[t.cpu().numpy() for t in direction] for direction in directions]
        work = (with_absolute_paths(args), arrays, str(measure.way))
        self.work = ray.put(pickle.dumps(work))
        self.task, workers = remote(ray, measure_chunk, args)
        self.chunk = max(CHUNK, measure.block)
        self.block = workers * CHUNKS * self.chunk

    def __call__(self, points: np.ndarray) -> Values:
        starts = range(0, len(points), self.chunk)
        chunks = [points[start : start + self.chunk] for start in starts]
        results = fetched(self.ray, [self.task.remote(self.work, chunk) for chunk in chunks])
        for sources, at_checkpoint, _ in results:
            self.refuse_other(sources, at_checkpoint)
        measured = [values for _, _, values in results]
        return {name: np.concatenate([values[name] for values in measured]) for name in self.names}

    def refuse_other(self, sources: Mapping[str, Any], at_checkpoint: Values) -> None:
        """Stop where a worker has restored something else than this process."""
        different = differing(sources, self.sources)
        if different or not same_values(at_checkpoint, self.at_checkpoint):
            raise ValueError(
                f"--ray: a worker has other {', '.join(different) or 'data'} than this process; "
                "checkpoint and data have to be the same on all machines"
            )


def measure_chunk(work: bytes, points: np.ndarray) -> tuple[Mapping[str, Any], Values, Values]:
    """What a worker does: its sources, values at the checkpoint, and values at ``points``.

    Args:
        work: flags, directions and the way to measure, pickled.
        points: (k, axes).
    """
    sources, measure, at_checkpoint = _restored(work)
    return sources, at_checkpoint, measure(points)


@lru_cache(maxsize=1)
def _restored(work: bytes) -> tuple[Mapping[str, Any], Measure, Values]:
    args, arrays, way = pickle.loads(work)
    restored = restore(args)
    weights = coordinates(restored.model, args.dir_type).values()
    directions = [
        [torch.from_numpy(d).to(w) for d, w in zip(direction, weights, strict=True)]
        for direction in arrays
    ]
    task = make_task(args, restored, directions)
    measure = make_measure(args, task, grid_of(args), way)
    at_checkpoint = measure(np.zeros((1, len(directions))))
    return source(args, restored), measure, at_checkpoint
