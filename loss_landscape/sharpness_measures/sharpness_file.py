"""The file of a checkpoint's sharpness: ``Eigenvalues/<name>_<optimizer>_sharpness.json``.

It holds under ``measures`` of each its value, its standard error (null where it has none), its
unit, what the error is of and what it cost; and what they were taken of: the checkpoint's digest
and the settings, under which measures may be added one by one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from loss_landscape.my_pyhessian.spectrum_file import settings
from utilities.files import atomic_write
from utilities.runs import refuse_other

ENDING = "_sharpness.json"
REMEDY = "--overwrite replaces it, --out_dir puts this one elsewhere"


def sharpness_path(stem: Path) -> Path:
    """The file beside the spectrum that is named ``stem``."""
    return stem.with_name(stem.name + ENDING)


def write_sharpness(path: Path, record: dict[str, Any]) -> None:
    """Write it whole or not at all.

    Raises:
        OSError: it can't be written.
    """
    with atomic_write(path) as part:
        part.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_sharpness(path: Path) -> dict[str, Any]:
    """Read what ``write_sharpness`` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; sharpness.py writes it")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        values = [measure["value"] for measure in record["measures"].values()]
        errors = [measure["standard_error"] for measure in record["measures"].values()]
        errors += [measure.get("bound") for measure in record["measures"].values()]
        settings(record)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: no record of sharpness, or a damaged one; {REMEDY}") from error
    for number in (*values, *errors):
        wrong = isinstance(number, bool) or not isinstance(number, float | int | None)
        # A whole number may be too long for a float, and NaN compares with none.
        if wrong or (number is not None and not abs(number) <= sys.float_info.max):
            raise ValueError(f"{path}: {number!r:.60} is no finite number; {REMEDY}")
    return record


def known_measures(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The measures that are in a file already, if it is of the settings in ``record``.

    Raises:
        ValueError: it is of another checkpoint or of other settings, or damaged.
    """
    if not path.exists():
        return {}
    old = read_sharpness(path)
    refuse_other(path, settings(old), settings(record), "sharpness", REMEDY)
    return old["measures"]
