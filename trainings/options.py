"""The flags that the training scripts share, and what follows before anything is built."""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainings.averaging import AVERAGES
from trainings.optimizers import OPTIMIZERS, RHO
from trainings.schedules import SCHEDULES
from utilities.cli import (
    Parser,
    add_run_flags,
    fraction,
    non_negative_float,
    positive_float,
    positive_int,
    prepare_device,
)
from utilities.precision import PRECISIONS
from utilities.ranks import Ranks
from utilities.runs import EPOCH, NameDefaults, Run

SYNC_BATCH_NORM = (
    "of several processes: batch norm over the whole batch, GPUs only; if not, each normalises by "
    "its own part, and the first one's running statistics are kept"
)
UNRECORDED = ("argv", "run", "resume", "overwrite")  # and folders


@dataclass(frozen=True)
class Defaults:
    """What a task is called and trains, and values of the shared flags, which differ by task.

    Attributes:
        task: names the files.
        model: its name for ``models.build``, by which a checkpoint is rebuilt.
        dataset: of ``--dataset``, and so are the others of their flags.
    """

    task: str
    model: str
    dataset: str
    optimizer: str
    base_optimizer: str
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    label_smoothing: float
    schedule: str
    precision: str = "fp32"
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
    _add_schedule_flags(parser.add_argument_group("schedule"))
    _add_size_flags(parser.add_argument_group("size and names"))
    _add_machine_flags(parser.add_argument_group("speed and several processes (torchrun)"))
    add_run_flags(parser, defaults.seed)
    values = dataclasses.asdict(defaults)
    parser.set_defaults(
        **{k: v for k, v in values.items() if k not in ("task", "model", "dataset")}
    )


def _add_sam_flags(group: Any) -> None:
    left_out = "Friendly SAM: fraction of the gradients' mean that is left out of the ascent"
    last_part = "LookSAM: weight of the last ascent's orthogonal part in the steps between"
    climbing = "fraction of each batch (of each process's part) that climbs"
    for name, kind, default, text in (
        ("--every", positive_int, 1, "climb in every k-th step, else plain steps"),
        ("--looksam_alpha", non_negative_float, 0.0, last_part),
        ("--sam_start", fraction, 0.0, "fraction of the run without ascents"),
        ("--ascent_fraction", fraction, 1.0, climbing),
        ("--gsam_alpha", non_negative_float, 0.0, "GSAM: the surrogate gap's weight"),
        ("--fsam_sigma", non_negative_float, 0.0, left_out),
        ("--fsam_lambda", fraction, 0.9, "decay of that mean"),
        ("--eta", non_negative_float, 0.01, "ASAM: T_w = |w| + eta"),
    ):
        group.add_argument(name, type=kind, default=default, help=text)
    for name, text in (
        ("--normalise_bias", "ASAM: T_w for biases too, as davda54/sam"),
        ("--only_norm", "SAM-ON: climb with the normalisation layers' parameters only"),
        ("--msam", "MSAM: climb along the momentum, in one pass a step"),
        ("--same_dropout", "the same dropout masks in both passes"),
    ):
        _add_switch(group, name, text)


def _add_schedule_flags(group: Any) -> None:
    group.add_argument("--epochs", type=positive_int, help="passes over the training data")
    group.add_argument(
        "--batch_size", type=positive_int, help="samples a step, over all processes together"
    )
    group.add_argument(
        "--schedule",
        choices=list(SCHEDULES),
        help="learning rate: step divides by 5 after 30, 60 and 80 percent of the epochs",
    )
    group.add_argument(
        "--warmup_epochs",
        type=non_negative_float,
        default=0.0,
        help="epochs over which the learning rate rises linearly to the schedule's",
    )
    group.add_argument(
        "--average",
        choices=AVERAGES,
        default="none",
        help="validate and keep an average of the weights: exponential, or of the last epochs'",
    )
    group.add_argument("--ema_decay", type=fraction, default=0.999, help="of --average ema, a step")
    group.add_argument(
        "--swa_start",
        type=fraction,
        default=0.75,
        help="fraction of the epochs before --average swa",
    )
    group.add_argument(
        "--select",
        choices=["acc", "f1", "loss"],
        default="acc",
        help="what the best epoch on validation is best in: accuracy, macro F1 or loss",
    )
    _add_switch(group, "--class_weights", "weigh the loss inversely to the classes' frequency")
    _add_switch(group, "--balanced_sampling", "draw all classes equally often, with replacement")
    _add_switch(
        group, "--balance_sqrt", "these two by the square root of the frequencies: half of the way"
    )


def _add_size_flags(group: Any) -> None:
    group.add_argument(
        "--train_samples", type=positive_int, help="use only this many training samples"
    )
    group.add_argument("--tag", default="", help="added to the names of the files written")
    _add_switch(group, "--overwrite", "start anew, over whatever run has the same file names")
    _add_switch(group, "--resume", "go on with this run where it was stopped, if it was")
    group.add_argument(
        "--save_seconds",
        type=non_negative_float,
        default=60.0,
        help="how often to save the state, in s; a killed run loses no more than that",
    )
    group.add_argument(
        "--keep_epochs",
        type=positive_int,
        help="keep the first weights and each k-th epoch's, for plot_trajectory.py",
    )
    _add_switch(group, "--tensorboard", "write event files below outputs/tensorboard too")


def _add_machine_flags(group: Any) -> None:
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of the forward pass in training; auto: bf16 where the hardware has it, else fp32",
    )
    _add_switch(group, "--compile", "compile the model with torch.compile")
    _add_switch(group, "--deterministic", "only deterministic kernels, also where they are slower")
    _add_switch(
        group,
        "--ascent_sync",
        "SAM climbs along the whole batch's gradient; if not, each process along that of its own "
        "part, which is m-sharpness and sends one gradient less a step",
        default=True,
    )
    _add_switch(group, "--sync_batch_norm", SYNC_BATCH_NORM)


def _add_switch(group: Any, name: str, text: str, default: bool = False) -> None:
    group.add_argument(name, action=argparse.BooleanOptionalAction, default=default, help=text)


def read_args(parser: Parser, defaults: Defaults, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line, which is kept as ``argv``; ``run`` is the run that it asks for.

    Raises:
        ValueError: flags exclude each other, or ``--tag`` can't be a part of a file name.
    """
    parsed = parser.parse_args(argv)
    refuse_contradictions(parsed)
    usual_rho = RHO.get(parsed.optimizer, 0.0)
    if parsed.rho and parsed.optimizer not in RHO:
        print(f"note: --rho {parsed.rho} has no effect on {parsed.optimizer}")
    rho = usual_rho if parsed.rho is None or parsed.optimizer not in RHO else parsed.rho
    args = {**vars(parsed), "rho": rho, "argv": list(sys.argv[1:] if argv is None else argv)}
    usual = NameDefaults(rho=usual_rho, seed=defaults.seed, dataset=defaults.dataset)
    run = Run.from_arguments(defaults.task, defaults.model, args, usual, parsed.out_dir)
    return argparse.Namespace(**args, run=run)


def start(args: argparse.Namespace) -> Ranks:
    """Choose device and kernels, seed the global generators, meet the other processes.

    Raises:
        ValueError: no such device here.
    """
    device = prepare_device(args.device, args.threads)
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Even saying no imports torch's compiler, which takes seconds.
    if args.deterministic != torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(args.deterministic)
    torch.backends.cudnn.benchmark = not args.deterministic
    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    return Ranks(device)


def refuse_contradictions(args: argparse.Namespace) -> None:
    """Stop where flags can't be meant together.

    Raises:
        ValueError: names the flags and what to do.
    """
    if args.ascent_fraction == 0:
        raise ValueError("--ascent_fraction 0: no sample would climb; use --rho 0 for that")
    if args.average == "swa" and args.swa_start == 1:
        raise ValueError("--swa_start 1: leaves no epoch to average; 0.75 takes the last quarter")
    if args.class_weights and args.balanced_sampling:
        raise ValueError("--class_weights and --balanced_sampling: each balances alone; choose one")
    if args.balance_sqrt and not (args.class_weights or args.balanced_sampling):
        raise ValueError("--balance_sqrt: says how to balance; add --balanced_sampling")
    if args.resume and args.overwrite:
        raise ValueError("--resume and --overwrite: the one keeps what the other drops; choose one")
    if args.looksam_alpha and args.every == 1:
        raise ValueError("--looksam_alpha: acts between ascents only; add --every 5")
    if args.tag and not re.fullmatch(r"[\w-]{1,50}", args.tag, re.ASCII):
        raise ValueError(f"--tag {args.tag[:60]!r}: at most 50 letters, digits, - and _")
    if re.search(rf"_last$|{EPOCH}\d+$", f"_{args.tag}"):
        raise ValueError(
            f"--tag {args.tag}: ends as the names of states or kept epochs do; choose another"
        )


def settings(args: argparse.Namespace, precision: str) -> dict[str, Any]:
    """The arguments as plain values for the checkpoint and the history; folders left out.

    Args:
        args: as ``read_args`` returns them.
        precision: what ``--precision`` came to on this machine.
    """
    items = vars(args).items()
    plain = {k: v for k, v in items if not isinstance(v, Path) and k not in UNRECORDED}
    return {**plain, "precision": precision, "defaults": args.run.defaults._asdict()}
