"""Directions: their norms, their draws, and what the flags say of them."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from loss_landscape.directions import (
    NORMS,
    coordinates,
    cosine,
    difference,
    fingerprint,
    random_direction,
    with_counters,
)
from loss_landscape.plane import direction_flags
from loss_landscape.plane.direction_flags import Recipe, directions_of, make_directions
from loss_landscape.surface_file import Surface, create
from utilities import cli


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


WEIGHTS = [torch.randn(4, 3, 2, 2, generator=generator(9)).double(), torch.randn(4).double()]


def test_filter_normalisation_gives_each_filter_the_weights_norm() -> None:
    direction, bias = random_direction(WEIGHTS, "filter", "biasbn", generator())
    for d, w in zip(direction, WEIGHTS[0], strict=True):
        expected = sum(x**2 for x in w.flatten().tolist()) ** 0.5
        found = sum(x**2 for x in d.flatten().tolist()) ** 0.5
        assert found == pytest.approx(expected, rel=1e-12)
    assert not bias.any()


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        ("layer", lambda w, g: g / g.norm() * w.norm()),
        ("weight", lambda w, g: g * w),
        ("dlayer", lambda w, g: g / g.norm()),
        ("dfilter", lambda w, g: torch.stack([d / d.norm() for d in g])),
        ("none", lambda w, g: g),
    ],
)
def test_the_other_norms_are_loss_landscapes(norm: str, expected) -> None:
    drawn = torch.randn(WEIGHTS[0].shape, generator=generator()).double()
    direction, bias = random_direction(WEIGHTS, norm, "none", generator())
    torch.testing.assert_close(direction, expected(WEIGHTS[0], drawn))
    assert torch.equal(bias, WEIGHTS[1])


@pytest.mark.parametrize("norm", NORMS)
def test_zero_filters_stay_finite(norm: str) -> None:
    direction = random_direction([torch.zeros(3, 2)], norm, "biasbn", generator())
    assert direction[0].isfinite().all()


def test_one_seed_gives_two_models_the_same_gaussian() -> None:
    other = [w * 3 for w in WEIGHTS]
    ours = random_direction(WEIGHTS, "filter", "biasbn", generator(5))
    theirs = random_direction(other, "filter", "biasbn", generator(5))
    torch.testing.assert_close([d * 3 for d in ours], theirs)
    assert cosine(ours, theirs) == pytest.approx(1)
    assert fingerprint([ours]) != fingerprint([theirs])


def test_states_include_running_statistics_but_no_counters() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert set(coordinates(model, "states")) - set(coordinates(model, "weights")) == {
        "1.running_mean",
        "1.running_var",
    }


def test_difference_ends_at_the_other_model() -> None:
    a, b = [torch.zeros(2)], [torch.tensor([1.0, 2.0])]
    assert torch.equal(difference(a, b)[0], b[0])


def test_any_seed_and_repetition_that_the_flags_take_gives_directions() -> None:
    """The kind: numbers that a generator refuses (64 bits and more) or takes for others (33)."""
    weights = {"a": torch.ones(3, 2)}
    parser = cli.Parser(None)
    direction_flags.add_direction_flags(parser)
    cli.add_run_flags(parser, seed=0)
    largest, drawn = 2**32 - 1, []
    for flag in ("--seed", "--idx"):
        assert vars(parser.parse_args([flag, str(largest)]))[flag[2:]] == largest
        with pytest.raises(SystemExit):
            parser.parse_args([flag, str(largest + 1)])
    for seed, idx in ((0, 0), (0, 1), (largest, 0), (0, largest), (largest, largest)):
        drawn += make_directions(weights, [Recipe("none", "biasbn", None)], seed, idx)
    assert len({tuple(d[0].flatten().tolist()) for d in drawn}) == len(drawn)
    expected = torch.randn(3, 2, generator=generator(1_000_003))
    assert torch.equal(drawn[1][0], expected)


def test_directions_of_loss_landscape_along_states_are_read(tmp_path: Path) -> None:
    """It has a number for each of batch norm's counters, which is no coordinate."""
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    states = model.state_dict()
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        group = file.create_group("xdirection")
        for i, state in enumerate(states.values()):
            group.create_dataset(str(i), data=np.full(state.shape, i, dtype=np.float32))
    weights = list(coordinates(model, "states").values())
    (direction,) = directions_of(tmp_path / "theirs.h5", weights, 1)
    assert [int(d.flatten()[0]) for d in direction] == [0, 1, 2, 3, 4, 5]  # and not 6, the counter
    assert [d.shape for d in direction] == [w.shape for w in weights]
    counters = with_counters(model, direction)
    assert [d.shape for d in counters] == [s.shape for s in states.values()]


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ([[1.0, 2.0]], "no 2 directions"),
        ([[1.0, 2.0], [1.0]], "no 2 directions"),
        ([[1.0, 2.0], [1.0, np.nan]], "NaN or infinite"),
        ([[1.0, np.inf], [1.0, 2.0]], "NaN or infinite"),
    ],
)
def test_directions_of_a_file_that_do_not_serve_are_refused(held, message, tmp_path: Path) -> None:
    """The kind: numbers from a file, checked where they enter."""
    path = tmp_path / "s.h5"
    surface = Surface(np.arange(2.0), np.arange(2.0), {})
    create(path, surface, [[torch.tensor(d)] for d in held], ("train_loss",))
    with pytest.raises(ValueError, match=rf"s\.h5: .*{message}"):
        directions_of(path, [torch.ones(2)], 2)
