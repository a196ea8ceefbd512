"""A user's own model on batches of any kind: one loss a sample, seen to be one before it counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from loss_landscape.forward_pass.memory_format import in_format, settle_memory_format
from loss_landscape.my_pyhessian.batches import count_samples, pair_of, steady
from loss_landscape.own_model.data import OwnData, rows, rows_of
from loss_landscape.own_model.loss_functions import LOSSES, Losses, correct
from loss_landscape.own_model.model import blamed

SAME = 1e-3  # relative: what another number of rows in a batch makes of a loss by rounding


class OwnLosses:
    """Outputs, losses and right answers of a model.

    Args:
        model: in eval mode, on its device.
        function: of (model, batch), what ``--forward`` names: gives a loss a sample, (batch,), or
            (outputs, targets). None calls the model with the first of (inputs, targets).
        loss_name: one of ``LOSSES``, of outputs and targets.

    Attributes:
        correct: (outputs, targets) -> share of right answers, (batch,); None where there is none.
        are_given: whether ``function`` gives losses, as ``settle`` finds out.
    """

    def __init__(
        self, model: nn.Module, function: Callable[..., Any] | None, loss_name: str
    ) -> None:
        self.model, self.function = model, function
        self._loss, self._check = LOSSES[loss_name]
        self.correct = correct if loss_name == "crossentropy" else None
        self.device = self._first.device
        self.memory_format, self.are_given = torch.contiguous_format, False

    @property
    def _first(self) -> Tensor:
        return next(p for p in self.model.parameters() if p.is_floating_point())

    def forward(self, model: nn.Module, batch: Any) -> tuple[Any, Any]:
        """(outputs, targets); of a function that gives losses (Losses, batch)."""
        if self.function is None:
            inputs, targets = pair_of(batch)
            with blamed("the model fails on a batch"):
                return model(inputs), targets
        with blamed("--forward fails on a batch"):
            found = self.function(model, batch)
        if isinstance(found, Tensor):
            return Losses(found), batch
        if isinstance(found, tuple | list) and len(found) == 2:
            return found[0], found[1]
        raise ValueError(
            f"--forward gives a {type(found).__name__}, neither a tensor with one loss a sample "
            "nor (outputs, targets)"
        )

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """A loss a sample, (batch,)."""
        return outputs.values if isinstance(outputs, Losses) else self._loss(outputs, targets)

    def losses(self, batch: Any) -> Tensor:
        """Those of a batch, checked.

        Raises:
            ValueError: they aren't one a sample, or that can't be seen.
        """
        outputs, targets = self.forward(self.model, batch)
        if isinstance(outputs, Losses):
            count = rows_of(batch)
            if count is None:
                raise ValueError(
                    "tensors of a batch differ in their first dimension, so that --forward's "
                    "losses can't be seen to be one a sample; let it give (outputs, targets)"
                )
        else:
            self._check(outputs, targets)
            count = count_samples(targets)
        values = self.loss(outputs, targets)
        if values.shape != (count,):
            raise ValueError(
                f"a loss of shape {tuple(values.shape)} for {count} samples; it must be one value "
                'a sample, such as reduction="none" gives'
            )
        return values

    def settle(self, batch: Any) -> None:
        """Try a first batch: whether there are right answers, and in which memory format.

        Raises:
            ValueError: the losses are random, in half precision or not one a sample.
        """
        batch = self.place(batch)
        steady(lambda: self.losses(batch).mean())
        with torch.no_grad():
            self.are_given = isinstance(self.forward(self.model, batch)[0], Losses)
        if self.are_given:
            self.correct = None
        self.memory_format = settle_memory_format(self.model, batch, self.losses)

    def place(self, batch: Any) -> Any:
        """A batch on the model's device, its floating tensors in the model's type and format."""
        dtype = self._first.dtype  # now: --dtype float64 changes it

        def move(leaf: Any) -> Any:
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                leaf = leaf.to(dtype)
            return leaf.to(self.device) if hasattr(leaf, "to") else leaf

        return in_format(tree_map(move, batch), self.memory_format)

    @torch.no_grad()
    def checked(self, batches: list[Any], cut: bool) -> list[Any]:
        """Batches in their places, each with one loss a sample.

        Args:
            batches: of a split.
            cut: rows were chosen, which must have been samples.

        Raises:
            ValueError: names what is wrong.
        """
        placed = [self.place(batch) for batch in batches]
        for number, batch in enumerate(placed):
            values = self.losses(batch)
            if number == 0:
                self._check_rows(batch, values, cut)
        return placed

    def _check_rows(self, batch: Any, values: Tensor, cut: bool) -> None:
        """Refuse losses that hang on the other samples of a batch: half of them shows it."""
        half = (rows_of(batch) or 0) // 2
        if not half:
            return
        try:
            alone = self.losses(rows(batch, torch.arange(half)))
        except ValueError as error:
            if cut:
                raise ValueError(f"rows of a batch aren't its samples: {error}") from error
            return  # the first dimension is something else, which nobody cuts
        scale = float(values.abs().max())
        if not torch.allclose(alone, values[:half], rtol=SAME, atol=SAME * scale, equal_nan=True):
            raise ValueError(
                f"a sample's loss is {float(values[0]):.6g} in a batch of {len(values)} and "
                f"{float(alone[0]):.6g} in one of {half}: it hangs on the others, so that no mean "
                "over samples is one (a mean over tokens, or batch norm without statistics?)"
            )


@dataclass
class OwnBatches:
    """A data set whose batches a user's own model has been tried on.

    Attributes:
        source: a user's own, or one of this project's.
        losses: of the model.
    """

    source: Any
    losses: OwnLosses

    def fixed(
        self,
        split: str,
        batch_size: int,
        samples: int | None = None,
        part: tuple[int, int] = (0, 1),
        group: tuple[int, int] = (0, 1),
    ) -> list[Any]:
        """See ``DatasetClass.batches.Dataset.fixed``.

        Raises:
            ValueError: there is no such split, or a batch gives no loss a sample.
        """
        batches = self.source.fixed(split, batch_size, samples, part, group)
        cut = isinstance(self.source, OwnData) and not self.keeps_batches(split, samples, part)
        return self.losses.checked(batches, cut)

    def keeps_batches(
        self, split: str, samples: int | None, part: tuple[int, int] = (0, 1)
    ) -> bool:
        """Whether the batches of a split, which is loaded, are a user's loader's own."""
        return isinstance(self.source, OwnData) and not self.source.cuts(split, samples, part)

    @property
    def digests(self) -> dict[str, str]:
        return getattr(self.source, "digests", {})
