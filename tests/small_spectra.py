"""Small spectra of the tiny GCN through hessian.py, whose files can be compared bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loss_landscape.my_pyhessian.operators import CurvatureOperator
from loss_landscape.my_pyhessian.products import Way, choose

SMALL = ["--samples=20", "--probes=4", "--lanczos_steps=6", "--top_n=2", "--trace_probes=20"]
SMALL += ["--max_steps=40", "--threads=1", "--device=cpu", "--trace_error=1e-9"]
SMALL += ["--density_error=1e-9"]


MERGED = str(Way("merged", kept=True))


def choose_merged(
    operator: CurvatureOperator, products: int, begun: str | None = None, **more: Any
) -> Way:
    """Products by one way, for bits that are compared: another run's timing may choose another."""
    return choose(operator, products, begun or MERGED, **more)


def flags_of(trained: dict[str, Path], data_dir: Path, out: Path, *more: str) -> list[str]:
    common = ["--model_file", str(trained["GCN"]), "--data_dir", str(data_dir)]
    return [*common, "--out_dir", str(out), *SMALL, *more]


def contents(out: Path) -> dict[str, bytes]:
    return {
        p.name: p.read_bytes() for p in sorted((out / "Eigenvalues").glob("GCN*")) if p.is_file()
    }
