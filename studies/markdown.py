"""A report's Markdown: names from files, shown as they are, and pictures."""

from __future__ import annotations

import re

LINK = r"\]\(([\w.-]+\.png)\)$"
HEADING = r"^### (?P<heading>.*)$"
PICTURE = r"^!\[(?P<data>.*): (?P<kind>\w+)\]\((?P<name>[\w.-]+\.png)\)\n\n\*(?P<caption>.*)\*$"


def text(value: str) -> str:
    """A name from a file as plain text in Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>|#$~&])", r"\\\1", " ".join(value.split()))


def code(value: str) -> str:
    """A name from a file as code, in a table too."""
    return f"`{' '.join(value.split()).replace('`', chr(39)).replace('|', '/')}`"


def picture(data: str, kind: str, name: str, caption: str) -> str:
    """A picture with its caption, as ``PICTURE`` finds it; all but the file's name is Markdown."""
    return f"![{data}: {kind}]({name})\n\n*{caption}*"
