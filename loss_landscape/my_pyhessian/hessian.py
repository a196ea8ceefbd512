r"""Eigenvalues, trace and spectral density of the Hessian at a checkpoint.

    python loss_landscape/my_pyhessian/hessian.py --model_file to_plot/model_GCN_SAM_rho0.05.pt
    python loss_landscape/my_pyhessian/hessian.py --model_file to_plot/model_cifar_SGD_rho0.0.pt \
        --samples 1000 --probes 3 --lanczos_steps 40

writes ``Eigenvalues/<name>_<optimizer>_eigen.npy`` and ``_weight.npy`` (nodes and weights of the
density, a row a probe) and ``<name>_<optimizer>.json`` (eigenvalues at both ends with residuals
and standard errors over samples, trace with its standard error, products); ``density_plot.py``
draws them. A run that was stopped goes on when its command line is given again. The standard
errors take a product more for each eigenvalue (``sample_error.py``); of the whole split they are
those of one draw of it. From Python, with PyHessian's interface:

    from loss_landscape.my_pyhessian.hessian import hessian
    values, vectors = hessian(model, criterion, data=batch).eigenvalues(top_n=5)

The Hessian is that of the mean loss over all samples, with dropout off and batch norm in eval mode
unless ``--bn`` says otherwise; ``operators.py`` says which criteria and batches it takes,
``probes.py`` how the parts are measured.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from loss_landscape.forward_pass.batch_norm import (
    KINDS,
    add_bn_flag,
    asked_statistics,
    said,
    statistics_of,
)
from loss_landscape.my_pyhessian import stochastic
from loss_landscape.my_pyhessian.batches import Forward, forward_pair, moved
from loss_landscape.my_pyhessian.lanczos import extreme_eigenvalues
from loss_landscape.my_pyhessian.measurement import measure, summary
from loss_landscape.my_pyhessian.operators import (
    Criterion,
    CurvatureOperator,
    Denominator,
    FisherOperator,
    GaussNewtonOperator,
    HessianOperator,
)
from loss_landscape.my_pyhessian.probes import Operators, products_ahead
from loss_landscape.my_pyhessian.products import FEWEST, choose
from loss_landscape.my_pyhessian.sample_error import SampleGroups, sample_groups
from loss_landscape.my_pyhessian.shared_products import SharedProducts
from loss_landscape.my_pyhessian.spectrum_file import (
    Spectrum,
    refuse_other_spectrum,
    settings,
    spectrum_paths,
    write_spectrum,
)
from loss_landscape.my_pyhessian.unfinished import Unfinished
from loss_landscape.restore import Restored, add_restore_flags, restore
from utilities.cli import (
    Parser,
    add_run_flags,
    non_negative_int,
    positive_float,
    positive_int,
    prepare_device,
    report_files,
    run,
)
from utilities.files import locked, sha256_of, target
from utilities.ranks import Ranks
from utilities.ray_cluster import add_ray_flag, check_ray_flag, cluster

MATRICES: dict[str, type[CurvatureOperator]] = {
    "hessian": HessianOperator,
    "ggn": GaussNewtonOperator,
    "fisher": FisherOperator,
}


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
        fast: look for a faster way to the same products where many are ahead (``products.py``);
            none is compiled.
        bn: batch norm's statistics, whichever mode the model is in: "eval" for its running ones, as
            PyHessian's ``model.eval()`` has it; "batch" for each batch's own, as in training;
            "recalibrate" for those that the batches have at the model's weights, held fixed. Its
            buffers are left as they are. All other layers are in eval mode: dropout is off.

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
        fast: bool = True,
        bn: str = "eval",
    ) -> None:
        if bn not in KINDS:
            raise ValueError(f"bn={bn!r}: must be one of {', '.join(KINDS)}")
        if (data is None) == (dataloader is None):
            raise ValueError("hessian takes either data or dataloader")
        nested = isinstance(data, tuple | list) and all(isinstance(x, tuple | list) for x in data)
        if nested and forward is None:
            raise ValueError("data takes one batch (inputs, targets); dataloader takes several")
        if isinstance(dataloader, Tensor | dict):
            raise ValueError("dataloader takes an iterable of batches; data takes a single one")
        loader = [data] if dataloader is None else dataloader
        batches = list(moved(loader, _device(model, cuda)))
        statistics = statistics_of(bn, model, batches, forward or forward_pair)
        how = (forward, denominator, None, statistics)
        self.operator = HessianOperator(model, criterion, batches, *how)
        self.fast, self.seed = fast, seed
        self.generator = torch.Generator().manual_seed(seed)

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
        self._speed_up(min(maxIter, 20 + 10 * top_n))
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
        self._speed_up(maxIter)
        return stochastic.hutchinson(
            self.operator, self.operator.flat, self.generator, maxIter, tol
        )

    def density(self, iter: int = 100, n_v: int = 1) -> tuple[list[list[float]], list[list[float]]]:
        """Nodes and weights of the spectral density, ``iter`` of each for ``n_v`` probes.

        Raises:
            ValueError: an argument is out of its range.
        """
        _check_counts(iter=iter, n_v=n_v)
        self._speed_up(iter * n_v)
        nodes, weights = stochastic.quadrature(
            self.operator, self.operator.flat, self.generator, n_v, iter
        )
        return nodes.tolist(), weights.tolist()

    def _speed_up(self, products: int) -> None:
        """Look for a faster way, once."""
        if self.fast and products >= FEWEST:
            choose(self.operator, products, compiling=False, say=lambda line: None)
            self.fast = False


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
    _add_matrix_flags(parser.add_argument_group("matrix"))
    _add_accuracy_flags(parser.add_argument_group("accuracy"))
    parser.add_argument(
        "--overwrite",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="replace a spectrum of another checkpoint or with other settings",
    )
    add_run_flags(parser, seed=0)
    add_ray_flag(parser, "probes and layers")
    args = parser.parse_args(argv)
    if args.top_n + args.bottom_n > args.max_steps:
        parser.error(
            f"--top_n {args.top_n} --bottom_n {args.bottom_n}: need as many --max_steps, not "
            f"{args.max_steps}"
        )
    check_ray_flag(args)
    return args


def _add_matrix_flags(group: Any) -> None:
    group.add_argument("--split", choices=["train", "val", "test"], default="train")
    group.add_argument(
        "--matrix",
        choices=list(MATRICES),
        default="hessian",
        help="ggn: the generalised Gauss-Newton matrix; fisher: the empirical Fisher matrix",
    )
    group.add_argument(
        "--layers",
        nargs="+",
        metavar="NAME",
        help="take the block of these modules or parameters (all if not given)",
    )
    group.add_argument(
        "--per_layer",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="find each layer's largest eigenvalue and trace too, of its own block",
    )
    add_bn_flag(group)
    group.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    group.add_argument(
        "--fast",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="make products a faster way that agrees with the plain one, where there is one",
    )


def _add_accuracy_flags(group: Any) -> None:
    for flags, kind, default, text in (
        (
            "--top_n",
            positive_int,
            5,
            "largest eigenvalues to find, with a product more for each error",
        ),
        ("--bottom_n", non_negative_int, 1, "lowest eigenvalues to find"),
        ("--max_steps", positive_int, 160, "most products for the eigenvalues"),
        ("--tol", positive_float, 1e-3, "residual over the largest eigenvalue"),
        ("--probes", positive_int, 10, "most random vectors for the density"),
        ("--lanczos_steps --steps", positive_int, 60, "products for each of them"),
        (
            "--density_error",
            positive_float,
            0.05,
            "stop the density where its error over the probes is this part of the eigenvalues' "
            "mean magnitude (Wasserstein's distance, about)",
        ),
        (
            "--trace_probes",
            positive_int,
            100,
            "most random vectors for the trace; of the products that spare some, as many at most",
        ),
        ("--trace_error", positive_float, 0.02, "stop it at this standard error over the trace"),
    ):
        group.add_argument(*flags.split(), type=kind, default=default, help=text)


def main(argv: Sequence[str] | None = None) -> Path:
    """Compute a spectrum as the command line says; return the path of its .json."""
    args = parse_args(argv)
    ranks = Ranks(prepare_device(args.device, args.threads))
    args.device = str(ranks.device)
    try:
        return _spectrum(args, ranks)
    finally:
        ranks.close()


def _spectrum(args: argparse.Namespace, ranks: Ranks) -> Path:
    """Write the spectrum, or serve the process that does."""
    if args.ray is not None and ranks.world > 1:
        raise ValueError("--ray: torchrun shares each product out already; take one of the two")
    with ranks.in_turn():
        restored = restore(args)
    batches = restored.batches(args.split, args.samples, args.batch_size)
    skip = ("model_file", "data_dir", "out_dir", "overwrite", "device", "threads", "ray")
    record: dict[str, Any] = {
        "checkpoint_sha256": sha256_of(args.model_file),
        "arguments": {k: v for k, v in vars(args).items() if k not in skip}
        | {"loss_name": restored.loss_name, **restored.digests},
        "bn": said(args),
    }
    stem = _stem(restored.run.spectrum, args)
    paths = [target(path) for path in spectrum_paths(stem)]  # before hours of products
    operators, sources = operators_of(restored, batches, args)
    operator = operators(None)
    shared = SharedProducts(operator, ranks)
    groups = shared.with_groups(groups_of(restored, operators, args))
    if not ranks.writer:
        shared.serve()
        return paths[-1]
    with shared.asked(), locked(paths[-1], "--out_dir puts this one elsewhere"):
        if not args.overwrite:
            refuse_other_spectrum(stem, record)
        record |= {"model_file": restored.path.name, "title": restored.run.title}
        record |= {"parameters": operator.flat.numel(), "samples": operator.samples}
        record |= {name: str(restored.described[name]) for name in ("dataset", "model")}
        record |= {"optimizer": restored.described.get("optimizer", "")}
        unfinished = Unfinished(paths[-1].with_suffix(""), settings(record), args.overwrite)
        if args.fast:
            args.way = record["products_by"] = _way(operator, args, unfinished)
            shared.go(args.way)
        with cluster(args.ray) if args.ray is not None else nullcontext() as ray:
            work = (operators, groups), args, record, unfinished, (ray, sources)
            nodes, weights = measure(*work)
        paths = write_spectrum(stem, Spectrum(nodes, weights, record))
        unfinished.remove()
    print("\n".join(summary(record)))
    report_files(paths)
    return paths[-1]


def _way(operator: CurvatureOperator, args: argparse.Namespace, unfinished: Unfinished) -> str:
    """The way of ``products.py`` that products are made, which a spectrum keeps to the end."""
    begun = unfinished.pieces.get("way")
    way = str(
        choose(operator, products_ahead(args), begun=None if begun is None else str(begun["way"]))
    )
    if begun is None:
        unfinished.add("way", {"way": np.array(way)})
    return way


def _stem(stem: Path, args: argparse.Namespace) -> Path:
    """Another matrix's or a block's spectrum has a name of its own."""
    more = [] if args.matrix == "hessian" else [args.matrix]
    more += ["+".join(args.layers)[:80]] if args.layers else []
    return stem.with_name("_".join([stem.name, *more]).replace("/", "."))


def operators_of(
    restored: Restored, batches: list[Any], args: argparse.Namespace
) -> tuple[Operators, dict[str, Any]]:
    """The matrix that the flags ask for, its blocks, and which checkpoint, data and loss it is of.

    Raises:
        ValueError: see CurvatureOperator; too few parameters.
    """
    whole = _operator(restored, batches, args)
    if getattr(args, "way", None):  # a worker's, which another process has chosen
        choose(whole, 0, begun=args.way)

    def operators(layers: Sequence[str] | None) -> CurvatureOperator:
        if layers is None:
            return whole
        kind = MATRICES[args.matrix]
        how: dict[str, Any] = {"layers": layers, "statistics": whole.statistics}
        return kind(whole.model, restored.loss, whole.batches, restored.forward, **how)

    sha256 = sha256_of(args.model_file)
    return operators, {"checkpoint_sha256": sha256, **restored.settings}


def groups_of(restored: Restored, operators: Operators, args: argparse.Namespace) -> SampleGroups:
    """The groups of samples whose spread is the eigenvalues' standard error, and their matrices."""
    whole, kind = operators(None), MATRICES[args.matrix]

    def operator_of(batches: list[Any], layers: Sequence[str] | None) -> CurvatureOperator:
        how: dict[str, Any] = {"layers": layers or args.layers, "statistics": whole.statistics}
        converted = _in_type(batches, args)
        return kind(whole.model, restored.loss, converted, restored.forward, **how)

    return sample_groups(restored, args, whole, operator_of)


def _operator(
    restored: Restored, batches: list[Any], args: argparse.Namespace
) -> CurvatureOperator:
    model, converted = restored.model.to(getattr(torch, args.dtype)), _in_type(batches, args)
    convert = partial(_in_type, args=args)
    statistics = asked_statistics(args, restored, converted, convert)
    kind = MATRICES[args.matrix]
    how: dict[str, Any] = {"layers": args.layers, "statistics": statistics}
    operator = kind(model, restored.loss, converted, restored.forward, **how)
    size = operator.flat.numel()
    if args.top_n + args.bottom_n > size:
        raise ValueError(
            f"--top_n {args.top_n} --bottom_n {args.bottom_n}: there are {size} parameters"
        )
    return operator


def _in_type(batches: Any, args: argparse.Namespace) -> Any:
    """Batches whose floating tensors are of ``--dtype``."""
    dtype = getattr(torch, args.dtype)

    def convert(leaf: Any) -> Any:
        return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return tree_map(convert, batches)


if __name__ == "__main__":
    run(main)
