"""plot_surface.py takes a faster way: the same values, resumed bit for bit, never mixed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loss_landscape import evaluation, plot_surface
from loss_landscape.points.fast_evaluation import PLAIN, FastVisits, Trial, Way
from loss_landscape.surface_file import Surface, read_surface
from utilities.metrics import evaluate

WAYS = {"cifar": Way("folded", 3), "GCN": Way("merged")}


@pytest.fixture(params=WAYS)
def surface_of(request, trained, data_dir: Path, tmp_path: Path, monkeypatch):
    """A surface of 5 x 5 points with these flags, in the way that would be fastest."""
    name = request.param
    fastest = {PLAIN: 2e-9, WAYS[name]: 1e-9}
    bf16 = WAYS[name]._replace(precision="bf16")
    monkeypatch.setattr(
        Trial,
        "timed",
        lambda self, precision: fastest | ({bf16: 0.5e-9} if precision == "bf16" else {}),
    )

    def make(file: str, *flags: str) -> Surface:
        own = [f"--model_file={trained[name]}", f"--data_dir={data_dir}", f"--out_dir={tmp_path}"]
        grid = ["--x=-0.5:0.5:5", "--y=-1:1:5", "--samples=9", "--batch_size=6", "--threads=1"]
        return read_surface(
            plot_surface.main([*own, *grid, f"--surf_file={tmp_path / file}", *flags])
        )

    make.way = WAYS[name]
    return make


def test_fast_and_plain_surfaces_have_the_same_values(surface_of) -> None:
    fast, plain = surface_of("fast.h5"), surface_of("plain.h5", "--no-fast")
    assert Way.read(fast.attributes["way"]) == surface_of.way
    assert Way.read(plain.attributes["way"]) == PLAIN
    np.testing.assert_allclose(fast.values["train_loss"], plain.values["train_loss"], rtol=1e-5)
    np.testing.assert_array_equal(fast.values["train_acc"], plain.values["train_acc"])
    for name, value in plain.values.items():
        assert fast.values[name][2, 2] == value[2, 2]  # the checkpoint's, bit for bit


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_stopped_fast_surface_goes_on_the_same_way(surface_of, precision, monkeypatch) -> None:
    flags = (f"--precision={precision}",)
    whole = surface_of("whole.h5", *flags)
    visit = FastVisits._visit
    seen = []

    def stops(self: FastVisits, point: np.ndarray) -> dict[str, float]:
        seen.append(point)
        if len(seen) == 11:
            raise KeyboardInterrupt
        return visit(self, point)

    monkeypatch.setattr(FastVisits, "_visit", stops)
    with pytest.raises(KeyboardInterrupt):
        surface_of("stopped.h5", *flags)
    monkeypatch.setattr(FastVisits, "_visit", visit)
    # Timing would choose another way now.
    monkeypatch.setattr(Trial, "timed", lambda *args: pytest.fail("chosen anew"))
    resumed = surface_of("stopped.h5", *flags)
    assert resumed.attributes["way"] == whole.attributes["way"]
    for name, value in whole.values.items():
        np.testing.assert_array_equal(resumed.values[name], value)


def test_a_surface_is_not_gone_on_with_another_way(surface_of) -> None:
    surface_of("fast.h5")
    with pytest.raises(ValueError, match="differs in precision"):
        surface_of("fast.h5", "--precision=bf16")
    with pytest.raises(ValueError, match="leave --no-fast out"):
        surface_of("fast.h5", "--no-fast")


@pytest.mark.parametrize("surface_of", ["cifar"], indirect=True)
def test_a_bf16_surface_holds_its_deviations(surface_of, capsys) -> None:
    surface = surface_of("bf16.h5", "--precision=bf16")
    off = surface.values["train_loss_deviation"]
    assert np.isfinite(off[2, 2]) and np.isnan(off).any()
    assert "measured in fp32 too" in capsys.readouterr().out
    exact = surface_of("exact.h5", "--no-fast").values["train_loss"]
    assert surface.values["train_loss"][2, 2] == exact[2, 2]
    found = (surface.values["train_loss"] - exact)[np.isfinite(off)]
    np.testing.assert_allclose(found, off[np.isfinite(off)], atol=1e-2)


@pytest.mark.parametrize("surface_of", ["cifar"], indirect=True)
def test_bf16_is_a_faster_way(surface_of) -> None:
    with pytest.raises(ValueError, match="--precision bf16: is one of the faster ways"):
        surface_of("x.h5", "--precision=bf16", "--no-fast")


@pytest.mark.parametrize("surface_of", ["cifar"], indirect=True)
def test_recalibrated_statistics_go_the_fast_way_too(surface_of) -> None:
    fast = surface_of("fast.h5", "--bn=recalibrate").values["train_loss"]
    plain = surface_of("plain.h5", "--bn=recalibrate", "--no-fast").values["train_loss"]
    np.testing.assert_allclose(fast, plain, rtol=1e-5)
    kept = surface_of("kept.h5").values["train_loss"]
    assert np.nanmax(abs(fast - kept)) > 1e-3


def test_the_loss_is_the_trainings_bit_for_bit(trained, data_dir: Path) -> None:
    for path in trained.values():
        flags = [f"--model_file={path}", f"--data_dir={data_dir}", "--threads=1"]
        restored = plot_surface.restore(plot_surface.parse_args(flags))
        batches = restored.batches("train", None, 7)
        found = evaluation.loss_and_accuracy(restored, {"train": batches})
        total = evaluate(restored.model, batches, restored.loss, 10)
        assert (found["train_loss"], found["train_acc"]) == total.loss_and_accuracy()
