"""A tiny unbalanced data set and model for tests of the loop, and what a step left behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from DatasetClass.batches import Batch, Dataset
from trainings import my_train_GCN
from trainings.fit import fit
from trainings.state import TrainingState
from utilities import checkpoint
from utilities.ranks import Ranks

ALONE = Ranks(torch.device("cpu"))
COUNTS = (45, 10, 5)  # training samples a class


class Toy(Dataset):
    """Points in 4 dimensions around their class's mean.

    Attributes:
        poisoned: number, from 1, of the training batch whose inputs are NaN.
        asked: sizes of the batches that ``fetch`` was asked for.
    """

    name, num_classes, class_names = "toy", 3, ("one", "two", "three")

    def __init__(self, batch_size: int = 16, counts: tuple[int, ...] = COUNTS) -> None:
        generator = torch.Generator().manual_seed(0)
        train = sum(counts)
        labels = [k for k, count in enumerate(counts) for _ in range(count)]
        self.labels = torch.tensor(labels + [k % 3 for k in range(60)])
        noise = torch.randn(train + 60, 4, generator=generator)
        self.points = noise + self.labels[:, None]
        self.model_args, self.data_args = {}, {"seed": 0}
        self.poisoned, self.fetched, self.asked = 0, 0, []
        ends = {"train": (0, train), "val": (train, train + 30), "test": (train + 30, train + 60)}
        splits = {name: torch.arange(*end) for name, end in ends.items()}
        self.make_splits(splits, batch_size, 0, None)

    def fetch(self, indices: Tensor) -> Batch:
        self.asked.append(len(indices))
        return self.points[indices], self.labels[indices]

    def fetch_augmented(self, indices: Tensor) -> Batch:
        self.fetched += 1
        noise = torch.randn(len(indices), 4, generator=self.generator)
        points = self.points[indices] + noise / 10
        return points * (torch.nan if self.fetched == self.poisoned else 1), self.labels[indices]


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3)]
    return nn.Sequential(*layers)


def make_args(out: Path, *flags: object) -> Any:
    common = ["--out_dir", str(out), "--batch_size=16", "--epochs=4"]
    return my_train_GCN.parse_args([*common, *map(str, flags)])


def train(
    out: Path, *flags: object, data: Toy | None = None, model: nn.Module | None = None
) -> Any:
    """Train on the toy data; return the arguments, which name the files."""
    args = make_args(out, *flags)
    model = make_model() if model is None else model
    fit(args, my_train_GCN.DEFAULTS, data or Toy(args.batch_size), model, {}, ALONE)
    return args


class Killed(BaseException):
    """Ends a training as a kill does: nothing catches it."""


@contextmanager
def killed_at_save(number: int, written: bool) -> Iterator[None]:
    """Within, a training must end at its ``number``-th save, before or after it is ``written``."""
    saves, real = [], checkpoint.save

    def save(path: Path, content: dict[str, Any]) -> None:
        saves.append(path)
        if len(saves) == number and not written:
            raise Killed
        real(path, content)
        if len(saves) == number:
            raise Killed

    with patch.object(checkpoint, "save", save), pytest.raises(Killed):
        yield


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Weights, gradients and learning rates after each step of the runs in a test."""
    found: list[dict[str, Any]] = []
    real = TrainingState.step

    def step(self: TrainingState, closure: Any) -> Tensor:
        loss = real(self, closure)
        base = self.optimizer.base_optimizer
        found.append(
            {
                "weights": {k: v.clone() for k, v in self.model.state_dict().items()},
                "gradients": [
                    p.grad.clone() for p in self.model.parameters() if p.grad is not None
                ],
                "rates": {group["lr"] for o in (self.optimizer, base) for group in o.param_groups},
            }
        )
        return loss

    monkeypatch.setattr(TrainingState, "step", step)
    return found
