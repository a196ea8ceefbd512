"""What a result says of the machine that it was computed on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from utilities import machine

INTEL = (
    "processor\t: 0\nmodel name\t: Intel Xeon  @ 2.0 GHz\nflags\t\t: fpu avx2 avx512f avx512fp16\n"
)


@pytest.mark.parametrize(
    ("info", "said"),
    [
        (INTEL, "Intel Xeon  @ 2.0 GHz (avx2, avx512f)"),
        ("model name : Old One\nflags : sse\n", "Old One (no AVX2)"),
    ],
)
def test_the_processor_is_named_with_what_decides_about_speed(
    info: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(info)
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    machine._cpu.cache_clear()
    assert machine.processor() == said
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100")
    assert machine.processor() == f"NVIDIA A100, {said}"
    machine._cpu.cache_clear()


def test_elsewhere_the_system_names_it_and_nothing_is_said_of_instructions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "none")
    monkeypatch.setattr("platform.processor", lambda: "arm")
    machine._cpu.cache_clear()
    assert machine._cpu() == "arm"
    machine._cpu.cache_clear()
