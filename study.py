"""Is SAM flatter, and is flatter better? Carry out a study and report on it.

    python study.py studies/gcn.toml --jobs 2        # graphs: hours on two cores
    python study.py report studies/gcn.toml          # Markdown and HTML of what there is: a minute

A study's table says which trainings and measures it is made of (docs/study.md). Times are those of
two CPU cores.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from utilities.cli import run


def main(argv: Sequence[str] | None = None) -> Any:
    """Carry out a study, or report on it if the first word is "report"."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["report"]:
        from studies import report

        return report.main(words[1:])
    from studies import runner  # each imports torch, matplotlib and more, the other needs not

    return runner.main(words)


if __name__ == "__main__":
    run(main)
