"""The standard error that eigenvalues have over samples: another draw of them has another matrix.

A residual says how exact an eigenvalue is for the samples that were taken, nothing of others. With
A the matrix of the mean loss over all samples, A_S that over the samples S and v a unit eigenvector
of A, the eigenvalue of A_S is off by v'(A_S - A)v to first order (Kato 1995, chapter II, section
2). So the spread of v'A_S v over random groups S gives the standard error, for a product's worth a
vector: together the groups are the samples, each once.

The samples count as draws, whether they are a subset or the whole set, which itself is one draw of
those that there might be: so the error doesn't fall to 0 where no sample is left out. From the
whole set's eigenvalue that of a share q of it is sqrt(1 - q) times as far away.

What isn't in it: where the error is not small beside the distance to the next eigenvalue, the
first order is a rough one. And of few samples the largest eigenvalue is too large in the mean, the
lowest too low, as the largest is convex in the matrix.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from loss_landscape.my_pyhessian.operators import CurvatureOperator

GROUPS = 16  # of samples, of so many or more each:
SMALLEST_GROUP = 4
# Where batch norm takes each batch's statistics a group is one batch, and the smaller it is, the
# more do its statistics add: in a small network the errors of groups of 4 and 8 were 7 and 2
# times the spread.
SMALLEST_BATCH = 32


class Quotients(NamedTuple):
    """Rayleigh quotients v'A_S v of unit vectors v on groups S of the samples.

    Attributes:
        values: (groups, vectors) float64.
        sizes: (groups,), samples in each.
    """

    values: np.ndarray
    sizes: np.ndarray

    def errors(self, values: np.ndarray | None = None) -> np.ndarray:
        """Standard errors (...) of the means of ``values`` (groups, ...) over all samples.

        ``values`` are the quotients themselves if not given. Groups of other sizes, such as a
        loader's last batch, weigh as much as they have samples. NaN of fewer than two groups, which
        tell of no other.
        """
        values = self.values if values is None else values
        if len(self.sizes) < 2:
            return np.full(values.shape[1:], np.nan)
        shares = self.sizes / self.sizes.sum()
        variance = shares @ (values - shares @ values) ** 2 / (len(self.sizes) - 1)
        return np.asarray(np.sqrt(variance))


def quotients_of(operators: Iterable[CurvatureOperator], vectors: Tensor) -> Quotients:
    """Of the rows of ``vectors`` (k, P), a group an operator."""
    values, sizes = [], []
    for operator in operators:
        products = operator.products(vectors)
        values.append((vectors.double() * products.double()).sum(dim=1).cpu().numpy())
        sizes.append(operator.samples)
    return Quotients(np.reshape(values, (-1, len(vectors))), np.array(sizes, dtype=np.int64))


@dataclass(frozen=True)
class SampleGroups:
    """Groups of the samples that a matrix is of.

    Attributes:
        operators: each group's matrix of the named parameters, of all for None.
        said: what the error is of, for people.
        lack: why there is none; "" where there is one.
    """

    operators: Callable[[Sequence[str] | None], Iterator[CurvatureOperator]]
    said: str
    lack: str

    def quotients(
        self,
        vectors: Tensor,
        layers: Sequence[str] | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> Quotients:
        """Of unit vectors (k, P) over the parameters that ``layers`` names.

        None are made where there is no error. ``part``: a process's number, and how many there are.
        """
        operators = iter(()) if self.lack else self.operators(layers)
        return quotients_of(islice(operators, part[0], None, part[1]), vectors)


def sample_groups(
    restored: Any,
    args: argparse.Namespace,
    whole: CurvatureOperator,
    operator_of: Callable[[list[Any], Sequence[str] | None], CurvatureOperator],
) -> SampleGroups:
    """The groups into which the samples that the flags ask for are dealt.

    Neighbours in a data set are alike, such as beats of one patient, so groups are drawn at random.
    A user's loader whose batches are taken as they are gives each as a group.

    Args:
        restored: model and data.
        args: with ``split``, ``samples``, ``batch_size`` and ``bn``.
        whole: the matrix of all of them.
        operator_of: the matrix of these batches and the named parameters.
    """
    samples, size = whole.samples, args.batch_size
    count = max(1, min(GROUPS, samples // SMALLEST_GROUP))
    lack = f"{samples} samples make no two groups of {SMALLEST_GROUP}"
    if args.bn == "batch":
        count = max(1, min(GROUPS, samples // SMALLEST_BATCH), samples // args.batch_size)
        least, size = min(SMALLEST_BATCH, args.batch_size), samples
        lack = f"--bn batch: {samples} samples make no two batches of {least}"
    said = f"samples, by {count} random groups"
    kept = restored.keeps_batches(args.split, args.samples)
    if kept:
        count = len(whole.batches)
        lack = "the loader gives one batch, which is not cut; --samples cuts it"
        said = f"samples, by the loader's {count} batches"

    def operators(layers: Sequence[str] | None) -> Iterator[CurvatureOperator]:
        # Those that are here: loaded and checked again, they would be there twice.
        own = ([batch] for batch in whole.batches)
        for batches in own if kept else restored.groups(args.split, args.samples, size, count):
            yield operator_of(batches, layers)

    held = ", batch norm's statistics held" if args.bn == "recalibrate" else ""
    return SampleGroups(operators, f"{said}, to first order{held}", lack if count < 2 else "")
