"""What the flags build: the optimizer, the learning rate of each step, the weights' average."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from DatasetClass.batches import Batches, Dataset
from sam import SAM, normalisation_only

MEASURED = 256  # at most so many samples a batch for batch norm's statistics
STEPS = (0.3, 0.6, 0.8)  # shares of the run after which the step schedule divides by 5
# Published radii: Foret et al. 2021, table 1 (CIFAR-10); Kwon et al. 2021, table 2.
RHO = {"SAM": 0.05, "ASAM": 0.5}
OPTIMIZERS = ("SGD", "ADAM", *RHO)


def make_optimizer(args: argparse.Namespace, model: nn.Module, epoch_steps: int) -> SAM:
    """The optimizer that the flags name; with rho 0, SAM is its base optimizer, bit for bit.

    Raises:
        ValueError: options of SAM exclude each other.
    """
    name = args.base_optimizer if args.optimizer in RHO else args.optimizer
    kind: Callable[..., torch.optim.Optimizer] = torch.optim.Adam
    # Fused kernels step over all parameters at once, on CPUs too.
    options = {"lr": args.learning_rate, "weight_decay": args.weight_decay, "fused": True}
    if name == "SGD":
        kind, options["momentum"] = torch.optim.SGD, args.momentum
    return SAM(
        normalisation_only(model) if args.only_norm else model.parameters(),
        kind,
        rho=args.rho,
        adaptive=args.optimizer == "ASAM",
        model=model,
        eta=args.eta,
        normalise_bias=args.normalise_bias,
        every=args.every,
        looksam_alpha=args.looksam_alpha,
        start=round(args.sam_start * args.epochs * epoch_steps),
        gsam_alpha=args.gsam_alpha,
        fsam_sigma=args.fsam_sigma,
        fsam_lambda=args.fsam_lambda,
        msam=args.msam,
        same_dropout=args.same_dropout,
        sync_ascent=args.ascent_sync,
        **options,
    )


def _constant(progress: float) -> float:
    return 1.0


def _step(progress: float) -> float:
    return 0.2 ** sum(progress >= share for share in STEPS)


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": _constant,
    "step": _step,
    "cosine": _cosine,
}


def learning_rate(args: argparse.Namespace, step: int, epoch_steps: int) -> float:
    """Learning rate of the ``step``-th step, counted from 0: the schedule after a linear warm-up.

    Warm-up as in Goyal et al. 2017 (arXiv:1706.02677, section 2.2).
    """
    rate = args.learning_rate * SCHEDULES[args.schedule](step / (args.epochs * epoch_steps))
    warmup = args.warmup_epochs * epoch_steps
    return rate * min(1.0, (step + 1) / warmup) if warmup else rate


class Average:
    """The average of the weights over the run: none, EMA or SWA, from torch.optim.swa_utils.

    EMA follows each step (Polyak & Juditsky 1992, with exponential weights); SWA averages the
    weights at the ends of the run's last epochs (Izmailov et al. 2018, arXiv:1803.05407).

    Attributes:
        model: the averaged one, None without averaging.
    """

    def __init__(self, args: argparse.Namespace, model: nn.Module) -> None:
        self.kind, self.start = args.average, args.swa_start * args.epochs
        self.source = model
        self.model: AveragedModel | None = None
        if self.kind == "ema":
            rule = get_ema_multi_avg_fn(args.ema_decay)
            self.model = AveragedModel(model, multi_avg_fn=rule, use_buffers=True)
        elif self.kind == "swa":
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
