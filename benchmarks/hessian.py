"""What the Hessian's top 5 eigenvalues, trace and density cost: ours, PyHessian and curvlinops.

    python benchmarks/hessian.py --threads=1 --part MUTAG PROTEINS       # trained first
    python benchmarks/hessian.py --threads=1 --part Transformer WRN --no-compiling
    python benchmarks/hessian.py --threads=1 --part WRN --WRN to_plot/model_cifar_SAM_rho0.05.pt

On the same checkpoint and samples, asked for the same accuracy: the top 5 eigenvalues within 1e-3
of themselves, the trace with a standard error of 2 %, the density within a Wasserstein distance of
5 % of the eigenvalues' mean magnitude, or of 25 % for the WRN and the Transformer. The reference is
a longer run in float64 (``hessian_reference.py``).

How many products an algorithm takes to get there, and what it takes beside them, hangs on the
matrix and not on how its products are made: each tool's own algorithm is run with our product and
counted, on ``--counted`` samples, few enough for a float64 reference (``hessian_counts.py``). The
product over all samples is timed with each tool's own, in turns (``hessian_products.py``). Seconds
are the processor's time, so that other work on the machine counts little: the products' and the
rest, ours with what choosing the way takes.

Checkpoints, references, counts and memory are kept in ``data/hessian_reference``, and a second run
takes only the times anew. ``--prepare`` makes what is kept and times nothing, for a busy machine.

Ours is what ``my_pyhessian/hessian.py`` does: one eigenvalue run serves its trace and its density,
so that each of them alone is counted with it, and all three together are fewer than their sum. All
tools are told when to stop, since each has its own way to judge itself or none: the eigenvalues at
the loosest tolerance of a list with which they are right, where ours has to come as near as the
nearest peer but for float32's rounding; the trace when the spread of 100 samples says that so many
suffice (XTrace: that of six runs); the density after the fewest probes, and of those the fewest
Lanczos steps of a list, with which it is near enough to the reference. Where it isn't after the
most probes that are tried, their spread says how many would be. A ~ marks such counts, and those of
more than 100 samples.

PyHessian finds the eigenvalues of largest magnitude, the others the largest; each is compared with
what it looks for. It is given all samples as one batch, whose graph it keeps, or for the WRN
batches, whose graphs would not fit. Its ``density`` stops on today's torch, which has no
``torch.eig``; it is run with ``torch.linalg.eigh`` in its place. Both peers need attention's plain
kernel, which is forced around them. curvlinops is taken with scipy's ``eigsh``, its ``xtrace`` or
Hutchinson's samples, whichever take fewer products, and its ``fast_lanczos``; batches of graphs are
given to it as dicts, which is what it takes beside tensors.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import process_time

import numpy as np
from torch import Tensor, cat
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.hessian_counts import Costs, Counts, count_all
from benchmarks.hessian_products import TOOLS, memory_of, own, product_of
from benchmarks.hessian_reference import kept_in, reference
from benchmarks.surface import Subject, add_checkpoint_flags, trained
from benchmarks.timing import in_turns, machine
from utilities.cli import Parser, add_run_flags, positive_int, prepare_device, run
from utilities.tables import table

SAMPLES = {"WRN": 1000, "Transformer": 2000, "MUTAG": None, "PROTEINS": None}
COUNTED = {"WRN": 8, "Transformer": 32, "MUTAG": None, "PROTEINS": 128}
ROUNDS = {"WRN": 3, "Transformer": 5, "MUTAG": 15, "PROTEINS": 7}
# Trained long enough that the networks have learned something.
FLAGS = {
    "WRN": ("--depth=16", "--width_factor=2", "--epochs=5", "--train_samples=3000"),
    "Transformer": ("--epochs=4", "--train_samples=16000"),
    "MUTAG": ("--dataset=MUTAG", "--epochs=20"),
    "PROTEINS": ("--dataset=PROTEINS", "--epochs=10"),
}


def compare(
    label: str, checkpoint: Path, args: argparse.Namespace
) -> tuple[list[list[str]], list[list[str]]]:
    """Rows of the two tables for one case; none with ``--prepare``."""
    samples, few = args.samples or SAMPLES[label], args.counted or COUNTED[label]
    fewer = min(filter(None, (samples, few)), default=None)
    counted_on = Subject(checkpoint, fewer, args)
    folder = kept_folder(args)
    known = reference(label, counted_on, folder)
    counts = Counts(kept_in(folder, counted_on, "counts 3"))
    costs = count_all(label, own(counted_on, False)[0], known, counts)
    memory = {
        tool: counts.get(
            f"{tool}, MiB, {samples} samples",
            partial(memory_of, tool, label, checkpoint, samples, args),
        )
        for tool in TOOLS
    }
    print(label, "MiB", memory)
    if args.prepare:
        return [], []
    subject = counted_on if samples == fewer else Subject(checkpoint, samples, args)
    each, once, differs = timed(label, subject, args)
    rows = []
    totals = {tool: _totals(costs[tool], each[tool], once * (tool == "ours")) for tool in TOOLS}
    for tool in TOOLS:
        cells = [
            f"{'~' * costs[tool][part].about}{costs[tool][part].products:,} "
            f"({totals[tool][part]:.3g} s, {costs[tool][part].off:.1g})"
            for part in ("top 5", "trace", "density")
        ]
        over = [f"{total / totals['ours'][part]:.2g}" for part, total in totals[tool].items()]
        head = [label, f"{subject.count:,} ({counted_on.count:,})", tool, f"{1e3 * each[tool]:.4g}"]
        tail = [f"{totals[tool]['all']:.3g}", ", ".join(over), f"{memory[tool]:.0f}"]
        rows.append([*head, f"{differs[tool]:.1g}", *cells, *tail])
    return rows, _by_tolerance(label, costs)


def timed(
    label: str, subject: Subject, args: argparse.Namespace
) -> tuple[dict[str, float], float, dict[str, float]]:
    """Seconds of a product by each tool, in turns; those of choosing ours; how far they differ."""
    made = {tool: product_of(tool, label, subject, args.compiling) for tool in TOOLS}
    found: dict[str, Tensor] = {}

    def call(tool: str) -> float:
        with sdpa_kernel(SDPBackend.MATH):
            began = process_time()
            found[tool] = in_order(made[tool][0]())
            return process_time() - began

    calls: dict[str, Callable[[], float | None]] = {tool: partial(call, tool) for tool in TOOLS}
    seconds = in_turns(calls, args.rounds or ROUNDS[label], warmup=1)
    each = {tool: float(np.median(taken)) for tool, taken in seconds.items()}
    differs = {t: float((v - found["ours"]).norm() / v.norm()) for t, v in found.items()}
    return each, made["ours"][1], differs


def in_order(parts: Sequence[Tensor]) -> Tensor:
    """All entries in rising order: models with other layers have other orders of parameters."""
    return cat([part.detach().flatten() for part in parts]).sort()[0]


def _totals(costs: Costs, each: float, once: float) -> dict[str, float]:
    """Seconds for each part and for all of them."""
    parts = [part for part in costs if not part.startswith("tol")]
    taken = {part: costs[part].products * each + costs[part].beside for part in parts}
    taken.setdefault("all", sum(taken.values()))
    return {part: taken[part] + once for part in ("top 5", "trace", "density", "all")}


def _by_tolerance(label: str, costs: dict[str, Costs]) -> list[list[str]]:
    """Rows of the second table."""
    return [
        [label, tool, part.removeprefix("tol "), f"{cost.products:,}", f"{cost.off:.1g}"]
        for tool, found in costs.items()
        for part, cost in found.items()
        if part.startswith("tol")
    ]


HEADER = ["model", "samples (counted on)", "tool", "ms a product", "differs by", "top 5", "trace"]
HEADER += ["density", "all, s", "over ours: each, all", "MiB"]
BY_TOLERANCE = ["model", "tool", "tolerance", "products", "error"]


def kept_folder(args: argparse.Namespace) -> Path:
    """Where all is kept that is slow to find."""
    return args.data_dir / "hessian_reference"


def checkpoint_of(label: str, args: argparse.Namespace) -> Path:
    """The one that is given, or one that is trained once and kept."""
    if getattr(args, label):
        return getattr(args, label)
    kept = (kept_folder(args) / label / "to_plot").glob("model_*.pt")
    found = [path for path in kept if not path.stem.endswith("_last")]
    return found[0] if found else trained(label, kept_folder(args), args, FLAGS[label])


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("--part", nargs="+", choices=list(SAMPLES), default=list(SAMPLES))
    add_checkpoint_flags(parser, SAMPLES)
    parser.add_argument("--rounds", type=positive_int, help="timings; default: by the case")
    parser.add_argument("--samples", type=positive_int, help="default: by the case")
    parser.add_argument("--counted", type=positive_int, help="samples to count products on")
    parser.add_argument(
        "--prepare",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="find what is kept, and time nothing",
    )
    parser.add_argument(
        "--compiling",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="let ours try compiled products, as hessian.py does where it expects them to pay",
    )
    add_run_flags(parser, seed=0)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print the tables."""
    args = parse_args(argv)
    prepare_device(args.device, args.threads)
    began = process_time()
    rows: list[list[str]] = []
    by_tolerance: list[list[str]] = []
    for label in args.part:
        found = compare(label, checkpoint_of(label, args), args)
        rows += found[0]
        by_tolerance += found[1]
    print(f"\n{machine()}; {process_time() - began:.0f} s for all")
    if not args.prepare:
        print(f"\nproducts (seconds, error) to reach each accuracy\n\n{table(HEADER, rows)}")
        print(f"\nthe top 5 by tolerance\n\n{table(BY_TOLERANCE, by_tolerance)}")


if __name__ == "__main__":
    run(main)
