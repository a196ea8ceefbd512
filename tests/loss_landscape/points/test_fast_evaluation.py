"""The faster ways through a surface: the plain one's values, or not taken at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from loss_landscape import plot_surface
from loss_landscape.directions import coordinates, random_direction
from loss_landscape.evaluation import Visits, loss_and_accuracy
from loss_landscape.forward_pass.batch_norm import recalibrating
from loss_landscape.forward_pass.stand_ins import Convolution
from loss_landscape.points import fast_evaluation
from loss_landscape.points.fast_evaluation import PLAIN, FastVisits, Task, Trial, Way, faster
from loss_landscape.restore import Restored, restore
from loss_landscape.surface_file import Surface
from utilities.metrics import evaluate

FOLDED = Way("folded", 3)
GRID = Surface(np.linspace(-0.5, 1, 7), np.linspace(-1, 1, 5), {})


def task_of(restored: Restored, batch_size: int = 8, samples: int | None = 12) -> Task:
    torch.manual_seed(0)
    for p in restored.model.parameters():  # the classifier of a short training is nearly zero
        p.data.add_(0.05 * torch.randn(p.shape))
    weights = list(coordinates(restored.model, "weights").values())
    generator = torch.Generator().manual_seed(1)
    directions = [random_direction(weights, "filter", "biasbn", generator) for _ in range(2)]
    batches = {s: restored.batches(s, samples, batch_size) for s in ("train", "test")}
    names = tuple(f"{s}_{v}" for s in batches for v in ("loss", "acc", "loss_se"))
    at_point = partial(loss_and_accuracy, restored, batches)
    return Task(restored, batches, Visits(weights, directions, names, at_point))


@pytest.fixture
def make_task(trained: dict[str, Path], data_dir: Path) -> Callable[..., Task]:
    def make(name: str, model: nn.Module | None = None, **options: int) -> Task:
        flags = [f"--model_file={trained[name]}", f"--data_dir={data_dir}", "--threads=1"]
        restored = restore(plot_surface.parse_args(flags))
        if model is not None:
            restored = dataclasses.replace(restored, model=model.eval())
        return task_of(restored, **options)

    return make


def some_points() -> np.ndarray:
    """The centre is among them."""
    return GRID.points(np.argwhere(np.ones(GRID.shape, dtype=bool)))[1::5]


WAYS = [
    *(("cifar", FOLDED), ("cifar", Way("folded")), ("cifar", Way("model", 3))),
    *(
        ("cifar", Way("folded", 0, False, "bf16")),
        ("GCN", Way("merged")),
        ("mitbih", Way("model", 3)),
    ),
]


@pytest.mark.parametrize(("name", "way"), WAYS, ids=str)
def test_every_way_gives_the_plain_values(name: str, way: Way, make_task) -> None:
    task, points = make_task(name), some_points()
    found, expected = FastVisits(task, way)(points), task.plain(points)
    tolerance = 1e-5 if way.precision == "fp32" else 1e-2
    for value in ("train_loss", "test_loss", "train_loss_se"):
        np.testing.assert_allclose(found[value], expected[value], rtol=tolerance, atol=tolerance)
    if way.precision == "fp32":
        np.testing.assert_array_equal(found["train_acc"], expected["train_acc"])
    assert np.ptp(expected["train_loss"]) > 0.01 and not points.any(axis=1).all()


@pytest.mark.parametrize(("name", "way"), WAYS, ids=str)
def test_the_centre_is_the_checkpoints_loss_bit_for_bit(name: str, way: Way, make_task) -> None:
    task = make_task(name)
    restored = task.restored
    found = FastVisits(task, way)(np.array([[0.5, -1.0], [0.0, 0.0]]))
    for split in ("train", "test"):
        total = evaluate(restored.model, task.batches[split], restored.loss, 10)
        assert (found[f"{split}_loss"][1], found[f"{split}_acc"][1]) == total.loss_and_accuracy()


@pytest.mark.parametrize(("name", "way"), WAYS, ids=str)
def test_a_points_values_do_not_depend_on_the_call(name: str, way: Way, make_task) -> None:
    task, points = make_task(name), some_points()
    together = FastVisits(task, way)(points)
    again = FastVisits(task, way)
    for index in np.random.default_rng(0).permutation(len(points)):
        for value, alone in again(points[index, None]).items():
            np.testing.assert_array_equal(alone[0], together[value][index])


def test_bf16_says_how_far_it_is_off(make_task) -> None:
    task = make_task("cifar", samples=4)
    points = np.random.default_rng(0).uniform(-1, 1, (60, 2))
    points[7] = 0.0
    way = Way("folded", 0, False, "bf16")
    measure = FastVisits(task, way)
    assert measure.names == (*task.plain.names, "train_loss_deviation", "test_loss_deviation")
    found = measure(points)
    rechecked = np.isfinite(found["train_loss_deviation"])
    assert rechecked[7] and 2 <= rechecked.sum() <= 14  # 7 are expected
    exact = FastVisits(task, way._replace(precision="fp32"))(points)["train_loss"]
    expected = (found["train_loss"] - exact)[rechecked]
    kept = found["train_loss_deviation"][rechecked]
    at_centre = np.flatnonzero(rechecked) == 7
    np.testing.assert_array_equal(kept[~at_centre], expected[~at_centre])
    assert 0 < abs(kept).max() < 1e-2 * exact.max() and kept[at_centre] != 0


def test_a_stand_in_that_is_wrong_is_not_taken(make_task, monkeypatch, capsys) -> None:
    """It is right at the centre, and would be fastest: its weights don't move."""
    monkeypatch.setattr(fast_evaluation, "candidates", lambda *args: [PLAIN, FOLDED])
    monkeypatch.setattr(Trial, "timed", lambda self, precision: {PLAIN: 0.2, FOLDED: 0.1})
    task = make_task("cifar")
    assert faster(task, GRID, "fp32").way == FOLDED
    refresh = Convolution.refresh
    done: set[Convolution] = set()

    def only_once(self: Convolution) -> None:
        if self not in done:
            refresh(self)
        done.add(self)

    monkeypatch.setattr(Convolution, "refresh", only_once)
    assert faster(task, GRID, "fp32").way == PLAIN
    said = capsys.readouterr().out
    assert "not measured by convolutions folded" in said and "instead of" in said


class Views(nn.Module):
    """Breaks in channels_last: the view needs the plain order."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4096, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.conv(x).view(len(x), -1))


class Branches(Views):
    """Can't be traced."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else x.abs())


@pytest.mark.parametrize("kind", [Views, Branches])
def test_a_model_that_is_not_for_it_goes_the_plain_way(kind, make_task, capsys) -> None:
    torch.manual_seed(0)
    task = make_task("cifar", model=kind())
    for batches in task.batches.values():
        batches[:] = [(x.contiguous(), t) for x, t in batches]
    fast = faster(task, GRID, "fp32")
    assert fast.way.stand_in in ("plain", "model")
    assert "not measured by convolutions folded" in capsys.readouterr().out
    points = some_points()
    expected = task.plain(points)["train_loss"]
    np.testing.assert_allclose(fast(points)["train_loss"], expected, rtol=1e-5)


def test_statistics_taken_anew_at_each_point_are_folded_too(make_task) -> None:
    task = make_task("cifar")
    around = partial(
        recalibrating, task.restored.model, task.batches["train"], task.restored.forward
    )
    points = some_points()
    untouched = task.plain(points)["train_loss"]
    task.plain.at_point = around(task.plain.at_point)
    task.around = around
    found, expected = FastVisits(task, FOLDED)(points), task.plain(points)
    np.testing.assert_allclose(found["train_loss"], expected["train_loss"], rtol=1e-5)
    assert abs(untouched - expected["train_loss"]).max() > 1e-3


def test_the_way_is_kept_and_read_back(make_task, monkeypatch) -> None:
    for way in (PLAIN, FOLDED, Way("model", 64, True, "bf16")):
        assert Way.read(str(way)) == way
    for text in ("", "{}x", '{"stand_in": "quick"}', '{"colour": 1}', "[1]", '{"precision": "x"}'):
        with pytest.raises(ValueError, match="the surface's way"):
            Way.read(text)
    monkeypatch.setattr(Trial, "timed", lambda *args: pytest.fail("chosen anew"))
    task = make_task("cifar")
    assert faster(task, GRID, "bf16", kept=str(FOLDED)).way == FOLDED
    assert faster(task, GRID, "fp32", kept="").way == PLAIN
    with pytest.raises(ValueError, match="gone on with"):
        faster(task, GRID, "fp32", kept=str(Way("merged")))


def test_few_points_go_the_plain_way_unseen(make_task, monkeypatch, capsys) -> None:
    monkeypatch.setattr(Trial, "timed", lambda *args: pytest.fail("timed"))
    few = Surface(np.linspace(-1, 1, fast_evaluation.FEWEST - 1), None, {})
    assert faster(make_task("cifar"), few, "fp32").way == PLAIN
    assert not capsys.readouterr().out


def test_compiled_only_where_the_points_pay_for_it(make_task, monkeypatch, capsys) -> None:
    """Traced by torch.compile, but not translated to C++, which takes half a minute."""
    compile_ = torch.compile
    traced = []

    def compile_eagerly(module: nn.Module, **options: bool) -> nn.Module:
        traced.append(module)
        return compile_(module, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    monkeypatch.setattr(Trial, "timed", lambda self, precision: {PLAIN: 1.0})
    task = make_task("mitbih", batch_size=12)
    task.batches = {"train": task.batches["train"]}
    task.plain.names = task.plain.names[:3]
    monkeypatch.setattr(fast_evaluation, "COMPILING", 1e6)
    assert faster(task, GRID, "fp32").way == PLAIN and not traced
    monkeypatch.setattr(fast_evaluation, "COMPILING", 1.0)
    assert "compiling for 35 points" not in capsys.readouterr().out
    faster(task, GRID, "fp32")
    assert len(traced) == 1 and "compiling for 35 points" in capsys.readouterr().out
    compiled = FastVisits(task, Way("model", 0, True))
    points = some_points()
    expected = task.plain(points)["train_loss"]
    np.testing.assert_allclose(compiled(points)["train_loss"], expected, rtol=1e-5)


def test_a_compiled_way_in_bf16_keeps_the_casts_that_round(make_task, monkeypatch) -> None:
    asked = []

    def not_compiled(module: nn.Module, *, dynamic: bool, options: dict) -> nn.Module:
        asked.append(options)
        return module

    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    monkeypatch.setattr(torch, "compile", not_compiled)
    for precision in ("fp32", "bf16"):
        make_task("mitbih").at_point(Way("model", 0, True, precision))
    assert asked == [{}, {"emulate_precision_casts": True}]


def test_timing_tries_what_fits_and_leaves_out_the_rest(make_task) -> None:
    ways = {way.stand_in for way in Trial(make_task("GCN"), GRID).timed("fp32")}
    assert ways == {"plain", "merged"}
    timed = Trial(make_task("cifar"), GRID).timed("bf16")
    assert {way.stand_in for way in timed} == {"plain", "folded", "model"}
    assert {way.precision for way in timed} == {"fp32", "bf16"}
    assert all(0 < seconds < 60 for seconds in timed.values())
