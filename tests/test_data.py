"""Data sets on tiny files in the official formats, and on the real ones where they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import transforms

import DatasetClass
from DatasetClass.batches import stratified_split, subset
from DatasetClass.cifar import MEAN, STD
from DatasetClass.mitbih import cut_beats, read_kaggle, read_record

NAMES = ["cifar10", "mitbih", "TINY", "MUTAG"]


def all_targets(batches) -> torch.Tensor:
    return torch.cat([targets for _, targets in batches])


@pytest.mark.parametrize("name", NAMES)
def test_a_data_set_keeps_the_contract(name: str, data_dir: Path) -> None:
    dataset = DatasetClass.load(name, data_dir, batch_size=7)
    seen = [set(getattr(dataset, s).indices.tolist()) for s in ("train", "val", "test")]
    assert sum(map(len, seen)) == len(set.union(*seen)) == len(dataset.labels)
    for batches in (dataset.train, dataset.val, dataset.test):
        assert len(list(batches)) == len(batches)
        targets = all_targets(batches)
        assert targets.dtype == torch.int64
        assert len(targets) == batches.samples
        assert targets.min() >= 0 and targets.max() < dataset.num_classes
    assert dataset.describe().startswith(name)


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_and_nothing_else_makes_the_splits(name: str, data_dir: Path) -> None:
    torch.manual_seed(1)
    one = DatasetClass.load(name, data_dir, seed=3)
    torch.manual_seed(2)
    two = DatasetClass.load(name, data_dir, **one.data_args)
    other = DatasetClass.load(name, data_dir, seed=4)
    assert torch.equal(one.train.indices, two.train.indices)
    assert torch.equal(all_targets(one.train), all_targets(two.train))  # the order too
    assert not torch.equal(one.train.indices, other.train.indices)


@pytest.mark.parametrize("name", NAMES)
def test_fixed_batches_are_always_the_same(name: str, data_dir: Path) -> None:
    dataset = DatasetClass.load(name, data_dir)
    first = dataset.fixed("train", 5, 11)
    list(dataset.train)  # moves the generator
    again = DatasetClass.load(name, data_dir).fixed("train", 5, 11)
    assert [len(targets) for _, targets in first] == [5, 5, 1]
    for (a, targets), (b, others) in zip(first, again, strict=True):
        a, b = (inputs if torch.is_tensor(inputs) else inputs.x for inputs in (a, b))
        assert torch.equal(a, b)
        assert torch.equal(targets, others)


@settings(max_examples=50, deadline=None)
@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=80), seed=st.integers(0, 9))
def test_stratified_split_keeps_proportions(labels: list[int], seed: int) -> None:
    tensor = torch.tensor(labels)
    parts = stratified_split(tensor, {"train": 0.7, "val": 0.1, "test": 0.2}, seed)
    together = torch.cat(list(parts.values())).sort().values
    assert torch.equal(together, torch.arange(len(labels)))
    for label in set(labels):
        count = labels.count(label)
        for name, share in (("val", 0.1), ("test", 0.2)):
            assert abs((tensor[parts[name]] == label).sum() - share * count) <= 0.5


def test_a_subset_is_drawn_once() -> None:
    indices = torch.arange(100, 200)
    chosen = subset(indices, 10)
    assert torch.equal(chosen, subset(indices, 10))
    assert len(chosen.unique()) == 10
    assert torch.equal(subset(indices, 1000), indices)


def test_cifar_without_augmentation_is_torchvisions_normalise(data_dir: Path) -> None:
    dataset = DatasetClass.load("cifar10", data_dir, batch_size=40)
    images, labels = next(iter(dataset.test))
    raw = np.load(data_dir / "cifar10.npz")
    usual = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    expected = torch.stack([usual(image) for image in raw["x_test"]])
    torch.testing.assert_close(images, expected, rtol=1e-5, atol=1e-5)
    assert labels.tolist() == raw["y_test"].tolist()


def test_cifar_augmentation_crops_flips_and_cuts(data_dir: Path) -> None:
    dataset = DatasetClass.load("cifar10", data_dir, batch_size=1)
    index = torch.full((4000,), int(dataset.train.indices[0]))
    plain = dataset.fetch(index[:1])[0][0]
    images, _ = dataset.fetch_augmented(index)
    holes = (images == 0).all(dim=1)  # a pixel of exactly the mean is only made by cutout
    assert abs(float(holes.flatten(1).any(dim=1).float().mean()) - 0.5) < 0.03
    assert int(holes.flatten(1).sum(dim=1).max()) == 16 * 16
    # Whole images: each is the framed original at one of 9 x 9 offsets, flipped or not.
    black = (-torch.tensor(MEAN) / torch.tensor(STD))[:, None, None]
    framed = black.expand(3, 40, 40).clone()
    framed[:, 4:36, 4:36] = plain
    versions = [framed[:, i : i + 32, j : j + 32] for i in range(9) for j in range(9)]
    versions = torch.stack(versions + [v.flip(2) for v in versions])
    uncut = images[~holes.flatten(1).any(dim=1)][:500]
    exact = "donot_use_mm_for_euclid_dist"
    distance = torch.cdist(uncut.flatten(1), versions.flatten(1), compute_mode=exact)
    assert float(distance.min(dim=1).values.max()) < 1e-2
    counts = distance.argmin(dim=1).bincount(minlength=162)
    assert abs(int(counts[:81].sum()) - 250) < 60
    assert (counts > 0).sum() > 140


def test_a_beat_starts_at_its_peak_and_ends_in_zeros(data_dir: Path) -> None:
    beats, labels = read_record(data_dir / "mitdb" / "100")
    assert beats.shape == (len(labels), 187)
    assert labels[:5].tolist() == [0, 1, 2, 3, 4]  # N A V F Q; the rhythm change is left out
    assert (beats[:, 0] > 0.9).all()  # the synthetic R peak is the maximum
    assert (beats[:-2, 120:] == 0).all()  # 1.2 x 0.8 s x 125 Hz = 120 samples
    assert (beats[:-2, :120].max(axis=1) == 1).all()


def test_cut_beats_of_a_constant_signal_are_zero() -> None:
    beats = cut_beats(np.zeros(3600), 360.0, np.array([1.0, 2.0, 9.99]))
    assert beats.shape == (3, 187)
    assert (beats == 0).all()


def damage_columns(text: str) -> str:
    return "\n".join(line.rsplit(",", 1)[0] for line in text.splitlines())


def replace_row(row: int, change: Callable[[list[str]], list[str]]) -> Callable[[str], str]:
    def damage(text: str) -> str:
        lines = text.splitlines()
        lines[row - 1] = ",".join(change(lines[row - 1].split(",")))
        return "\n".join(lines)

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_columns, "187 columns"),
        (replace_row(3, lambda cells: ["abc", *cells[1:]]), "row 3"),
        (replace_row(4, lambda cells: ["nan", *cells[1:]]), "row 4"),
        (replace_row(5, lambda cells: [*cells[:-1], "7"]), "row 5: label 7"),
        (lambda text: text[: len(text) // 3 + 7], "row"),
        (lambda text: "", "empty"),
    ],
)
def test_damaged_kaggle_files_are_named(damage, message, data_dir: Path, tmp_path: Path) -> None:
    text = (data_dir / "mitbih_train.csv").read_text()
    path = tmp_path / "mitbih_train.csv"
    path.write_text(damage(text))
    with pytest.raises(ValueError, match=message) as error:
        read_kaggle(path)
    assert str(path) in str(error.value)


def test_byte_order_mark_and_crlf_are_read(data_dir: Path, tmp_path: Path) -> None:
    text = (data_dir / "mitbih_train.csv").read_text()
    path = tmp_path / "mitbih_train.csv"
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert np.array_equal(read_kaggle(path)[0], read_kaggle(data_dir / "mitbih_train.csv")[0])


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("mitbih", [90631, 2781, 7236, 803, 8043]),
    ],
)
def test_real_class_counts(name: str, counts: list[int], real_data: Path) -> None:
    dataset = DatasetClass.load(name, real_data)
    assert dataset.labels.bincount().tolist() == counts


@pytest.mark.real
def test_real_cifar_statistics(real_data: Path) -> None:
    train = np.load(real_data / "cifar10.npz")
    assert np.bincount(train["y_train"]).tolist() == [5000] * 10
    pixels = train["x_train"].reshape(-1, 3) / 255
    np.testing.assert_allclose(pixels.mean(axis=0), MEAN, atol=1e-5)
    np.testing.assert_allclose(pixels.std(axis=0), STD, atol=1e-5)
