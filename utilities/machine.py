"""What a result was computed on."""

from __future__ import annotations

import functools
import platform
import re
from pathlib import Path

import torch

CPU_INFO = Path("/proc/cpuinfo")
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # which decide about speed and bf16


def processor() -> str:
    """The processor with the instructions that matter, after a GPU that this process has used.

    Where the system doesn't say the instructions, none are named.
    """
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_initialized() else ""
    return gpu + _cpu()


@functools.cache
def _cpu() -> str:
    text = CPU_INFO.read_text(errors="replace") if CPU_INFO.exists() else ""
    found = re.search(r"model name\s*:\s*(.+)", text)
    name = found[1].strip() if found else platform.processor() or platform.machine()
    if not re.search(r"^flags\s*:", text, re.MULTILINE):  # not Linux, or no x86
        return name
    features = [flag for flag in FEATURES if re.search(rf"\b{flag}\b", text)]
    return f"{name} ({', '.join(features) or 'no AVX2'})"
