"""A model at the points of a grid: each visited, measured once, and left as it was."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from bowls import Bowl, fill, new_surface
from forks import end, start
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from loss_landscape import evaluation, plot_surface
from loss_landscape.directions import coordinates
from loss_landscape.evaluation import Visits, compute, moved
from loss_landscape.surface_file import done, read_surface


@settings(max_examples=60)
@given(low=st.floats(-5, 5), width=st.floats(0.01, 5), num=st.integers(1, 99))
def test_axis_reads_what_it_says(low: float, width: float, num: int) -> None:
    points = plot_surface.axis(f"{low}:{low + width}:{num}").points()
    assert len(points) == num
    assert points[0] == low
    if num > 1:
        assert points[-1] == pytest.approx(low + width)


@settings(max_examples=60)
@given(half=st.floats(0.01, 5), pairs=st.integers(1, 200))
def test_a_symmetric_axis_has_the_checkpoint_in_its_middle(half: float, pairs: int) -> None:
    """numpy.linspace misses 0 by 1e-17 in one of twenty: no point is the checkpoint then."""
    points = evaluation.axis(f"{-half}:{half}:{2 * pairs + 1}").points()
    assert points[pairs] == 0
    np.testing.assert_allclose(points, np.linspace(-half, half, 2 * pairs + 1), atol=1e-15)


@pytest.mark.parametrize(
    "text",
    [
        *("-1:1", "1:-1:5", "-1:1:0", "nan:1:5", "0:inf:3", "0:1:2.5", "0:1:-3", "a:b:c", "0:0:2"),
        *("-1e308:1e308:5", "0:1:1000000000000", "1:1.0000000000000002:51", "0:1e-323:9"),
        "0:1:" + "9" * 5000,
    ],
)
def test_what_makes_no_axis_is_refused(text: str) -> None:
    """The kind: numbers from flags; points that overflow, coincide or fill the memory too."""
    with pytest.raises(argparse.ArgumentTypeError) as error:
        evaluation.axis(text)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("shape", [(7, 3), (1, 5), (5, 1), (4,)])
@pytest.mark.parametrize("block", [1, 4, 100])
def test_each_point_is_measured_where_it_lies(shape, block: int, tmp_path: Path) -> None:
    path, bowl = tmp_path / "s.h5", Bowl(block=block)
    surface = new_surface(shape, path)
    compute(path, surface, bowl)
    x, y = np.meshgrid(surface.x, np.zeros(1) if surface.y is None else surface.y)
    read = read_surface(path).values
    np.testing.assert_array_equal(read["train_loss"], (x + 10 * y).reshape(shape))
    np.testing.assert_array_equal(read["train_acc"], np.where(x == 0, np.nan, -1.0).reshape(shape))
    assert all(len(point) == len(shape) for point in bowl.measured)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize(
    ("stop_after", "block"), [(0, 1), (1, 1), (8, 1), (20, 1), (8, 4), (18, 6)]
)
def test_nothing_measured_is_lost_or_measured_again(error, stop_after, block, tmp_path) -> None:
    path = tmp_path / "s.h5"
    surface = new_surface((7, 3), path)
    first, second, third = Bowl(stop_after, error, block), Bowl(block=block), Bowl()
    with pytest.raises(error):
        compute(path, surface, first)
    compute(path, surface, second)
    compute(path, surface, third)
    assert len(first.measured) == stop_after and not third.measured
    # One point more is measured, to see whether the values are still what they were.
    points = first.measured + second.measured[bool(stop_after) :]
    assert len(points) == len(set(points)) == 21
    x, y = np.meshgrid(surface.x, surface.y)
    np.testing.assert_array_equal(read_surface(path).values["train_loss"], x + 10 * y)


@pytest.mark.parametrize("change", ["value", "nan", "rounding"])
def test_values_that_have_changed_are_not_gone_on_with(change: str, tmp_path: Path) -> None:
    """The kind: other data or code under the name of the old, which no attribute tells."""
    path = tmp_path / "s.h5"
    surface = new_surface((7, 3), path)
    with pytest.raises(OSError):
        compute(path, surface, Bowl(5))

    class Other(Bowl):
        def __call__(self, points: np.ndarray) -> dict[str, np.ndarray]:
            values = super().__call__(points)
            loss = values["train_loss"]
            changed = {"value": loss + 0.1, "nan": loss * np.nan, "rounding": loss * (1 + 1e-6)}
            return {**values, "train_loss": changed[change]}

    if change == "rounding":
        compute(path, surface, Other())
        assert done(path).all()
    else:
        before = path.read_bytes()
        with pytest.raises(ValueError, match=r"s\.h5: at \[0\.0, 0\.0\] the losses were 0 and are"):
            compute(path, surface, Other())
        assert path.read_bytes() == before


def test_kills_leave_a_file_that_is_read_and_gone_on_with(tmp_path: Path) -> None:
    """Sixty SIGKILLs while it is written: nothing done is lost or wrong, the end is equal."""
    shape, undisturbed, path = (60, 80), tmp_path / "undisturbed.h5", tmp_path / "s.h5"
    rng, kills, before = np.random.default_rng(0), 0, 0
    compute(undisturbed, new_surface(shape, undisturbed), Bowl())
    expected = read_surface(undisturbed).values
    while kills < 60:
        kills += killed_while_writing(path, shape, rng.uniform(0.0, 0.02))
        finished = done(path)
        assert finished.sum() >= before
        for name, values in read_surface(path).values.items():
            np.testing.assert_array_equal(values[finished], expected[name][finished])
        before = finished.sum()
        if finished.all():  # once more
            path.unlink()
            before = 0
    assert end(start(fill, path, shape, 0.0)) == 0
    for name, values in read_surface(path).values.items():
        np.testing.assert_array_equal(values, expected[name])


def killed_while_writing(path: Path, shape: tuple[int, ...], seconds: float) -> bool:
    """Kill a process some ``seconds`` after it first wrote; False if it ended before."""

    def written() -> int:
        return path.stat().st_mtime_ns if path.exists() else 0

    at_first, process, deadline = written(), start(fill, path, shape, 0.0), time.monotonic() + 60
    while written() == at_first and process.is_alive():
        assert time.monotonic() < deadline, "the process hangs"
        time.sleep(0.001)
    time.sleep(seconds)
    process.kill()
    return end(process) == -9


def test_a_slow_measure_is_on_disk_point_by_point(tmp_path: Path, monkeypatch) -> None:
    """A kill loses no more than the point that is being measured."""
    monkeypatch.setattr(evaluation, "PAUSE", 0.0)
    path, seen = tmp_path / "s.h5", []

    class Slow(Bowl):
        def __call__(self, points: np.ndarray) -> dict[str, np.ndarray]:
            seen.append(int(np.isfinite(read_surface(path).values["train_loss"]).sum()))
            return super().__call__(points)

    compute(path, new_surface((3, 2), path), Slow())
    assert seen == [0, 1, 2, 3, 4, 5]


def test_a_visit_measures_each_point_alone_and_leaves_the_weights() -> None:
    """Values are those of weights moved by hand, whichever points are asked for together."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    weights = list(coordinates(model, "weights").values())
    before = [w.clone() for w in weights]
    directions = [[torch.randn_like(w) for w in weights] for _ in range(2)]
    inputs = torch.randn(5, 3)

    def at_point() -> dict[str, float]:
        return {"train_loss": model(inputs).square().mean().item()}

    measure = Visits(weights, directions, ("train_loss",), at_point)
    points = np.array([[0.5, -1.0], [0.0, 0.0], [2.0, 0.25]])
    together = measure(points)["train_loss"]
    alone = [measure(point[None])["train_loss"][0] for point in points[::-1]][::-1]
    assert together.tolist() == alone
    for value, (x, y) in zip(together, points, strict=True):
        w, b = (t + x * d + y * e for t, d, e in zip(before, *directions, strict=True))
        assert value == pytest.approx(float((inputs @ w.T + b).square().mean()), rel=1e-5)
    assert all(map(torch.equal, before, weights))


def test_the_standard_error_is_the_textbooks() -> None:
    losses = torch.tensor([1.0, 2.0, 4.0, 9.0])
    expected = np.std(losses.numpy(), ddof=1) / 2
    assert evaluation.standard_error(losses) == pytest.approx(expected)
    assert np.isnan(evaluation.standard_error(losses[:1]))


def test_moved_weights_come_back_bit_for_bit() -> None:
    model = nn.Linear(3, 2)
    weights = list(coordinates(model, "weights").values())
    before = [w.clone() for w in weights]
    pointers = [p.data_ptr() for p in model.parameters()]
    direction = [torch.randn_like(w) for w in weights]
    with pytest.raises(KeyError), moved(weights, [direction, direction], [0.3, 0.4]):
        for p, w, d in zip(model.parameters(), before, direction, strict=True):
            torch.testing.assert_close(p.detach(), w + 0.7 * d)
        raise KeyError
    assert all(map(torch.equal, before, model.parameters()))
    assert pointers == [p.data_ptr() for p in model.parameters()]
