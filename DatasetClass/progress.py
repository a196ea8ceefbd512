"""Show how far a long loop is: a bar on a terminal, one plain line in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def progress(items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
    """Yield ``items``, of which there are ``total``, and show ``what`` is being done."""
    if not sys.stdout.isatty():
        print(what, flush=True)
        yield from items
        return
    from rich.progress import track

    yield from track(items, what, total=total, transient=True)
