"""Which number formats a machine is fast in, and autocast to them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def fast_dtypes(device: torch.device) -> set[str]:
    """Names of the 16-bit formats that the hardware itself multiplies in.

    On a CPU bf16 needs AVX512-BF16 or AMX: with AVX2 alone it is 5 to 6 times slower than fp32.
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
        print(f"note: --precision {name} is slower than fp32 on this {device.type}, see --help")
    return name


def autocast(name: str, device: torch.device) -> AbstractContextManager[object]:
    """The context in which a forward pass runs in ``name``; nothing at all for fp32."""
    if name == "fp32":
        return nullcontext()
    return torch.autocast(device.type, DTYPES[name])


def make_scaler(name: str, device: torch.device) -> torch.amp.GradScaler:
    """Loss scaling, which fp16's narrow range needs; disabled for the others."""
    return torch.amp.GradScaler(device.type, enabled=name == "fp16")
