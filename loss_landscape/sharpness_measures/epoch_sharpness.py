"""The largest eigenvalue at the epochs that a run kept, and its file.

``Eigenvalues/<name>_<optimizer>_sharpness_epochs.json`` holds a row an epoch. Each epoch is
measured by itself, so that a run that was killed ends with the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from loss_landscape.my_pyhessian.lanczos import Matvec, Tick, no_tick
from loss_landscape.my_pyhessian.spectrum_ends import spectrum_ends
from utilities.files import atomic_write
from utilities.runs import refuse_other

ENDING = "_sharpness_epochs.json"
REMEDY = "--overwrite replaces it, --out_dir puts this one elsewhere"
NUMBERS = ("lambda_max", "residual", "gradient_norm", "products")
Row = dict[str, Any]


def largest_eigenvalue(
    matvec: Matvec,
    template: Tensor,
    max_products: int = 160,
    tol: float = 1e-3,
    seed: int = 0,
    tick: Tick = no_tick,
) -> Row:
    """The largest eigenvalue by Lanczos from a random vector, which is known to be the largest.

    To begin with the eigenvectors of the epoch before would save nothing: what takes the products
    is to see that no other is larger.

    Args:
        matvec: product with the symmetric matrix.
        template: (P,), for size, type and device.
        max_products: where to stop at the latest.
        tol: residual over the largest magnitude at which the eigenvalue is known.
        seed: of the random vector.
        tick: called after each product.

    Returns:
        Values by name. ``converged`` says that the residual is small enough and, unless it was
        restarted, that nothing larger was left to be seen.

    Raises:
        ValueError: a product is not finite.
    """
    found = spectrum_ends(matvec, template, max_products, tol, seed, lower_too=False, tick=tick)
    return {
        "lambda_max": found.high,
        "residual": found.high_residual,
        "converged": found.converged,
        "products": found.products,
    }


@dataclass
class EpochsFile:
    """The rows of one run's epochs, on disk as soon as there are any.

    Attributes:
        path: the .json; its lock must be held.
        settings: of the run and of what is measured, which all rows share.
        rows: by epoch.
        edge: of stability, once all epochs are measured.
    """

    path: Path
    settings: dict[str, Any]
    rows: dict[int, Row]
    edge: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, settings: dict[str, Any], overwrite: bool) -> EpochsFile:
        """Read what is there, or begin.

        Raises:
            ValueError: it is damaged, or of another run or other settings.
        """
        if overwrite:
            path.unlink(missing_ok=True)  # which else would be taken for these rows'
        if not path.exists():
            return cls(path, settings, {})
        old_settings, rows = read_epochs(path)
        refuse_other(path, old_settings, settings, "sharpness", REMEDY)
        return cls(path, settings, rows)

    def add(self, epoch: int, row: Row) -> None:
        """Write an epoch's row, with all others.

        Raises:
            OSError: it can't be written.
        """
        self.rows[epoch] = row
        self._write()

    def add_edge(self, formula: str, why: Sequence[str], values: Mapping[int, float]) -> None:
        """Write the run's edge of stability, which ``read_edge`` explains.

        Raises:
            OSError: it can't be written.
        """
        self.edge = {"formula": formula, "why": list(why), "epochs": sorted(values.items())}
        self._write()

    def _write(self) -> None:
        rows = [{"epoch": epoch, **self.rows[epoch]} for epoch in sorted(self.rows)]
        edge = {"edge": self.edge} if self.edge else {}
        content = {"settings": self.settings, "epochs": rows, **edge}
        with atomic_write(self.path) as part:
            text = json.dumps(content, indent=1, allow_nan=False)
            part.write_text(text + "\n", encoding="utf-8")


@dataclass(frozen=True)
class EdgeRead:
    """The edge of stability of a run, as a file has it.

    Attributes:
        formula: in words; "" if none is known.
        why: there is none, or what else has to be known of it, a line each.
        values: by epoch.
    """

    formula: str
    why: tuple[str, ...]
    values: dict[int, float]


def read_edge(path: Path) -> EdgeRead:
    """The edge in a file that ``read_epochs`` reads.

    Raises:
        FileNotFoundError, ValueError: see there; ValueError too where the file has no edge, because
            not all epochs are measured, or by a version that wrote none.
    """
    read_epochs(path)
    try:
        edge = json.loads(path.read_text(encoding="utf-8"))["edge"]
        values = {int(epoch): float(value) for epoch, value in edge["epochs"]}
        return EdgeRead(str(edge["formula"]), tuple(map(str, edge["why"])), values)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"{path}: says no edge of stability; plot_sharpness.py adds it") from error


def epochs_path(stem: Path) -> Path:
    """The file beside the spectrum that is named ``stem``."""
    return stem.with_name(stem.name + ENDING)


def read_epochs(path: Path) -> tuple[dict[str, Any], dict[int, Row]]:
    """The settings and the rows by epoch of a file that ``EpochsFile`` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; plot_sharpness.py writes it")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = {row.pop("epoch"): row for row in content["epochs"]}
        numbers = [float(row[name]) for row in rows.values() for name in NUMBERS]
        settings = dict(content["settings"])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path}: no file of epochs, or a damaged one; {REMEDY}") from error
    if not np.isfinite(numbers).all() or not rows:
        raise ValueError(f"{path}: has no rows, or values that are not finite; {REMEDY}")
    return settings, rows
