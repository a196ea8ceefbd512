"""Which number formats a machine is fast in, and autocast to them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
CONVOLUTIONS = [f"conv{transposed}{n}d" for transposed in ("", "_transpose") for n in (1, 2, 3)]
MATRIX_PRODUCTS = ["matmul", "mm", "bmm", "addmm", "addbmm", "baddbmm"]
# What torch's autocast on CPUs runs in 16 bits, where a model calls it itself: what is called in
# others, as in nn.MultiheadAttention, stays with torch's autocast, as right and slower.
PRODUCTS = {
    *(getattr(torch, name) for name in (*CONVOLUTIONS, *MATRIX_PRODUCTS)),
    *(getattr(Tensor, name) for name in (*MATRIX_PRODUCTS, "__matmul__")),
    *(F.linear, F.scaled_dot_product_attention),
}


def fast_dtypes(device: torch.device) -> set[str]:
    """Names of the 16-bit formats that the hardware itself multiplies in.

    On a CPU those of x86 are looked for: bf16 needs AVX512-BF16 or AMX.
    """
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return {"fp16", "bf16"} if major >= 8 else {"fp16"} if major >= 7 else set()
    found = torch.cpu.get_capabilities()
    return {
        name
        for name, needs in (
            ("bf16", ("avx512_bf16", "amx_bf16")),
            ("fp16", ("avx512_fp16", "amx_fp16")),
        )
        if any(found.get(need) for need in needs)
    }


def resolve(name: str, device: torch.device) -> str:
    """Make "auto" bf16 where the hardware has it, else fp32; warn of what it is slow in."""
    fast = fast_dtypes(device)
    if name == "auto":
        return "bf16" if "bf16" in fast else "fp32"
    if name in DTYPES and name not in fast:
        print(f"note: --precision {name} is no faster than fp32 on this {device.type}")
    return name


@contextmanager
def autocast(name: str, device: torch.device) -> Iterator[None]:
    """The context in which a forward pass runs in ``name``; nothing at all for fp32."""
    if name == "fp32":
        yield
        return
    rounding = RoundedProducts() if is_rounded(name, device) else nullcontext()
    with torch.autocast(device.type, DTYPES[name]), rounding:
        yield


def is_rounded(name: str, device: torch.device) -> bool:
    """Whether ``name`` is a format that this CPU is not known to have instructions for."""
    return device.type == "cpu" and name in DTYPES and name not in fast_dtypes(device)


def compile_options(name: str, device: torch.device) -> dict[str, Any]:
    """Options of ``torch.compile``, which otherwise drops casts that only round."""
    return {"emulate_precision_casts": True} if is_rounded(name, device) else {}


class RoundedProducts(TorchFunctionMode):
    """What autocast on a CPU does, without instructions for its format.

    torch's kernels of a format that the CPU lacks are far slower than those of fp32
    (benchmarks/README.md). Within, where autocast is on, products and convolutions run in fp32, on
    rounded operands, and their results are rounded too, gradients likewise: autocast rounds the
    same. What differs are the order of sums, what attention holds within itself, and the sum of a
    weight's gradients over several uses, which is in fp32 here.
    ``torch.utils.checkpoint(use_reentrant=False)`` computes again without such modes and stops.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        # A model may leave autocast for a part of itself; autocast leaves products into ``out``.
        if func not in PRODUCTS or "out" in kwargs or not torch.is_autocast_enabled("cpu"):
            return func(*args, **kwargs)
        dtype = torch.get_autocast_dtype("cpu")  # it may also take another format for a part
        with torch.autocast("cpu", enabled=False):
            args, kwargs = tree_map(lambda value: rounded(value, dtype), (args, kwargs))
            result = func(*args, **kwargs)
            return result.to(dtype) if result.dtype == torch.float32 else result


def rounded(value: Any, dtype: torch.dtype) -> Any:
    """A tensor as autocast takes it, which leaves float64 and integers alone, but in fp32."""
    if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
        return value.to(dtype).float()
    return value


def make_scaler(name: str, device: torch.device) -> torch.amp.GradScaler:
    """Loss scaling, which fp16's narrow range needs; disabled for the others."""
    return torch.amp.GradScaler(device.type, enabled=name == "fp16")
