"""The mean loss at weights near those that a model has, and its gradient there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from loss_landscape.evaluation import moved
from loss_landscape.forward_pass.batch_norm import EVAL, Statistics
from loss_landscape.my_pyhessian.batches import Forward
from loss_landscape.my_pyhessian.operators import Criterion


class NearbyLoss:
    """The mean loss over the samples of some batches, in eval mode and without autocast.

    The weights stand at w + step for as long as a call lasts, and are put back bit for bit, also on
    an exception; mode and gradients of the model are left as they are.

    Args:
        model: its parameters that require a gradient are the weights.
        criterion: (outputs, targets) -> one value a sample, (batch,).
        forward: (model, batch) -> (outputs, targets).
        statistics: which ones batch norm takes, at all weights; the model's own if not given.

    Attributes:
        weights: (P,), w in the order of ``model.parameters()``, detached.
        losses, gradients: of how many samples they were taken so far.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        forward: Forward,
        statistics: Statistics = EVAL,
    ) -> None:
        self.statistics = statistics
        self.model, self.criterion, self.forward = model, criterion, forward
        self.params = [p for p in model.parameters() if p.requires_grad]
        self.weights = torch.cat([p.detach().flatten() for p in self.params])
        self.losses = self.gradients = 0

    def values(self, batches: Sequence[Any], step: Tensor | None = None) -> Tensor:
        """The loss of each sample at w + ``step`` (P,), or at w."""
        with self._standing_at(step), torch.no_grad():
            values = torch.cat([self._values(batch) for batch in batches])
        self.losses += len(values)
        return values

    def __call__(self, batches: Sequence[Any], step: Tensor | None = None) -> float:
        """Their mean."""
        return float(self.values(batches, step).double().mean())

    def with_gradient(
        self, batches: Sequence[Any], step: Tensor | None = None
    ) -> tuple[float, Tensor]:
        """The loss at w + ``step``, or at w, and its gradient (P,) there."""
        gradient = torch.zeros_like(self.weights)
        found = []
        with self._standing_at(step), torch.enable_grad():
            for batch in batches:
                values = self._values(batch)
                parts = torch.autograd.grad(values.sum(), self.params, materialize_grads=True)
                gradient += torch.cat([part.flatten() for part in parts])
                found.append(values.detach())
        values = torch.cat(found)
        self.gradients += len(values)
        return float(values.double().mean()), gradient / len(values)

    def _values(self, batch: Any) -> Tensor:
        return self.criterion(*self.forward(self.model, batch))

    @contextmanager
    def _standing_at(self, step: Tensor | None) -> Iterator[None]:
        """Eval mode at w + ``step``."""
        training = [module for module in self.model.modules() if module.training]
        device = self.weights.device.type
        tensors = [] if step is None else [p.data for p in self.params]
        parts = [] if step is None else step.split([p.numel() for p in self.params])
        moves = [part.view_as(t) for part, t in zip(parts, tensors, strict=True)]
        self.model.eval()
        try:
            with (
                torch.inference_mode(False),
                torch.autocast(device, enabled=False),
                moved(tensors, [moves], [1.0]),
                self.statistics(self.model),
            ):
                yield
        finally:
            for module in training:
                module.training = True
