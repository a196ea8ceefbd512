"""The augmentations are the published ones: how they are drawn, and what is done with a draw."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import functional as tv

from DatasetClass.augment import Augmentation, RandomValues, apply, random_values

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
PUBLISHED = Augmentation()
MEAN, STD = torch.tensor([0.49, 0.48, 0.45]), torch.tensor([0.25, 0.24, 0.26])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_images(count: int, size: int = 32) -> Tensor:
    return torch.randint(256, (count, size, size, 3), generator=generator(1), dtype=torch.uint8)


@pytest.fixture(scope="module")
def many() -> RandomValues:
    return random_values(40_000, 32, PUBLISHED, generator(3))


def is_uniform(values: Tensor, low: int, high: int) -> bool:
    """Chi-square against equal counts of low to high; all values have to lie there."""
    counts = (values - low).bincount(minlength=high - low + 1)
    return len(counts) == high - low + 1 and stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_crops_are_uniform_over_all_81_places(many: RandomValues) -> None:
    assert is_uniform(many.top * 9 + many.left, 0, 80)


def test_half_are_flipped_and_half_cut_independently(many: RandomValues) -> None:
    assert is_uniform(many.flip.long() * 2 + many.cut.long(), 0, 3)


def test_holes_begin_at_minus_8_to_23(many: RandomValues) -> None:
    assert is_uniform(many.hole_top, -8, 23)
    assert is_uniform(many.hole_left, -8, 23)
    table = torch.zeros(32, 32)
    table.index_put_((many.hole_top + 8, many.hole_left + 8), torch.ones(()), accumulate=True)
    assert stats.chi2_contingency(table.numpy()).pvalue > 1e-3


def test_a_wrong_distribution_is_noticed(many: RandomValues) -> None:
    assert not is_uniform(many.hole_top, -8, 24)
    assert not is_uniform(many.hole_top.clamp(min=-7), -7, 23)


def literal(image: Tensor, values: RandomValues, i: int, augmentation: Augmentation) -> Tensor:
    """One image (S, S, C) through torchvision, and cutout written as it is told."""
    size = image.size(0)
    mode = {"zero": "constant", "reflect": "reflect"}[augmentation.pad]
    pil = tv.to_pil_image(image.permute(2, 0, 1))
    pil = tv.pad(pil, [augmentation.padding], padding_mode=mode)
    pil = tv.crop(pil, int(values.top[i]), int(values.left[i]), size, size)
    pil = tv.hflip(pil) if values.flip[i] else pil
    result = tv.normalize(tv.to_tensor(pil), MEAN.tolist(), STD.tolist())
    for row in range(size):
        for column in range(size):
            down, right = row - int(values.hole_top[i]), column - int(values.hole_left[i])
            if (
                values.cut[i]
                and 0 <= down < augmentation.cutout
                and 0 <= right < augmentation.cutout
            ):
                result[:, row, column] = 0
    return result


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "augmentation",
    [
        PUBLISHED,
        Augmentation(pad="reflect"),
        Augmentation(padding=0),
        Augmentation(padding=1, cutout=5),
        Augmentation(padding=31, pad="reflect", cutout=1),
        Augmentation(padding=31, cutout=32),
        Augmentation(cutout=0),
    ],
)
@pytest.mark.parametrize("count", [1, 21])
def test_the_same_random_values_give_torchvisions_images(
    count: int, augmentation: Augmentation, device: str
) -> None:
    images, values = some_images(count), random_values(count, 32, augmentation, generator(5))
    expected = torch.stack([literal(images[i], values, i, augmentation) for i in range(count)])
    ours = apply(images.to(device), values, augmentation, MEAN.to(device), STD.to(device))
    assert ours.shape == (count, 3, 32, 32)
    assert torch.equal(ours.cpu(), expected)  # bit for bit


def test_corners_of_the_range_and_images_of_another_size() -> None:
    augmentation, size = Augmentation(padding=2, cutout=4), 7
    corners = torch.tensor([0, 0, 4, 4])
    yes = torch.tensor([True] * 4)
    values = RandomValues(corners, corners.flip(0), yes, yes, corners - 2, corners.flip(0))
    images = some_images(4, size)
    expected = torch.stack([literal(images[i], values, i, augmentation) for i in range(4)])
    assert torch.equal(apply(images, values, augmentation, MEAN, STD), expected)


def test_images_and_random_values_are_left_as_they_are() -> None:
    images, values = some_images(9), random_values(9, 32, PUBLISHED, generator())
    before, copies = images.clone(), [value.clone() for value in values]
    first = apply(images, values, PUBLISHED, MEAN, STD)
    assert torch.equal(images, before)
    assert all(torch.equal(a, b) for a, b in zip(values, copies, strict=True))
    assert torch.equal(first, apply(images, values, PUBLISHED, MEAN, STD))
    assert first.is_contiguous(memory_format=torch.channels_last)


def test_the_generator_and_nothing_else_decides() -> None:
    torch.manual_seed(1)
    one = random_values(50, 32, PUBLISHED, generator(7))
    torch.manual_seed(2)
    two = random_values(50, 32, PUBLISHED, generator(7))
    other = random_values(50, 32, PUBLISHED, generator(8))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one.top, other.top)


@pytest.mark.parametrize(
    ("augmentation", "message"),
    [
        (Augmentation(pad="edge"), "--pad 'edge'"),
        (Augmentation(padding=32), "--crop_padding 32"),
        (Augmentation(padding=-1), "--crop_padding -1"),
        (Augmentation(cutout=33), "--cutout 33"),
    ],
)
def test_impossible_values_are_named(augmentation: Augmentation, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        augmentation.check(32)
