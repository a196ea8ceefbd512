"""A spectrum's stages one after the other, and what they found in words."""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np

from loss_landscape.my_pyhessian.probes import (
    Operators,
    Probes,
    Work,
    eigenvalues,
    here,
    known_of,
    layer_names,
    products_ahead,
)
from loss_landscape.my_pyhessian.probes_on_ray import on_ray, source
from loss_landscape.my_pyhessian.sample_error import SampleGroups
from loss_landscape.my_pyhessian.spectrum_file import lambda_max_error
from loss_landscape.my_pyhessian.unfinished import Piece, Unfinished
from utilities.progress import Progress


def measure(
    matrices: tuple[Operators, SampleGroups],
    args: argparse.Namespace,
    record: dict[str, Any],
    unfinished: Unfinished,
    shared: tuple[Any, dict[str, Any]],
) -> tuple[np.ndarray, np.ndarray]:
    """Fill ``record``; return the density's nodes and weights.

    Args:
        matrices: the whole matrix and its blocks, and those of groups of the samples.
        args: of hessian.py.
        record: of the spectrum.
        unfinished: the pieces that are there already.
        shared: the module ``ray``, connected, or None for this process alone; and which checkpoint,
            data and loss the matrix is of.
    """
    (operators, groups), (ray, sources) = matrices, shared
    operator = operators(None)
    names = layer_names(operator) if args.per_layer else {}
    with Progress("Hessian products", at_most=True) as progress:
        if "eigenvalues" not in unfinished.pieces:
            progress.total = products_ahead(args) + args.top_n + args.bottom_n
            unfinished.add("eigenvalues", eigenvalues(operator, args, progress, groups))
        piece = unfinished.pieces["eigenvalues"]
        known = known_of(piece, operator.flat)
        work = Work(operators, args, known, list(names.values()), groups, progress.update)
        handout = here(work)
        if ray is not None:
            handout = on_ray(ray, args, work, source(sources, operator), progress.update)
        probes = Probes(unfinished, handout, args, progress)
        density = probes.density()
        trace = probes.trace(density.pop("trace_samples"))
        layers = probes.layers(list(names))
        progress.total, progress.note = progress.count, ""
    nodes, weights = density.pop("nodes"), density.pop("weights")
    values = piece["eigenvalues"]
    record |= {
        "eigenvalues": values.tolist(),
        "residuals": piece["residuals"].tolist(),
        **standard_errors(piece, groups),
        "ends": ["top"] * args.top_n + ["bottom"] * args.bottom_n,
        "converged": bool(piece["converged"]),
        "lambda_max": max(float(values.max()), float(nodes.max())),
        "lambda_min": min(float(values.min()), float(nodes.min())),
        "known": len(piece["values"]),
        "products": {
            **products_of(piece),
            "density": density.pop("products"),
            "trace": trace.pop("products"),
            "layers": sum(row["products"] for row in layers),
        },
        "density_probes": len(nodes),
        **{f"density_{name}": value for name, value in density.items()},
        "trace_stopped": trace.pop("stopped"),
        **trace,
        "per_layer": layers,
    }
    return nodes, weights


def products_of(piece: Piece) -> dict[str, int]:
    """How many the eigenvalues took, their errors and the space that is widened for the trace."""
    return {
        "eigenvalues": int(piece["products"]),
        "standard_errors": int(piece.get("quotients", 0)),
        "deflation": int(piece.get("deflation", 0)),  # older pieces have none of both
    }


def standard_errors(piece: Piece, groups: SampleGroups) -> dict[str, Any]:
    """Those over samples, as the record keeps them: null, with the reason, where there are none."""
    errors = piece.get("standard_errors", np.full(len(piece["eigenvalues"]), math.nan)).tolist()
    lack = groups.lack
    if "standard_errors" not in piece:
        lack = "an older version found the eigenvalues; the same command line again takes all anew"
    return {
        "standard_errors": [None if math.isnan(error) else error for error in errors],
        "standard_errors_of": "" if lack else groups.said,
        "standard_errors_lack": lack,
    }


def summary(record: dict[str, Any]) -> list[str]:
    """What was found, for people."""
    given = record["arguments"]
    part = "all" if given["samples"] is None else "a fixed subset of"
    block = f", block of {', '.join(given['layers'])}" if given["layers"] else ""
    block += "" if record["bn"] == "eval" else f"; batch norm: {record['bn']}"
    lines = [
        f"{given['matrix']} over {part} {record['samples']:,} samples of {given['split']}, "
        f"{record['parameters']:,} parameters{block}",
        f"{'eigenvalue':>12} {'+-':>8} {'residual':>9}  end",
    ]
    columns = ("eigenvalues", "standard_errors", "residuals", "ends")
    for value, error, residual, end in zip(*(record[name] for name in columns), strict=True):
        lines.append(f"{value:>12.5g} {_error(error)} {residual:>9.2g}  {end}")
    if record["per_layer"]:
        header = f"{'lambda_max':>12} {'+-':>8} {'residual':>9} {'trace':>12} {'+-':>8}  layer"
        lines.append(header)
    for row in record["per_layer"]:
        lines.append(
            f"{row['lambda_max']:>12.5g} {_error(row.get('standard_error'))} "
            f"{row['residual']:>9.2g} {row['trace']:>12.5g} "
            f"{_error(row['trace_standard_error'])}  {row['layer']} ({row['parameters']:,})"
        )
    of, lack = record["standard_errors_of"], record["standard_errors_lack"]
    lines += [f"+- of eigenvalues: standard error over {of}"] if of else []
    lines += [f"no standard error over samples: {lack}"] if lack else []
    made = {name: number for name, number in record["products"].items() if number}
    error = lambda_max_error(record)
    known = "" if error is None else f" +- {error:.2g}"
    return [
        *lines,
        f"lambda_max {record['lambda_max']:.4g}{known}, trace {record['trace']:.4g} "
        f"{_trace_error(record)}, stopped {record['trace_stopped']}",
        f"density: {_density_error(record)}, stopped {record['density_stopped']}",
        f"{sum(made.values()):,} products: "
        + ", ".join(f"{number:,} for {name.replace('_', ' ')}" for name, number in made.items()),
    ]


def _trace_error(record: dict[str, Any]) -> str:
    count = len(record["trace_samples"])
    if count == 1:
        return "of one random vector, which tells no error"
    return f"+- {record['trace_standard_error']:.2g} (standard error over {count} random vectors)"


def _density_error(record: dict[str, Any]) -> str:
    if record["density_probes"] == 1:
        return "of one probe, which tells no error"
    share = f"{100 * record['density_error']:.2g} % of the eigenvalues' mean magnitude"
    return f"error over {record['density_probes']} probes {share}"


def _error(error: float | None) -> str:
    """A standard error in its column; "-" where there is none."""
    return f"{'-':>8}" if error is None or math.isnan(error) else f"{error:>8.2g}"
