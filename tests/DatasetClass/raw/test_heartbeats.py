"""Cutting heartbeats: where they begin and end, their periods, their range."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from DatasetClass.raw.heartbeats import Cut, cut_beats, periods, rr_intervals


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


def test_a_beat_begins_before_its_peak_by_as_much_as_asked() -> None:
    peaks = np.arange(0.08, 20, 0.8)  # on the grid of 125 Hz
    time = np.arange(20 * 360) / 360
    signal = np.exp(-(((time[:, None] - peaks) / 0.02) ** 2)).sum(axis=1)
    beats = cut_beats(signal, 360, peaks, Cut(before=0.2))
    assert (beats.argmax(axis=1) == 25).all()  # 0.2 s at 125 Hz
    assert (beats[:, 120:] == 0).all()  # as long as without: 1.2 x 0.8 s
    # The same windows, got by peaks that are 0.2 s earlier; the first begins before the record.
    np.testing.assert_array_equal(beats[1:], cut_beats(signal, 360, peaks[1:] - 0.2))
    assert (beats[0, :15] == beats[0, 15]).all()


def test_beats_scaled_by_their_record_keep_their_heights() -> None:
    time, peaks = np.arange(20 * 360) / 360, np.arange(0.8, 20, 0.8)
    heights = np.where(np.arange(len(peaks)) % 3 == 2, 2.0, 1.0)
    signal = (heights * np.exp(-(((time[:, None] - peaks) / 0.02) ** 2))).sum(axis=1)
    beats = cut_beats(signal, 360, peaks, Cut(scale="record"))
    tops = beats[:, 0] / heights[:-1]
    np.testing.assert_allclose(tops, tops[0], rtol=0.02)
    assert tops[0] == pytest.approx(1 / signal.std(), rel=0.05)  # the median is 0
    others = cut_beats(5 * signal + 7, 360, peaks, Cut(scale="record"))  # another gain and offset
    np.testing.assert_allclose(others, beats, atol=0.02)
    assert (cut_beats(0 * signal, 360, peaks, Cut(0.2, "record")) == 0).all()


def test_rr_intervals_are_those_of_a_hand_computed_record() -> None:
    # Intervals 1, 1, 0.8, 1.4 s with a mean of 1.05; the third beat's next comes early.
    values = 1.25 ** rr_intervals(np.array([5.0, 6.0, 7.0, 7.8, 9.2])).astype(float)
    previous, following, local, relative = values.T
    np.testing.assert_allclose(previous, np.array([1, 1, 1, 0.8]) / 1.05, rtol=1e-6)
    np.testing.assert_allclose(following, np.array([1, 1, 0.8, 1.4]) / 1.05, rtol=1e-6)
    np.testing.assert_allclose(local, np.array([1, 1, 1, 0.95]) / 1.05, rtol=1e-6)
    np.testing.assert_allclose(relative, [1, 1, 1, 0.8 / 0.95], rtol=1e-6)


@settings(max_examples=50, deadline=None)
@given(gaps=st.lists(st.integers(72, 1080), min_size=1, max_size=40), pace=st.floats(0.2, 5))
def test_rr_intervals_are_their_definition_at_any_heart_rate(gaps: list[int], pace: float) -> None:
    peaks = np.cumsum([100, *gaps]) / 360
    values = rr_intervals(peaks)
    assert values.shape == (len(gaps), 4) and values.dtype == np.float32
    previous = [gaps[0], *gaps[:-1]]
    for beat, row in enumerate(values):
        last_ten = previous[: beat + 1][-10:]
        local, record = sum(last_ten) / len(last_ten), sum(gaps) / len(gaps)
        ratios = previous[beat] / record, gaps[beat] / record, local / record
        expected = [math.log(ratio, 1.25) for ratio in (*ratios, previous[beat] / local)]
        np.testing.assert_allclose(row, expected, atol=1e-5)
    np.testing.assert_allclose(rr_intervals(pace * peaks), values, atol=1e-4)
