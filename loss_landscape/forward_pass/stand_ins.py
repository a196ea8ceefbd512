"""Modules that give a model's outputs faster than itself, from its live weights.

A stand-in is made once and asked at many points of weight space: whatever doesn't depend on the
weights is done beforehand, in ``prepare``, and what depends on them alone once a point, in
``refresh``. None is trusted: who takes one compares its values with the model's.
"""

from __future__ import annotations

import operator
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from utilities.precision import DTYPES, RoundedProducts, is_rounded


class UnsuitedError(ValueError):
    """A kind of stand-in that is for other models."""


class StandIn(nn.Module):
    """The model itself; its attention in separate products, which alone a compiler can fuse.

    Args:
        model: in eval mode; its weights may move in place.
        precision: "fp32" or "bf16", of the forward pass. The outputs are float32 in both.
        compiled: made for ``torch.compile``.
    """

    def __init__(self, model: nn.Module, precision: str, compiled: bool) -> None:
        super().__init__()
        self.model, self.compiled = model, compiled
        self.device = next(model.parameters()).device
        self.dtype = DTYPES.get(precision)
        self.rounds = is_rounded(precision, self.device)

    def prepare(self, inputs: Any) -> Any:
        """A batch's inputs as ``forward`` takes them; it may share their memory."""
        return inputs

    def refresh(self) -> None:
        """Follow the model's weights, which have moved."""

    def forward(self, inputs: Any) -> Any:
        """The model's outputs, from what ``prepare`` gave."""
        attention = SeparateAttention() if self.compiled else nullcontext()
        # A compiler follows these contexts only where they are made, and asks no CPU what it has.
        half = torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()
        rounding = RoundedProducts() if self.rounds else nullcontext()
        with attention, half, rounding:
            return _widened(self._outputs(inputs))

    def _outputs(self, inputs: Any) -> Any:
        return self.model(inputs)


class SeparateAttention(TorchFunctionMode):
    """Within, attention is two matrix products and a softmax, which a compiler fuses with the rest.

    The fused kernel of CPUs is made for long sequences; on 47 steps this is faster.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        # A mask may be a tensor, which has no truth value; the other options are numbers.
        special = [kwargs.get(name) for name in ("is_causal", "enable_gqa", "dropout_p")]
        is_plain = len(args) == 3 and kwargs.get("attn_mask") is None and not any(special)
        if func is F.scaled_dot_product_attention and is_plain:
            query, key, value = args
            return _attention(query, key, value, kwargs.get("scale"))
        return func(*args, **kwargs)


def _attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """(..., T, D / H) of each -> the same (Vaswani et al. 2017, equation 1)."""
    scale = query.size(-1) ** -0.5 if scale is None else scale
    return ((query * scale) @ key.transpose(-1, -2)).softmax(-1) @ value


def _widened(outputs: Any) -> Any:
    half = (torch.bfloat16, torch.float16)
    return tree_map(
        lambda t: t.float() if isinstance(t, Tensor) and t.dtype in half else t, outputs
    )


# --- convolutions ---------------------------------------------------------------------------------
class Folded(StandIn):
    """A convolutional network in channels_last, each convolution one call with what follows it.

    What follows is found by tracing: a batch norm, whose scale goes into the convolution's weights,
    a ReLU, or a sum. Batch norms elsewhere stay.

    Raises:
        UnsuitedError: there is no convolution in two dimensions.
        torch.fx.proxy.TraceError: the model's course depends on its inputs.
    """

    def __init__(self, model: nn.Module, precision: str, compiled: bool) -> None:
        super().__init__(model, precision, compiled)
        if not any(isinstance(module, nn.Conv2d) for module in model.modules()):
            raise UnsuitedError("the model has no convolution in two dimensions")
        self.graph = fuse(model, torch.bfloat16 if precision == "bf16" else torch.float32)
        self.fused = [m for m in self.graph.modules() if isinstance(m, Convolution)]
        if not self.fused:
            raise UnsuitedError("the model has no convolution that can be fused")

    def prepare(self, inputs: Any) -> Any:
        def convert(leaf: Any) -> Any:
            if not (isinstance(leaf, Tensor) and leaf.ndim == 4):
                return leaf
            return leaf.to(dtype=self.fused[0].weight.dtype, memory_format=torch.channels_last)

        return tree_map(convert, inputs)

    @torch.no_grad()
    def refresh(self) -> None:
        for convolution in self.fused:
            convolution.refresh()

    def _outputs(self, inputs: Any) -> Any:
        return self.graph(inputs)


class Convolution(nn.Module):
    """A convolution, then its batch norm, a sum and a ReLU, as far as ``fuse`` finds them.

    On CPUs one call of oneDNN does it all, without writing what lies between to memory.

    Args:
        source: gives weights and settings.
        norm: in eval mode, follows it.
        dtype: of weights and activations.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, source: nn.Conv2d, norm: nn.BatchNorm2d | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.source, self.norm = source, norm
        self.relu = False
        self.one_call = source.weight.device.type == "cpu" and in_one_call(dtype)
        weight = source.weight.detach().to(dtype, memory_format=torch.channels_last, copy=True)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", torch.zeros(len(weight), dtype=dtype, device=weight.device))

    def refresh(self) -> None:
        """Take the weights of ``source``, scaled as ``norm`` scales its outputs."""
        weight, bias = self.source.weight, self.source.bias
        if self.norm is not None:
            norm = self.norm
            assert norm.running_var is not None and norm.running_mean is not None
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            weight = weight * scale[:, None, None, None]
            shift = -norm.running_mean if bias is None else bias - norm.running_mean
            bias = norm.bias + shift * scale
        self.weight.copy_(weight)
        if bias is not None:
            self.bias.copy_(bias)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """(B, in, H, W) -> (B, out, H', W'); ``other`` of that shape is added before the ReLU."""
        source = self.source
        shape = (source.padding, source.stride, source.dilation, source.groups)
        x = x.to(self.weight.dtype)
        if self.one_call:
            call: Any = torch.ops.mkldnn._convolution_pointwise
            if other is None:
                relu = "relu" if self.relu else "none"
                return call(x, self.weight, self.bias, *shape, relu, [], "")
            after = "relu" if self.relu else None
            return call.binary(
                x, other.to(x.dtype), self.weight, self.bias, *shape, "add", None, after, [], ""
            )
        padding, stride, dilation, groups = shape
        y = F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
        y = y if other is None else y + other
        return y.relu_() if self.relu else y


def in_one_call(dtype: torch.dtype) -> bool:
    """Whether this CPU's oneDNN takes such convolutions, which of bf16 needs more than AVX2."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def fuse(model: nn.Module, dtype: torch.dtype) -> fx.GraphModule:
    """``model`` with its convolutions replaced by ``Convolution``, which keep to its weights.

    Args:
        model: in eval mode; it is not changed.
        dtype: of the convolutions.
    """
    traced = fx.symbolic_trace(model)
    modules = dict(traced.named_modules())
    graph = traced.graph

    def module(node: Any) -> nn.Module | None:
        is_module = isinstance(node, fx.Node) and node.op == "call_module"
        return modules.get(str(node.target)) if is_module else None

    for node in list(graph.nodes):
        if isinstance(module(node), nn.Dropout | nn.Identity):  # nothing, in eval mode
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    for node in list(graph.nodes):
        source = module(node)
        if _is_plain(source):
            norm = module(_only_user(node))
            folded = norm if _is_foldable(norm) else None
            fused = Convolution(source, folded, dtype)  # type: ignore[arg-type]
            name = f"fused_{node.name}"  # of the call: a module may be called more than once
            traced.add_submodule(name, fused)
            modules[name], node.target = fused, name
            if folded is not None:
                _absorb(graph, node, _only_user(node))
    for node in list(graph.nodes):
        if isinstance(module(node), Convolution):
            _absorb_sum(graph, node)
    for node in list(graph.nodes):
        convolution, after = module(node), _only_user(node)
        if isinstance(convolution, Convolution) and _is_relu(after, module(after)):
            convolution.relu = True
            _absorb(graph, node, after)
    graph.lint()
    traced.recompile()
    return traced


def _is_plain(source: nn.Module | None) -> bool:
    return (
        type(source) is nn.Conv2d
        and source.padding_mode == "zeros"
        and not isinstance(source.padding, str)
        and source.weight.dtype == torch.float32
    )


def _is_foldable(norm: nn.Module | None) -> bool:
    return type(norm) is nn.BatchNorm2d and norm.affine and norm.running_var is not None


def _only_user(node: Any) -> Any:
    users = list(node.users) if isinstance(node, fx.Node) else []
    return users[0] if len(users) == 1 else None


def _absorb(graph: fx.Graph, node: fx.Node, after: fx.Node) -> None:
    after.replace_all_uses_with(node)
    graph.erase_node(after)


def _absorb_sum(graph: fx.Graph, node: fx.Node) -> None:
    """Let the convolution ``node`` add what a sum adds to its result."""
    total = _only_user(node)
    sums = (operator.add, operator.iadd, torch.add)
    if total is None or total.target not in sums or total.kwargs or len(total.args) != 2:
        return
    other = total.args[1] if total.args[0] is node else total.args[0]
    if isinstance(other, fx.Node) and other is not node:
        total.prepend(node)  # what is added may be computed later than the convolution was
        total.replace_all_uses_with(node)
        node.args = (node.args[0], other)
        graph.erase_node(total)


def _is_relu(node: Any, module: nn.Module | None) -> bool:
    if not isinstance(node, fx.Node):
        return False
    if isinstance(module, nn.ReLU):
        return True
    functions = (F.relu, F.relu_, torch.relu, torch.relu_)
    return (node.op == "call_function" and node.target in functions) or (
        node.op == "call_method" and node.target in ("relu", "relu_")
    )
