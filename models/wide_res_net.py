"""Wide residual network (Zagoruyko & Komodakis 2016, arXiv:1605.07146), pre-activated.

WRN-d-k has d = 6n + 4 layers, n units in each of three groups, and k times the channels of the
original ResNet. As in the SAM example of davda54, the linear layer starts at zero.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Unit(nn.Module):
    """Two 3x3 convolutions, each after normalisation and ReLU, and a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if in_channels != out_channels or stride != 1:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H / stride, W / stride)."""
        activated = F.relu(self.norm1(x))
        y = self.conv1(activated)
        y = self.conv2(self.dropout(F.relu(self.norm2(y))))
        # Only where the shape changes is the shortcut a convolution, of the activated input.
        return y + (x if self.shortcut is None else self.shortcut(activated))


class WideResNet(nn.Module):
    """WRN-``depth``-``width_factor``.

    Args:
        depth: number of layers, 6n + 4: 10, 16, 22, 28, 40, ...
        width_factor: k.
        dropout: probability between the convolutions of a unit.
        in_channels: channels of the images.
        num_classes: number of classes.

    Raises:
        ValueError: ``depth`` is not 6n + 4, or ``width_factor`` is less than 1.
    """

    def __init__(
        self,
        depth: int = 16,
        width_factor: int = 8,
        dropout: float = 0.0,
        in_channels: int = 3,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"--depth {depth}: must be 6n + 4: 10, 16, 22, 28, 34, 40, ...")
        if width_factor < 1:
            raise ValueError(f"--width_factor {width_factor}: must be 1 or more")
        units = (depth - 4) // 6
        widths = [16, 16 * width_factor, 32 * width_factor, 64 * width_factor]
        self.conv = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.groups = nn.Sequential(
            *(
                self._group(widths[i], widths[i + 1], units, stride, dropout)
                for i, stride in enumerate((1, 2, 2))
            )
        )
        self.norm = nn.BatchNorm2d(widths[3])
        self.classifier = nn.Linear(widths[3], num_classes)
        self._initialise()

    @staticmethod
    def _group(
        in_channels: int, out_channels: int, units: int, stride: int, dropout: float
    ) -> nn.Sequential:
        first = Unit(in_channels, out_channels, stride, dropout)
        others = (Unit(out_channels, out_channels, 1, dropout) for _ in range(units - 1))
        return nn.Sequential(first, *others)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, in_channels, H, W)."""
        x = self.groups(self.conv(images))  # (B, 64 k, H / 4, W / 4)
        x = F.relu(self.norm(x)).mean(dim=(2, 3))  # (B, 64 k)
        return self.classifier(x)
