"""The scale of pictures: levels where the values are, whatever the values."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from loss_landscape.pictures.scale import LARGEST, make_scale, plain_numbers

NUMBERS = st.floats(allow_nan=True, allow_infinity=True, width=64)
GRIDS = arrays.arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=NUMBERS)


@given(st.lists(GRIDS, min_size=1, max_size=3))
def test_every_surface_has_a_scale(values: list[np.ndarray]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scale = make_scale(values)
        assert np.isfinite(scale.levels).all() and (np.diff(scale.levels) > 0).all()
        every = np.concatenate([v.ravel() for v in values])
        finite = every[np.isfinite(every)].clip(-LARGEST, LARGEST)
        place, height = scale.position(finite), scale.height(finite)
    assert ((place >= 0) & (place <= len(scale.levels) - 1)).all()
    order = np.argsort(finite)  # a higher value has no lower colour and is drawn no lower
    assert (np.diff(place[order]) >= 0).all() and (np.diff(height[order]) >= 0).all()
    texts = plain_numbers(scale.levels)
    assert len(set(texts)) == len(texts)
    if len(finite):
        assert ("max" in scale.extend or scale.extend == "both") == (
            finite.max() > scale.levels[-1]
        )


def test_no_colour_covers_most_of_two_basins_beside_a_cliff() -> None:
    """Evenly spread levels gave the lowest band 70 % of such surfaces."""
    x = np.linspace(-1, 1, 41)
    bowl = 0.5 + 0.3 * (x**2 + x[:, None] ** 2)
    cliff = bowl + 5 / (1 + np.exp(-20 * (x - 0.8)))
    values = np.concatenate([bowl.ravel(), cliff.ravel()])
    even = np.linspace(values.min(), np.percentile(values, 98), 13)
    assert np.histogram(values, even)[0].max() > 0.6 * values.size
    scale = make_scale([bowl, cliff])
    assert np.histogram(values, scale.levels)[0].max() < 0.2 * values.size


def test_noise_on_a_plateau_gets_no_colours_of_its_own() -> None:
    rng = np.random.default_rng(0)
    values = np.where(np.arange(1000) < 900, 2.3 + 1e-6 * rng.standard_normal(1000), 0.1)
    levels = make_scale([values], vmin=0.1, vmax=2.4, log=False).levels
    assert np.diff(levels).min() > 0.005 * (2.4 - 0.1)


def test_surfaces_share_a_scale_and_flat_ones_have_one() -> None:
    scale = make_scale([np.array([1.0, 2.0]), np.array([0.5, np.nan])])
    assert scale.levels[0] == 0.5
    for values in (np.ones(3), np.full(3, np.nan), np.array([1e-3, 1e3])):
        assert (np.diff(make_scale([values]).levels) > 0).all()
    assert make_scale([np.array([1e-3, 1e3])]).log
    assert not make_scale([np.array([1e-3, 1e3])], log=False).log


@pytest.mark.parametrize("span,step,count", [(1.0, 0.1, 11), (0.3, 0.1, 4), (200.0, 1.0, 201)])
def test_levels_end_at_the_top_in_spite_of_rounding(span: float, step: float, count: int) -> None:
    assert len(make_scale([np.array([0.0, 2.0])], 0.0, span, step).levels) == count
