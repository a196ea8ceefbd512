"""A user's own model, data and losses: imported by the names on the command line, then filled.

Only what the command line names is imported, never what a file names, and a file of weights runs
no code: .pt and .pth are read with ``weights_only=True``.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from utilities import checkpoint

NAME = re.compile(r"[\w.]+:[\w.]+")
HOLDERS = ("state_dict", "model_state_dict", "model")  # of the weights, in a file with more in it
PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and of torch.compile


@contextmanager
def blamed(what: str) -> Iterator[None]:
    """Report whatever a user's code raises within in one line that begins with ``what``.

    Raises:
        ValueError: it raised something.
    """
    try:
        yield
    except (Exception, SystemExit) as error:  # a script without a main guard may exit
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        raise ValueError(f"{what} ({reason}); SAM_TRACEBACK=1 shows where") from error


def is_own(name: str | None) -> bool:
    """Whether a flag's value names a user's own thing, ``package.module:name``."""
    return name is not None and ":" in name


def import_named(flag: str, name: str) -> Callable[..., Any]:
    """Import ``package.module:name`` as ``python -m`` would, from the working directory first.

    Raises:
        ValueError: there is no such module or name in it, its import fails, or Python has already
            loaded another module of that name.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"{flag} {name}: not of the form package.module:name")
    module_name, _, path = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    _refuse_hidden(flag, name, module_name.split(".")[0])
    with blamed(f"{flag} {name}: {module_name} can't be imported"):
        found = importlib.import_module(module_name)
    for part in path.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{flag} {name}: {module_name} has no {path}")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"{flag} {name}: a {type(found).__name__}, which can't be called")
    return found  # type: ignore[return-value]


def _refuse_hidden(flag: str, name: str, top: str) -> None:
    """Refuse a name that means another module here: this project has ``models`` too."""
    here = Path.cwd()
    if not any((here / end).exists() for end in (top, f"{top}.py")) or top not in sys.modules:
        return
    loaded = sys.modules[top]
    places = [getattr(loaded, "__file__", None) or "", *getattr(loaded, "__path__", [])]
    if not any(Path(place).resolve().is_relative_to(here.resolve()) for place in places if place):
        raise ValueError(
            f"{flag} {name}: {top} is loaded from {places[0] or places[-1]}, which hides yours; "
            f"start from the folder above, with {here.name}.{name}"
        )


def keyword_arguments(flag: str, text: str | None) -> dict[str, Any]:
    """Read ``depth=20, act='relu'``: keyword arguments as Python writes them, plain values alone.

    Raises:
        ValueError: the text is something else.
    """
    try:
        call = ast.parse(f"dict({text or ''})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not all(k.arg for k in call.keywords):
            raise ValueError("no keyword arguments")
        found = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        if len(found) < len(call.keywords):
            raise ValueError("one given twice")
        return found
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(
            f"{flag} {str(text)[:60]!r}: not of the form depth=20, name='text' (plain values, text "
            "in quotes)"
        ) from error


def build(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The model that ``--model name`` makes, in float32 or float64, without wrappers.

    Raises:
        ValueError: the factory can't be imported or called, or makes no module with parameters.
    """
    factory = import_named("--model", name)
    with blamed(f"--model {name}: fails with --model_args {dict(arguments)}"):
        model = factory(**arguments)
    while isinstance(model, nn.Module) and (hasattr(model, "_orig_mod") or _is_parallel(model)):
        model = getattr(model, "_orig_mod", None) or model.module  # compiled, or data parallel
    if not isinstance(model, nn.Module):
        raise ValueError(f"--model {name}: gives a {type(model).__name__}, not a torch.nn.Module")
    parameters = list(model.parameters())
    if any(map(nn.parameter.is_lazy, parameters)):
        raise ValueError(f"--model {name}: has lazy parameters; let it call the model once")
    types = {p.dtype for p in parameters if p.is_floating_point()}
    if not types:
        raise ValueError(f"--model {name}: has no parameters")
    return model if types <= {torch.float32, torch.float64} else model.float()


def _is_parallel(model: nn.Module) -> bool:
    return isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)


def read_weights(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """A state dict from a file, with the names that ``model`` has.

    Args:
        path: .safetensors; anything else is read as ``torch.save`` writes it.
        model: tensors that share their memory need to be in the file once.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, holds no state dict or several, or none that fits the model.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of weights")
    weights = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for prefix in PREFIXES * 2:  # a compiled model may be wrapped, or a wrapped one compiled
        if all(key.startswith(prefix) for key in weights):
            weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    ours = model.state_dict()
    present = {t.data_ptr(): key for key, t in ours.items() if key in weights and t.numel()}
    for key, tensor in ours.items():  # tied weights, which safetensors keeps once
        if key not in weights and tensor.data_ptr() in present:
            weights[key] = weights[present[tensor.data_ptr()]]
    checkpoint.check_weights(ours, weights, path)
    return weights


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: not a .safetensors file, or a damaged one ({error})") from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        content = checkpoint.read(path)
    except ValueError as error:
        raise ValueError(
            f"{error}; torch.save(model.state_dict(), path) writes what is read"
        ) from error
    if isinstance(content, dict) and set(checkpoint.KEYS) - {"task"} <= set(content):
        content = checkpoint.load(path)  # one of ours, which knows whether it is damaged
    holders = [key for key in HOLDERS if isinstance(content, dict) and _is_dict(content.get(key))]
    if len(holders) > 1:
        raise ValueError(f"{path}: holds weights as {' and '.join(holders)}; keep one of them")
    weights = content[holders[0]] if holders else content
    if not _is_dict(weights):
        inside = ", ".join(map(str, weights))[:80] if isinstance(weights, dict) else "no dict"
        raise ValueError(
            f"{path}: no state dict, alone or as {', '.join(HOLDERS)} ({inside}); write it with "
            "torch.save(model.state_dict(), path)"
        )
    return dict(weights)


def _is_dict(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )
