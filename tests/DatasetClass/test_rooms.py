"""Who may import whom in DatasetClass: raw and storage know no torch and nothing above them."""

from __future__ import annotations

import ast

import pytest

from utilities.files import ROOT

HOME = ROOT / "DatasetClass"
ALLOWED = {"storage": ("storage",), "raw": ("raw", "storage")}
TORCH = ("torch", "torchvision", "torch_geometric")


def imports(room: str) -> set[str]:
    """All modules that the files of a room import, at their top or in a function."""
    names = set()
    for path in (HOME / room).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names.add(node.module or "")
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("room", ALLOWED)
def test_lower_rooms_know_neither_torch_nor_what_is_above(room: str) -> None:
    names = imports(room)
    assert "numpy" in names  # files were found
    assert not {name for name in names if name.split(".")[0] in TORCH}
    ours = {name for name in names if name.startswith("DatasetClass")}
    allowed = tuple(f"DatasetClass.{part}." for part in ALLOWED[room])
    assert {name for name in ours if not name.startswith(allowed)} == set()
    above = ("trainings", "loss_landscape", "models", "studies", "sam")
    assert not {name for name in names if name.split(".")[0] in above}


def test_what_batches_are_knows_no_graphs() -> None:
    text = (HOME / "batches.py").read_text()
    assert "graph" not in text
