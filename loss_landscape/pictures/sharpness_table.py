"""The table of sharpness measures on the interactive page: values, errors, and what each is."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loss_landscape.sharpness_measures.definitions import KINDS, value
from loss_landscape.sharpness_measures.sharpness_file import read_sharpness, sharpness_path
from utilities.files import sha256_of
from utilities.runs import flag_differences

# Which model, not how it was measured: two of them may stand side by side.
WHOSE = ("model", "model_args", "forward")
FLAGS = ("rho", "average_rho", "worst_rho", "worst_norm", "epsilon")
Record = dict[str, Any]


def read_sharpness_of(stem: Path, model_file: Path) -> Record:
    """What sharpness.py measured of a checkpoint, beside the spectrum that is named ``stem``.

    Raises:
        FileNotFoundError: nothing.
        ValueError: damaged, or of other weights.
    """
    path = sharpness_path(stem)
    record = read_sharpness(path)
    if record["checkpoint_sha256"] != sha256_of(model_file):
        raise ValueError(
            f"{model_file}: {path} is of another checkpoint, or of this one before it was trained "
            "again; measure it anew"
        )
    return record


def refuse_different(names: Sequence[str], records: Sequence[Record]) -> None:
    """Refuse measures that were not taken in the same way.

    Raises:
        ValueError: names two that differ, and the flags.
    """
    first = _taken(records[0])
    for name, record in zip(names[1:], records[1:], strict=True):
        different = flag_differences(first, _taken(record))
        if different:
            raise ValueError(
                f"{name}: differs from {names[0]} in {', '.join(different)}, so one table of both "
                "would mislead; measure one of them anew as the other"
            )


def _taken(record: Record) -> Record:
    given = {k: v for k, v in record["arguments"].items() if k not in WHOSE}
    return {"bn": "eval", **given, "samples": record.get("samples"), "m": record.get("m")}


def sharpness_table(records: Sequence[Record], labels: Sequence[str]) -> str:
    """A row a measure: its value at each checkpoint with its error, unit and definition.

    Under the mouse a value says what its error is of, and what it cost.

    Args:
        records: of each checkpoint, taken in the same way.
        labels: their names, as text.
    """
    found = [record["measures"] for record in records]
    names = [name for name in KINDS if any(name in measures for measures in found)]
    head = "".join(map(_head, ["measure", *labels, "unit", "definition"]))
    rows = [f"<tr>{head}</tr>"]
    for name in names:
        cells = "".join(_cell(measures.get(name)) for measures in found)
        unit, _, definition = KINDS[name]
        last = "".join(f"<td>{html.escape(_typeset(text))}</td>" for text in (unit, definition))
        rows.append(f"<tr><td>{html.escape(name)}</td>{cells}{last}</tr>")
    caption = html.escape(_caption(records[0]))
    return f'<table class="sharpness"><caption>{caption}</caption>{"".join(rows)}</table>'


def _head(text: str) -> str:
    return f"<th>{html.escape(text)}</th>"


def _cell(measure: Record | None) -> str:
    if measure is None:
        return '<td title="not measured">-</td>'
    said = [str(measure.get("remark") or "")]
    if measure["standard_error"] is not None:
        said.append(f"standard error over {measure.get('error_of')}")
    if measure.get("bound") is not None:
        said.append(f"bound: of these samples it is off by {measure['bound']:.1g} at most")
    elif measure["value"] is not None and measure["standard_error"] is None:
        said.append("no standard error")
    title = html.escape("; ".join(filter(None, said)), quote=True)
    return f'<td title="{title}">{html.escape(value(measure).replace("+-", "±"))}</td>'


def _typeset(text: str) -> str:
    return text.replace("^2", "²").replace("<=", "≤")


def _caption(record: Record) -> str:
    given = record["arguments"]
    flags = ", ".join(f"{name} {given[name]}" for name in FLAGS if given.get(name) is not None)
    bn = record.get("bn", "eval")
    return (
        f"Sharpness of the mean loss L over {record.get('samples')} samples of "
        f"{given.get('split', 'train')}, by its Hessian H or by L_S of subsets of m = "
        f"{record.get('m')}"
        + ("" if bn == "eval" else f"; batch norm: {bn}")
        + f". With {flags}. ± is a standard error over what the value says under the mouse; no "
        "error is that over other trainings."
    )
