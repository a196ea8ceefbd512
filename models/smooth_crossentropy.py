"""The loss of every task here: cross-entropy with smoothed labels, one value a sample."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def smooth_crossentropy(logits: Tensor, targets: Tensor, smoothing: float = 0.1) -> Tensor:
    """Cross-entropy against smoothed labels (Szegedy et al. 2016, section 7).

    The true class gets probability ``1 - smoothing`` and each of the others
    ``smoothing / (classes - 1)``, as in davda54's SAM example. (torch's ``label_smoothing``
    spreads the mass over all classes, the true one too, and subtracts no entropy.) The result
    is the Kullback-Leibler divergence, which is 0 for a perfect prediction.

    Args:
        logits: (batch, classes).
        targets: (batch,) int64.
        smoothing: probability taken from the true class, 0 for plain cross-entropy.

    Returns:
        (batch,), in nats.
    """
    log_probabilities = F.log_softmax(logits, dim=1)
    classes = logits.size(1)
    other = smoothing / max(classes - 1, 1)
    smooth = log_probabilities.new_full(logits.shape, other)
    smooth = smooth.scatter(1, targets.unsqueeze(1), 1.0 - smoothing)
    return F.kl_div(log_probabilities, smooth, reduction="none").sum(dim=1)
