"""Convolutions and batch norms whose second derivatives cost what first ones do.

torch differentiates the backward pass of a convolution through generic code, which on CPUs takes up
to 1.8 times what the four convolutions that it stands for take, and that of a batch norm in eval
mode, which is x times a number and another added, as if it took its statistics from x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

CONVOLUTIONS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
DEFAULTS = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
Geometry = tuple[list[int], list[int], list[int], bool, list[int], int]


class QuickLayers(TorchFunctionMode):
    """Within, these layers compute the same numbers, but for rounding, by other kernels."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in CONVOLUTIONS:
            given = DEFAULTS | dict(zip(NAMES, args, strict=False)) | kwargs
            dims = CONVOLUTIONS[func]
            if not isinstance(given["padding"], str) and given["input"].ndim == dims + 2:
                return _convolved(given, dims)
        if func is torch.batch_norm and not kwargs and not args[5]:
            x, weight, bias, mean, var = args[:5]
            return _scaled(x, weight, bias, mean, var, args[7])
        return func(*args, **kwargs)


def _scaled(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> Tensor:
    """Batch norm by its running statistics (Ioffe & Szegedy 2015, algorithm 2, line 11)."""
    scale = (var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    shape = (1, -1, *(x.ndim - 2) * [1])
    return torch.addcmul(shift.view(shape), x, scale.view(shape))


def _convolved(given: dict[str, Any], dims: int) -> Tensor:
    def each(value: int | Sequence[int]) -> list[int]:
        values = [value] if isinstance(value, int) else list(value)
        return values * dims if len(values) == 1 else values

    sizes = [each(given[name]) for name in ("stride", "padding", "dilation")]
    geometry: Geometry = (*sizes, False, dims * [0], given["groups"])
    y = _Convolution.apply(given["input"], given["weight"], geometry)
    bias = given["bias"]
    return y if bias is None else y + bias.view(-1, *dims * [1])


class _Convolution(torch.autograd.Function):
    """Shapes (B, in, ...), (out, in / groups, ...) -> (B, out, ...)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        return torch.convolution(x, weight, None, *geometry)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad[:2]
        backward = _ConvolutionBackward.apply if torch.is_grad_enabled() else _backward
        return *backward(slopes[0], x, weight, ctx.geometry, *needs), None


class _ConvolutionBackward(torch.autograd.Function):
    """Of slope, x and weight: slope * weight and slope * x, each bilinear as y = x * weight is."""

    @staticmethod
    def forward(
        ctx: Any, slope: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, *needs: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.save_for_backward(slope, x, weight)
        ctx.geometry = geometry
        ctx.set_materialize_grads(False)
        return _backward(slope, x, weight, geometry, *needs)

    @staticmethod
    def backward(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        (slope, x, weight), (dx, dweight) = ctx.saved_tensors, tangents
        to_slope = to_x = to_weight = None
        if dx is not None:
            to_slope = torch.convolution(dx, weight, None, *ctx.geometry)
            to_weight = _backward(slope, dx, weight, ctx.geometry, False, True)[1]
        if dweight is not None:
            own = torch.convolution(x, dweight, None, *ctx.geometry)
            to_slope = own if to_slope is None else to_slope + own
            if ctx.needs_input_grad[1]:
                to_x = _backward(slope, x, dweight, ctx.geometry, True, False)[0]
        return to_slope, to_x, to_weight, None, None, None


def _backward(
    slope: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, to_x: bool, to_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    wanted = [to_x, to_weight, False]
    found = torch.ops.aten.convolution_backward(slope, x, weight, None, *geometry, wanted)
    return found[0], found[1]
