"""Probes of a spectrum made by the workers of a Ray cluster, or of this machine.

Each worker restores the model from the command line's flags, so that checkpoint and data have to be
where they are here. A piece is what one process makes with as many threads, to the last bit.
"""

from __future__ import annotations

import argparse
import math
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from loss_landscape.my_pyhessian.operators import CurvatureOperator
from loss_landscape.my_pyhessian.probes import Handout, Work
from loss_landscape.my_pyhessian.stochastic import Known
from loss_landscape.my_pyhessian.unfinished import Piece
from utilities.ray_cluster import fetched, remote, with_absolute_paths
from utilities.runs import differing

Source = tuple[Mapping[str, Any], float]  # which checkpoint, data and loss; length of the gradient


def source(sources: Mapping[str, Any], operator: CurvatureOperator) -> Source:
    """What two processes have to agree in."""
    return {**sources, "samples": operator.samples}, float(operator.gradient().norm())


def on_ray(
    ray: Any,
    args: argparse.Namespace,
    work: Work,
    ours: Source,
    tick: Callable[[int], None],
) -> Handout:
    """Makes pieces on the cluster that ``ray`` is connected to.

    Args:
        ray: the module, connected.
        args: of hessian.py.
        work: what this process would make them with.
        ours: this process's ``source``; a worker's has to be the same.
        tick: called with the number of products that a worker has made.

    Raises:
        ValueError: a worker has another checkpoint or other data.
        OSError: workers die again and again.
    """
    known = {name: getattr(work.known, name) for name in vars(work.known)}
    sent = ray.put(pickle.dumps((with_absolute_paths(args), known, work.layers)))
    task, _ = remote(ray, make_piece, args)

    def handout(kind: str, numbers: Sequence[int]) -> Iterator[tuple[int, Piece]]:
        left = [task.remote(sent, kind, number) for number in numbers]
        while left:
            ready, left = ray.wait(left)
            theirs, number, piece = fetched(ray, ready[0])
            _refuse_other(theirs, ours)
            tick(int(piece["products"]))
            yield number, piece

    return handout


def _refuse_other(theirs: Source, ours: Source) -> None:
    different = differing(theirs[0], ours[0])
    if different or not math.isclose(theirs[1], ours[1], rel_tol=1e-3, abs_tol=1e-9):
        raise ValueError(
            f"--ray: a worker has other {', '.join(different) or 'data'} than this process; "
            "checkpoint and data have to be the same on all machines"
        )


def make_piece(sent: bytes, kind: str, number: int) -> tuple[Source, int, Piece]:
    """What a worker does: its source, and the piece with its number."""
    work, theirs = _restored(sent)
    return theirs, number, work(kind, number)


@lru_cache(maxsize=1)
def _restored(sent: bytes) -> tuple[Work, Source]:
    # Not above: hessian.py imports this module.
    from loss_landscape.my_pyhessian.hessian import groups_of, operators_of
    from loss_landscape.restore import restore

    args, known, layers = pickle.loads(sent)
    restored = restore(args)
    batches = restored.batches(args.split, args.samples, args.batch_size)
    operators, sources = operators_of(restored, batches, args)
    groups = groups_of(restored, operators, args)
    work = Work(operators, args, Known(**known), layers, groups)
    return work, source(sources, work.operator)
