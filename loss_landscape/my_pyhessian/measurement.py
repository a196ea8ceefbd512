"""A spectrum's stages one after the other, and what they found in words."""

from __future__ import annotations

import argparse
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
from loss_landscape.my_pyhessian.unfinished import Unfinished
from utilities.progress import Progress


def measure(
    operators: Operators,
    args: argparse.Namespace,
    record: dict[str, Any],
    unfinished: Unfinished,
    shared: tuple[Any, dict[str, Any]],
) -> tuple[np.ndarray, np.ndarray]:
    """Fill ``record``; return the density's nodes and weights.

    Args:
        operators: of the whole matrix and its blocks.
        args: of hessian.py.
        record: of the spectrum.
        unfinished: the pieces that are there already.
        shared: the module ``ray``, connected, or None for this process alone; and which checkpoint,
            data and loss the matrix is of.
    """
    operator, (ray, sources) = operators(None), shared
    names = layer_names(operator) if args.per_layer else {}
    with Progress("Hessian products", at_most=True) as progress:
        if "eigenvalues" not in unfinished.pieces:
            progress.total = products_ahead(args)
            unfinished.add("eigenvalues", eigenvalues(operator, args, progress))
        piece = unfinished.pieces["eigenvalues"]
        known = known_of(piece, operator.flat)
        work = Work(operators, args, known, list(names.values()), progress.update)
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
        "ends": ["top"] * args.top_n + ["bottom"] * args.bottom_n,
        "converged": bool(piece["converged"]),
        "lambda_max": max(float(values.max()), float(nodes.max())),
        "lambda_min": min(float(values.min()), float(nodes.min())),
        "known": len(piece["values"]),
        "products": {
            "eigenvalues": int(piece["products"]),
            "deflation": int(piece.get("deflation", 0)),  # older pieces have none
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


def summary(record: dict[str, Any]) -> list[str]:
    """What was found, for people."""
    given = record["arguments"]
    part = "all" if given["samples"] is None else "a fixed subset of"
    block = f", block of {', '.join(given['layers'])}" if given["layers"] else ""
    block += "" if record["bn"] == "eval" else f"; batch norm: {record['bn']}"
    lines = [
        f"{given['matrix']} over {part} {record['samples']:,} samples of {given['split']}, "
        f"{record['parameters']:,} parameters{block}",
        f"{'eigenvalue':>12} {'residual':>10}  end",
    ]
    pairs = zip(record["eigenvalues"], record["residuals"], record["ends"], strict=True)
    lines += [f"{value:>12.5g} {residual:>10.2g}  {end}" for value, residual, end in pairs]
    if record["per_layer"]:
        lines.append(f"{'lambda_max':>12} {'residual':>10} {'trace':>12} {'error':>10}  layer")
    for row in record["per_layer"]:
        lines.append(
            f"{row['lambda_max']:>12.5g} {row['residual']:>10.2g} {row['trace']:>12.5g} "
            f"{row['trace_standard_error']:>10.2g}  {row['layer']} ({row['parameters']:,})"
        )
    made = {name: number for name, number in record["products"].items() if number}
    return [
        *lines,
        f"lambda_max {record['lambda_max']:.4g}, trace {record['trace']:.4g} "
        f"+- {record['trace_standard_error']:.2g} (standard error of {len(record['trace_samples'])}"
        f" samples), stopped {record['trace_stopped']}",
        f"density: error over {record['density_probes']} probes "
        f"{100 * record['density_error']:.2g} % of the eigenvalues' mean magnitude, stopped "
        f"{record['density_stopped']}",
        f"{sum(made.values()):,} products: "
        + ", ".join(f"{number:,} for {name}" for name, number in made.items()),
    ]
