"""A measure whose points are handed out to the workers of a Ray cluster, or of this machine.

Each worker restores the model from the command line's flags, so that checkpoint and data have to be
where they are here. Ray hands the points of a worker that dies to another one. A point's values
depend on nothing but the point, so they are those of one process with as many threads.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loss_landscape.directions import Direction, coordinates
from loss_landscape.evaluation import Measure, same_values
from loss_landscape.fast_evaluation import FastVisits
from loss_landscape.restore import restore
from loss_landscape.surface_measure import grid_of, make_measure, make_task, source
from utilities.runs import differing

CHUNK = 4  # points at least that a worker gets at once: handing them out takes a millisecond
CHUNKS = 4  # for each worker in one call
RETRIES = 10  # of a chunk whose worker died
Values = dict[str, np.ndarray]  # by name


def require_ray() -> Any:
    """The module ``ray``.

    Raises:
        ValueError: it isn't installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ValueError(
            f"--ray: Ray is not installed here ({error}); pip install 'sam-optimizer[ray]', or "
            "leave --ray out"
        ) from error


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


@contextmanager
def cluster(address: str) -> Iterator[Any]:
    """Within, the module ``ray``, connected to the cluster at ``address``, "" for this machine.

    Raises:
        ValueError: Ray isn't installed.
        OSError: no cluster answers.
    """
    ray = require_ray()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent home unasked
    try:
        ray.init(address or "local", log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError) as error:
        raise OSError(
            f"--ray {address}: no Ray cluster answers there ({str(error).splitlines()[0]}); start "
            "one with ray start --head, or write --ray alone for this machine's processes"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


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
        flags = {k: v.absolute() if isinstance(v, Path) else v for k, v in vars(args).items()}
        threads = args.threads
        arrays = [[t.cpu().numpy() for t in direction] for direction in directions]
        work = (argparse.Namespace(**flags), arrays, str(measure.way))
        self.work = ray.put(pickle.dumps(work))
        gpus = 1 if args.device.startswith("cuda") else 0
        resources = ray.cluster_resources()
        workers = resources.get("GPU", 0) if gpus else resources.get("CPU", 1) // threads
        self.chunk = max(CHUNK, measure.block)
        self.block = max(int(workers), 1) * CHUNKS * self.chunk
        self.task = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=RETRIES, max_calls=0)(
            measure_chunk
        )

    def __call__(self, points: np.ndarray) -> Values:
        starts = range(0, len(points), self.chunk)
        chunks = [points[start : start + self.chunk] for start in starts]
        try:
            results = self.ray.get([self.task.remote(self.work, chunk) for chunk in chunks])
        except self.ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, ValueError | OSError):
                raise type(cause)(f"on a worker: {cause}") from error
            raise
        except self.ray.exceptions.RayError as error:
            raise OSError(
                f"--ray: workers died {RETRIES} times or the cluster is gone "
                f"({str(error).splitlines()[0]}); what is finished is kept: run it again"
            ) from error
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
