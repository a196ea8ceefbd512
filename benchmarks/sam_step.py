"""What a step of SAM costs: ours, pytorch-optimizer's and a plain per-parameter loop over SGD.

    python benchmarks/sam_step.py                        # 15 minutes on 2 cores
    python benchmarks/sam_step.py --models=GCN --rounds=5

On real batches. "Whole step" has both forward and backward passes and is compared with SGD's.
"Own part" is what the optimizer adds to its base's step, with the gradients given. "Extra memory"
is the peak beyond SGD's in copies of the weights, and what is left between two steps.
"""

from __future__ import annotations

import argparse
import copy
import gc
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytorch_optimizer
import torch
from torch import Tensor, nn

import DatasetClass
import models
from benchmarks.timing import in_turns, machine, now, ratio
from models.smooth_crossentropy import smooth_crossentropy
from sam import SAM
from utilities.cli import Parser, add_run_flags, positive_int, prepare_device, run
from utilities.tables import table

OPTIONS = {"lr": 1e-3, "momentum": 0.9}
RHO = 0.05


class Case(NamedTuple):
    """A model and the data it is timed on."""

    model: str
    dataset: str
    batch_size: int
    model_args: dict[str, Any]


CASES = {
    "GCN": Case("GCN", "MUTAG", 64, {}),
    "Transformer": Case("mitbih", "mitbih", 128, {}),
    "WRN-16-4": Case("cifar", "cifar10", 64, {"depth": 16, "width_factor": 4}),
    "WRN-16-8": Case("cifar", "cifar10", 64, {"depth": 16, "width_factor": 8}),
}


class Plain(torch.optim.Optimizer):
    """SAM as most people write it, one parameter after the other (as in davda54/sam)."""

    def __init__(self, params: Any, base: Any = torch.optim.SGD, **options: Any) -> None:
        options = options or OPTIONS
        super().__init__(params, {"rho": RHO, **options})
        self.base_optimizer = base(self.param_groups, **options)

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in params]).norm()
        for p in params:
            self.state[p]["old_p"] = p.data.clone()
            p.add_(p.grad * (RHO / (norm + 1e-12)))
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data = self.state[p]["old_p"]
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.first_step(zero_grad=True)
        with torch.enable_grad():
            closure()
        self.second_step()


def make(name: str, model: nn.Module) -> torch.optim.Optimizer:
    """A fresh optimizer of the kind that the table's row names."""
    params = model.parameters()
    if name == "SGD":
        return torch.optim.SGD(params, **OPTIONS)
    if name == "ours":
        return SAM(params, torch.optim.SGD, rho=RHO, model=model, **OPTIONS)
    if name == "per-parameter loop":
        return Plain(params)
    foreach = True if name.endswith("foreach") else None
    return pytorch_optimizer.SAM(params, torch.optim.SGD, rho=RHO, foreach=foreach, **OPTIONS)


PEERS = ("pytorch-optimizer", "pytorch-optimizer, foreach", "per-parameter loop")
NAMES = ("SGD", "ours", *PEERS)


def whole_step(model: nn.Module, optimizer: Any, batch: tuple[Any, Tensor], name: str) -> None:
    """Forward and backward pass, as often as the optimizer needs, and its step."""
    inputs, targets = batch

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = smooth_crossentropy(model(inputs), targets).mean()
        loss.backward()
        return loss.detach()

    if name not in ("SGD", "ours"):  # the others want the first pass made beforehand
        closure()
    optimizer.step(closure)


def own_part(params: list[Tensor], grads: list[Tensor], optimizer: Any) -> float:
    """Seconds in the optimizer alone, the gradients given."""
    parts = [optimizer.step, optimizer.zero_grad]
    if hasattr(optimizer, "first_step"):
        parts = [partial(optimizer.first_step, True), partial(optimizer.second_step, True)]
    seconds = 0.0
    for index, part in enumerate(parts):
        if index == 0 or hasattr(optimizer, "first_step"):  # each pass brings gradients
            give(params, grads)
        start = now()
        part()
        seconds += now() - start
    return seconds


def give(params: list[Tensor], grads: list[Tensor]) -> None:
    """Set gradients as a backward pass does, in memory of their own."""
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad.clone()


def extra_memory(params: list[Tensor], grads: list[Tensor], optimizer: Any) -> tuple[int, int]:
    """Bytes allocated by two steps with given gradients: at the peak, and left between steps."""
    calls = [partial(own_part, params, grads, optimizer)] * 2
    gc.collect()  # else SAM's first step does it and frees what other optimizers left
    if params[0].is_cuda:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        for call in calls:
            call()
        return torch.cuda.max_memory_allocated() - before, torch.cuda.memory_allocated() - before
    with torch.profiler.profile(profile_memory=True) as profiler:
        for call in calls:
            call()
    recorded = profiler.profiler.kineto_results.events()
    sizes = [event.nbytes() for event in recorded if event.name() == "[memory]"]
    live = np.cumsum(sizes)
    return int(live.max()), int(live[-1])


def measure(
    case: Case, args: argparse.Namespace, device: torch.device
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, tuple[float, float]]]:
    """Seconds of whole steps and of own parts, and copies of the weights at peak and between."""
    data = DatasetClass.load(
        case.dataset, data_dir=args.data_dir, batch_size=case.batch_size, device=device, seed=0
    )
    batch = next(iter(data.train))
    torch.manual_seed(args.seed)
    start = models.build(case.model, **data.model_args, **case.model_args).to(device)
    weight_bytes = sum(p.numel() * p.element_size() for p in start.parameters())
    steps: dict[str, Callable[[], None]] = {}
    parts: dict[str, Callable[[], float]] = {}
    memory = {}
    for name in NAMES:
        model = copy.deepcopy(start)
        steps[name] = partial(whole_step, model, make(name, model), batch, name)
        apart = copy.deepcopy(start)
        params = list(apart.parameters())
        grads = [1e-3 * torch.randn_like(p) for p in params]
        peak, left = extra_memory(params, grads, make(name, apart))
        memory[name] = (peak / weight_bytes, left / weight_bytes)
        parts[name] = partial(own_part, params, grads, make(name, apart))
    own = in_turns(parts, args.own_rounds, warmup=20)
    return in_turns(steps, args.rounds), own, memory


def report(
    label: str,
    whole: dict[str, np.ndarray],
    own: dict[str, np.ndarray],
    memory: dict[str, tuple[float, float]],
) -> list[list[str]]:
    """Rows of the table for one model."""
    base = np.median(own["SGD"])
    ours = np.median(own["ours"]) - base
    rows = []
    for name in NAMES:
        middle, low, high = ratio(whole[name], whole["SGD"])
        extra = np.median(own[name]) - base
        peak, left = (m - s for m, s in zip(memory[name], memory["SGD"], strict=True))
        rows.append(
            [
                label,
                name,
                f"{1e3 * np.median(whole[name]):.4g}",
                f"{middle:.3f} ({low:.3f} to {high:.3f})",
                f"{1e6 * (base if name == 'SGD' else extra):.0f}",
                "" if name == "SGD" else f"{extra / ours:.2f}",
                "" if name == "SGD" else f"{peak:.2f}, {left:.2f}",
            ]
        )
    return rows


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("--models", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=positive_int, default=15, help="of whole steps")
    parser.add_argument("--own_rounds", type=positive_int, default=300, help="of own parts")
    add_run_flags(parser, seed=0)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    args = parse_args(argv)
    device = prepare_device(args.device, args.threads)
    rows = []
    for label in args.models:
        rows += report(label, *measure(CASES[label], args, device))
    print(f"{machine()}; {args.rounds} rounds of whole steps, {args.own_rounds} of own parts\n")
    header = [
        "model",
        "optimizer",
        "whole step, ms",
        "over SGD's (95 %)",
        "own part, us",
        "over ours",
        "extra copies: peak, between steps",
    ]
    print(table(header, rows))


if __name__ == "__main__":
    run(main)
