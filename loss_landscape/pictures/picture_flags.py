"""The flags of a picture: its scale, and a window that shows it."""

from __future__ import annotations

import argparse
from typing import Any

from matplotlib import pyplot
from matplotlib.backends import BackendFilter, backend_registry
from matplotlib.figure import Figure

from loss_landscape.pictures.scale import LARGEST
from utilities.cli import finite_float, positive_float


def new_figure(size: tuple[float, float], show: bool) -> Figure:
    """A figure of ``size`` in inches; with ``show`` one of a window that ``--show`` opens."""
    return (pyplot.figure if show else Figure)(figsize=size, layout="constrained")


def add_scale_flags(parser: Any) -> None:
    """Add the flags of a picture's scale, named as loss-landscape's."""
    parser.add_argument("--vmin", type=finite_float, help="lowest level; the minimum if not given")
    parser.add_argument("--vmax", type=finite_float, help="highest level; automatic if not given")
    parser.add_argument(
        "--vlevel", type=positive_float, help="distance of the levels; quantiles if not given"
    )
    parser.add_argument(
        "--log",
        action=argparse.BooleanOptionalAction,
        help="logarithmic heights; if not given, where the scale spans more than a decade",
    )


def add_show_flag(parser: Any) -> None:
    """Add ``--show``, which is refused where no window can be opened."""
    parser.add_argument("--show", action=_Show, help="open a window with each picture, too")


class _Show(argparse.BooleanOptionalAction):
    """``--show`` and ``--no-show``, refused before anything is drawn."""

    def __init__(self, **options: Any) -> None:
        super().__init__(default=False, **options)

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        super().__call__(parser, namespace, values, option)
        backend = pyplot.get_backend().lower()
        if namespace.show and backend not in backend_registry.list_builtin(
            BackendFilter.INTERACTIVE
        ):
            parser.error(
                f"--show: no window can be opened here (matplotlib's backend is {backend}); leave "
                "it out and open the files"
            )


def check_scale_flags(args: argparse.Namespace) -> None:
    """Refuse ends of a scale that can't be drawn.

    Raises:
        ValueError: names the flag.
    """
    for flag in ("vmin", "vmax"):
        if abs(getattr(args, flag) or 0.0) > LARGEST:
            raise ValueError(f"--{flag} {getattr(args, flag):g}: beyond {LARGEST:g}, undrawable")
    if args.vmin is not None and args.vmax is not None and args.vmin >= args.vmax:
        raise ValueError(f"--vmin {args.vmin:g}: not below --vmax {args.vmax:g}")
