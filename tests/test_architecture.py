"""Imports go where docs/architecture.md says: from lower floors, and in no circle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from utilities.files import ROOT

PICTURE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
FLOORS = {
    room.removesuffix(".py").rstrip("/"): int(number)
    for number, rooms in re.findall(r"^floor (\d) (.*)$", PICTURE, flags=re.MULTILINE)
    for room in re.findall(r"\w+/|\w+\.py", rooms)
}
FILES = [
    path.relative_to(ROOT)
    for room in FLOORS
    for path in sorted((ROOT / room).rglob("*.py")) or [ROOT / f"{room}.py"]
]
MODULES = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}


def imports(path: Path, everywhere: bool) -> Iterator[str]:
    """The modules of ours that a file imports, in functions too or only when it is imported."""
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else str(node.module) for name in names]
        else:
            continue
        yield from (name for name in names if name in MODULES)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_rooms_import_from_lower_floors(path: Path) -> None:
    room = path.with_suffix("").parts[0]
    for name in imports(path, everywhere=True):
        other = name.split(".")[0]
        assert other == room or FLOORS[other] < FLOORS[room] or FLOORS[room] == max(FLOORS.values())


def test_folders_of_loss_landscape_import_no_command() -> None:
    home = ROOT / "loss_landscape"
    commands = {
        f"loss_landscape.{path.stem}"
        for path in home.glob("*.py")
        if '__name__ == "__main__"' in path.read_text("utf-8")
    }
    assert "loss_landscape.plot_surface" in commands
    for path in home.glob("*/*.py"):
        found = commands & set(imports(path, everywhere=True))
        assert not found, f"{path} imports {found}, which users start"


def test_every_package_has_its_floor() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages < set(FLOORS), packages - set(FLOORS)
    assert not list(imports(Path("sam.py"), everywhere=True))


def test_no_import_circle() -> None:
    finished: set[str] = set()

    def follow(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above, name))
        if name not in finished:
            for other in imports(MODULES[name], everywhere=False):
                follow(other, (*above, name))
            finished.add(name)

    for name in MODULES:
        follow(name, ())
