"""Pictures of the spectral density."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from loss_landscape.my_pyhessian import density_plot
from loss_landscape.my_pyhessian.spectral_density import Kernel
from loss_landscape.my_pyhessian.spectrum_file import Spectrum, write_spectrum


def test_density_integrates_to_one_and_hides_no_eigenvalue() -> None:
    nodes, weights = np.array([[-3.0, 0.0, 9.0]]), np.array([[0.1, 0.7, 0.2]])
    grid = np.linspace(-5, 11, 20_001)
    rows = density_plot.density(nodes, weights, grid, Kernel(math.inf, 0.1))
    integral = np.trapezoid if hasattr(np, "trapezoid") else np.trapz
    assert integral(rows[0], grid) == pytest.approx(1, abs=1e-6)
    assert integral(rows[0] * grid, grid) == pytest.approx(-0.3 + 1.8, abs=1e-6)
    peak = 0.2 / (0.1 * math.sqrt(2 * math.pi))
    assert rows[0][np.argmin(abs(grid - 9))] == pytest.approx(peak)


def flat(value: float) -> Spectrum:
    return Spectrum(np.full((2, 3), value), np.full((2, 3), 1 / 3), {})


def pair(low: float, high: float) -> Spectrum:
    return Spectrum(np.array([[low, high]]), np.array([[0.5, 0.5]]), {"parameters": 10})


@pytest.mark.parametrize(
    ("spectrum", "sigma"),
    [
        (pair(-1e308, 1e308), None),
        (pair(0, 1e300), None),
        (pair(0, 1), 1e-300),
        (pair(0, 1), 1e9),
        (flat(1.0), 1e200),
    ],
)
def test_what_cannot_be_drawn_is_refused(spectrum: Spectrum, sigma: float | None) -> None:
    """Kind: numbers from files and flags that overflow on the way into a picture."""
    with pytest.raises(ValueError, match=r"no smoothing with sigma"):
        density_plot.draw_density(Figure().subplots(), [spectrum], ["x"], sigma)


@pytest.mark.parametrize("value", [0.0, 1.0, -3e40, 1e-200])
def test_constant_spectra_are_drawn(value: float) -> None:
    axes = Figure().subplots()
    density_plot.draw_density(axes, [flat(value)], ["x"])
    drawn = axes.lines[0].get_ydata()
    assert not np.isinf(drawn).any() and np.isfinite(drawn).sum() > 100


def test_a_peak_narrower_than_the_grid_is_drawn() -> None:
    axes = Figure().subplots()
    density_plot.draw_density(axes, [pair(0.1234567, 1)], ["x"], sigma=1e-7)
    assert np.nanmax(axes.lines[0].get_ydata()) == pytest.approx(
        0.5 / (1e-7 * math.sqrt(2 * math.pi))
    )


@pytest.mark.parametrize("name", ["picture", "picture.", "picture.xyz"])
def test_an_output_that_names_no_picture_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    spectrum = pair(0, 1)
    spectrum.record |= {"lambda_max": 1.0, "lambda_min": 0.0, "trace": 1.0}
    write_spectrum(tmp_path / "x", spectrum)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit, match="2"):
        density_plot.main(["--spectrum", str(tmp_path / "x"), "--output", str(tmp_path / name)])
    assert "no picture's name" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before
