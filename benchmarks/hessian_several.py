"""Several vectors a product with the Hessian, against as many products with one each.

    python benchmarks/hessian_several.py --threads=1                          # trained first
    python benchmarks/hessian_several.py --threads=1 --part MUTAG --vectors 4 16
    python benchmarks/hessian_several.py --threads=1 --part WRN --WRN to_plot/model_X.pt

One batch of real data, by the way that ``hessian.py`` chooses, with the forward pass and the first
backward pass made once for both. The second backward pass runs once a vector, or once for all of
them: vectorised over an axis in front (``is_grads_batched`` of ``torch.autograd.grad``). They take
turns; times are the processor's, so that other work on the machine counts little.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from time import process_time

import torch
from torch import Tensor

from benchmarks.hessian import SAMPLES, checkpoint_of
from benchmarks.surface import Subject, add_checkpoint_flags
from benchmarks.timing import in_turns, machine, ratio
from loss_landscape.my_pyhessian.operators import HessianOperator
from loss_landscape.my_pyhessian.products import choose, prepared
from loss_landscape.my_pyhessian.quick_layers import QuickLayers
from utilities.cli import Parser, add_run_flags, positive_int, prepare_device, run
from utilities.tables import table

BATCH = {"WRN": 8, "Transformer": 32, "MUTAG": 256, "PROTEINS": 256}  # samples, at most
AHEAD = 500  # products, for which the way is chosen
SAME = 1e-4  # of the norm: what float32 may make of it


class SecondPasses:
    """Products with the Hessian of one batch from its kept first passes.

    Args:
        operator: of that batch.
        layers: of a ``Way``.
    """

    def __init__(self, operator: HessianOperator, layers: str) -> None:
        self.operator = operator
        forward, batches = prepared(operator, layers)
        with operator.evaluating(), QuickLayers() if layers == "quick" else nullcontext():
            loss = operator.loss(*forward(operator.model, batches[0]))
            slopes = torch.autograd.grad(loss, operator.params, create_graph=True)
        self.slopes = slopes

    def of_one(self, vectors: Tensor) -> Tensor:
        """(k, P) -> (k, P), a pass a vector."""
        with self.operator.evaluating():
            return torch.stack([self._pass(self.operator.split(v), False) for v in vectors])

    def of_all(self, vectors: Tensor) -> Tensor:
        """(k, P) -> (k, P), one pass."""
        parts = zip(*(self.operator.split(v) for v in vectors), strict=True)
        with self.operator.evaluating():
            return self._pass([torch.stack(part) for part in parts], True)

    def _pass(self, vector: Sequence[Tensor], batched: bool) -> Tensor:
        pairs = [(s, v) for s, v in zip(self.slopes, vector, strict=True) if s.requires_grad]
        slopes, used = zip(*pairs, strict=True)
        found = torch.autograd.grad(
            slopes,
            self.operator.params,
            used,
            retain_graph=True,
            is_grads_batched=batched,
            materialize_grads=True,
        )
        return torch.cat([part.flatten(int(batched)) for part in found], dim=-1)


def compare(label: str, checkpoint: Path, args: argparse.Namespace) -> list[list[str]]:
    """Rows of the table for one model.

    Raises:
        ValueError: both ways differ by more than rounding.
    """
    count = args.samples or BATCH[label]
    restored = Subject(checkpoint, SAMPLES[label] and count, args).restored
    batches = restored.batches("train", SAMPLES[label] and count, count)[:1]
    operator = HessianOperator(restored.model, restored.loss, batches, restored.forward)
    passes = SecondPasses(operator, choose(operator, AHEAD, compiling=False).layers)
    generator = torch.Generator().manual_seed(args.seed)
    vectors = torch.randn(max(args.vectors), operator.flat.numel(), generator=generator)
    rows = []
    for k in args.vectors:
        ways = {"one": passes.of_one, "all": passes.of_all}
        one, every = (way(vectors[:k]) for way in ways.values())
        off = float((every - one).norm() / one.norm())
        if off > SAME:
            raise ValueError(
                f"{label}: {k} vectors at once give products that are off by {off:.2g}"
            )
        calls: dict[str, Callable[[], float | None]]
        calls = {name: partial(_seconds, way, vectors[:k]) for name, way in ways.items()}
        taken = in_turns(calls, args.rounds, warmup=1)
        gain, low, high = ratio(taken["one"], taken["all"])
        each = [f"{1e3 * float(sorted(taken[name])[args.rounds // 2]) / k:.4g}" for name in ways]
        rows.append(
            [label, str(operator.samples), str(k), *each, f"{gain:.2f} ({low:.2f} to {high:.2f})"]
        )
        print(*rows[-1], flush=True)
    return rows


def _seconds(way: Callable[[Tensor], Tensor], vectors: Tensor) -> float:
    began = process_time()
    way(vectors)
    return process_time() - began


HEADER = ["model", "samples", "vectors", "ms each, by one", "ms each, at once", "gain (95 %)"]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("--part", nargs="+", choices=list(BATCH), default=list(BATCH))
    add_checkpoint_flags(parser, BATCH)
    parser.add_argument("--vectors", nargs="+", type=positive_int, default=[2, 4, 8, 16])
    parser.add_argument("--rounds", type=positive_int, default=7, help="timings of each")
    parser.add_argument("--samples", type=positive_int, help="of the batch; default: by the model")
    add_run_flags(parser, seed=0)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    args = parse_args(argv)
    prepare_device(args.device, args.threads)
    rows: list[list[str]] = []
    for label in args.part:
        rows += compare(label, checkpoint_of(label, args), args)
    print(f"\n{machine()}\n\n{table(HEADER, rows)}")


if __name__ == "__main__":
    run(main)
