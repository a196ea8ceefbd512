"""A Ray cluster, or this machine's processes, that pieces of one computation are handed out to.

Ray is optional: nothing here imports it before it is asked for. It hands the pieces of a worker
that dies to another one.
"""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RETRIES = 10  # of a piece whose worker died


def add_ray_flag(group: Any, what: str) -> None:
    """Add ``--ray``, which hands ``what`` out."""
    group.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help=f"hand {what} to the workers of this Ray cluster, each with --threads threads (1 "
        "if not given); without an address to processes of this machine",
    )


def check_ray_flag(args: argparse.Namespace) -> None:
    """With ``--ray``, see that Ray is there and take as many threads here as on its workers.

    Raises:
        ValueError: it isn't installed.
    """
    if args.ray is not None:
        require_ray()
        args.threads = args.threads or 1  # so that values are the same bits


def require_ray() -> Any:
    """The module ``ray``.

    Raises:
        ValueError: it isn't installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ValueError(
            f"--ray: Ray is not installed here ({error}); pip install 'sam-optimizer[ray]', or "
            "leave --ray out"
        ) from error


@contextmanager
def cluster(address: str) -> Iterator[Any]:
    """Within, the module ``ray``, connected to ``address``, "" for this machine alone.

    Raises:
        ValueError: Ray isn't installed.
        OSError: no cluster answers.
    """
    ray = require_ray()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent home unasked
    try:
        ray.init(address or "local", log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError) as error:
        raise OSError(
            f"--ray {address}: no Ray cluster answers there ({str(error).splitlines()[0]}); start "
            "one with ray start --head, or write --ray alone for this machine's processes"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def remote(ray: Any, function: Callable[..., Any], args: argparse.Namespace) -> tuple[Any, int]:
    """``function`` as a task with ``args.threads`` CPUs or a GPU, and how many run at a time."""
    gpus = 1 if args.device.startswith("cuda") else 0
    resources = ray.cluster_resources()
    workers = resources.get("GPU", 0) if gpus else resources.get("CPU", 1) // args.threads
    how = {"num_cpus": args.threads, "num_gpus": gpus, "max_retries": RETRIES, "max_calls": 0}
    return ray.remote(**how)(function), max(int(workers), 1)


def fetched(ray: Any, results: Any) -> Any:
    """``ray.get(results)``, with clear words where that fails.

    Raises:
        ValueError, OSError: as a worker raised it.
        OSError: workers die again and again, or the cluster is gone.
    """
    try:
        return ray.get(results)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, ValueError | OSError):
            raise type(cause)(f"on a worker: {cause}") from error
        raise
    except ray.exceptions.RayError as error:
        raise OSError(
            f"--ray: workers died {RETRIES} times or the cluster is gone "
            f"({str(error).splitlines()[0]}); what is finished is kept: run it again"
        ) from error


def with_absolute_paths(args: argparse.Namespace) -> argparse.Namespace:
    """The same flags for a process with another working directory."""
    flags = {k: v.absolute() if isinstance(v, Path) else v for k, v in vars(args).items()}
    return argparse.Namespace(**flags)
