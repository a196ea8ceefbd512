"""The average of the weights over a run, which is validated and kept in their stead."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from DatasetClass.batches import Batches, Dataset

AVERAGES = ("none", "ema", "swa")
MEASURED = 256  # at most so many samples a batch for batch norm's statistics


class Average:
    """The average of the weights over the run: none, EMA or SWA, from torch.optim.swa_utils.

    EMA follows each step (Polyak & Juditsky 1992, with exponential weights); SWA averages the
    weights at the ends of the run's last epochs (Izmailov et al. 2018, arXiv:1803.05407).

    Args:
        kind: one of ``AVERAGES``.
        model: the one that is trained.
        decay: of EMA, a step.
        start: epochs before SWA's first.

    Attributes:
        model: the averaged one, None without averaging.
    """

    def __init__(
        self, kind: str, model: nn.Module, decay: float = 0.999, start: float = 0.0
    ) -> None:
        self.kind, self.start = kind, start
        self.source = model
        self.model: AveragedModel | None = None
        if kind == "ema":
            rule = get_ema_multi_avg_fn(decay)
            self.model = AveragedModel(model, multi_avg_fn=rule, use_buffers=True)
        elif kind == "swa":
            self.model = AveragedModel(model)

    def after_step(self) -> None:
        if self.kind == "ema" and self.model is not None:
            self.model.update_parameters(self.source)

    def after_epoch(self, epoch: int, dataset: Dataset) -> None:
        """Take the ``epoch``-th epoch's weights into SWA; batch norm is measured anew for them."""
        if self.kind != "swa" or self.model is None or epoch <= self.start:
            return
        self.model.update_parameters(self.source)
        if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.model.modules()):
            indices = dataset.train.indices
            # update_bn weighs all batches alike: a last one of a few samples would count too much.
            size = math.ceil(len(indices) / math.ceil(len(indices) / MEASURED))
            with torch.random.fork_rng():
                update_bn(Batches(dataset.fetch, indices, size), self.model)

    def evaluated(self) -> nn.Module:
        """The model to validate and to keep: the average as soon as there is one."""
        if self.model is None or not self.model.n_averaged:
            return self.source
        return self.model.module

    def state_dict(self) -> dict[str, Any]:
        return {} if self.model is None else self.model.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.model is not None:
            self.model.load_state_dict(state)
