"""Which number formats a machine is fast in, and autocast to them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
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
# What torch's autocast on CPUs runs in 16 bits.
PRODUCTS = {
    *(getattr(torch, name) for name in (*CONVOLUTIONS, *MATRIX_PRODUCTS)),
    *(getattr(Tensor, name) for name in (*MATRIX_PRODUCTS, "__matmul__")),
    *(F.linear, F.scaled_dot_product_attention),
}


def fast_dtypes(device: torch.device) -> set[str]:
    """Names of the 16-bit formats that the hardware itself multiplies in.

    On a CPU bf16 needs AVX512-BF16 or AMX.
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
        print(f"note: --precision {name} is no faster than fp32 on this {device.type}, see --help")
    return name


def autocast(name: str, device: torch.device) -> AbstractContextManager[object]:
    """The context in which a forward pass runs in ``name``; nothing at all for fp32."""
    if name == "fp32":
        return nullcontext()
    if is_rounded(name, device):
        return RoundedProducts(DTYPES[name])
    return torch.autocast(device.type, DTYPES[name])


def is_rounded(name: str, device: torch.device) -> bool:
    """Whether ``name`` is a format that this CPU has no instructions for."""
    return device.type == "cpu" and name in DTYPES and name not in fast_dtypes(device)


def compile_options(name: str, device: torch.device) -> dict[str, Any]:
    """Options of ``torch.compile``, which else leaves out what only rounds an operand."""
    return {"emulate_precision_casts": True} if is_rounded(name, device) else {}


class RoundedProducts(TorchFunctionMode):
    """Autocast on a CPU without instructions for ``dtype``: the same formats at fp32's speed.

    torch's kernels of a format that the CPU lacks are far slower than those of fp32
    (benchmarks/README.md). Within, products and convolutions run in fp32, on operands rounded to
    ``dtype``, and their results are rounded too, gradients likewise: what 16 bits hold is what
    autocast would hold, but for the order of the sums.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.autocast = torch.autocast("cpu", dtype)

    def __enter__(self) -> RoundedProducts:
        self.autocast.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.autocast.__exit__(*error)

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        # A model may leave autocast for a part of itself.
        if func not in PRODUCTS or not torch.is_autocast_enabled("cpu"):
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            args, kwargs = tree_map(self._rounded, (args, kwargs))
            result = func(*args, **kwargs)
            return result.to(self.dtype) if result.dtype == torch.float32 else result

    def _rounded(self, value: Any) -> Any:
        """A tensor as autocast takes it, which leaves float64 and integers alone, but in fp32."""
        if isinstance(value, Tensor) and value.dtype in (torch.float32, self.dtype):
            return value.to(self.dtype).float()
        return value


def make_scaler(name: str, device: torch.device) -> torch.amp.GradScaler:
    """Loss scaling, which fp16's narrow range needs; disabled for the others."""
    return torch.amp.GradScaler(device.type, enabled=name == "fp16")
