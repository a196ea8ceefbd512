"""A user's own data: what a loader gives, as batches of tensors in fixed order.

The loader is called with torch's, numpy's and Python's random numbers seeded, so that a shuffling
DataLoader gives the same order in each run; a digest of the batches tells when it doesn't.
"""

from __future__ import annotations

import hashlib
import inspect
import pickle
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten
from torch.utils.data import DataLoader, Dataset, IterableDataset

from DatasetClass.splits import dealt, subset
from loss_landscape.own_model.model import blamed, import_named

WHOLE = (0, 1)  # the first of one part
PLAIN = (int, float, complex, str, bytes, type(None))


class OwnData:
    """The batches of ``--dataset package.module:loader``, each split loaded once.

    Args:
        name: of the loader. One with a parameter ``split`` is asked for it; any other gives the
            training samples alone.
        arguments: of the loader.

    Attributes:
        digests: SHA-256 of the splits loaded so far.
    """

    def __init__(self, name: str, arguments: Mapping[str, Any]) -> None:
        self.name, self.arguments = name, dict(arguments)
        self.loader = import_named("--dataset", name)
        self.digests: dict[str, str] = {}
        self._loaded: dict[str, list[Any]] = {}
        self._arrays: dict[str, bool] = {}  # whether a split came as one pair or dict of all

    def fixed(
        self,
        split: str,
        batch_size: int,
        samples: int | None = None,
        part: tuple[int, int] = WHOLE,
        group: tuple[int, int] = WHOLE,
    ) -> list[Any]:
        """``split`` as batches on the CPU; see ``DatasetClass.batches.Dataset.fixed``.

        A loader's batches stay as they are, unless samples are chosen of them. Arrays are cut into
        batches of ``batch_size``.

        Raises:
            ValueError: the loader fails, or has no such split or no samples to choose from.
        """
        batches = self.load(split, batch_size)
        if not self.cuts(split, samples, part) and group == WHOLE:
            return batches
        counts = self._counts(batches)
        chosen, (number, parts) = torch.arange(sum(counts)), part
        if parts > len(chosen):
            raise ValueError(f"--data_split {parts}: there are {len(chosen)} samples; take fewer")
        chosen = dealt(subset(dealt(chosen, number, parts), samples), *group)
        return regroup(batches, counts, chosen, batch_size)

    def cuts(self, split: str, samples: int | None, part: tuple[int, int]) -> bool:
        """Whether the loader's batches of a split, which is loaded, are cut into rows."""
        return bool(self._arrays[split] or samples or part != WHOLE)

    def load(self, split: str, batch_size: int) -> list[Any]:
        """The loader's batches as tensors."""
        if split not in self._loaded:
            chosen = self._split_argument(split)
            with blamed(f"--dataset {self.name}: fails with {self.arguments | chosen}"), seeded():
                found = self.loader(**self.arguments, **chosen)
                if isinstance(found, Dataset) and not isinstance(found, IterableDataset):
                    found = DataLoader(found, batch_size)
                arrays = isinstance(found, tuple) and all(
                    isinstance(x, Tensor | np.ndarray) for x in found
                )
                whole = isinstance(found, Mapping) or arrays
                batches = [as_tensors(batch) for batch in ([found] if whole else found)]
                sha256 = digest(batches)
            if not batches:
                raise ValueError(f"--dataset {self.name}: gives no batch of the {split} split")
            self._loaded[split], self._arrays[split] = batches, whole
            self.digests[f"{split}_data_sha256"] = sha256
        return self._loaded[split]

    def _split_argument(self, split: str) -> dict[str, str]:
        try:
            takes = "split" in inspect.signature(self.loader).parameters
        except (TypeError, ValueError):  # of a callable without a signature
            takes = False
        if not takes and split != "train":
            raise ValueError(
                f"--dataset {self.name}: has no parameter split, so it gives no {split} samples"
            )
        return {"split": split} if takes and "split" not in self.arguments else {}

    def _counts(self, batches: Sequence[Any]) -> list[int]:
        counts = [rows_of(batch) for batch in batches]
        if None in counts:
            raise ValueError(
                f"--dataset {self.name}: the tensors of a batch differ in their first dimension, "
                "so no samples can be cut out of it; give batches that need no cutting"
            )
        return [count or 0 for count in counts]


@contextmanager
def seeded() -> Iterator[None]:
    """Within, global random numbers start from one seed; afterwards they go on as before."""
    state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)


def as_tensors(batch: Any) -> Any:
    """A batch with tensors for its arrays, of its own memory, and plain dicts for its mappings."""
    if isinstance(batch, Mapping):
        batch = dict(batch)
    elif type(batch) in (tuple, list):  # a named one keeps its names
        batch = tuple(dict(part) if isinstance(part, Mapping) else part for part in batch)

    def convert(leaf: Any) -> Any:
        # A copy: a loader may fill one buffer again and again.
        if isinstance(leaf, np.ndarray):
            return torch.from_numpy(leaf.copy())
        return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf

    return tree_map(convert, batch)


def rows_of(batch: Any) -> int | None:
    """The first dimension that all tensors of a batch share; None if there is none."""
    sizes: set[int | None] = set()
    for leaf in tree_leaves(batch):
        if isinstance(leaf, Tensor):
            sizes.add(leaf.shape[0] if leaf.ndim else None)
        elif not isinstance(leaf, PLAIN):  # a batch of graphs, say, which nobody here can cut
            sizes.add(None)
    return sizes.pop() if len(sizes) == 1 else None


def rows(batch: Any, numbers: Tensor) -> Any:
    """The rows ``numbers`` of each tensor."""
    return tree_map(lambda leaf: leaf[numbers] if isinstance(leaf, Tensor) else leaf, batch)


def regroup(
    batches: Sequence[Any], counts: Sequence[int], chosen: Tensor, batch_size: int
) -> list[Any]:
    """The ``chosen`` rows in batches of ``batch_size``; rows of other shapes begin a new batch.

    Args:
        batches: whose tensors are rows of samples.
        counts: rows of each.
        chosen: (samples,), rising numbers of rows over all batches.
        batch_size: rows a new batch at most.
    """
    groups: list[tuple[Any, list[Any]]] = []  # of batches whose rows fit together
    start = 0
    for batch, count in zip(batches, counts, strict=True):
        taken = rows(batch, chosen[(chosen >= start) & (chosen < start + count)] - start)
        start += count
        leaves, structure = tree_flatten(taken)
        kind = structure, [(x.shape[1:], x.dtype) if isinstance(x, Tensor) else x for x in leaves]
        if not groups or groups[-1][0] != kind:
            groups.append((kind, []))
        groups[-1][1].append(leaves)
    regrouped = []
    for (structure, _), parts in groups:
        columns = [
            torch.cat(column) if isinstance(column[0], Tensor) else column[0]
            for column in zip(*parts, strict=True)
        ]
        whole = tree_unflatten(columns, structure)
        regrouped += [rows(whole, n) for n in torch.arange(rows_of(whole) or 0).split(batch_size)]
    return [batch for batch in regrouped if rows_of(batch)]


def digest(batches: Sequence[Any]) -> str:
    """SHA-256 of all that the batches hold."""
    state = hashlib.sha256()
    for batch in batches:
        leaves, structure = tree_flatten(batch)
        state.update(str(structure).encode())
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                state.update(f"{leaf.dtype}{tuple(leaf.shape)}".encode())
                state.update(leaf.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
            else:
                state.update(pickle.dumps(leaf))
    return state.hexdigest()
