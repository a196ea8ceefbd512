"""Products of one matrix by several processes, each with a part of the batches.

The first process runs whatever asks for products, with nothing to know of the others: these wait
for vectors, multiply by their batches' part of the matrix, and the parts are summed. So only the
first one draws, decides and writes, and no two processes can disagree on when to stop.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed

from loss_landscape.my_pyhessian.operators import CurvatureOperator
from utilities.ranks import Ranks


class ShardedProducts:
    """The products of ``operator``, of which each process makes its batches' part.

    Every process has the same model, batches and loss, and has checked all batches, so that what
    each sample weighs is what it weighs in one process.

    Args:
        operator: with all batches; its ``share`` is set.
        ranks: two processes or more.

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

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Within, what the first process asks of ``operator.products`` is made by all of them."""
        self.operator.products = self._asked  # type: ignore[method-assign]
        try:
            yield
        finally:
            del self.operator.products  # type: ignore[method-assign]
            self._tell(0)

    def serve(self) -> None:
        """Make what the first process asks for, until it has done."""
        while count := self._tell(0):
            self._together(self.operator.flat.new_empty(count, self.operator.flat.numel()))

    def _tell(self, vectors: int) -> int:
        """The first process's number of vectors; 0 is the end."""
        number = torch.tensor([vectors])
        distributed.broadcast(number, src=0)
        return int(number)

    def _asked(self, vectors: Tensor) -> Tensor:
        self._tell(len(vectors))
        return self._together(vectors)

    def _together(self, vectors: Tensor) -> Tensor:
        """Products with the first process's ``vectors`` (k, P).

        Raises:
            ValueError: another process failed; the first one says which and why.
        """
        vectors, failure = vectors.contiguous(), None
        distributed.broadcast(vectors, src=0)
        try:
            total = self.own_part(vectors)
        except Exception as error:  # whatever it is, the others must not wait for this one
            total, failure = torch.zeros_like(vectors), error
        said = self.ranks.gather("" if failure is None else _line(failure))
        if failure is not None and self.ranks.writer:
            raise failure
        failed = [f"process {rank}: {line}" for rank, line in enumerate(said) if line]
        if failed and self.ranks.writer:
            raise ValueError(f"a product failed in {failed[0]}")
        if not failed:
            self.ranks.sum([total])
        return total


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
