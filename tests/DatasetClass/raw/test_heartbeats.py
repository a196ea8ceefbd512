"""Cutting heartbeats: where they begin and end, their periods, their range."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from DatasetClass.raw.heartbeats import cut_beats, periods


def test_cut_beats_of_a_constant_signal_are_zero() -> None:
    beats = cut_beats(np.zeros(3600), 360, np.array([1.0, 2.0, 9.99]))
    assert beats.shape == (2, 187)
    assert (beats == 0).all()


def test_the_period_is_the_median_of_its_window() -> None:
    peaks = np.array([0.5, 1.5, 2.5, 5.5, 9.9, 10.1, 10.7, 11.5])
    # Windows 0 to 10 s: intervals 1, 1, 3, 4.4, 0.2; 10 to 20 s: 0.6, 0.8.
    np.testing.assert_allclose(periods(peaks), [1, 1, 1, 1, 1, 0.7, 0.7])


@settings(max_examples=30, deadline=None)
@given(
    gaps=st.lists(st.integers(1, 2000), min_size=1, max_size=30), offset=st.floats(-5, 5), seed=...
)
def test_every_beat_lies_in_0_to_1(gaps: list[int], offset: float, seed: int) -> None:
    peaks = np.cumsum(gaps)
    signal = np.random.default_rng(abs(seed)).standard_normal(peaks[-1] + 1) + offset
    beats = cut_beats(signal, 360, peaks / 360)
    assert beats.shape == (len(gaps) - 1, 187)
    assert beats.dtype == np.float32
    assert ((beats >= 0) & (beats <= 1)).all()
