"""The largest eigenvalue at the epochs that a run kept, and its file.

``Eigenvalues/<name>_<optimizer>_sharpness_epochs.json`` holds a row an epoch; ``...vectors.npz``
beside it what the next epoch begins from, so that a run that was killed ends with the same bits.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from loss_landscape.my_pyhessian.lanczos import (
    KrylovSpace,
    Matvec,
    Tick,
    no_tick,
    without_autocast,
)
from loss_landscape.my_pyhessian.stochastic import rademacher
from utilities.files import atomic_write
from utilities.runs import refuse_other

ENDING = "_sharpness_epochs.json"
REMEDY = "--overwrite replaces it, --out_dir puts this one elsewhere"
FOLLOWED = 3  # eigenvectors, so that one that overtakes the first is seen
SPACE = 40  # vectors that Lanczos holds before it restarts
RANDOM = 0.1  # length of the random part of a start over that of the eigenvectors' sum
NUMBERS = ("lambda_max", "residual", "gradient_norm", "products")
Row = dict[str, Any]


@without_autocast
def follow(
    matvec: Matvec,
    earlier: Tensor | None,
    template: Tensor,
    max_products: int = 160,
    tol: float = 1e-3,
    seed: int = 0,
    tick: Tick = no_tick,
) -> tuple[Row, Tensor]:
    """The largest eigenvalue of a matrix that has changed a little, and where to begin next time.

    Lanczos begins from the sum of the three best Ritz vectors of the matrix before. From the one
    eigenvector alone it would find that one again though another had grown larger; so three are
    followed, one product more than that is made at least, and a random vector is added, by which
    one from below all three comes in, at once or later. One that overtakes by a few percent can
    stay unseen until it is larger by more: what is found is an eigenvalue, not always the first.

    Args:
        matvec: product with the symmetric matrix.
        earlier: (k, P), what this gave for the matrix before; None begins with a random vector.
        template: (P,), for size, type and device.
        max_products: where to stop at the latest.
        tol: residual over the largest magnitude at which the eigenvalue is known.
        seed: of the random vector.
        tick: called after each product.

    Returns:
        Values by name, and Ritz vectors (k, P).

    Raises:
        ValueError: a product is not finite.
    """
    start = rademacher(template.numel(), template, torch.Generator().manual_seed(seed))
    if earlier is not None:
        length = RANDOM * (len(earlier) / template.numel()) ** 0.5
        start = earlier.to(template).sum(dim=0) + length * start
    space = KrylovSpace(matvec, start, min(SPACE, max_products), tick)
    for products in range(1, max_products + 1):
        space.extend()
        values, vectors, residuals = space.ritz()
        converged = bool(residuals[-1] <= tol * np.abs(values).max())
        if (converged and products > FOLLOWED) or space.is_whole or not space.beta:
            break
        if space.n == space.size and products < max_products:
            kept = max(space.size // 2, 1)
            space.restart(vectors[:, -kept:], values[-kept:])
    row = {
        "lambda_max": float(values[-1]),
        "residual": float(residuals[-1]),
        "converged": converged,
        "products": products,
    }
    best = torch.as_tensor(vectors[:, -FOLLOWED:].T.copy()).to(space.basis)
    return row, best @ space.basis


@dataclass
class EpochsFile:
    """The rows of one run's epochs, on disk as soon as there are any.

    Attributes:
        path: the .json; its lock must be held.
        settings: of the run and of what is measured, which all rows share.
        rows: by epoch.
        vectors: (k, P), eigenvectors at the last of them; None if they aren't there.
        edge: of stability, once all epochs are measured.
    """

    path: Path
    settings: dict[str, Any]
    rows: dict[int, Row]
    vectors: np.ndarray | None = None
    edge: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, settings: dict[str, Any], overwrite: bool) -> EpochsFile:
        """Read what is there, or begin.

        Raises:
            ValueError: it is damaged, or of another run or other settings.
        """
        file = cls(path, settings, {})
        if overwrite:
            for old in (file.vectors_path, path):  # which else would be taken for these rows'
                old.unlink(missing_ok=True)
        if not path.exists():
            file.vectors_path.unlink(missing_ok=True)
            return file
        old_settings, file.rows = read_epochs(path)
        refuse_other(path, old_settings, settings, "sharpness", REMEDY)
        file._read_vectors()
        return file

    @property
    def vectors_path(self) -> Path:
        return self.path.with_name(f"{self.path.stem}_vectors.npz")

    def start_for(self, epoch: int) -> Tensor | None:
        """The eigenvectors to begin with: those of the last epoch there, if it is earlier."""
        known = self.vectors is not None and max(self.rows) < epoch
        return torch.from_numpy(self.vectors) if known else None

    def add(self, epoch: int, row: Row, vectors: Tensor) -> None:
        """Write an epoch: first its eigenvectors with the row, then all rows.

        Raises:
            OSError: it can't be written.
        """
        self.rows[epoch] = row
        if epoch == max(self.rows):
            self.vectors = vectors.cpu().numpy()
            with atomic_write(self.vectors_path) as part:
                np.savez(part, row=np.array(json.dumps([epoch, row])), vectors=self.vectors)
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

    def _read_vectors(self) -> None:
        """Take the eigenvectors, and the row that a kill may have left beside them alone."""
        if not self.vectors_path.exists():
            return
        try:
            with np.load(self.vectors_path, allow_pickle=False) as arrays:
                epoch, row = json.loads(str(arrays["row"]))
                vectors = arrays["vectors"]
        except (ValueError, KeyError, OSError, EOFError, TypeError, zipfile.BadZipFile) as error:
            raise ValueError(f"{self.vectors_path}: damaged; remove it") from error
        if epoch > max(self.rows):
            self.rows[epoch] = row
            self._write()
        if epoch == max(self.rows) and self.rows[epoch] == row:
            self.vectors = vectors


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
    except (ValueError, KeyError, TypeError) as error:
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
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: no file of epochs, or a damaged one; {REMEDY}") from error
    if not np.isfinite(numbers).all() or not rows:
        raise ValueError(f"{path}: has no rows, or values that are not finite; {REMEDY}")
    return settings, rows
