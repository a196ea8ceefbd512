"""CIFAR as the networks see it: values, augmentation on and off, splits, CIFAR-100, the flags."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run
from torchvision import transforms

import DatasetClass
from DatasetClass.cifar import MEAN, STD, Cifar
from DatasetClass.raw.cifar_files import with_statistics
from trainings.my_train_cifar import main, parse_args
from utilities import checkpoint
from utilities.cli import run

BLACK = (-torch.tensor(MEAN) / torch.tensor(STD))[:, None, None]


@pytest.fixture(scope="module")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a cifar100.npz of 1,000 and 100 images."""
    folder = tmp_path_factory.mktemp("hundred")
    rng, arrays = np.random.default_rng(0), {}
    for part, count in (("train", 1000), ("test", 100)):
        arrays[f"x_{part}"] = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        arrays[f"y_{part}"] = np.arange(count) % 100
    np.savez(folder / "cifar100.npz", **arrays)
    return folder


def load(folder: Path, **data_args: object) -> Cifar:
    dataset = DatasetClass.load("cifar10", folder, **data_args)
    assert isinstance(dataset, Cifar)
    return dataset


def test_without_augmentation_it_is_torchvisions_normalise(data_dir: Path) -> None:
    raw = np.load(data_dir / "cifar10.npz")
    images, labels = next(iter(load(data_dir, batch_size=40).test))
    usual = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    assert torch.equal(images, torch.stack([usual(image) for image in raw["x_test"]]))
    assert labels.tolist() == raw["y_test"].tolist()
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_training_batches_are_cropped_flipped_and_cut(data_dir: Path) -> None:
    dataset = load(data_dir)
    index = torch.full((4000,), int(dataset.train.indices[0]))
    plain = dataset.fetch(index[:1])[0][0]
    images, _ = dataset.fetch_augmented(index)
    holes = (images == 0).all(dim=1)  # a pixel of exactly the mean is only made by cutout
    assert abs(float(holes.flatten(1).any(dim=1).float().mean()) - 0.5) < 0.03
    assert int(holes.flatten(1).sum(dim=1).max()) == 16 * 16
    # Whole images: each is the framed original at one of 9 x 9 offsets, flipped or not.
    framed = BLACK.expand(3, 40, 40).clone()
    framed[:, 4:36, 4:36] = plain
    versions = [framed[:, i : i + 32, j : j + 32] for i in range(9) for j in range(9)]
    versions = torch.stack(versions + [v.flip(2) for v in versions])
    uncut = images[~holes.flatten(1).any(dim=1)][:500]
    exact = "donot_use_mm_for_euclid_dist"
    distance = torch.cdist(uncut.flatten(1), versions.flatten(1), compute_mode=exact)
    assert float(distance.min(dim=1).values.max()) < 1e-4
    counts = distance.argmin(dim=1).bincount(minlength=162)
    assert abs(int(counts[:81].sum()) - 250) < 60
    assert (counts > 0).sum() > 140


def test_each_part_of_the_augmentation_can_be_left_out(data_dir: Path) -> None:
    def batch(**data_args: object) -> torch.Tensor:
        dataset = load(data_dir, **data_args)
        return dataset.fetch_augmented(dataset.train.indices)[0]

    def black_edges(images: torch.Tensor) -> int:
        return int((images[:, :, 0] == BLACK.squeeze(-1)).all(dim=(1, 2)).sum())

    assert (batch() == 0).any() and not (batch(cutout=0) == 0).any()
    assert black_edges(batch(cutout=0)) > 50
    assert black_edges(batch(cutout=0, pad="reflect")) == 0
    assert black_edges(batch(cutout=0, crop_padding=0)) == 0
    dataset = load(data_dir, augment=False)
    indices = dataset.train.indices
    assert torch.equal(dataset.fetch_augmented(indices)[0], dataset.fetch(indices)[0])
    for name, value in (("crop_padding", 32), ("cutout", 33)):
        with pytest.raises(ValueError, match=f"--{name} {value}"):
            load(data_dir, **{name: value})


@pytest.mark.parametrize("batch_size", [1, 7, 180, 1000])
def test_batches_of_any_size_hold_each_training_image_once(data_dir: Path, batch_size: int) -> None:
    dataset = load(data_dir, batch_size=batch_size)
    batches = list(dataset.train)
    rest = 180 % batch_size or min(batch_size, 180)
    assert [len(images) for images, _ in batches][-1] == rest
    assert {tuple(images.shape[1:]) for images, _ in batches} == {(3, 32, 32)}
    labels = torch.cat([labels for _, labels in batches])
    assert labels.bincount().tolist() == [18] * 10


def test_the_seed_decides_about_every_pixel(data_dir: Path) -> None:
    def epochs(seed: int) -> torch.Tensor:
        dataset = load(data_dir, seed=seed, batch_size=50)
        return torch.cat([images for _ in range(2) for images, _ in dataset.train])

    torch.manual_seed(1)
    first = epochs(3)
    torch.manual_seed(2)
    assert torch.equal(first, epochs(3))
    assert not torch.equal(first, epochs(4))
    assert not torch.equal(first[:180], first[180:])  # the second epoch has draws of its own


def test_validation_is_a_tenth_of_each_class_of_the_training_images(data_dir: Path) -> None:
    dataset = load(data_dir)
    assert dataset.labels[dataset.val.indices].bincount().tolist() == [2] * 10
    assert dataset.labels[dataset.train.indices].bincount().tolist() == [18] * 10
    assert int(torch.cat([dataset.train.indices, dataset.val.indices]).max()) == 199
    assert dataset.test.indices.tolist() == list(range(200, 240))


def test_cifar100_is_normalised_by_its_training_images_alone(hundred: Path, tmp_path: Path) -> None:
    dataset = DatasetClass.load("cifar100", hundred)
    assert dataset.num_classes == dataset.model_args["num_classes"] == 100
    images, _ = dataset.fetch(torch.arange(1000))  # what is left for validation is among them
    torch.testing.assert_close(images.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(images.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)
    arrays = dict(np.load(hundred / "cifar100.npz"))
    arrays["x_test"] //= 2  # other test images change nothing about the training
    np.savez(tmp_path / "cifar100.npz", **arrays)
    other = DatasetClass.load("cifar100", tmp_path)
    assert torch.equal(images, other.fetch(torch.arange(1000))[0])


def test_the_script_trains_on_cifar100_and_the_checkpoint_says_so(
    hundred: Path, tmp_path: Path, run_here: Run
) -> None:
    small = ("--depth", 10, "--width_factor", 1, "--epochs", 1, "--threads", 1)
    flags = ("--dataset", "cifar100", "--pad", "reflect", "--crop_padding", 2, "--cutout", 8)
    folders = ("--data_dir", hundred, "--out_dir", tmp_path)
    done = run_here(main, *small, *flags, *folders)
    assert done.returncode == 0, done.stderr
    assert "cifar100: 100 classes" in done.stdout
    assert "\naquarium_fish  " in done.stdout  # the classes by their names
    assert "reflect pad 2, crop, flip, cutout 8" in done.stdout
    saved = checkpoint.load(tmp_path / "to_plot" / "model_cifar_SGD_rho0.0_cifar100.pt")
    assert saved["dataset"] == "cifar100"
    rebuilt = DatasetClass.load(saved["dataset"], hundred, **saved["data_args"])
    assert rebuilt.model_args.items() <= saved["model_args"].items()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--cutout", "-1"), "'-1' is not a whole number"),
        (("--crop_padding", "x"), "'x' is not a whole number"),
        (("--pad", "edge"), "invalid choice"),
        (("--dataset", "cifar11"), "invalid choice"),
    ],
)
def test_bad_flags_end_in_one_line(flags, message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as error:
        parse_args(flags)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_a_damaged_file_ends_in_one_line(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "cifar10.npz"
    shutil.copy(data_dir / "cifar10.npz", path)
    path.write_bytes(path.read_bytes()[:50_000])
    folders = ["--data_dir", str(tmp_path), "--out_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["my_train_cifar.py", *folders])
    with pytest.raises(SystemExit) as stop:
        run(main)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert str(path) in error and error.count("\n") == 1


@pytest.mark.real
def test_real_counts_and_statistics(real_data: Path) -> None:
    dataset = load(real_data)
    labels = torch.cat([dataset.train.indices, dataset.val.indices])
    assert dataset.labels[labels].bincount().tolist() == [5000] * 10
    assert dataset.train.samples == 45_000
    arrays = with_statistics({"x_train": dataset.images[:50_000].numpy()}, real_data)
    np.testing.assert_allclose(arrays["mean"], MEAN, atol=1e-5)
    np.testing.assert_allclose(arrays["std"], STD, atol=1e-5)
