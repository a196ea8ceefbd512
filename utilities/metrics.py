"""Loss and accuracy of many batches, and what unbalanced classes need beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from utilities.ranks import Ranks

SHOWN_CLASSES = 20  # a confusion matrix of more is wider than a screen


class Total:
    """Sums over batches on the device: the host waits for them once, in ``metrics``.

    Args:
        classes: number of classes.
        device: where the batches lie.

    Attributes:
        losses: the summed loss of each batch so far, 0-dim float64.
        confusion: (classes, classes) int64, rows the true classes, columns the predicted ones.
    """

    def __init__(self, classes: int, device: torch.device | str = "cpu") -> None:
        self.losses: list[Tensor] = []
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64, device=device)

    def add(self, logits: Tensor, losses: Tensor, targets: Tensor) -> None:
        """Add a batch: logits (B, classes), losses (B,), targets (B,).

        Raises:
            ValueError: the losses are not one value a sample. A mean over the batch can't be put
                together with others: its samples, tokens or weights may not count alike.
        """
        if losses.shape != targets.shape[:1]:
            raise ValueError(
                f"a loss of shape {tuple(losses.shape)} for {len(targets)} samples; it must be one "
                'value a sample, such as reduction="none" gives'
            )
        self.losses.append(losses.sum(dtype=torch.float64))
        classes = len(self.confusion)
        cells = targets * classes + logits.argmax(dim=1)
        # Not bincount, which reads the largest cell back from a GPU.
        self.confusion.view(-1).index_add_(0, cells, torch.ones_like(cells))

    def over(self, ranks: Ranks) -> Total:
        """The total over all processes."""
        whole = Total(len(self.confusion), self.confusion.device)
        zero = torch.zeros((), dtype=torch.float64, device=self.confusion.device)
        whole.losses = [torch.stack([zero, *self.losses]).sum()]
        whole.confusion = self.confusion.clone()
        ranks.sum([*whole.losses, whole.confusion])
        return whole

    def metrics(self, name: str) -> dict[str, float]:
        """``<name>_loss`` (mean), ``_acc`` and ``_f1`` (macro F1), the last two in percent."""
        loss, accuracy = self.loss_and_accuracy()
        f1 = 100 * macro_f1(self.confusion.double().cpu())
        return {f"{name}_loss": loss, f"{name}_acc": accuracy, f"{name}_f1": f1}

    def loss_and_accuracy(self) -> tuple[float, float]:
        """Mean loss over all samples, and accuracy in percent.

        Raises:
            ValueError: there are no samples.
        """
        samples = int(self.confusion.sum())
        if not samples:
            raise ValueError("no samples to take the loss of")
        loss = float(torch.stack(self.losses).sum()) / samples
        return loss, 100 * int(self.confusion.trace()) / samples

    def first_bad(self, last: int | None = None) -> int | None:
        """Number, from 1, of the first batch (of the ``last`` ones) with a NaN or infinite loss."""
        start = 0 if last is None else max(len(self.losses) - last, 0)
        if not self.losses:
            return None
        bad = ~torch.stack(self.losses[start:]).isfinite()
        return start + int(bad.int().argmax()) + 1 if bad.any() else None

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self.losses), "confusion": self.confusion}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.confusion.device
        self.losses = [loss.to(device) for loss in state["losses"]]
        self.confusion = state["confusion"].to(device)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Any, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
    classes: int,
    device: torch.device | str = "cpu",
) -> Total:
    """Loss and confusion of a model over ``batches``, in eval mode, in which it is left.

    Every sample counts alike, whatever the batches' sizes. Of several processes each sums up the
    batches that it has; ``.over(ranks)`` of the result is the sum over all of them.

    Args:
        model: gives logits (B, classes).
        batches: of (inputs, targets).
        loss: one value a sample, (B,), from logits (B, classes) and targets (B,).
        classes: number of classes.
        device: where the batches lie.
    """
    model.eval()
    total = Total(classes, device)
    for inputs, targets in batches:
        logits = model(inputs)
        total.add(logits, loss(logits, targets), targets)
    return total


def recall_precision_f1(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Recall, precision and F1 of each class, (classes,) each, 0 where a class has no samples.

    F1 is 2 TP / (2 TP + FP + FN) (van Rijsbergen 1979).

    Args:
        matrix: (classes, classes) float, rows the true classes, columns the predicted ones.
    """
    hits = matrix.diagonal()
    true, predicted = matrix.sum(dim=1), matrix.sum(dim=0)
    return (
        hits / true.clamp_min(1),
        hits / predicted.clamp_min(1),
        2 * hits / (true + predicted).clamp_min(1),
    )


def macro_f1(matrix: Tensor) -> float:
    """Mean F1 over the classes that occur, as true or as predicted ones."""
    occurs = (matrix.sum(dim=0) + matrix.sum(dim=1)) > 0
    return float(recall_precision_f1(matrix)[2][occurs].mean()) if occurs.any() else 0.0


def class_report(confusion: list[list[int]], names: Sequence[str] | None = None) -> str:
    """Two tables for people: each class's metrics in percent, then the confusion matrix.

    Args:
        confusion: rows the true classes, columns the predicted ones.
        names: of the classes; their numbers from 0 if None.
    """
    matrix = torch.tensor(confusion, dtype=torch.float64)
    words = [str(name) for name in names or range(len(confusion))]
    metrics = torch.stack(recall_precision_f1(matrix), dim=1).mul(100).tolist()
    rows = [
        [word, str(sum(counts)), *(f"{value:.2f}" for value in values)]
        for word, counts, values in zip(words, confusion, metrics, strict=True)
    ]
    lines = _aligned([["class", "samples", "recall", "precision", "F1"], *rows])
    if len(words) > SHOWN_CLASSES:
        return "\n".join([*lines, "test_confusion in the checkpoint has the confusion matrix"])
    # Columns come in the rows' order, so that a name may be cut.
    digits = max(len(str(count)) for counts in confusion for count in counts)
    heads = [word[: max(digits, 4)] for word in words]
    cells = [[word, *map(str, counts)] for word, counts in zip(words, confusion, strict=True)]
    lines += ["rows: true class, columns: predicted class", *_aligned([["", *heads], *cells])]
    return "\n".join(lines)


def _aligned(table: list[list[str]]) -> list[str]:
    """Lines of a table: its first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in table
    ]
