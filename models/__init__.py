"""The models, by the names that the training scripts and checkpoints use."""

from __future__ import annotations

from typing import Any

from torch import nn

from models.gnc import GCN
from models.transformer import Transformer
from models.wide_res_net import WideResNet

MODELS: dict[str, type[nn.Module]] = {"cifar": WideResNet, "mitbih": Transformer, "GCN": GCN}


def build(name: str, **model_args: Any) -> nn.Module:
    """Build the model of a task with fresh weights.

    Args:
        name: "cifar" (WideResNet), "mitbih" (Transformer) or "GCN".
        model_args: the arguments of its class.

    Raises:
        ValueError: unknown name, unknown argument or an argument out of range.
    """
    if name not in MODELS:
        raise ValueError(f"--model {name}: unknown, choose from {', '.join(MODELS)}")
    try:
        return MODELS[name](**model_args)
    except TypeError as error:
        raise ValueError(f"model {name}: {error}") from error
