"""The flags that the training scripts share, and what is built from them."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from sam import SAM, normalisation_only
from utilities import checkpoint
from utilities.cli import (
    Parser,
    add_run_flags,
    fraction,
    non_negative_float,
    positive_float,
    positive_int,
)

# Published radii: Foret et al. 2021, table 1 (CIFAR-10); Kwon et al. 2021, table 2.
RHO = {"SAM": 0.05, "ASAM": 0.5}
OPTIMIZERS = ("SGD", "ADAM", *RHO)
STEPS = (0.3, 0.6, 0.8)  # shares of the run after which the step schedule divides by 5


@dataclass
class Defaults:
    """Values of the shared flags, which differ from task to task."""

    name: str
    dataset: str
    optimizer: str
    base_optimizer: str
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    label_smoothing: float
    schedule: str
    seed: int = 42
    momentum: float = 0.9


def add_flags(parser: Parser, defaults: Defaults) -> None:
    """Add the flags that all trainings take."""
    group = parser.add_argument_group("optimizer")
    group.add_argument("--optimizer", choices=OPTIMIZERS)
    group.add_argument(
        "--base_optimizer", choices=["SGD", "ADAM"], help="the one that SAM and ASAM are built on"
    )
    radii = ", ".join(f"{rho} for {name}" for name, rho in RHO.items())
    group.add_argument(
        "--rho", type=non_negative_float, help=f"radius of the neighbourhood (default: {radii})"
    )
    _add_sam_flags(parser.add_argument_group("relatives of SAM, see sam.py for the papers"))
    group.add_argument("--learning_rate", type=positive_float, help="at the start")
    group.add_argument("--momentum", type=fraction, help="of SGD")
    group.add_argument("--weight_decay", type=non_negative_float, help="L2 penalty")
    group.add_argument("--label_smoothing", type=fraction, help="0 for none")
    group = parser.add_argument_group("schedule")
    group.add_argument("--epochs", type=positive_int, help="passes over the training data")
    group.add_argument("--batch_size", type=positive_int, help="samples a step")
    group.add_argument(
        "--schedule",
        choices=list(SCHEDULES),
        help="learning rate: step divides by 5 after 30, 60 and 80 percent of the epochs",
    )
    group = parser.add_argument_group("size and names")
    group.add_argument(
        "--train_samples", type=positive_int, help="use only this many training samples"
    )
    group.add_argument("--tag", default="", help="added to the names of the files written")
    group.add_argument(
        "--overwrite",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="replace a run with other settings that has the same file names",
    )
    add_run_flags(parser, defaults.seed)
    values = dataclasses.asdict(defaults)
    parser.set_defaults(**{k: v for k, v in values.items() if k not in ("name", "dataset")})


def _add_sam_flags(group: Any) -> None:
    group.add_argument(
        "--every", type=positive_int, default=1, help="climb in every k-th step, else plain steps"
    )
    group.add_argument(
        "--looksam_alpha",
        type=non_negative_float,
        default=0.0,
        help="LookSAM: weight of the last ascent's orthogonal part in the steps between",
    )
    group.add_argument(
        "--sam_start", type=fraction, default=0.0, help="share of the run before the first ascent"
    )
    group.add_argument(
        "--ascent_fraction", type=fraction, default=1.0, help="share of each batch that climbs"
    )
    group.add_argument(
        "--gsam_alpha",
        type=non_negative_float,
        default=0.0,
        help="GSAM: the surrogate gap's weight",
    )
    group.add_argument(
        "--fsam_sigma",
        type=non_negative_float,
        default=0.0,
        help="Friendly SAM: share of the gradients' mean that is left out of the ascent",
    )
    group.add_argument("--fsam_lambda", type=fraction, default=0.9, help="decay of that mean")
    group.add_argument("--eta", type=non_negative_float, default=0.01, help="ASAM: T_w = |w| + eta")
    for name, text in (
        ("--normalise_bias", "ASAM: T_w for biases too, as davda54/sam"),
        ("--only_norm", "SAM-ON: climb with the normalisation layers' parameters only"),
        ("--msam", "MSAM: climb along the momentum, in one pass a step"),
        ("--same_dropout", "the same dropout masks in both passes"),
    ):
        group.add_argument(name, action=argparse.BooleanOptionalAction, default=False, help=text)


def settle(args: argparse.Namespace, defaults: Defaults) -> None:
    """Set what follows from other flags: ``rho``, and ``files``, the names of the results.

    Raises:
        ValueError: ``--tag`` can't be a part of a file name.
    """
    if args.ascent_fraction == 0:
        raise ValueError("--ascent_fraction 0: no sample would climb; use --rho 0 for that")
    if args.looksam_alpha and args.every == 1:
        raise ValueError("--looksam_alpha: acts between ascents only; add --every 5")
    if args.optimizer not in RHO:
        if args.rho:
            print(f"note: --rho {args.rho} has no effect on {args.optimizer}")
        args.rho = 0.0
    elif args.rho is None:
        args.rho = RHO[args.optimizer]
    if args.tag and not args.tag.replace("-", "").replace("_", "").isalnum():
        raise ValueError(f"--tag {args.tag!r}: letters, digits, - and _ only")
    suffix = "" if args.dataset == defaults.dataset else f"_{args.dataset}"
    suffix += "" if args.seed == defaults.seed else f"_seed{args.seed}"
    suffix += f"_{args.tag}" if args.tag else ""
    run = f"{defaults.name}_{args.optimizer}"
    args.history = args.out_dir / "outputs" / f"my_train_{run}_{args.rho}{suffix}.dat"
    args.best = args.out_dir / "to_plot" / f"model_{run}_rho{args.rho}{suffix}.pt"
    args.last = args.best.with_name(f"{args.best.stem}_last.pt")


def settings(args: argparse.Namespace, defaults: Defaults) -> dict[str, Any]:
    """The arguments as plain values for the checkpoint and the history; folders left out."""
    plain = {k: v for k, v in vars(args).items() if not isinstance(v, Path) and k != "overwrite"}
    own = {"rho": RHO.get(args.optimizer, 0.0), "seed": defaults.seed, "dataset": defaults.dataset}
    return {**plain, "defaults": own}


def refuse_other_run(args: argparse.Namespace, train_args: dict[str, Any]) -> None:
    """Stop before a run with other settings is overwritten.

    Raises:
        ValueError: the checkpoint of that name is from other settings, or unreadable.
    """
    if args.overwrite or not args.best.exists():
        return
    old = checkpoint.load(args.best)["train_args"]
    machine = ("device", "threads")  # the same run elsewhere
    keys = [k for k in {**old, **train_args} if k not in machine]
    different = [k for k in keys if old.get(k) != train_args.get(k)]
    if different:
        flags = ", ".join(f"--{k} {old.get(k)}" for k in different[:4])
        raise ValueError(
            f"{args.best}: holds another run, with {flags}; name this one with --tag, "
            "or replace that with --overwrite"
        )


def make_optimizer(args: argparse.Namespace, model: nn.Module, epoch_steps: int) -> SAM:
    """The optimizer that the flags name; with rho 0, SAM is its base optimizer, bit for bit.

    Raises:
        ValueError: options of SAM exclude each other.
    """
    name = args.base_optimizer if args.optimizer in RHO else args.optimizer
    kind: Callable[..., torch.optim.Optimizer] = torch.optim.Adam
    options = {"lr": args.learning_rate, "weight_decay": args.weight_decay}
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


def make_scheduler(args: argparse.Namespace, optimizer: torch.optim.Optimizer) -> LambdaLR:
    """Learning-rate schedule, advanced once an epoch."""
    factor = SCHEDULES[args.schedule]
    return LambdaLR(optimizer, lambda epoch: factor(epoch / args.epochs))
