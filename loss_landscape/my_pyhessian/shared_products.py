"""Products of one matrix by several processes, each with a part of the batches.

The first process runs whatever asks for products, with nothing to know of the others: these wait
for vectors, multiply by their batches' part of the matrix, and the parts are summed. So only the
first one draws, decides and writes, and no two processes can disagree on when to stop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed
from torch.utils._pytree import tree_leaves

from loss_landscape.directions import fingerprint
from loss_landscape.my_pyhessian.operators import CurvatureOperator
from loss_landscape.my_pyhessian.products import choose
from loss_landscape.my_pyhessian.sample_error import Quotients, SampleGroups
from utilities.ranks import Ranks

T = TypeVar("T")
END, WAY, QUOTIENTS = 0, -1, -2
Layers = Sequence[str] | None


@dataclass(frozen=True)
class AskedGroups(SampleGroups):
    """Groups whose quotients all processes make.

    Attributes:
        ask: vectors and layers -> those of all groups.
    """

    ask: Callable[[Tensor, Layers], Quotients]

    def quotients(
        self, vectors: Tensor, layers: Layers = None, part: tuple[int, int] = (0, 1)
    ) -> Quotients:
        """See ``SampleGroups.quotients``; of all groups, whatever ``part`` says."""
        return self.ask(vectors, layers)


class SharedProducts:
    """The products of ``operator``, of which each process makes its batches' part.

    Every process has the same model, batches and loss, and has checked all batches, so that each
    sample weighs what it weighs in one process. With one process nothing is changed.

    Args:
        operator: with all batches; its ``share`` is set.
        ranks: the processes.

    Raises:
        ValueError: there are fewer batches than processes.
    """

    def __init__(self, operator: CurvatureOperator, ranks: Ranks) -> None:
        count = len(operator.batches)
        if count < ranks.world:
            raise ValueError(
                f"--nproc_per_node {ranks.world}: there are {count} batches, and each process "
                "takes one or more; lower --batch_size, or start fewer"
            )
        self.operator, self.ranks = operator, ranks
        operator.share = range(ranks.rank, count, ranks.world)
        self.own_part = operator.products
        self.own_groups: SampleGroups | None = None

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Within, what the first process asks of ``operator.products`` is made by all of them.

        Raises:
            ValueError: the processes have different batches; in all of them.
        """
        if self.ranks.world == 1:
            yield
            return
        self._check_batches()
        self.operator.products = self._asked  # type: ignore[method-assign]
        try:
            yield
        finally:
            del self.operator.products  # type: ignore[method-assign]
            self._tell(END)

    def with_groups(self, groups: SampleGroups) -> SampleGroups:
        """Groups of the samples, of which each process takes its part within ``asked``."""
        self.own_groups = groups
        if self.ranks.world == 1:
            return groups
        return AskedGroups(groups.operators, groups.said, groups.lack, self._asked_quotients)

    def go(self, way: str) -> None:
        """Let all processes make their products the ``way`` that the first one has chosen."""
        if self.ranks.world > 1:
            self._tell(WAY)
            self._follow(way)

    def serve(self) -> None:
        """Make what the first process asks for, until it has done or stops."""
        self._check_batches()
        flat = self.operator.flat
        while (message := self._tell(END)) != END:
            if message == WAY:
                self._follow("")
            elif message == QUOTIENTS:
                self._quotients(None, None)
            else:
                self._together(flat.new_empty(message, flat.numel()))

    def _check_batches(self) -> None:
        batches = [_tensors(batch) for batch in self.operator.batches]
        found = self.ranks.gather(fingerprint(batches))
        other = [rank for rank, digest in enumerate(found) if digest != found[0]]
        if other:
            raise ValueError(
                f"torchrun: process {other[0]} has other batches than the first, so that none can "
                "be shared out; --dataset must give every process all samples, in one order"
            )

    def _tell(self, message: int) -> int:
        """The first process's message: a number of vectors that follow, ``WAY`` or ``END``."""
        number = torch.tensor([message])
        distributed.broadcast(number, src=0)
        return int(number)

    def _asked(self, vectors: Tensor) -> Tensor:
        self._tell(len(vectors))
        return self._together(vectors.contiguous())

    def _follow(self, way: str) -> None:
        way = self.ranks.from_writer(lambda: way)
        self._everywhere(lambda: self.ranks.writer or choose(self.operator, 0, begun=way))

    def _together(self, vectors: Tensor) -> Tensor:
        """Products with the first process's ``vectors`` (k, P)."""
        distributed.broadcast(vectors, src=0)
        total = self._everywhere(lambda: self.own_part(vectors))
        if total is None:
            return vectors
        self.ranks.sum([total])
        return total

    def _asked_quotients(self, vectors: Tensor, layers: Layers) -> Quotients:
        self._tell(QUOTIENTS)
        found = self._quotients(vectors.contiguous(), layers)
        assert found is not None  # else it has raised
        return found

    def _quotients(self, vectors: Tensor | None, layers: Layers) -> Quotients | None:
        """Those of the first process's ``vectors``; it alone gives them and ``layers``."""
        shape = () if vectors is None else tuple(vectors.shape)
        layers, shape = self.ranks.from_writer(lambda: (layers, shape))
        if vectors is None:
            vectors = self.operator.flat.new_empty(shape)
        distributed.broadcast(vectors, src=0)
        groups, part, all_vectors = self.own_groups, (self.ranks.rank, self.ranks.world), vectors
        assert groups is not None
        own = self._everywhere(lambda: groups.quotients(all_vectors, layers, part))
        if own is None:
            return None
        values, sizes = zip(*self.ranks.gather(own), strict=True)
        return Quotients(np.concatenate(values), np.concatenate(sizes))

    def _everywhere(self, make: Callable[[], T]) -> T | None:
        """What ``make`` gives in each process, or None in the others if it fails in one.

        Raises:
            ValueError: it failed in another process; the first one says in which and why.
        """
        result, failure = None, None
        try:
            result = make()
        except Exception as error:  # whatever it is, the others must not wait for this one
            failure = error
        said = "" if failure is None else (str(failure).strip() or type(failure).__name__)
        failed = [(rank, text) for rank, text in enumerate(self.ranks.gather(said)) if text]
        if failed and self.ranks.writer:
            if failure is not None:
                raise failure
            raise ValueError(f"process {failed[0][0]}: {failed[0][1].splitlines()[0]}")
        return None if failed else result


def _tensors(batch: Any) -> list[Tensor]:
    """All tensors of a batch, those within graphs too."""
    leaves = [leaf.to_dict() if hasattr(leaf, "to_dict") else leaf for leaf in tree_leaves(batch)]
    return [leaf for leaf in tree_leaves(leaves) if isinstance(leaf, Tensor)]
