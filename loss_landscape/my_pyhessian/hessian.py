r"""Eigenvalues, trace and spectral density of the Hessian at a checkpoint.

    python loss_landscape/my_pyhessian/hessian.py --model_file to_plot/model_GCN_SAM_rho0.05.pt
    python loss_landscape/my_pyhessian/hessian.py --model_file to_plot/model_cifar_SGD_rho0.0.pt \
        --samples 1000 --probes 3 --lanczos_steps 40

writes ``Eigenvalues/<name>_<optimizer>_eigen.npy`` and ``_weight.npy`` (nodes and weights of the
density, probes x Lanczos steps) and ``<name>_<optimizer>.json`` (eigenvalues, residuals, trace,
standard errors); ``density_plot.py`` draws them. From Python, with PyHessian's interface:

    from loss_landscape.my_pyhessian.hessian import hessian
    values, vectors = hessian(model, criterion, data=batch).eigenvalues(top_n=5)

The Hessian is that of the mean loss over all samples, in eval mode; ``operators.py`` says which
criteria and batches it takes.
"""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from loss_landscape.my_pyhessian import stochastic
from loss_landscape.my_pyhessian.batches import Forward, moved
from loss_landscape.my_pyhessian.lanczos import extreme_eigenvalues
from loss_landscape.my_pyhessian.operators import Criterion, Denominator, HessianOperator
from loss_landscape.my_pyhessian.spectrum_file import (
    Spectrum,
    refuse_other_spectrum,
    spectrum_paths,
    write_spectrum,
)
from loss_landscape.restore import Restored, add_restore_flags, restore
from utilities.cli import Parser, add_run_flags, positive_float, positive_int, report_files, run
from utilities.files import locked, target
from utilities.progress import Progress


# --- PyHessian's interface ------------------------------------------------------------------------
class hessian:  # noqa: N801  (the name that users of PyHessian know)
    """PyHessian's class: eigenvalues, trace and density of one batch or a whole loader.

    Args:
        model: any module; its mode, weights and gradients are left as they are.
        criterion: loss(outputs, targets), the mean over the batch or one value a sample.
        data: one batch (inputs, targets).
        dataloader: or an iterable of batches; it is read once, and its batches are kept.
        cuda: move the batches to the GPU (True), leave them (False), or follow the model (None).
        seed: of the random vectors.
        forward: (model, batch) -> (outputs, targets), for batches that are no such pairs.
        denominator: targets -> number, what the sum over a batch is divided by, for a criterion
            that sums because its mean isn't over the samples.

    Raises:
        ValueError: both or neither of ``data`` and ``dataloader``; see CurvatureOperator.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        data: Any = None,
        dataloader: Any = None,
        cuda: bool | None = None,
        seed: int = 0,
        forward: Forward | None = None,
        denominator: Denominator | None = None,
    ) -> None:
        if (data is None) == (dataloader is None):
            raise ValueError("hessian takes either data or dataloader")
        nested = isinstance(data, tuple | list) and all(isinstance(x, tuple | list) for x in data)
        if nested and forward is None:
            raise ValueError("data takes one batch (inputs, targets); dataloader takes several")
        if isinstance(dataloader, Tensor | dict):
            raise ValueError("dataloader takes an iterable of batches; data takes a single one")
        loader = [data] if dataloader is None else dataloader
        batches = moved(loader, _device(model, cuda))
        self.operator = HessianOperator(model, criterion, batches, forward, denominator)
        self.seed, self.generator = seed, torch.Generator().manual_seed(seed)

    def eigenvalues(
        self,
        maxIter: int = 200,  # noqa: N803
        tol: float = 1e-3,
        top_n: int = 1,
    ) -> tuple[list[float], list[list[Tensor]]]:
        """The ``top_n`` eigenvalues of largest magnitude and their vectors, by Lanczos.

        ``maxIter`` bounds the products, ``tol`` the residual relative to the largest eigenvalue; a
        warning says when it was not reached.

        Raises:
            ValueError: ``top_n`` is above ``maxIter`` or the number of parameters, or an argument
                is out of its range.
        """
        size = self.operator.flat.numel()
        _check_counts(top_n=top_n, maxIter=maxIter)
        _check_tolerance(tol)
        if top_n > min(size, maxIter):
            raise ValueError(
                f"top_n {top_n}: at most maxIter ({maxIter}) and the number of parameters ({size})"
            )
        start = stochastic.rademacher(size, self.operator.flat, self.generator)
        pairs = extreme_eigenvalues(self.operator, start, top_n, maxIter, tol, seed=self.seed)
        return pairs.values.tolist(), [self.operator.split(v) for v in pairs.vectors]

    def trace(self, maxIter: int = 100, tol: float = 1e-3) -> list[float]:  # noqa: N803
        """Hutchinson's samples; their mean estimates the trace.

        Raises:
            ValueError: an argument is out of its range.
        """
        _check_counts(maxIter=maxIter)
        _check_tolerance(tol)
        return stochastic.hutchinson(
            self.operator, self.operator.flat, self.generator, maxIter, tol
        )

    def density(self, iter: int = 100, n_v: int = 1) -> tuple[list[list[float]], list[list[float]]]:
        """Nodes and weights of the spectral density, ``iter`` of each for ``n_v`` probes.

        Raises:
            ValueError: an argument is out of its range.
        """
        _check_counts(iter=iter, n_v=n_v)
        nodes, weights = stochastic.quadrature(
            self.operator, self.operator.flat, self.generator, n_v, iter
        )
        return nodes.tolist(), weights.tolist()


def _device(model: nn.Module, cuda: bool | None) -> torch.device | None:
    """Where the batches go; None leaves them."""
    device = next((p.device for p in model.parameters()), None)
    if cuda and (device is None or device.type != "cuda"):
        raise ValueError(f"cuda=True: the model is on {device}; move it first, or leave cuda out")
    return None if cuda is False else device


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
            raise ValueError(f"{name}={count!r}: must be a whole number of 1 or more")


def _check_tolerance(tol: float) -> None:
    if not 0 <= tol < math.inf:
        raise ValueError(f"tol={tol!r}: must be a finite number of 0 or more")


# --- command line ---------------------------------------------------------------------------------
def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    add_restore_flags(parser, batch_size=256)
    group = parser.add_argument_group("spectrum")
    group.add_argument("--split", choices=["train", "val", "test"], default="train")
    group.add_argument("--top_n", type=positive_int, default=5, help="eigenvalues to find")
    group.add_argument(
        "--max_steps", type=positive_int, default=160, help="Lanczos steps for the eigenvalues"
    )
    group.add_argument(
        "--tol", type=positive_float, default=1e-3, help="residual over the largest eigenvalue"
    )
    group.add_argument(
        "--probes", type=positive_int, default=10, help="random vectors for the density"
    )
    group.add_argument(
        "--trace_probes", type=positive_int, default=100, help="random vectors for the trace"
    )
    group.add_argument(
        "--lanczos_steps", type=positive_int, default=60, help="steps a probe of the density"
    )
    group.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    group.add_argument(
        "--overwrite",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="replace a spectrum of another checkpoint or with other settings",
    )
    add_run_flags(parser, seed=0)
    args = parser.parse_args(argv)
    if args.top_n > args.max_steps:
        parser.error(f"--top_n {args.top_n}: needs as many --max_steps, not {args.max_steps}")
    return args


def main(argv: Sequence[str] | None = None) -> Path:
    """Compute a spectrum as the command line says; return the path of its .json."""
    args = parse_args(argv)
    restored = restore(args)
    run = restored.run
    batches = restored.batches(args.split, args.samples, args.batch_size)
    skip = ("model_file", "data_dir", "out_dir", "overwrite", "device", "threads")
    record: dict[str, Any] = {
        "checkpoint_sha256": hashlib.sha256(args.model_file.read_bytes()).hexdigest(),
        "arguments": {k: v for k, v in vars(args).items() if k not in skip}
        | {"loss_name": restored.loss_name, **restored.digests},
    }
    paths = [target(path) for path in spectrum_paths(run.spectrum)]  # before hours of products
    with locked(paths[-1], "--out_dir puts this one elsewhere"):
        if not args.overwrite:
            refuse_other_spectrum(run.spectrum, record)
        operator = _operator(restored, batches, args)
        nodes, weights = _measure(operator, args, record)
        record |= {"model_file": restored.path.name, "title": run.title}
        record |= {"parameters": operator.flat.numel(), "samples": operator.samples}
        paths = write_spectrum(run.spectrum, Spectrum(nodes, weights, record))
    print(
        f"lambda_max {record['lambda_max']:.4g}, trace {record['trace']:.4g} "
        f"+- {record['trace_standard_error']:.2g} (standard error)"
    )
    report_files(paths)
    return paths[-1]


def _operator(restored: Restored, batches: list[Any], args: argparse.Namespace) -> HessianOperator:
    dtype = getattr(torch, args.dtype)

    def convert(leaf: Any) -> Any:
        floating = isinstance(leaf, Tensor) and leaf.is_floating_point()
        return leaf.to(dtype) if floating else leaf

    model, converted = restored.model.to(dtype), tree_map(convert, batches)
    operator = HessianOperator(model, restored.loss, converted, restored.forward)
    if args.top_n > operator.flat.numel():
        raise ValueError(f"--top_n {args.top_n}: the model has {operator.flat.numel()} parameters")
    return operator


def _measure(
    operator: HessianOperator, args: argparse.Namespace, record: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Fill ``record`` with eigenvalues and trace; return the density's nodes and weights."""
    generator = torch.Generator().manual_seed(args.seed)
    flat = operator.flat
    start = stochastic.rademacher(flat.numel(), flat, generator)
    with Progress("Hessian products") as progress:
        tick = progress.update
        pairs = extreme_eigenvalues(
            operator, start, args.top_n, args.max_steps, args.tol, tick, seed=args.seed
        )
        nodes, weights = stochastic.quadrature(
            operator, flat, generator, args.probes, args.lanczos_steps, tick
        )
        known = (pairs.basis, pairs.basis_trace)
        samples = stochastic.hutchinson(
            operator, flat, generator, args.trace_probes, args.tol, tick, *known
        )
    record |= {
        "eigenvalues": pairs.values.tolist(),
        "residuals": pairs.residuals.tolist(),
        "converged": pairs.converged,
        "lambda_max": max(float(pairs.values.max()), float(nodes.max())),
        "lambda_min": min(float(pairs.values.min()), float(nodes.min())),
        "trace": float(np.mean(samples)),
        "trace_standard_error": stochastic.standard_error(samples),
        "trace_samples": samples,
    }
    return nodes, weights


if __name__ == "__main__":
    run(main)
