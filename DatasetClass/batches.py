"""What every data set is made of: splits that are iterated batch by batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor

from DatasetClass.splits import Splits, dealt, subset

Batch = tuple[Any, Tensor]  # (inputs, targets (batch,) int64)
RANK_SEED = 1_000_003  # distance between the seeds of processes that share a run
Fetch = Callable[[Tensor], Batch]  # sample indices (batch,) int64 on the CPU -> a batch


class Batches:
    """Iterate over ``indices`` in batches, in fixed order or shuffled by ``generator``.

    An iteration over shuffled batches can be stopped, kept as ``state_dict`` and gone on with in
    another process: the next batch is then the one that would have come.

    Attributes:
        samples: number of samples that one iteration yields.
        generator: CPU generator that every iteration's order comes from, or None.
        weights: (samples,), how often to draw each sample, with replacement; None for each once.
        rank, world: of each batch this process gets the ``rank``-th of ``world`` equal parts.
    """

    def __init__(
        self,
        fetch: Fetch,
        indices: Tensor,
        batch_size: int,
        generator: torch.Generator | None = None,
    ) -> None:
        self.fetch, self.indices, self.batch_size = fetch, indices, batch_size
        self.generator = generator
        self.samples = len(indices)
        self.weights: Tensor | None = None
        self.rank, self.world = 0, 1
        self.order: Tensor | None = None  # of the present iteration
        self.position = 0  # how many samples of it have been yielded
        self._loaded = False

    def __len__(self) -> int:
        whole, rest = divmod(self.samples, self.batch_size)
        return whole + (rest >= self.world)

    def __iter__(self) -> Iterator[Batch]:
        if not self._loaded:
            self.order, self.position = self.new_order(), 0
        self._loaded = False
        assert self.order is not None
        for chosen in self.order[self.position :].split(self.batch_size):
            self.position += len(chosen)
            part = len(chosen) // self.world  # equal parts: up to world - 1 samples are left out
            if part:
                yield self.fetch(chosen[self.rank * part : (self.rank + 1) * part])
        self.order = None

    def new_order(self) -> Tensor:
        """The sample indices (samples,) in the order of one iteration."""
        if self.generator is None:
            return self.indices
        if self.weights is None:
            return self.indices[torch.randperm(self.samples, generator=self.generator)]
        drawn = torch.multinomial(self.weights, self.samples, True, generator=self.generator)
        return self.indices[drawn]

    def state_dict(self) -> dict[str, Any]:
        """Where the present iteration stands, and the generator's state."""
        state: dict[str, Any] = {"order": self.order, "position": self.position}
        if self.generator is not None:
            state["generator"] = self.generator.get_state()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration go on where ``state`` was taken."""
        self.order, self.position = state["order"], state["position"]
        self._loaded = self.order is not None
        if self.generator is not None:
            self.generator.set_state(state["generator"])


class Dataset:
    """Three splits of one data set.

    Subclasses set what is listed first and call ``make_splits``, which sets the rest.

    Attributes:
        name: as ``DatasetClass.load`` takes it.
        num_classes: number of classes.
        class_names: of the classes, by label; empty where nobody names them.
        labels: of all samples, (N,) int64.
        model_args: the model's arguments that follow from the data.
        data_args: what rebuilds the same splits.
        train: shuffled and augmented batches.
        val, test: batches in fixed order without augmentation.
        sizes: samples of each split, over all processes that ``share`` it.
        generator: CPU generator of the augmentation.
    """

    name: str
    num_classes: int
    class_names: tuple[str, ...] = ()
    labels: Tensor
    model_args: dict[str, int]
    data_args: dict[str, Any]
    train: Batches
    val: Batches
    test: Batches
    sizes: dict[str, int]

    def make_splits(
        self, splits: Splits, batch_size: int, seed: int, train_samples: int | None
    ) -> None:
        """Set ``train``, ``val`` and ``test`` from sample indices.

        Raises:
            ValueError: a split is empty.
        """
        if train_samples is not None:
            splits = {**splits, "train": subset(splits["train"], train_samples)}
        for split, indices in splits.items():
            if len(indices) == 0:
                raise ValueError(f"{self.name}: its {split} split is empty; the set is too small")
        self.seed = seed
        self.sizes = {split: len(indices) for split, indices in splits.items()}
        # Two generators, because processes that share a run need the same order of samples but
        # different augmentation.
        order, self.generator = torch.Generator(), torch.Generator()
        order.manual_seed(seed)
        self.generator.manual_seed(seed + 1)
        self.train = Batches(self.fetch_augmented, splits["train"], batch_size, order)
        self.val = Batches(self.fetch, splits["val"], batch_size)
        self.test = Batches(self.fetch, splits["test"], batch_size)

    def share(self, rank: int, world: int) -> None:
        """Take one process's part: of each training batch, and of the other splits.

        Raises:
            ValueError: a training batch can't be split evenly, or there are too few samples.
        """
        if self.train.batch_size % world:
            raise ValueError(
                f"--batch_size {self.train.batch_size}: not a multiple of the {world} processes "
                "that share each batch"
            )
        if self.train.samples < world:
            raise ValueError(
                f"{self.name}: {self.train.samples} training samples for {world} processes; start "
                "fewer"
            )
        self.train.rank, self.train.world = rank, world
        self.generator.manual_seed(self.seed + 1 + RANK_SEED * rank)
        for split in ("val", "test"):
            whole = getattr(self, split)
            part = Batches(self.fetch, whole.indices[rank::world], whole.batch_size // world)
            setattr(self, split, part)

    def balance(self, exponent: float = 1.0) -> None:
        """Draw training samples with replacement so that every class comes equally often.

        Args:
            exponent: less than 1 draws rare classes less often; 0.5 is the square-root sampling of
                Mahajan et al. 2018 (arXiv:1805.00932).
        """
        weights = self.class_weights(exponent)
        self.train.weights = weights[self.labels.cpu()[self.train.indices]]

    def class_weights(self, exponent: float = 1.0) -> Tensor:
        """Weights (classes,), a class's training samples to the power of minus ``exponent``.

        Their mean over the training samples is 1, so that a weighted loss keeps its scale;
        classes without any sample have weight 0.
        """
        labels = self.labels.cpu()[self.train.indices]
        counts = labels.bincount(minlength=self.num_classes)
        inverse = torch.where(counts > 0, counts.clamp_min(1).double() ** -exponent, 0.0)
        return (inverse * (counts.sum() / (inverse * counts).sum())).float()

    def fetch(self, indices: Tensor) -> Batch:
        """The batch of these samples, without augmentation."""
        raise NotImplementedError

    def fetch_augmented(self, indices: Tensor) -> Batch:
        """The batch of these samples as the training sees it."""
        return self.fetch(indices)

    def fixed(
        self,
        split: str,
        batch_size: int,
        samples: int | None = None,
        part: tuple[int, int] = (0, 1),
        group: tuple[int, int] = (0, 1),
    ) -> list[Batch]:
        """``split`` as batches on the device, without augmentation and in fixed order.

        Args:
            split: "train", "val" or "test".
            batch_size: samples a batch.
            samples: choose this many (always the same ones); None or more than there are: all.
            part: choose them from one of several parts: its number, from 0, and how many there are.
            group: of those chosen take one of several random groups, numbered as parts are.

        Raises:
            ValueError: there are more parts than samples.
        """
        indices = getattr(self, split).indices
        number, parts = part
        if parts > len(indices):
            raise ValueError(
                f"--data_split {parts}: the {split} split has {len(indices)} samples; take fewer"
            )
        chosen = dealt(subset(dealt(indices, number, parts), samples), *group)
        return list(Batches(self.fetch, chosen, batch_size))

    def describe(self) -> str:
        """One line for the log: name, shapes, classes and sizes of the splits."""
        sizes = ", ".join(f"{self.sizes[s]:,} {s}" for s in ("train", "val", "test"))
        return f"{self.name}: {self.num_classes} classes; {sizes}"


def first_part(batch: Batch, fraction: float) -> Batch:
    """The first ``fraction`` of a batch, rounded up; the batch itself for 1."""
    inputs, targets = batch
    count = math.ceil(fraction * len(targets))
    if count == len(targets):
        return batch
    return first_samples(inputs, count), targets[:count]


@singledispatch
def first_samples(inputs: Any, count: int) -> Any:
    """The first ``count`` samples of a batch's inputs; each kind of inputs registers its own way.

    Raises:
        TypeError: no way is registered for this kind.
    """
    raise TypeError(f"a batch of {type(inputs).__name__} can't be cut: no way is registered")


@first_samples.register
def _(inputs: Tensor, count: int) -> Tensor:
    return inputs[:count]
