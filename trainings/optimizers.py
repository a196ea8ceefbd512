"""The optimizer that the flags ask for."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import nn

from sam import SAM, normalisation_only

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
