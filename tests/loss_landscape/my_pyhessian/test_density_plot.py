"""Pictures of the spectral density."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from loss_landscape.my_pyhessian import density_plot
from loss_landscape.my_pyhessian.spectral_density import Kernel, band, choose_kernel
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


# --- several spectra ------------------------------------------------------------------------------
def taken(optimizer: str, **flags: object) -> Spectrum:
    rng = np.random.default_rng(len(optimizer))
    nodes = np.sort(rng.normal(size=(4, 6)) ** 3)
    record = {"parameters": 50, "optimizer": optimizer, "dataset": "MUTAG", "arguments": flags}
    record |= {"lambda_max": 1.0, "lambda_min": 0.0, "trace": 1.0, "title": f"GCN, {optimizer}"}
    layer = {"parameters": 5, "lambda_max": 1.0, "residual": 0.1, "trace": 2.0}
    record["per_layer"] = [
        {"layer": f"conv{i}", "trace_standard_error": None if i else 0.2, **layer} for i in range(3)
    ]
    return Spectrum(nodes, np.full((4, 6), 1 / 6), record)


@pytest.mark.parametrize(
    "flags",
    [
        {"samples": 100},
        {"split": "test"},
        {"matrix": "ggn"},
        {"layers": ["classifier"]},
        {"loss_name": "crossentropy"},
    ],
)
def test_spectra_that_were_taken_otherwise_are_not_drawn_together(
    flags: dict, tmp_path: Path
) -> None:
    write_spectrum(tmp_path / "a", taken("SAM"))
    write_spectrum(tmp_path / "b", taken("SGD", **flags))
    argv = ["--spectrum", str(tmp_path / "a"), str(tmp_path / "b"), "--output"]
    with pytest.raises(ValueError, match=rf"b: differs from .*a in --{next(iter(flags))} "):
        density_plot.main([*argv, str(tmp_path / "x.png")])
    assert not (tmp_path / "x.png").exists()
    other = taken("SGD")
    other.record["dataset"] = "PROTEINS"
    with pytest.raises(ValueError, match=r"--dataset \(PROTEINS, not MUTAG\)"):
        density_plot.refuse_different(["a", "b"], [taken("SAM"), other])
    del other.record["dataset"]  # an older file
    density_plot.refuse_different(["a", "b"], [taken("SAM"), other])


def test_one_optimizer_has_one_colour_and_each_run_its_style() -> None:
    found = density_plot.styles([taken(name) for name in ("SAM", "SGD", "SAM", "ADAM")])
    colours = [look["color"] for look in found]
    assert colours[0] == colours[2] and len(set(colours)) == 3
    assert [look["linestyle"] for look in found] == ["-", "-", "--", "-"]


def test_layers_and_densities_of_several_spectra_are_drawn(tmp_path: Path, capsys) -> None:
    stems = [str(tmp_path / name) for name in ("SAM", "SGD")]
    for stem in stems:
        write_spectrum(Path(stem), taken(Path(stem).name))
    for flags in ([], ["--per_layer"], ["--sigma", "0.1"]):
        output = tmp_path / "both.png"
        density_plot.main(["--spectrum", *stems, *flags, "--output", str(output)])
        assert output.is_file()
    assert "smoothed with sigma = " in capsys.readouterr().out
    path = density_plot.main(["--spectrum", stems[0], "--per_layer", "--out_dir", str(tmp_path)])
    assert path == tmp_path / "plots" / "eig_SAM_layers.png" and path.is_file()
    bare = taken("SAM")
    bare.record["per_layer"] = []
    with pytest.raises(ValueError, match=r"has no layers; hessian\.py --per_layer"):
        density_plot.draw_layers(Figure(), [bare], ["x"])


def test_a_layers_bar_has_its_error_over_samples_where_all_have_one() -> None:
    """Files of older versions have residuals alone, and then those stand for all."""
    old, new = taken("SAM"), taken("SGD")
    for row in new.record["per_layer"]:
        row["standard_error"] = 0.3
    for spectra, half, said in (([new], 0.3, "standard error"), ([old, new], 0.1, "residual")):
        figure = Figure(layout="constrained")
        density_plot.draw_layers(figure, spectra, ["x"] * len(spectra))
        assert f"(± {said}" in figure.axes[0].get_xlabel()
        ends = np.concatenate([c.get_segments() for c in figure.axes[0].collections])[..., 0]
        np.testing.assert_allclose(np.ptp(ends, axis=1), 2 * half)


def test_bars_of_most_layers_are_seen_beside_the_largest() -> None:
    """Kind: a layer a hundred times as sharp as the others, beside which their bars vanish."""
    for largest, scale in ((100.0, "asinh"), (5.0, "linear")):
        spectrum = taken("SAM")
        rows = [{**spectrum.record["per_layer"][0], "layer": f"{i}"} for i in range(4)]
        for row, value in zip(rows, (0.5, 1.0, 2.0, largest), strict=True):
            row |= {"lambda_max": value, "trace": -value, "trace_standard_error": 0.1}
        spectrum.record["per_layer"] = rows
        figure = Figure(layout="constrained")
        density_plot.draw_layers(figure, [spectrum, spectrum], ["one", "two"])
        for axes in figure.axes:
            assert axes.get_xscale() == scale
            low, high = axes.get_xlim()
            widths = [bar.get_width() for bar in axes.patches]
            assert low <= min(0, *widths) and max(0, *widths) <= high
            place = axes.transAxes.inverted().transform(
                axes.transData.transform([(w, 0) for w in (0, *widths[:3])])
            )[:, 0]
            shown = np.abs(np.diff(place[[0, 2]]))  # the bar of the second layer
            assert shown > 0.1
            ticks = sum(low <= tick <= high for tick in axes.get_xticks())
            assert scale == "linear" or ticks >= density_plot.FEWEST_TICKS
            labels = [label.get_text() for label in axes.get_xticklabels()]
            assert scale == "linear" or [float(x) for x in labels] == pytest.approx(
                axes.get_xticks()
            )
        assert figure.axes[0].get_ylabel() == "layer (its parameters)"


@pytest.mark.parametrize("linear", [0.0013, 1.3, 700.0])
def test_each_side_of_a_density_has_a_number(linear: float) -> None:
    """Kind: eigenvalues to 1,000 on one side and to 8 on the other."""
    for low, high in ((-6 * linear, 1000 * linear), (-1000 * linear, 6 * linear)):
        ticks = density_plot.ticks_of(Kernel(linear, 0.1), low, high)
        assert (ticks < 0).any() and (ticks > 0).any() and 0 in ticks
        assert (np.diff(ticks) > 0).all() and low <= ticks[0] and ticks[-1] <= high
    one_sided = density_plot.ticks_of(Kernel(linear, 0.1), -linear, 1000 * linear)
    assert (one_sided >= 0).all()


# --- the kernel and the band ----------------------------------------------------------------------
@pytest.mark.parametrize("linear", [0.01, 1.0, math.inf])
def test_the_chosen_kernel_keeps_the_mass(linear: float) -> None:
    nodes, weights = np.array([[-3.0, 0.0, 0.02, 9.0]]), np.array([[0.1, 0.5, 0.2, 0.2]])
    kernel = Kernel(linear, 0.1)
    grid = kernel.value(np.linspace(*(kernel.place(np.array([-9.0, 30.0]))), 40_001))
    (row,) = density_plot.density(nodes, weights, grid, kernel)
    assert ((row[1:] + row[:-1]) / 2) @ np.diff(grid) == pytest.approx(1, abs=1e-4)


def test_the_kernel_follows_the_bulk_and_its_outliers() -> None:
    bulk = np.random.default_rng(0).normal(0, 0.01, 1000)
    nodes = np.append(bulk, [5.0, 10.0])[None]
    kernel = choose_kernel([nodes], [np.full(nodes.shape, 1 / nodes.size)])
    assert kernel.linear == pytest.approx(np.quantile(np.abs(bulk), 0.9), rel=0.05)
    assert str(kernel) in density_plot.described([Spectrum(nodes, nodes, {})], kernel)


def test_a_band_holds_the_expectation_in_95_of_100_cases() -> None:
    rows = np.random.default_rng(1).gamma(20, size=(500, 6, 1))
    held = [b.lower[0] <= 20 <= b.upper[0] for b in map(band, rows)]
    assert 0.93 <= np.mean(held) <= 0.97


def test_pyhessians_picture_has_its_name(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    density_plot.get_esd_plot([[0.0, 1.0]], [[0.5, 0.5]])
    assert (tmp_path / "example.pdf").is_file()
