"""Directions in weight space along which a loss surface is taken (Li et al. 2018, section 4).

A direction is a list of tensors shaped as the weights (``--dir_type weights``: the parameters) or
as the states (``states``: batch-norm statistics too). Everything here is pure; drawing and
reading a direction don't move the model.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

NORMS = ("filter", "layer", "weight", "dfilter", "dlayer", "none")
IGNORES = ("biasbn", "none")

Direction = list[Tensor]


def coordinates(model: nn.Module, dir_type: str) -> dict[str, Tensor]:
    """The tensors that a direction moves, by name: the live ones, not copies.

    Integer states (counters) are left out: they are no coordinates.
    """
    if dir_type == "weights":
        return {name: p.data for name, p in model.named_parameters()}
    return {name: t for name, t in model.state_dict().items() if t.is_floating_point()}


def with_counters(model: nn.Module, direction: Direction) -> Direction:
    """A direction along states with a zero for each integer state: loss-landscape has them all."""
    moved = iter(direction)
    states = model.state_dict().values()
    return [next(moved) if t.is_floating_point() else torch.zeros(t.shape) for t in states]


def random_direction(
    weights: Direction, norm: str, ignore: str, generator: torch.Generator
) -> Direction:
    """A Gaussian direction, rescaled to the weights.

    Drawn in float32 on the CPU, so that one seed gives all models of one architecture the same
    Gaussian on every device.

    Args:
        weights: what the direction is to move.
        norm: one of ``NORMS``; see ``normalise``.
        ignore: "biasbn" sets biases and normalisation parameters (1-dim tensors) to zero;
            "none" gives them the weight itself, as loss-landscape does.
        generator: CPU generator.
    """
    direction = []
    for w in weights:
        d = torch.randn(w.shape, generator=generator).to(w.device, w.dtype)
        if w.ndim <= 1:
            d = torch.zeros_like(w) if ignore == "biasbn" else w.clone()
        else:
            d = normalise(d, w, norm)
        direction.append(d)
    return direction


def normalise(d: Tensor, w: Tensor, norm: str) -> Tensor:
    """Rescale one tensor of a direction, of 2 dimensions or more.

    filter: each slice ``d[i]`` to the norm of ``w[i]`` (Li et al. 2018, equation 1); layer: ``d``
    to the norm of ``w``; weight: each entry times its weight; dfilter and dlayer: to norm 1.
    """
    if norm in ("filter", "dfilter"):
        length = _filter_norms(d)
        target = _filter_norms(w) if norm == "filter" else torch.ones_like(length)
        return d * (target / length.clamp_min(torch.finfo(d.dtype).tiny))
    if norm in ("layer", "dlayer"):
        return d * ((w.norm() if norm == "layer" else 1.0) / d.norm())
    return d * w if norm == "weight" else d


def _filter_norms(t: Tensor) -> Tensor:
    return torch.linalg.vector_norm(t, dim=tuple(range(1, t.ndim)), keepdim=True)


def difference(start: Direction, end: Direction) -> Direction:
    """The direction from one model to another of the same architecture."""
    return [b.to(a.device, a.dtype) - a for a, b in zip(start, end, strict=True)]


def cosine(one: Direction, other: Direction) -> float:
    """Cosine of the angle between two directions; 0 where one is zero."""
    dot = sum(float((a.double() * b.double()).sum()) for a, b in zip(one, other, strict=True))
    lengths = [sum(float((t.double() ** 2).sum()) for t in d) ** 0.5 for d in (one, other)]
    return dot / (lengths[0] * lengths[1]) if all(lengths) else 0.0


def fingerprint(directions: list[Direction]) -> str:
    """SHA-256 of the directions' shapes and values."""
    digest = hashlib.sha256()
    for direction in directions:
        for tensor in direction:
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
