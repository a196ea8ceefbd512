"""Names that come from files, as Markdown that shows them as they are."""

from __future__ import annotations

import re


def text(value: str) -> str:
    """A name from a file as plain text in Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>|#$~&])", r"\\\1", " ".join(value.split()))


def code(value: str) -> str:
    """A name from a file as code, in a table too."""
    return f"`{' '.join(value.split()).replace('`', chr(39)).replace('|', '/')}`"
