r"""Measures of sharpness at a checkpoint, with their errors: a table, and a file.

    python loss_landscape/sharpness.py --model_file to_plot/model_GCN_SAM_rho0.05.pt
    python loss_landscape/sharpness.py --samples 512 --measures lambda_max worst_case_adaptive \
        --model_file to_plot/model_cifar_SGD_rho0.0.pt to_plot/model_cifar_SAM_rho0.05.pt

writes ``Eigenvalues/<name>_<optimizer>_sharpness.json``. Measures that are there already under the
same settings are not taken again. What each of them is, says ``sharpness_measures/measures.py``;
all are of the training's loss with dropout off, and batch norm in eval mode unless ``--bn`` says
otherwise.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from loss_landscape.forward_pass.batch_norm import add_bn_flag, asked_statistics, said
from loss_landscape.my_pyhessian.batches import Forward
from loss_landscape.my_pyhessian.lanczos import Eigenpairs
from loss_landscape.my_pyhessian.operators import HessianOperator
from loss_landscape.my_pyhessian.sample_error import Quotients, sample_groups
from loss_landscape.my_pyhessian.stochastic import rademacher
from loss_landscape.own_model.loss_functions import logits_of
from loss_landscape.restore import Restored, add_restore_flags, restore
from loss_landscape.sharpness_measures.definitions import KINDS, value
from loss_landscape.sharpness_measures.measures import (
    Measured,
    Probes,
    average_case,
    eigenvalue_ratio,
    epsilon_sharpness,
    frobenius_norm,
    lambda_max,
    m_sharpness,
    probe,
    top_eigenpairs,
    trace,
    worst_case,
)
from loss_landscape.sharpness_measures.nearby_loss import NearbyLoss
from loss_landscape.sharpness_measures.sharpness_file import (
    known_measures,
    sharpness_path,
    write_sharpness,
)
from utilities.cli import Parser, add_run_flags, positive_float, positive_int, report_files, run
from utilities.files import locked, sha256_of, target
from utilities.progress import Progress
from utilities.ranks import refuse_several
from utilities.tables import table

M = 128  # samples a subset, as Andriushchenko et al. 2023
WORST_RHO = {"linf": 0.002, "l2": 0.5}  # of adaptive ones in their scripts
UNRECORDED = ("model_file", "data_dir", "out_dir", "overwrite", "device", "threads", "measures")


class Measurement:
    """A checkpoint, its loss and its samples, and what has been found of its Hessian.

    Args:
        restored: the checkpoint.
        args: the command line.

    Attributes:
        m: samples a subset.
        left_out: samples that no subset of m has.
        products: with the Hessian, made so far.

    Raises:
        ValueError: the loss is NaN, or what the command line asks for can't be had of the samples.
    """

    def __init__(self, restored: Restored, args: argparse.Namespace) -> None:
        self.args, self.restored, self.products = args, restored, 0
        model = restored.model
        forward = _normalised(restored) if args.normalise_logits else restored.forward
        self.batches = restored.batches(args.split, args.samples, args.batch_size)
        statistics = asked_statistics(args, restored, self.batches)
        # Which sees that the loss is finite, not random and not half precise.
        self.how: dict[str, Any] = {"forward": forward, "statistics": statistics}
        self.operator = HessianOperator(model, restored.loss, self.batches, **self.how)
        self.loss = NearbyLoss(model, restored.loss, **self.how)
        samples = self.operator.samples
        self.m = args.m or min(M, samples)
        if self.m > samples:
            raise ValueError(f"--m {self.m}: there are {samples} samples; take fewer")
        if self.m < 2 and args.bn == "batch":
            raise ValueError("--m 1: one sample has no statistics for --bn batch; take more")
        parts = restored.batches(args.split, args.samples, self.m)
        counted = NearbyLoss(model, restored.loss, forward)  # takes a last part of one sample too
        self.subsets = [[part] for part in parts if len(counted.values([part])) == self.m]
        if not self.subsets:
            raise ValueError(
                f"--m {self.m}: no batch has as many samples, and these are not cut; name the "
                "loader's number with --m"
            )
        self.left_out = samples - self.m * len(self.subsets)
        self.absolute, self.one = self.loss.weights.abs(), torch.ones_like(self.loss.weights)

    def take(self, name: str) -> dict[str, Any]:
        """One measure, as it stands in the file."""
        loss, samples = self.loss, self.operator.samples
        before, started = (self.products, loss.gradients, loss.losses), time.monotonic()
        with Progress(name) as self.progress:
            found: Measured = TAKE[name](self)
        after = (self.products, loss.gradients, loss.losses)
        products, gradients, losses = (b - a for a, b in zip(before, after, strict=True))
        cost = {"products": products, "gradients": gradients / samples, "passes": losses / samples}
        of_draws = name.startswith("average") and len(self.subsets) == 1
        return {
            "value": found.value,
            "standard_error": found.standard_error,
            "bound": found.bound,
            "remark": found.remark,
            "unit": KINDS[name].unit,
            "error_of": "draws" if of_draws else KINDS[name].error_of,
            "cost": cost,
            "seconds": time.monotonic() - started,
        }

    def tick(self) -> None:
        self.progress.update()

    def matvec(self, vector: Tensor) -> Tensor:
        self.products += 1
        return self.operator(vector)

    @cached_property
    def generator(self) -> torch.Generator:
        """Of the vectors for Lanczos and of the probes, in this order."""
        return torch.Generator().manual_seed(self.args.seed)

    @cached_property
    def pairs(self) -> Eigenpairs:
        flat, args = self.operator.flat, self.args
        start = rademacher(flat.numel(), flat, self.generator)
        return top_eigenpairs(self.matvec, start, 5, args.max_steps, args.tol, self.tick)

    @cached_property
    def quotients(self) -> Quotients:
        """Of the first and the last vector of ``pairs``."""
        groups = sample_groups(
            self.restored,
            self.args,
            self.operator,
            lambda batches, _: HessianOperator(
                self.restored.model, self.restored.loss, batches, **self.how
            ),
        )
        found = groups.quotients(self.pairs.vectors[[0, -1]])
        self.products += found.values.shape[1] if len(found.sizes) else 0
        return found

    @cached_property
    def probes(self) -> Probes:
        pairs, args = self.pairs, self.args  # before the generator is used again
        return probe(self.matvec, pairs, self.generator, args.probes, args.accuracy, self.tick)

    def average_case(self, scale: Tensor) -> Measured:
        generator = torch.Generator().manual_seed(self.args.seed)
        args = (self.loss, self.subsets, scale, self.args.average_rho, generator)
        return average_case(*args, self.args.draws, self.tick)

    def worst_case(self, scale: Tensor) -> Measured:
        args = self.args
        how = (args.worst_rho, args.worst_norm, args.iterations, self.tick)
        return worst_case(self.loss, self.subsets, scale, *how)


TAKE: dict[str, Callable[[Measurement], Measured]] = {
    "lambda_max": lambda at: lambda_max(at.pairs, at.quotients),
    "lambda_max_over_lambda_5": lambda at: eigenvalue_ratio(at.pairs, at.quotients),
    "trace": lambda at: trace(at.probes),
    "frobenius_norm": lambda at: frobenius_norm(at.probes),
    "epsilon_sharpness": lambda at: epsilon_sharpness(
        at.loss, at.batches, at.args.epsilon, at.args.iterations, at.tick
    ),
    "average_case_adaptive": lambda at: at.average_case(at.absolute),
    "worst_case_adaptive": lambda at: at.worst_case(at.absolute),
    "average_case": lambda at: at.average_case(at.one),
    "worst_case": lambda at: at.worst_case(at.one),
    "m_sharpness": lambda at: m_sharpness(at.loss, at.subsets, at.args.rho, at.tick),
}


def _normalised(restored: Restored) -> Forward:
    """Logits less their mean, of length 1, which a scaled last layer leaves as they are."""
    if restored.loss_name == "mse":
        raise ValueError("--normalise_logits: is for a crossentropy, not for --loss_name mse")

    def forward(model: nn.Module, batch: Any) -> tuple[Tensor, Any]:
        outputs, targets = restored.forward(model, batch)
        logits = logits_of(outputs)
        centred = logits - logits.mean(dim=1, keepdim=True)
        return centred / centred.norm(dim=1, keepdim=True).clamp_min(1e-10), targets

    return forward


# --- command line ---------------------------------------------------------------------------------
def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    add_restore_flags(parser, batch_size=256, samples=1024, several=True)
    group = parser.add_argument_group("measures")
    group.add_argument("--measures", nargs="+", choices=list(KINDS), default=list(KINDS))
    group.add_argument("--split", choices=["train", "val", "test"], default="train")
    add_bn_flag(group)
    _add_nearby_flags(group)
    _add_hessian_flags(group)
    group.add_argument(
        "--normalise_logits",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="take all measures of logits that are centred and of length 1",
    )
    group.add_argument(
        "--overwrite",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="replace what was taken of another checkpoint or with other settings; of the same, "
        "take --measures anew and keep the others",
    )
    add_run_flags(parser, seed=0)
    args = parser.parse_args(argv)
    if args.max_steps < 5:
        parser.error(f"--max_steps {args.max_steps}: five eigenvalues take 5 or more")
    args.worst_rho = args.worst_rho or WORST_RHO[args.worst_norm]
    return args


def _add_nearby_flags(group: Any) -> None:
    """Add the flags of the measures that are rises of the loss near the weights."""
    group.add_argument(
        "--m", type=positive_int, help=f"samples a subset (default: {M}, or all if there are fewer)"
    )
    group.add_argument("--rho", type=positive_float, default=0.05, help="of m_sharpness")
    group.add_argument(
        "--average_rho", type=positive_float, default=0.1, help="of the average cases"
    )
    group.add_argument(
        "--draws",
        type=positive_int,
        default=10,
        help="a subset, each with its opposite, of the average cases",
    )
    group.add_argument("--worst_norm", choices=list(WORST_RHO), default="linf")
    usual = ", ".join(f"{rho} for {norm}" for norm, rho in WORST_RHO.items())
    group.add_argument(
        "--worst_rho", type=positive_float, help=f"of the worst cases (default: {usual})"
    )
    group.add_argument(
        "--epsilon", type=positive_float, default=1e-3, help="of epsilon_sharpness' box"
    )
    group.add_argument(
        "--iterations", type=positive_int, default=20, help="of the ascent in worst cases and box"
    )


def _add_hessian_flags(group: Any) -> None:
    """Add the flags of the measures that come from products with the Hessian."""
    group.add_argument(
        "--probes", type=positive_int, default=100, help="most random vectors for trace and norm"
    )
    group.add_argument(
        "--accuracy",
        type=positive_float,
        default=0.02,
        help="standard error over value at which there are enough of them",
    )
    group.add_argument(
        "--max_steps", type=positive_int, default=160, help="products for the eigenvalues"
    )
    group.add_argument(
        "--tol", type=positive_float, default=1e-3, help="residual over the largest eigenvalue"
    )


def main(argv: Sequence[str] | None = None) -> list[Path]:
    """Measure as the command line says; return the files' paths."""
    args = parse_args(argv)
    refuse_several()
    paths, records = [], []
    for model_file in dict.fromkeys(args.model_file):
        path, record = measure(argparse.Namespace(**{**vars(args), "model_file": model_file}))
        if path in paths:
            raise ValueError(f"{model_file}: is of the run of one before, {path}; name one of them")
        paths.append(path)
        records.append(record)
    print("\n".join(tables(records, args.measures)))
    report_files(paths)
    return paths


def measure(args: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """Take the measures of one checkpoint that its file doesn't have; its path and content.

    Raises:
        ValueError: the file holds another checkpoint's or other settings'; see Measurement.
    """
    restored = restore(args)
    path = target(sharpness_path(restored.run.spectrum))
    record: dict[str, Any] = {
        "checkpoint_sha256": sha256_of(args.model_file),
        "model_file": args.model_file.name,
        "title": restored.run.title,
    }
    with locked(path, "--out_dir puts this one elsewhere"):
        at = Measurement(restored, args)  # which loads the user's own data and their digests
        record["arguments"] = {k: v for k, v in vars(args).items() if k not in UNRECORDED}
        record["arguments"] |= {"loss_name": restored.loss_name, **restored.digests}
        record |= {"samples": at.operator.samples, "parameters": len(at.absolute)}
        record |= {"m": at.m, "subsets": len(at.subsets), "bn": said(args)}
        record["measures"] = kept_measures(path, record, args)
        if at.left_out:
            print(
                f"note: {at.left_out} of {at.operator.samples} samples are in no subset of {at.m}"
            )
        for name in args.measures:
            if name in record["measures"]:
                print(f"{path}: {name} is there already{lacking(record['measures'][name], name)}")
                continue
            record["measures"][name] = at.take(name)
            write_sharpness(path, record)
    return path, record


def kept_measures(path: Path, record: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """The file's measures that stay; with ``--overwrite`` those of these settings not asked for.

    Raises:
        ValueError: see ``known_measures``; not with ``--overwrite``.
    """
    if not args.overwrite:
        return known_measures(path, record)
    with suppress(ValueError):
        known = known_measures(path, record)
        return {name: found for name, found in known.items() if name not in args.measures}
    return {}


def lacking(found: dict[str, Any], name: str) -> str:
    """What an older version didn't measure yet; "" if nothing."""
    old = KINDS[name].error_of and not found["error_of"]
    return ", without a standard error; --overwrite takes it anew" if old else ""


def tables(records: Sequence[dict[str, Any]], names: Sequence[str]) -> list[str]:
    """One checkpoint's measures with what they are; of several checkpoints a row each."""
    normalised = "" if records[0]["bn"] == "eval" else f"; batch norm: {records[0]['bn']}"
    if len(records) > 1:
        rows = [
            [r["title"] + normalised, *(value(r["measures"][name]) for name in names)]
            for r in records
        ]
        return [table(["checkpoint", *names], rows)]
    rows = []
    for name in names:
        found = records[0]["measures"][name]
        cost = ", ".join(f"{n:.3g} {what}" for what, n in found["cost"].items() if n)
        known = found["standard_error"] is not None
        of = "; ".join(filter(None, [found["error_of"] if known else "", found["remark"]]))
        rows.append([name, value(found), found["unit"], of, f"{cost}; {found['seconds']:.3g} s"])
    header = ["measure", "value +- standard error", "unit", "error of", "cost"]
    return [records[0]["title"] + normalised, table(header, rows)]


if __name__ == "__main__":
    run(main)
