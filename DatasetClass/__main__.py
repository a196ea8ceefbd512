"""Look at the data, or hand them on.

    python -m DatasetClass describe --dataset mitbih     # or cifar10, cifar100, MUTAG, ...
    python -m DatasetClass export --folder kaggle        # heartbeats in Kaggle's layout

The first prints classes, splits, shapes, source and licence, and draws samples to
plots/data_<name>.png.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from DatasetClass import describe, export
from utilities.cli import Parser, run


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command named first; it reads the flags after it."""
    words = list(sys.argv[1:] if argv is None else argv)
    commands = {"describe": describe.main, "export": export.main}
    if words and words[0] in commands:
        commands[words[0]](words[1:])
        return
    parser = Parser(__doc__)
    parser.add_argument("command", choices=list(commands), help="its flags: describe --help")
    parser.parse_args(words)


if __name__ == "__main__":
    sys.argv[0] = "DatasetClass"  # the name that help and errors show; Python put __main__.py
    run(main)
