r"""Eigenvalues, trace and spectral density of the Hessian at a checkpoint.

    python loss_landscape/my_pyhessian/hessian.py --model_file to_plot/model_GCN_SAM_rho0.05.pt
    python loss_landscape/my_pyhessian/hessian.py --model_file to_plot/model_cifar_SGD_rho0.0.pt \
        --samples 1000 --probes 3 --lanczos_steps 40

writes ``Eigenvalues/<name>_<optimizer>_eigen.npy`` and ``_weight.npy`` (nodes and weights of the
density, probes x Lanczos steps) and ``<name>_<optimizer>.json`` (eigenvalues, residuals, trace,
standard errors); ``density_plot.py`` draws them. From Python, with PyHessian's interface:

    from loss_landscape.my_pyhessian.hessian import hessian
    values, vectors = hessian(model, criterion, data=batch).eigenvalues(top_n=5)

The Hessian is that of the mean loss over all samples, in eval mode.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from DatasetClass.batches import Batch
from loss_landscape.my_pyhessian import lanczos as linear
from loss_landscape.restore import Restored, add_restore_flags, restore
from utilities.cli import Parser, add_run_flags, positive_float, positive_int, report_files, run
from utilities.files import atomic_write

Criterion = Callable[[Tensor, Tensor], Tensor]  # the mean loss, or one value a sample


# --- product with the Hessian ---------------------------------------------------------------------
def hvp(
    model: nn.Module,
    criterion: Criterion,
    batch: Batch,
    params: Sequence[Tensor],
    vector: Sequence[Tensor],
) -> list[Tensor]:
    """Product of one batch's mean-loss Hessian with ``vector`` (Pearlmutter 1994).

    Reverse over reverse, without touching ``.grad``; a parameter that the loss doesn't use
    contributes zeros.
    """
    inputs, targets = batch
    # The fused attention kernels have no second derivative.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        loss = criterion(model(inputs), targets).mean()
        gradients = torch.autograd.grad(
            loss, params, create_graph=True, allow_unused=True, materialize_grads=True
        )
        used = [(g, v) for g, v in zip(gradients, vector, strict=True) if g.requires_grad]
        if not used:  # the loss is linear in all parameters
            return [torch.zeros_like(p) for p in params]
        outer, inner = zip(*used, strict=True)
        product = torch.autograd.grad(
            outer, params, inner, allow_unused=True, materialize_grads=True
        )
    return list(product)


class HessianOperator:
    """The Hessian of the mean loss over ``batches`` as a map of vectors (P,) to (P,).

    Batches are weighted by their samples, so an unequal last one counts as it should. Only
    parameters that require a gradient take part, in the order of ``model.parameters()``.

    Raises:
        ValueError: no batch, no parameter, or a loss that is NaN or infinite.
    """

    def __init__(self, model: nn.Module, criterion: Criterion, batches: Sequence[Batch]) -> None:
        self.model, self.criterion, self.batches = model, criterion, batches
        self.params = [p for p in model.parameters() if p.requires_grad]
        self.samples = sum(len(targets) for _, targets in batches)
        if not self.samples:
            raise ValueError("no samples to take the Hessian of")
        if not self.params:
            raise ValueError("no parameter of the model requires a gradient")
        self.like = torch.cat([p.detach().flatten() for p in self.params])
        with self._in_eval_mode(), torch.no_grad():
            losses = [criterion(model(x), y).mean() for x, y in batches]
        if not torch.stack(losses).isfinite().all():
            raise ValueError("the loss is NaN or infinite at these weights: no Hessian there")

    def __call__(self, vector: Tensor) -> Tensor:
        parts = self.split(vector)
        total = torch.zeros_like(vector)
        with self._in_eval_mode():
            for batch in self.batches:
                product = hvp(self.model, self.criterion, batch, self.params, parts)
                share = len(batch[1]) / self.samples
                total += share * torch.cat([part.flatten() for part in product])
        return total

    def split(self, vector: Tensor) -> list[Tensor]:
        """Cut (P,) into tensors of the parameters' shapes."""
        parts = vector.split([p.numel() for p in self.params])
        return [part.view_as(p) for part, p in zip(parts, self.params, strict=True)]

    @contextmanager
    def _in_eval_mode(self) -> Iterator[None]:
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True


# --- PyHessian's interface ------------------------------------------------------------------------
class hessian:  # noqa: N801  (the name that users of PyHessian know)
    """PyHessian's class: eigenvalues, trace and density of one batch or a whole loader.

    Args:
        model: any module; its mode, weights and gradients are left as they are.
        criterion: loss(outputs, targets), the mean over the batch or one value a sample.
        data: one batch (inputs, targets).
        dataloader: or an iterable of batches.
        cuda: move the batches to the GPU (True), leave them (False), or follow the model (None).
        seed: of the random vectors.

    Raises:
        ValueError: both or neither of ``data`` and ``dataloader``; see HessianOperator.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        data: Batch | None = None,
        dataloader: Any = None,
        cuda: bool | None = None,
        seed: int = 0,
    ) -> None:
        if (data is None) == (dataloader is None):
            raise ValueError("hessian takes either data or dataloader")
        batches = list(dataloader) if data is None else [data]
        if cuda is not False:
            device = torch.device("cuda") if cuda else next(model.parameters()).device
            batches = [(x.to(device), y.to(device)) for x, y in batches]
        self.operator = HessianOperator(model, criterion, batches)
        self.generator = torch.Generator().manual_seed(seed)

    def eigenvalues(
        self,
        maxIter: int = 200,  # noqa: N803
        tol: float = 1e-3,
        top_n: int = 1,
    ) -> tuple[list[float], list[list[Tensor]]]:
        """The ``top_n`` eigenvalues of largest magnitude and their vectors, by Lanczos.

        ``maxIter`` bounds the products of one restart, ``tol`` the residual relative to the
        largest eigenvalue; a warning says when it was not reached.
        """
        start = linear.rademacher(self.operator.like.numel(), self.operator.like, self.generator)
        pairs = linear.extreme_eigenvalues(self.operator, start, top_n, maxIter, tol)
        return pairs.values.tolist(), [self.operator.split(v) for v in pairs.vectors]

    def trace(self, maxIter: int = 100, tol: float = 1e-3) -> list[float]:  # noqa: N803
        """Hutchinson's samples; their mean estimates the trace."""
        return linear.hutchinson(self.operator, self.operator.like, self.generator, maxIter, tol)

    def density(self, iter: int = 100, n_v: int = 1) -> tuple[list[list[float]], list[list[float]]]:
        """Nodes and weights of the spectral density, ``iter`` of each for ``n_v`` probes."""
        nodes, weights = linear.quadrature(
            self.operator, self.operator.like, self.generator, n_v, iter
        )
        return nodes.tolist(), weights.tolist()


# --- command line ---------------------------------------------------------------------------------
def spectrum_stem(content: dict[str, Any], path: Path) -> str:
    """``<name>_<optimizer>`` with what differs from the task's defaults, for the files' names."""
    args = content["train_args"]
    usual = args.get("defaults", {})
    stem = f"{content['model']}_{args['optimizer']}"
    if args["rho"] != usual.get("rho"):
        stem += f"_rho{args['rho']}"
    if args["seed"] != usual.get("seed"):
        stem += f"_seed{args['seed']}"
    if content["dataset"] != usual.get("dataset"):
        stem += f"_{content['dataset']}"
    if args.get("tag"):
        stem += f"_{args['tag']}"
    return stem + ("_last" if path.stem.endswith("_last") else "")


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
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> Path:
    """Compute a spectrum as the command line says; return the path of its .json."""
    args = parse_args(argv)
    restored = restore(args)
    stem = args.out_dir / "Eigenvalues" / spectrum_stem(restored.content, restored.path)
    report = stem.with_name(f"{stem.name}.json")
    skip = ("model_file", "data_dir", "out_dir", "overwrite", "device", "threads")
    record: dict[str, Any] = {
        "checkpoint_sha256": hashlib.sha256(args.model_file.read_bytes()).hexdigest(),
        "arguments": {k: v for k, v in vars(args).items() if k not in skip},
    }
    if not args.overwrite:
        _refuse_other(report, record)
    dtype = getattr(torch, args.dtype)
    batches = [
        (x.to(dtype) if isinstance(x, Tensor) else x, y)
        for x, y in restored.batches(args.split, args.samples, args.batch_size)
    ]
    operator = HessianOperator(restored.model.to(dtype), restored.loss, batches)
    nodes, weights = _measure(operator, args, record)
    record |= {"model_file": restored.path.name, "title": _title(restored)}
    record |= {"parameters": operator.like.numel(), "samples": operator.samples}
    paths = [stem.with_name(f"{stem.name}_{part}.npy") for part in ("eigen", "weight")]
    for path, array in zip(paths, (nodes, weights), strict=True):
        with atomic_write(path) as part:
            np.save(part, array, allow_pickle=False)
    with atomic_write(report) as part:  # last: with it the spectrum is complete
        part.write_text(json.dumps(_without_nan(record), indent=1) + "\n", encoding="utf-8")
    print(
        f"lambda_max {record['lambda_max']:.4g}, trace {record['trace']:.4g} "
        f"+- {record['trace_standard_error']:.2g} (standard error)"
    )
    report_files([*paths, report])
    return report


def _measure(
    operator: HessianOperator, args: argparse.Namespace, record: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Fill ``record`` with eigenvalues and trace; return the density's nodes and weights."""
    generator = torch.Generator().manual_seed(args.seed)
    like, tick = operator.like, _Progress()
    start = linear.rademacher(like.numel(), like, generator)
    pairs = linear.extreme_eigenvalues(operator, start, args.top_n, args.max_steps, args.tol, tick)
    nodes, weights = linear.quadrature(
        operator, like, generator, args.probes, args.lanczos_steps, tick
    )
    samples = linear.hutchinson(operator, like, generator, args.trace_probes, args.tol, tick)
    tick.close()
    record |= {
        "eigenvalues": pairs.values.tolist(),
        "residuals": pairs.residuals.tolist(),
        "converged": pairs.converged,
        "lambda_max": max(float(pairs.values.max()), float(nodes.max())),
        "lambda_min": min(float(pairs.values.min()), float(nodes.min())),
        "trace": float(np.mean(samples)),
        "trace_standard_error": linear.standard_error(samples),
        "trace_samples": samples,
    }
    return nodes, weights


class _Progress:
    """Counts products: in place on a terminal, a line every ten seconds in a pipe."""

    def __init__(self) -> None:
        self.count, self.shown = 0, time.monotonic()

    def __call__(self) -> None:
        self.count += 1
        terminal = sys.stdout.isatty()
        if time.monotonic() - self.shown > (0.2 if terminal else 10):
            self.shown = time.monotonic()
            print(f"{self.count} Hessian products", end="\r" if terminal else "\n", flush=True)

    def close(self) -> None:
        print(f"{self.count} Hessian products")


def _without_nan(record: dict[str, Any]) -> dict[str, Any]:
    """One probe has no standard error; JSON has null for that and no NaN."""
    nan = [key for key, value in record.items() if isinstance(value, float) and value != value]
    return {**record, **dict.fromkeys(nan)}


def _title(restored: Restored) -> str:
    args = restored.content["train_args"]
    rho = f", rho {args['rho']}" if args["rho"] else ""
    return f"{restored.content['model']} on {restored.content['dataset']}, {args['optimizer']}{rho}"


def _refuse_other(report: Path, record: dict[str, Any]) -> None:
    if not report.exists():
        return
    try:
        old = json.loads(report.read_text(encoding="utf-8"))
        different = [
            f"--{key}"
            for key in record["arguments"]
            if old["arguments"].get(key) != record["arguments"][key]
        ]
        if old["checkpoint_sha256"] != record["checkpoint_sha256"]:
            different.insert(0, "--model_file")
    except (ValueError, KeyError, TypeError, AttributeError):
        different = ["an unreadable record"]
    if different:
        raise ValueError(
            f"{report}: holds another spectrum (differs in {', '.join(different)}); "
            "--overwrite replaces it, --out_dir puts this one elsewhere"
        )


if __name__ == "__main__":
    run(main)
