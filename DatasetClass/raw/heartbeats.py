"""Cut heartbeats out of signals as Kachuee et al. 2018 (arXiv:1805.00794, section III) do.

The paper splits a record, one lead at 125 Hz, into windows of 10 s, scales to 0 to 1, finds the R
peaks, takes the median R-R interval of a window as its period T, cuts 1.2 T from each R peak on
and pads with zeros. Here it is the same with two differences. The R peaks are the annotated ones:
the paper's rule (local maxima above 0.9 of the window's range) misses beats, and its authors' set
has one for nearly every annotation. The scale is each beat's own minimum and maximum, not the
window's: so it is in the files that the authors published, where every row reaches 1.

A beat's R-R interval is the one to the next beat, so the last beat of a record has none and is
left out. That leaves N 90,589, S 2,779, V 7,236, F 803, Q 8,039, to the beat the counts of the
published set; with the last beats they would be 42 N, 2 S and 4 Q more.

The published values aren't reproduced sample by sample: the paper names no filter for the
resampling (here scipy's polyphase filter), and its windows may start elsewhere.

A beat cut so says nothing on whether it came early, which is what a supraventricular beat is known
by. It begins after the P wave, which such a beat may lack, and has lost its height, which sets a
ventricular beat apart. ``rr_intervals`` and another ``Cut`` give all three.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

LENGTH = 187  # samples a beat
RATE = 125  # Hz, of the beats
WINDOW = 10  # seconds over which the R-R interval is taken
CLASSES = ("N", "S", "V", "F", "Q")
RR_INTERVALS = 4  # numbers that ``rr_intervals`` gives of a beat
LOCAL = 10  # R-R intervals of the local mean
EARLY = 1.25  # base of the logarithms: a beat that comes a fifth early has -1
SCALES = ("beat", "record")
Beats = tuple[np.ndarray, np.ndarray]  # (beats, 187) float32, (beats,) int64


class Cut(NamedTuple):
    """How beats are cut; the default is that of the published set.

    Attributes:
        before: the R peak a beat begins, in seconds.
        scale: "beat": from its own minimum, 0, to its maximum, 1. "record": in standard deviations
            of the whole record from its median, so that a record's beats keep their heights.
    """

    before: float = 0.0
    scale: str = "beat"

    @property
    def samples(self) -> int:
        """``before`` in samples at 125 Hz."""
        return round(self.before * RATE)


KACHUEE = Cut()


def cut_beats(signal: np.ndarray, rate: int, peaks: np.ndarray, cut: Cut = KACHUEE) -> np.ndarray:
    """Cut and normalise all beats but the last, which has no R-R interval.

    Args:
        signal: (samples,), one lead.
        rate: of the signal, in Hz.
        peaks: (beats,), times of the R peaks in seconds, rising.
        cut: where beats begin, and their scale; the record's first sample stands for what lies
            before it.

    Returns:
        (beats - 1, 187) float32 at 125 Hz, padded with 0; a beat of constant signal is all 0.
    """
    from scipy.signal import resample_poly

    # "line" takes the offset away first, which would ring at the ends.
    resampled = resample_poly(signal, RATE, rate, padtype="line")
    if cut.scale == "record":
        deviation = resampled.std()
        resampled = (resampled - np.median(resampled)) / (deviation if deviation else 1.0)
    resampled = np.pad(resampled, (cut.samples, 0), mode="edge")
    starts = np.round(peaks[:-1] * RATE).astype(int)
    lengths = np.round(1.2 * RATE * periods(peaks)).astype(int).clip(2, LENGTH)
    beats = np.zeros((len(starts), LENGTH), dtype=np.float32)
    for beat, start, length in zip(beats, starts, lengths, strict=True):
        piece = resampled[start : start + length]
        if cut.scale == "beat":
            height = np.ptp(piece)
            piece = (piece - piece.min()) / height if height else 0.0 * piece
        beat[: len(piece)] = piece
    return beats


def periods(peaks: np.ndarray) -> np.ndarray:
    """Median R-R interval of the window that each peak but the last lies in, in seconds.

    Args:
        peaks: (beats,), times of the R peaks in seconds, rising.

    Returns:
        (beats - 1,), over windows of 10 s from the record's start on.
    """
    intervals = np.diff(peaks)
    windows = (peaks[:-1] // WINDOW).astype(int)
    medians = {window: np.median(intervals[windows == window]) for window in np.unique(windows)}
    return np.array([medians[window] for window in windows])


def rr_intervals(peaks: np.ndarray) -> np.ndarray:
    """What de Chazal et al. 2004 take of the R-R intervals, free of the patient's heart rate.

    They take four intervals: the previous one, the next one, a local mean and the record's mean.
    Here three stand relative to the last and the previous one relative to the local mean too. The
    local mean is that of the last ten, where theirs is centred. Like theirs the record's mean is
    over all of it, and so looks ahead: this is for records that are whole.

    Args:
        peaks: (beats,), times of the R peaks in seconds, rising.

    Returns:
        (beats - 1, 4) float32, logarithms to the base 1.25 of previous / record, next / record,
        local / record and previous / local. The first beat's next interval stands for the
        previous one, which it lacks; the local mean of the first ten is over those that there are.
    """
    following = np.diff(peaks)
    previous = np.concatenate([following[:1], following[:-1]])
    sums = np.cumsum(np.concatenate([np.zeros(LOCAL), previous]))
    # The sum of the last ten, of which the first beats have fewer.
    counts = np.arange(1, len(previous) + 1).clip(max=LOCAL)
    local = (sums[LOCAL:] - sums[:-LOCAL]) / counts
    record = following.mean()
    ratios = [previous / record, following / record, local / record, previous / local]
    return (np.log(np.stack(ratios, axis=1)) / np.log(EARLY)).astype(np.float32)
