"""The files of a spectrum: ``<stem>_eigen.npy``, ``<stem>_weight.npy`` and ``<stem>.json``.

The arrays, both (probes, k + Lanczos steps) float64, are nodes and weights of the spectral density,
in each row first the k known eigenvalues (0 in files of older versions); the record holds
eigenvalues, residuals, trace and standard errors, and what they were computed from. The standard
errors of the eigenvalues (``standard_errors``, null where there is none) are over samples, of what
``standard_errors_of`` says, or ``standard_errors_lack`` says why not; older records have neither.
All three are written and read here alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utilities.files import atomic_write
from utilities.runs import refuse_other

PARTS = ("eigen", "weight")
REMEDY = "--overwrite replaces it, --out_dir puts this one elsewhere"
EXAMPLE = "Eigenvalues/GCN_SAM"
LATER = {"bn": "eval"}  # flags that spectra of older versions don't say
NUMBERS = ("lambda_max", "lambda_min", "trace")


@dataclass
class Spectrum:
    """A spectrum: nodes and weights (probes, steps) float64, and its record."""

    nodes: np.ndarray
    weights: np.ndarray
    record: dict[str, Any]

    @property
    def title(self) -> str:
        return str(self.record.get("title", ""))


def stem_of(path: Path) -> Path:
    """The name that a spectrum's three files share, from it or from the path of any of them.

    Raises:
        ValueError: it is no name, such as ".".
    """
    if not path.name:
        raise ValueError(f"{path}: no name of a spectrum, which is one such as {EXAMPLE}")
    for ending in (".json", *(f"_{part}.npy" for part in PARTS)):
        if path.name.endswith(ending) and path.name != ending:
            return path.with_name(path.name.removesuffix(ending))
    return path


def spectrum_paths(stem: Path) -> list[Path]:
    """Nodes, weights and record, in the order in which they are written."""
    return [*(_path(stem, f"_{part}.npy") for part in PARTS), _path(stem, ".json")]


def write_spectrum(stem: Path, spectrum: Spectrum) -> list[Path]:
    """Write the three files, the record last: with it the spectrum is complete.

    Raises:
        OSError: a file can't be written.
    """
    record = {**spectrum.record, "arrays_sha256": _digest(spectrum.nodes, spectrum.weights)}
    if "per_layer" in record:
        record["per_layer"] = [_without_nan(row) for row in record["per_layer"]]
    record = _without_nan(record)
    paths = spectrum_paths(stem)
    for path, array in zip(paths, (spectrum.nodes, spectrum.weights), strict=False):
        with atomic_write(path) as part:
            np.save(part, array, allow_pickle=False)
    with atomic_write(paths[-1]) as part:
        part.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return paths


def read_spectrum(stem: Path) -> Spectrum:
    """Read the three files that ``stem``, or one of them, names.

    Raises:
        FileNotFoundError: one is missing.
        ValueError: one is damaged, or they don't belong together.
    """
    stem = stem_of(stem)
    nodes, weights = (_read_npy(_path(stem, f"_{part}.npy")) for part in PARTS)
    if nodes.shape != weights.shape:
        raise ValueError(f"{stem}: {nodes.shape} nodes but {weights.shape} weights; compute again")
    if weights.min() < 0 or not np.allclose(weights.sum(axis=1), 1, rtol=0, atol=1e-3):
        raise ValueError(f"{stem}: its weights are no shares of 1; compute the spectrum again")
    path = _path(stem, ".json")
    record = _read_record(path)
    if record.get("arrays_sha256", _digest(nodes, weights)) != _digest(nodes, weights):
        raise ValueError(f"{path}: its arrays are another spectrum's; compute it again")
    return Spectrum(nodes, weights, record)


def lambda_max_error(record: dict[str, Any]) -> float | None:
    """The standard error over samples of ``lambda_max``; None where it isn't known.

    It is known where the largest eigenvalue is the first of those that were looked for: a larger
    Ritz value of the density's probes has another eigenvector.
    """
    errors = record.get("standard_errors") or [None]
    if errors[0] is None:
        return None
    away = record["lambda_max"] - record["eigenvalues"][0]
    return float(errors[0]) if away <= record["residuals"][0] else None


def refuse_other_spectrum(stem: Path, record: dict[str, Any]) -> None:
    """Keep a spectrum of another checkpoint or with other settings from being replaced.

    Raises:
        ValueError: ``stem`` holds one, or a record that can't be read.
    """
    path = _path(stem, ".json")
    if not path.exists():
        return
    try:
        old, new = settings(_read_record(path)), settings(record)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: holds an unreadable record; {REMEDY}") from error
    refuse_other(path, old, new, "spectrum", REMEDY)


def settings(record: dict[str, Any]) -> dict[str, Any]:
    """What makes two spectra the same, by flag; the checkpoint's digest stands for its file."""
    flags = {f"--{name}": value for name, value in {**LATER, **record["arguments"]}.items()}
    return {"checkpoint": record["checkpoint_sha256"], **flags}


def _path(stem: Path, ending: str) -> Path:
    return stem.with_name(stem.name + ending)


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    """One probe has no standard error; JSON has null for that and no NaN."""
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}


def _digest(nodes: np.ndarray, weights: np.ndarray) -> str:
    return hashlib.sha256(nodes.tobytes() + weights.tobytes()).hexdigest()


def _read_npy(path: Path) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; hessian.py writes it")
    try:
        # Mapped: a header that asks for more than the file holds is refused, not allocated.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: not a .npy file of numbers, or a damaged one") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype != np.float64:
        raise ValueError(f"{path}: not (probes, steps) of float64")
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"{path}: empty, or has NaN or infinite values")
    return np.array(array)


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); compute the spectrum again") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path}: not a record of a spectrum")
    for key in NUMBERS:
        _check(path, key, record.get(key))
    _check(path, "trace_standard_error", record.get("trace_standard_error"), 0, null=True)
    _check_errors(path, record)
    _check_layers(path, record)
    parameters = record.get("parameters", 1)
    if not isinstance(parameters, int) or parameters < 1:
        raise ValueError(f"{path}: {parameters!r} parameters; compute the spectrum again")
    return record


def _check(
    path: Path,
    name: str,
    number: object,
    least: float = -sys.float_info.max,
    null: bool = False,
) -> None:
    """``null``: whether the file may say that it isn't known, such as the error of one probe."""
    if null and number is None:
        return
    is_number = isinstance(number, float | int) and not isinstance(number, bool)
    if not is_number or not least <= number <= sys.float_info.max:  # type: ignore[operator]
        what = "finite number" if least < 0 else "finite number from 0 on"
        raise ValueError(f"{path}: {name} is {number!r}, no {what}; compute it again")


def _check_errors(path: Path, record: dict[str, Any]) -> None:
    """Standard errors, which older records have none of, are numbers beside their eigenvalues."""
    if "standard_errors" not in record:
        return
    names = ("eigenvalues", "residuals", "standard_errors")
    columns = [record[name] if isinstance(record.get(name), list) else [] for name in names]
    if not columns[0] or len({len(column) for column in columns}) > 1:
        raise ValueError(
            f"{path}: as many standard_errors as eigenvalues are needed; compute again"
        )
    for value, residual, error in zip(*columns, strict=True):
        _check(path, "one of the eigenvalues", value)
        _check(path, "one of the residuals", residual, 0)
        _check(path, "one of the standard_errors", error, 0, null=True)


def _check_layers(path: Path, record: dict[str, Any]) -> None:
    """Rows of layers, of which older records have no standard error over samples."""
    rows = record.get("per_layer") or []
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and isinstance(row.get("layer"), str) for row in rows
    ):
        raise ValueError(f"{path}: per_layer is no list of layers; compute it again")
    for row in rows:
        name = f"the per_layer row of {row['layer']!r}"
        for key in ("lambda_max", "trace"):
            _check(path, f"{key} of {name}", row.get(key))
        for key in ("parameters", "residual"):
            _check(path, f"{key} of {name}", row.get(key), 0)
        for key in ("standard_error", "trace_standard_error"):
            _check(path, f"{key} of {name}", row.get(key), 0, null=True)
