"""A spectrum piece by piece: eigenvalues, then random probes for density and trace, then layers.

One eigenvalue run serves all: its Krylov space, widened as far as that pays, is taken out of the
trace, and the eigenvectors that are known in it out of the density. Each density probe's first
product is a sample of the trace too, and the extreme Ritz values of all probes count for the
largest and the lowest eigenvalue. A piece hangs on the checkpoint, the seed and its number alone,
so that it may be made before or after a stop, here or on another machine.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from loss_landscape.my_pyhessian import stochastic
from loss_landscape.my_pyhessian.lanczos import Ends, Tick, extreme_eigenvalues, no_tick
from loss_landscape.my_pyhessian.operators import CurvatureOperator
from loss_landscape.my_pyhessian.sample_error import SampleGroups
from loss_landscape.my_pyhessian.spectral_density import distribution_error
from loss_landscape.my_pyhessian.stochastic import Known, direction
from loss_landscape.my_pyhessian.unfinished import Piece, Unfinished
from utilities.progress import Progress
from utilities.statistics import half_width

FIRST_DENSITY, FIRST_TRACE = 6, 24  # probes, before the first look at their error
# What the seeds of random vectors begin with, after the command line's.
START, DENSITY, TRACE, LAYER, PILOT = range(5)
PILOTS = 4  # random vectors that say about how large the trace is
Operators = Callable[[Sequence[str] | None], CurvatureOperator]  # of the parameters so named
Handout = Callable[[str, Sequence[int]], Iterable[tuple[int, Piece]]]  # kind, numbers


class Work:
    """Makes a piece of a spectrum.

    Args:
        operators: gives the matrix of the named parameters, of all for None.
        args: of hessian.py.
        known: by the eigenvalue run.
        layers: names of each layer's parameters.
        groups: of the samples, for the standard errors of layers; these have none without.
        tick: called after each product.
    """

    def __init__(
        self,
        operators: Operators,
        args: argparse.Namespace,
        known: Known,
        layers: Sequence[Sequence[str]],
        groups: SampleGroups | None = None,
        tick: Tick = no_tick,
    ) -> None:
        self.operators, self.args, self.known = operators, args, known
        self.layers, self.groups, self.tick = layers, groups, tick
        self.operator = operators(None)

    def __call__(self, kind: str, number: int) -> Piece:
        piece: Piece = {"density": self.density, "trace": self.trace, "layer": self.layer}[kind](
            number
        )
        return piece

    def density(self, number: int) -> Piece:
        start = direction(self.operator.flat, (self.args.seed, DENSITY, number))
        steps = self.args.lanczos_steps
        found = stochastic.probe(self.operator, self.known, start, steps, self.tick)
        return {name: np.array(value) for name, value in vars(found).items()}

    def trace(self, number: int) -> Piece:
        start = direction(self.operator.flat, (self.args.seed, TRACE, number))
        sample = stochastic.trace_sample(self.operator, self.known, start)
        self.tick()
        return {"trace": np.array(sample), "products": np.array(1)}

    def layer(self, number: int) -> Piece:
        """A layer's own block: its largest eigenvalue and its trace."""
        operator, args = self.operators(self.layers[number]), self.args
        seeds = (args.seed, LAYER, number)
        start = direction(operator.flat, (*seeds, 0))
        pairs = extreme_eigenvalues(
            operator, start, 1, args.max_steps, args.tol, self.tick, Ends(1, 0), copies=False,
            see_larger=True,
        )  # fmt: skip
        error, made = errors_of(self.groups, pairs.vectors, self.layers[number])
        if made:
            self.tick()
        known, samples = Known.of(pairs), list[float]()
        for count in stochastic.rounds(FIRST_TRACE, args.trace_probes):
            while len(samples) < count:
                start = direction(operator.flat, (*seeds, 1 + len(samples)))
                samples.append(stochastic.trace_sample(operator, known, start))
                self.tick()
            if stochastic.is_exact_enough(samples, args.trace_error):
                break
        found = {
            "parameters": operator.flat.numel(),
            "lambda_max": pairs.values[0],
            "residual": pairs.residuals[0],
            "standard_error": error[0],
            "trace": np.mean(samples),
            "trace_standard_error": stochastic.standard_error(samples),
            "trace_samples": len(samples),
            "products": pairs.products + made + len(samples),
        }
        return {name: np.array(value) for name, value in found.items()}


def errors_of(
    groups: SampleGroups | None, vectors: Tensor, layers: Sequence[str] | None = None
) -> tuple[np.ndarray, int]:
    """Standard errors over samples (k,) of the eigenvalues of ``vectors`` (k, P); products made.

    NaN and no products where there is none.
    """
    if groups is None or groups.lack:
        return np.full(len(vectors), math.nan), 0
    return groups.quotients(vectors, layers).errors(), len(vectors)


def eigenvalues(
    operator: CurvatureOperator,
    args: argparse.Namespace,
    progress: Progress,
    groups: SampleGroups | None = None,
) -> Piece:
    """The piece with the eigenvalues, and with what is known beside them (``known_of``)."""

    def report(values: np.ndarray, residuals: np.ndarray) -> None:
        progress.note = f"eigenvalues: {values[0]:.4g}, largest residual {residuals.max():.2g}"

    ends, count = Ends(args.top_n, args.bottom_n), args.top_n + args.bottom_n
    start = direction(operator.flat, (args.seed, START, 0))
    pairs = extreme_eigenvalues(
        operator, start, count, args.max_steps, args.tol, progress.update, ends,
        seed=args.seed, report=report,
    )  # fmt: skip
    order = np.argsort(-pairs.values, kind="stable")
    progress.note = "standard errors over samples"
    errors, made = errors_of(groups, pairs.vectors[order.copy()])
    progress.update(made)
    progress.note = "space for trace and density"
    pilots = [direction(operator.flat, (args.seed, PILOT, number)) for number in range(PILOTS)]
    deflation = stochastic.widen(pairs.space, pilots, args.trace_error, args.trace_probes)
    known = Known.of(pairs)
    return {
        "eigenvalues": pairs.values[order],
        "residuals": pairs.residuals[order],
        "standard_errors": errors,
        "quotients": np.array(made),
        "converged": np.array(pairs.converged),
        "products": np.array(pairs.products),
        "deflation": np.array(deflation),
        "values": known.values,
        "vectors": known.vectors.cpu().numpy(),
        "basis": known.basis.cpu().numpy(),
        "projected": known.projected,
    }


def products_ahead(args: argparse.Namespace) -> int:
    """How many products a spectrum takes at most, those of its layers left out."""
    return args.max_steps + args.probes * args.lanczos_steps + 2 * args.trace_probes


def known_of(piece: Piece, template: Tensor) -> Known:
    """From the piece with the eigenvalues; vectors of the template's type and device."""
    vectors, basis = (torch.from_numpy(piece[name]).to(template) for name in ("vectors", "basis"))
    return Known(piece["values"], vectors, basis, piece["projected"])


class Probes:
    """Collects the pieces of a spectrum, those that are kept and those that are to be made.

    Args:
        unfinished: keeps them.
        handout: makes pieces, in any order.
        args: of hessian.py.
        progress: told how far it is.
    """

    def __init__(
        self, unfinished: Unfinished, handout: Handout, args: argparse.Namespace, progress: Progress
    ) -> None:
        self.unfinished, self.handout = unfinished, handout
        self.args, self.progress = args, progress

    def collect(self, kind: str, count: int) -> list[Piece]:
        """The first ``count`` pieces of a kind."""
        pieces, names = self.unfinished.pieces, [f"{kind}-{i:04}" for i in range(count)]
        missing = [i for i, name in enumerate(names) if name not in pieces]
        for number, piece in self.handout(kind, missing):
            self.unfinished.add(names[number], piece)
        return [pieces[name] for name in names]

    def density(self) -> dict[str, Any]:
        """Nodes, weights and their error, from as many probes as it takes."""
        args, error = self.args, math.nan
        for count in stochastic.rounds(FIRST_DENSITY, args.probes):
            self._expect(args.probes * args.lanczos_steps + args.trace_probes)
            self._note("density", error)
            found = self.collect("density", count)
            nodes, weights = _stacked(found)
            error = distribution_error(nodes, weights)
            if error <= args.density_error:
                break
        reached = error <= args.density_error
        return {
            "nodes": nodes,
            "weights": weights,
            "trace_samples": [float(piece["trace"]) for piece in found],
            "products": sum(int(piece["products"]) for piece in found),
            "error": error,
            "stopped": _stopped(reached, "--probes"),
        }

    def trace(self, samples: list[float]) -> dict[str, Any]:
        """More samples of the trace than those that the density's probes gave, if it takes more."""
        args, free = self.args, len(samples)
        counts = stochastic.rounds(FIRST_TRACE, max(args.trace_probes, free))
        for count in [count for count in counts if count >= free]:
            self._expect(counts[-1] - free)
            if len(samples) > 1:
                mean, error = float(np.mean(samples)), stochastic.standard_error(samples)
                self.progress.note = f"trace {mean:.4g} +- {error:.2g}"
            found = self.collect("trace", count - free)
            samples = samples[:free] + [float(piece["trace"]) for piece in found]
            reached = stochastic.is_exact_enough(samples, args.trace_error)
            if reached:
                break
        mean, half = float(np.mean(samples)), float(half_width(samples))
        return {
            "trace": mean,
            "trace_standard_error": stochastic.standard_error(samples),
            "trace_interval": None if math.isnan(half) else [mean - half, mean + half],
            "trace_samples": samples,
            "products": len(samples) - free,
            "stopped": _stopped(reached, "--trace_probes"),
        }

    def layers(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """A row a layer."""
        self._expect(len(names) * (self.args.max_steps + 1 + self.args.trace_probes))
        self.progress.note = "layers"
        found = self.collect("layer", len(names))
        rows = []
        for name, piece in zip(names, found, strict=True):
            rows.append({"layer": name, **{key: value.item() for key, value in piece.items()}})
        return rows

    def _note(self, what: str, error: float) -> None:
        said = "" if math.isnan(error) else f", error {100 * error:.2g} %"
        self.progress.note = f"{what}{said}"

    def _expect(self, products: int) -> None:
        """Say how many more there may be at most, beside those of this stage that are done."""
        self.progress.total = self.progress.count + products


def here(work: Work) -> Handout:
    """Makes pieces in this process, one after the other."""

    def handout(kind: str, numbers: Sequence[int]) -> Iterator[tuple[int, Piece]]:
        for number in numbers:
            yield number, work(kind, number)

    return handout


def _stacked(found: Sequence[Piece]) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights (probes, longest); shorter ones get their last node with weight 0."""
    longest = max(len(piece["nodes"]) for piece in found)
    nodes = [np.pad(p["nodes"], (0, longest - len(p["nodes"])), mode="edge") for p in found]
    weights = [np.pad(p["weights"], (0, longest - len(p["weights"]))) for p in found]
    return np.array(nodes), np.array(weights)


def _stopped(reached: bool, flag: str) -> str:
    return "at the asked accuracy" if reached else f"at {flag}"


def layer_names(operator: CurvatureOperator) -> dict[str, list[str]]:
    """The parameters' names of each layer: a module that has parameters of its own."""
    named = {id(p): name for name, p in operator.model.named_parameters()}
    layers: dict[str, list[str]] = {}
    for p in operator.params:
        name = named[id(p)]
        layers.setdefault(name.rpartition(".")[0] or name, []).append(name)
    return layers
