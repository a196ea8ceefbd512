"""Crop, flip, normalise and cut out whole batches of images as tensor code.

Only ``random_values`` takes random numbers, from a CPU generator; all else are pure functions of
tensors. So a batch is the same on each device, bit for bit, and each function can be compared with
torchvision's for the same random numbers.

Images are (B, S, S, C) uint8 until ``normalise``: three bytes of a pixel side by side make rows
that are copied whole, and the batch comes out in channels_last, which the convolutions prefer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PADS = ("zero", "reflect")


class RandomValues(NamedTuple):
    """The random numbers of one batch, each (B,) on the CPU."""

    top: Tensor  # int64, of the crop, in rows of the padded image
    left: Tensor
    flip: Tensor  # bool
    cut: Tensor  # bool
    hole_top: Tensor  # int64, of the hole, in rows of the crop; negative: it hangs over the edge
    hole_left: Tensor


@dataclass(frozen=True)
class Augmentation:
    """Random crop, horizontal flip and cutout; the defaults are those of davda54's SAM example.

    Attributes:
        padding: pixels around the image before the crop; 0: no crop.
        pad: what they hold: "zero" (black), or "reflect".
        cutout: side of the hole in pixels; 0: none.
    """

    padding: int = 4
    pad: str = "zero"
    cutout: int = 16

    def check(self, size: int) -> None:
        """Refuse what images of ``size`` x ``size`` can't have.

        Raises:
            ValueError: a value is out of range.
        """
        if self.pad not in PADS:
            raise ValueError(f"--pad {self.pad!r}: choose from {', '.join(PADS)}")
        if not 0 <= self.padding < size:
            raise ValueError(f"--crop_padding {self.padding}: from 0 to {size - 1} pixels")
        if not 0 <= self.cutout <= size:
            raise ValueError(f"--cutout {self.cutout}: from 0 to {size} pixels")


def random_values(
    count: int, size: int, chosen: Augmentation, generator: torch.Generator
) -> RandomValues:
    """What is random about ``count`` images of ``size`` x ``size``.

    Crops are uniform over all positions in the padded image, half of the images are flipped, half
    get a hole. Its corner is uniform from ``-cutout // 2`` to ``size - cutout // 2 - 1``, as
    davda54 places it: 16 pixels in an image of 32 begin at -8 to 23.
    """
    positions, half = 2 * chosen.padding + 1, chosen.cutout // 2
    return RandomValues(
        top=torch.randint(positions, (count,), generator=generator),
        left=torch.randint(positions, (count,), generator=generator),
        flip=torch.rand(count, generator=generator) < 0.5,
        cut=torch.rand(count, generator=generator) < 0.5,
        hole_top=torch.randint(-half, size - half, (count,), generator=generator),
        hole_left=torch.randint(-half, size - half, (count,), generator=generator),
    )


def apply(
    images: Tensor, values: RandomValues, chosen: Augmentation, mean: Tensor, std: Tensor
) -> Tensor:
    """Pad, crop, flip, normalise and cut out, in that order.

    Args:
        images: (B, S, S, C) uint8.
        values: of ``random_values``, with the same ``chosen``.
        chosen: what to do.
        mean: (C,) float32 in units of 0 to 1, on the images' device.
        std: likewise.

    Returns:
        (B, C, S, S) float32 in channels_last.
    """
    values = RandomValues(*(value.to(images.device, non_blocking=True) for value in values))
    size = images.size(1)
    if chosen.padding:
        images = crop(frame(images, chosen.padding, chosen.pad), size, values.top, values.left)
    normal = normalise(flip(images, values.flip), mean, std)
    if chosen.cutout:
        normal = cut_out(normal, values.cut, values.hole_top, values.hole_left, chosen.cutout)
    return normal.permute(0, 3, 1, 2)


def frame(images: Tensor, padding: int, pad: str) -> Tensor:
    """Pad each side, (B, S, S, C) -> (B, S + 2 padding, S + 2 padding, C)."""
    if pad == "zero":
        return F.pad(images, (0, 0, padding, padding, padding, padding))
    for dim in (1, 2):  # torch's own reflection takes no uint8 in this layout
        size = images.size(dim)
        before = images.narrow(dim, 1, padding).flip(dim)
        after = images.narrow(dim, size - 1 - padding, padding).flip(dim)
        images = torch.cat([before, images, after], dim)
    return images


def crop(framed: Tensor, size: int, top: Tensor, left: Tensor) -> Tensor:
    """Cut ``size`` x ``size`` pixels out of each image.

    Args:
        framed: (B, T, T, C), contiguous.
        size: at most T.
        top: (B,) int64, from 0 to T - size.
        left: likewise.

    Returns:
        (B, size, size, C).
    """
    count, side, _, channels = framed.shape
    pixels = count * side * side
    # Seen as one long image, each pixel begins a window, so a crop is a choice of windows, whose
    # rows are copied whole: ten times as fast as an index for each pixel.
    windows = framed.as_strided(
        (pixels - (size - 1) * (side + 1), size, size * channels),
        (channels, side * channels, 1),
    )
    first = (torch.arange(count, device=framed.device) * side + top) * side + left
    return windows.index_select(0, first).view(count, size, size, channels)


def flip(images: Tensor, which: Tensor) -> Tensor:
    """Mirror those of (B, S, S, C) left to right that ``which`` (B,) bool names."""
    count = len(images)
    both = torch.cat([images, images.flip(2)])
    return both.index_select(0, torch.arange(count, device=images.device) + count * which)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(x / 255 - mean) / std for (B, S, S, C) uint8, rounded as torchvision's transforms do."""
    pixels = images.size(1) * images.size(2)
    values = images.flatten(1).float()
    # By a tensor, since CUDA multiplies by the reciprocal of a number; whole rows, since
    # broadcasting over three channels is five times as slow.
    values.div_(mean.new_full((), 255)).sub_(mean.repeat(pixels)).div_(std.repeat(pixels))
    return values.view(images.shape)


def cut_out(images: Tensor, cut: Tensor, top: Tensor, left: Tensor, size: int) -> Tensor:
    """Set a square hole to 0, the mean, in place (DeVries & Taylor 2017, arXiv:1708.04552).

    Args:
        images: (B, S, S, C) float32.
        cut: (B,) bool, the images that get one.
        top: (B,) int64, its first row; may be negative.
        left: likewise, its first column.
        size: its side in pixels.
    """
    side, channels = images.shape[2:]
    pixel = torch.arange(side, device=images.device)
    in_rows = (pixel >= top[:, None]) & (pixel < top[:, None] + size) & cut[:, None]  # (B, S)
    in_columns = (pixel >= left[:, None]) & (pixel < left[:, None] + size)
    keep_rows, keep_columns = (~in_rows).float(), (~in_columns).float()
    keep_columns = keep_columns.repeat_interleave(channels, dim=1)  # (B, S C)
    keep = torch.maximum(keep_rows[:, :, None], keep_columns[:, None, :])  # 0 in the hole, else 1
    return images.mul_(keep.view(images.shape))
