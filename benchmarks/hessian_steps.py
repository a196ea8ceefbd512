"""How far a density of the Hessian's eigenvalues still moves with its Lanczos steps and probes.

    python benchmarks/hessian_steps.py --threads=1                      # trained first
    python benchmarks/hessian_steps.py --threads=1 --part Transformer --steps=400

What bounds the densities of large networks in ``benchmarks/hessian.py``, and their reference: on
the same few samples, in float64, a probe's first steps against all of its steps, by the
Wasserstein distance of the two densities over the eigenvalues' mean magnitude. The last row has
each probe's distance from the others together.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from benchmarks.hessian import COUNTED, checkpoint_of
from benchmarks.hessian_counts import beside, density
from benchmarks.hessian_reference import distance, in_float64
from benchmarks.surface import Subject, add_checkpoint_flags
from benchmarks.timing import machine
from loss_landscape.my_pyhessian.stochastic import Known
from utilities.cli import Parser, add_run_flags, positive_int, prepare_device, run
from utilities.tables import table

PARTS = ("WRN", "Transformer")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("--part", choices=PARTS, default=PARTS[0])
    add_checkpoint_flags(parser, PARTS)
    parser.add_argument("--steps", type=positive_int, default=300, help="of each probe")
    parser.add_argument("--probes", type=positive_int, default=2)
    parser.add_argument("--samples", type=positive_int, help="default: as hessian.py counts on")
    add_run_flags(parser, seed=0)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    args = parse_args(argv)
    prepare_device(args.device, args.threads)
    subject = Subject(checkpoint_of(args.part, args), args.samples or COUNTED[args.part], args)
    operator, draw, pairs = in_float64(subject)
    known = Known.of(pairs)
    probes = [beside(known, operator, draw((1, 1, n)), args.steps) for n in range(args.probes)]
    whole = [density([probe], args.steps) for probe in probes]
    rows = []
    for steps in range(20, args.steps, 20):
        moved = [distance(density([p], steps), w) for p, w in zip(probes, whole, strict=True)]
        rows.append([f"{steps} steps", *(f"{value:.2f}" for value in moved)])
    if len(probes) > 1:
        rest = [density(probes[:n] + probes[n + 1 :], args.steps) for n in range(len(probes))]
        moved = [distance(one, others) for one, others in zip(whole, rest, strict=True)]
        rows.append(["from the others", *(f"{value:.2f}" for value in moved)])
    header = [args.part, *(f"probe {n + 1}" for n in range(len(probes)))]
    values, weights = density(probes, args.steps)
    print(f"\n{machine()}\n\n{table(header, rows)}")
    print(
        f"\n{subject.count} samples: eigenvalues from {pairs.values.min():.4g} to "
        f"{pairs.values.max():.4g}, of mean magnitude {weights @ np.abs(values):.3g}"
    )


if __name__ == "__main__":
    run(main)
