"""Models, data and losses as users bring them: of any rank, as dicts, with objects for outputs."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

SAMPLES = 22


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(split: str = "train") -> tuple[Tensor, Tensor]:
    x = torch.randn(SAMPLES, 4, generator=generator(len(split)))
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0)


# --- classification of points ---------------------------------------------------------------------
def perceptron(width: int = 5, half: bool = False) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))
    return model.half() if half else model


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))


def pairs(split: str = "train") -> Iterator[tuple[Tensor, Tensor]]:
    x, y = points(split)
    yield from zip(x.split(8), y.split(8), strict=True)


def arrays(split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """All samples at once, in float64 and int32, as numpy's users have them."""
    x, y = points(split)
    return x.double().numpy(), y.int().numpy()


def dataset() -> TensorDataset:
    return TensorDataset(*points())


def shuffled() -> DataLoader:
    return DataLoader(dataset(), 8, shuffle=True)


def one_buffer() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One buffer that is filled again and again."""
    x, y = (t.numpy() for t in points())
    inputs, targets = np.empty((11, 4), np.float32), np.empty(11, np.int64)
    for start in (0, 11):
        inputs[:], targets[:] = x[start : start + 11], y[start : start + 11]
        yield inputs, targets


def noisy() -> list[tuple[Tensor, Tensor]]:
    """Other data each time: from a source that nobody can seed."""
    x, y = points()
    return [(x + float(np.random.default_rng().normal()), y)]


# --- tokens, dicts, objects -----------------------------------------------------------------------
class Tokens(nn.Module):
    """Classes of sentences; the output is an object with ``logits``, or a dict."""

    def __init__(self, as_dict: bool = False) -> None:
        super().__init__()
        self.embed, self.decide, self.as_dict = nn.Embedding(9, 6), nn.Linear(6, 3), as_dict

    def forward(self, ids: Tensor) -> Any:
        logits = self.decide(self.embed(ids).mean(dim=1).tanh())
        return {"logits": logits} if self.as_dict else SimpleNamespace(logits=logits)


def sentences() -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, 9, (SAMPLES, 5), generator=generator())
    return ids, ids.sum(dim=1) % 3


def token_pairs() -> list[tuple[Tensor, Tensor]]:
    ids, labels = sentences()
    return list(zip(ids.split(8), labels.split(8), strict=True))


def token_dicts() -> list[dict[str, Tensor]]:
    return [{"ids": ids, "labels": labels} for ids, labels in token_pairs()]


def token_losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    logits = logits_of(model(batch["ids"]))
    return F.cross_entropy(logits, batch["labels"], reduction="none")


def token_outputs(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Any, Tensor]:
    return model(batch["ids"]), batch["labels"]


def logits_of(output: Any) -> Tensor:
    return output["logits"] if isinstance(output, dict) else output.logits


# --- other ranks ----------------------------------------------------------------------------------
class Pixels(nn.Module):
    """Classes of pixels: logits (batch, 3, height, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def pictures() -> tuple[Tensor, Tensor]:
    x = torch.randn(6, 2, 5, 4, generator=generator())
    return x, (x.sum(dim=1) > 0).long()


def volumes() -> tuple[Tensor, Tensor]:
    x = torch.randn(SAMPLES, 2, 3, 2, 2, generator=generator())
    return x, x.flatten(1).sum(dim=1).gt(0).long()


def volume_model() -> nn.Module:
    return nn.Sequential(nn.Conv3d(2, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))


def curve() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))


def values() -> tuple[np.ndarray, np.ndarray]:
    """Regression: one value a sample, in float64, without the model's last dimension."""
    x = points()[0].double().numpy()
    return x, np.sin(x).sum(axis=1)


# --- what can't be right --------------------------------------------------------------------------
def fails(**arguments: Any) -> Any:
    raise KeyError("nothing here")


def no_module() -> int:
    return 7


def batch_mean(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return token_losses(model, batch).mean()


def shared_mean(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """One value a sample that hangs on the whole batch, as a mean over its tokens does."""
    losses = token_losses(model, batch)
    return losses / losses.detach().sum() * len(losses)


def text_given(model: nn.Module, batch: Any) -> str:
    return "loss"


class Dropping(nn.Module):
    """Random in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.linear(x))


class Half(nn.Linear):
    """Computes in bfloat16 within."""

    def __init__(self) -> None:
        super().__init__(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.bfloat16(), self.weight.bfloat16(), self.bias.bfloat16()).float()


def lazy() -> nn.Module:
    return nn.LazyLinear(3)


def one_logit() -> nn.Module:
    return nn.Linear(4, 1)


def swapped() -> nn.Module:
    """Logits (batch, 3, 3) whose classes may be either of the last dimensions."""
    return nn.Sequential(nn.Linear(4, 9), nn.Unflatten(1, (3, 3)))


def swapped_pairs() -> list[tuple[Tensor, Tensor]]:
    x, y = points()
    return [(x, y[:, None].expand(-1, 3))]


def ignoring() -> list[tuple[Tensor, Tensor]]:
    x, y = points()
    return [(x, torch.where(y == 1, -100, y))]


def triples() -> list[tuple[Tensor, Tensor, Tensor]]:
    x, y = points()
    return [(x, y, y)]


def empty() -> list[Any]:
    return []


def unequal() -> dict[str, Tensor]:
    return {"ids": sentences()[0], "labels": torch.zeros(3, dtype=torch.int64)}


# --- layouts --------------------------------------------------------------------------------------
class ViewAfter(nn.Module):
    """A view after a convolution, which only the plain memory format allows."""

    def __init__(self, size: int = 8, classes: int = 2) -> None:
        super().__init__()
        self.conv, self.decide = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * size**2, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.decide(self.conv(x).relu().view(len(x), -1))
