"""Folded convolutions give what the model gives, wherever its weights stand."""

from __future__ import annotations

import copy

import pytest
import torch
import torch._inductor.config
import torch.nn.functional as F
from torch import Tensor, nn

from loss_landscape.forward_pass import stand_ins
from loss_landscape.forward_pass.stand_ins import (
    Convolution,
    Folded,
    SeparateAttention,
    StandIn,
    UnsuitedError,
)
from models.transformer import Transformer
from models.wide_res_net import WideResNet
from utilities.precision import compile_options


class Block(nn.Module):
    """As in torchvision's ResNets: normalised after each convolution, the sum before the ReLU."""

    def __init__(self, norm: type[nn.Module] = nn.BatchNorm2d, **options) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(4, 4, 3, padding=1, groups=2), norm(4, **options)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), norm(4, **options)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        y += x
        return self.relu(y)


class Odd(nn.Module):
    """Convolutions that must stay apart from what follows: used twice, or activated in between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding="same"), nn.Conv2d(4, 4, 1)
        self.third = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.norm, self.drop = nn.BatchNorm2d(4), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        y = self.norm(x) + x  # the norm can't be folded into what is needed without it
        y = torch.relu(self.second(y)) + y
        z = self.second(y) + self.second(x)
        return self.third(self.drop(z)).relu().mean(dim=(2, 3))


def pooled(*modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


MODELS = {
    "WRN": lambda: WideResNet(depth=10, width_factor=1, dropout=0.3),
    "ResNet": lambda: pooled(nn.Conv2d(3, 4, 3, stride=2), Block(), Block()),
    "no affine": lambda: pooled(nn.Conv2d(3, 4, 3), Block(affine=False)),
    "batch statistics": lambda: pooled(nn.Conv2d(3, 4, 3), Block(track_running_stats=False)),
    "odd": Odd,
}


def make(name: str) -> nn.Module:
    """With statistics and weights that are not those of a new model."""
    torch.manual_seed(0)
    model = MODELS[name]().train()
    model(3 + 2 * torch.randn(16, 3, 12, 12))
    for p in model.parameters():
        p.data.add_(0.2 * torch.randn(p.shape))
    return model.eval()


def images(count: int = 8) -> Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_folded_follows_the_moving_weights(name: str) -> None:
    model = make(name)
    stand_in, x = Folded(model, "fp32", False).eval(), images()
    before = copy.deepcopy(model.state_dict())
    for _ in range(2):
        stand_in.refresh()
        torch.testing.assert_close(stand_in(stand_in.prepare(x)), model(x), rtol=1e-4, atol=1e-5)
        for t in model.state_dict().values():  # the statistics too, as --dir_type states does
            if t.is_floating_point():
                t.mul_(1.1)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) or value.is_floating_point()
    assert set(before) == set(model.state_dict())


def test_all_that_can_be_one_call_is_one() -> None:
    kinds = {}
    for name in ("WRN", "ResNet", "odd"):
        graph = Folded(make(name), "fp32", False).graph
        called = [graph.get_submodule(n.target) for n in graph.graph.nodes if n.op == "call_module"]
        fused = [m for m in called if isinstance(m, Convolution)]
        kinds[name] = (
            len(fused),
            sum(m.norm is not None for m in fused),
            sum(m.relu for m in fused),
            sum(len(n.args) == 2 for n in graph.graph.nodes if n.op == "call_module"),
            sum(isinstance(m, nn.BatchNorm2d) for m in called),
        )
    # WRN-10-1: of 9 convolutions 3 with norm and ReLU, 3 with a sum; 4 norms before none of them.
    assert kinds["WRN"] == (9, 3, 3, 3, 4)
    assert kinds["ResNet"] == (5, 4, 4, 2, 0)


@torch.no_grad()
def test_bf16_is_near_and_float32_again_in_the_end() -> None:
    model, x = make("WRN"), images()
    stand_in = Folded(model, "bf16", False).eval()
    stand_in.refresh()
    assert {m.weight.dtype for m in stand_in.fused} == {torch.bfloat16}
    logits = stand_in(stand_in.prepare(x))
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, model(x))
    assert (logits - model(x)).norm() < 0.05 * model(x).norm()


def test_a_model_without_convolutions_is_told_from_one_that_fails() -> None:
    with pytest.raises(UnsuitedError):
        Folded(nn.Linear(3, 2), "fp32", False)


@torch.no_grad()
def test_separate_attention_is_attention() -> None:
    torch.manual_seed(0)
    model = Transformer(length=40, dim=16, heads=2, feedforward=16).eval()
    signals = torch.randn(6, 40)
    stand_in = StandIn(model, "fp32", compiled=True).eval()
    torch.testing.assert_close(stand_in(signals), model(signals), rtol=1e-5, atol=1e-6)
    q, k, v = torch.randn(3, 2, 5, 7, 4)
    mask = torch.rand(5, 7, 7) > 0.3
    mask[..., 0] = True
    for options in ({}, {"scale": 0.3}, {"attn_mask": mask}, {"is_causal": True}):
        expected = F.scaled_dot_product_attention(q, k, v, **options)
        with SeparateAttention():
            found = F.scaled_dot_product_attention(q, k, v, **options)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@torch._inductor.config.patch(compile_threads=1)
@torch.no_grad()
@pytest.mark.parametrize("found", [{}, {"avx512_bf16": True}], ids=["without bf16", "with it"])
def test_compiled_bf16_is_the_plain_one(found: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    torch.manual_seed(0)
    model = Transformer(length=40, dim=16, heads=2, feedforward=16).eval()
    signals = torch.randn(6, 40)
    stand_in = StandIn(model, "bf16", compiled=True).eval()
    options = compile_options("bf16", torch.device("cpu"))
    compiled = torch.compile(stand_in, dynamic=False, fullgraph=True, options=options)
    plain, exact = stand_in(signals), model(signals)
    assert (plain - exact).norm() > 1e-3 * exact.norm()
    assert (compiled(signals) - exact).norm() > 1e-3 * exact.norm()
    if not found:  # else the compiler leaves out casts between what it fuses
        assert (compiled(signals) - plain).norm() < 0.2 * (plain - exact).norm()


@torch.no_grad()
def test_a_cpu_without_bf16_convolutions_in_one_call_makes_them_apart(monkeypatch) -> None:
    """AVX2 alone: oneDNN's call fails there."""
    fused = torch.backends.mkldnn.is_available()
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert stand_ins.in_one_call(torch.float32) == fused
    source = nn.Conv2d(3, 4, 3, padding=1)
    inputs = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    convolution = stand_ins.Convolution(source, None, torch.bfloat16)
    assert not convolution.one_call
    convolution.refresh()
    torch.testing.assert_close(convolution(inputs).float(), source(inputs), rtol=0.05, atol=0.05)
