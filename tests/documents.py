"""The documents as the tests read them: which there are, and what stands in them."""

from __future__ import annotations

import re
from pathlib import Path

from utilities.files import ROOT

DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *(ROOT / f / "README.md" for f in ("benchmarks", "outputs", "to_plot", "Eigenvalues", "plots")),
    *sorted((ROOT / "docs").glob("*.md")),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


def name(document: Path) -> str:
    """Its path from the repository's root, as a test's name."""
    return document.relative_to(ROOT).as_posix()


def snippets(document: Path) -> list[str]:
    """Its blocks of Python."""
    return [body for kind, body in FENCE.findall(document.read_text("utf-8")) if kind == "python"]


def prose(text: str) -> str:
    """``text`` without its fenced blocks."""
    return FENCE.sub("", text)


def spans(document: Path) -> list[str]:
    """What stands between single backticks, each on one line."""
    return [
        " ".join(span.split())
        for span in re.findall(r"`([^`]+)`", prose(document.read_text("utf-8")))
    ]


def indented(text: str) -> list[str]:
    """The lines of indented blocks, those that a backslash continues joined."""
    lines = re.findall(r"^ {4}(\S(?:.*\\\n)*.*)$", text, flags=re.MULTILINE)
    return [line.replace("\\\n", " ") for line in lines]
