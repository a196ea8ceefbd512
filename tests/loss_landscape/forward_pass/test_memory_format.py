"""channels_last where it works and gives the same, else the plain format; one set of values."""

from __future__ import annotations

import pytest
import torch
from own_things import ViewAfter
from torch import Tensor, nn

from loss_landscape.forward_pass.memory_format import in_format, settle_memory_format


class ReadsMemory(ViewAfter):
    """Works in both formats, but takes the entries as they lie: other values in channels_last."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        flat = torch.as_strided(x, (len(x), x[0].numel()), (x[0].numel(), 1))
        return self.decide(flat)


class Reshapes(ViewAfter):
    """The same network in code that any format suits."""

    def forward(self, x: Tensor) -> Tensor:
        return self.decide(self.conv(x).relu().flatten(1))


class OtherSlope(Reshapes):
    """Right losses, but gradients that hang on the format."""

    def forward(self, x: Tensor) -> Tensor:
        last = self.conv.weight.is_contiguous(memory_format=torch.channels_last)
        return super().forward(x) + (self.conv.bias - self.conv.bias.detach()).sum() * last


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (ViewAfter, torch.contiguous_format),
        (ReadsMemory, torch.contiguous_format),
        (OtherSlope, torch.contiguous_format),
        (Reshapes, torch.channels_last),
    ],
)
def test_the_format_is_tried(kind: type[ViewAfter], expected, capsys) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    images = torch.randn(5, 3, 8, 8)
    before = model(images)

    def losses(batch: Tensor) -> Tensor:
        return model(batch).square().sum(dim=1)

    chosen = settle_memory_format(model, images, losses)
    assert chosen is expected
    assert model.conv.weight.is_contiguous(memory_format=expected)
    torch.testing.assert_close(model(in_format(images, chosen)), before)
    assert ("plain memory format" in capsys.readouterr().out) == (kind is not Reshapes)
    assert all(p.grad is None for p in model.parameters())


def test_without_images_nothing_is_tried() -> None:
    model = nn.Linear(2, 1)
    losses = pytest.fail  # would be called with a batch
    assert settle_memory_format(model, torch.ones(3, 2), losses) is torch.contiguous_format
