"""A product with the Hessian by each tool, ours, PyHessian's and curvlinops', and its memory."""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import warnings
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import psutil
import torch
from curvlinops import HessianLinearOperator
from pyhessian import hessian as peer_hessian
from pyhessian.utils import hessian_vector_product
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.surface import Subject
from loss_landscape.my_pyhessian.operators import HessianOperator
from loss_landscape.my_pyhessian.products import choose

TOOLS = ("ours", "PyHessian", "curvlinops")
BATCH = 256  # of hessian.py, unless it is told otherwise
AHEAD = 500  # products, for which ours chooses its way
PEAK, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
Product = Callable[[], list[Tensor]]


class MeanLoss(nn.Module):
    """The mean over a batch, as curvlinops wants to know it."""

    reduction = "mean"

    def __init__(self, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.loss(outputs, targets).mean()


class OfDict(nn.Module):
    """A graph network on batches as dicts."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, parts: dict[str, Any]) -> Tensor:
        from torch_geometric.data import Batch

        return self.model(Batch(**{k: v for k, v in parts.items() if k != "size"}))


def product_of(tool: str, label: str, subject: Subject, compiling: bool) -> tuple[Product, float]:
    """A product with a vector of ones, whose entries are the same in any order of the parameters.

    Peers have the model of stock layers. Attention's plain kernel, which both need, is to be forced
    around what is returned. The second result is what was paid before: seconds of the processor's
    time that ours took to choose its way.
    """
    if tool == "ours":
        operator, once = own(subject, compiling)
        return lambda: [operator(torch.ones_like(operator.flat))], once
    make = of_pyhessian if tool == "PyHessian" else of_curvlinops
    return make(label, subject), 0.0


def own(subject: Subject, compiling: bool) -> tuple[HessianOperator, float]:
    """Our operator as hessian.py makes it, and the seconds that choosing the way took."""
    restored = subject.restored
    batches = restored.batches("train", subject.count, BATCH)
    operator = HessianOperator(restored.model, restored.loss, batches, restored.forward)
    began = process_time()
    choose(operator, AHEAD, compiling=compiling)
    return operator, process_time() - began


def of_pyhessian(label: str, subject: Subject) -> Product:
    """With all samples as one batch, whose graph it keeps; WRN's would not fit."""
    model, loss = subject.stock(), MeanLoss(subject.restored.loss)
    vector = [torch.ones_like(p) for p in model.parameters() if p.requires_grad]
    if label == "WRN":
        mean = peer_hessian(model, loss, dataloader=subject.loader(), cuda=False)
        return lambda: mean.dataloader_hv_product(vector)[1]
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mean = peer_hessian(model, loss, data=subject.samples(), cuda=False)
    return lambda: list(hessian_vector_product(mean.gradsH, mean.params, vector))


def of_curvlinops(label: str, subject: Subject) -> Product:
    """With batches as they are; those of graphs as dicts, which it takes beside tensors."""
    model: nn.Module = subject.stock()
    data: list[Any] = list(subject.loader())
    sizes = None
    if not isinstance(data[0][0], Tensor):
        names = ("x", "edge_index", "batch")
        data = [({n: getattr(x, n) for n in names} | {"size": len(y)}, y) for x, y in data]
        model, sizes = OfDict(model), lambda x: x["size"]
    params = list(model.parameters())
    matrix = HessianLinearOperator(
        model,
        MeanLoss(subject.restored.loss),
        params,
        data,
        check_deterministic=False,
        batch_size_fn=sizes,
    )
    vector = [torch.ones_like(p) for p in params]
    return lambda: matrix @ vector


# --- memory ---------------------------------------------------------------------------------------
def memory_of(
    tool: str, label: str, checkpoint: Path, samples: int | None, args: argparse.Namespace
) -> float:
    """MiB of the process at the most, beyond the samples and the model, in a process of its own.

    From before the tool gets them to the end of its first product, which is where what it keeps is
    there beside what a product takes for itself.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(peak, (tool, label, checkpoint, samples, args))


def peak(
    tool: str, label: str, checkpoint: Path, samples: int | None, args: argparse.Namespace
) -> float:
    subject = Subject(checkpoint, samples, args)
    gc.collect()
    before = psutil.Process().memory_info().rss
    RESET.write_text("5", encoding="ascii")  # forgets the peak so far (proc(5))
    with sdpa_kernel(SDPBackend.MATH):
        product_of(tool, label, subject, args.compiling)[0]()
    line = next(line for line in PEAK.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10 - before / 2**20
