"""The interactive page: it turns, tells values, asks nobody, and takes names for text."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest

from loss_landscape import compare
from loss_landscape.my_pyhessian.spectrum_file import Spectrum
from loss_landscape.pictures.page import page
from loss_landscape.pictures.page_figures import layers_figure, spectra_figure, surface_figure
from loss_landscape.pictures.scale import make_scale
from loss_landscape.pictures.sharpness_table import sharpness_table
from loss_landscape.surface_file import Surface

OLD = Path(__file__).parents[2] / "old_files"
EVIL = [
    "</script><script>window.taken = 1</script>",
    '<img src=x onerror="window.taken = 2"> & <b>bold</b>\nnext line ' + "x" * 300,
]
X, Y = np.linspace(-1, 1, 7), np.linspace(-0.5, 1, 5)
SURFACES = [
    Surface(X, Y, {"train_loss": k + X**2 + 2 * Y[:, None] ** 2, "train_acc": 90 - 9 * k - 0 * X})
    for k in (1, 2)
]
for surface in SURFACES:
    surface.values["train_acc"] = np.broadcast_to(surface.values["train_acc"], surface.shape)


def make_page() -> str:
    """A page of surfaces with the names of ``EVIL``."""
    scale = make_scale([s.values["train_loss"] for s in SURFACES])
    figures = [surface_figure(s, "train_loss", scale, "training loss") for s in SURFACES]
    rng = np.random.default_rng(0)
    weights = np.full((2, 4), 0.25)
    layer = {"layer": EVIL[1], "parameters": 2, "lambda_max": 1.0, "residual": 0.1}
    record = {"per_layer": [{**layer, "trace": 3.0, "trace_standard_error": None}]}
    record["parameters"] = 9
    spectra = [Spectrum(rng.normal(size=(2, 4)), weights, record) for _ in EVIL]
    named = list(zip(EVIL, figures, strict=True))
    rows = [["minimum", "number"], *([name, "1 ± 2"] for name in EVIL)]
    layers = layers_figure(spectra, EVIL)
    measures = sharpness_table([sharpness_of(1.25), sharpness_of(2.5)], EVIL)
    return page(
        EVIL[0], named, spectra_figure(spectra, EVIL), rows, EVIL[1], layers, sharpness=measures
    )


def sharpness_of(value: float) -> dict[str, Any]:
    """A record of sharpness, with markup where a file may have some."""
    found = {"value": value, "standard_error": 0.25, "bound": None, "error_of": EVIL[1]}
    bounded = {**found, "standard_error": None, "bound": 0.5, "remark": f"'{EVIL[0]}'"}
    nothing = {**found, "value": None, "standard_error": None, "remark": "no fifth eigenvalue"}
    measures = {"trace": found, "lambda_max": bounded, "lambda_max_over_lambda_5": nothing}
    return {
        "measures": measures,
        "arguments": {"split": EVIL[0], "rho": 0.05},
        "bn": "batch, batches of 8",
        "samples": 24,
    }


def test_interpolated_values_say_so_under_the_mouse() -> None:
    guessed = np.zeros(SURFACES[0].shape, dtype=bool)
    guessed[1, 2] = True
    surface = Surface(X, Y, SURFACES[0].values, interpolated=guessed, deviation=(0.0, 0.0))
    scale = make_scale([surface.values["train_loss"]])
    cells = surface_figure(surface, "train_loss", scale, "loss").data[0].customdata
    said = [[bool(cell[2]) for cell in column] for column in cells]
    np.testing.assert_array_equal(said, guessed.T)


def test_names_are_text_and_nothing_is_loaded() -> None:
    text = make_page()
    own = re.sub(r"<script>/\*\*.*?</script>", "", text, flags=re.DOTALL)  # without plotly's own
    assert "window.taken = 1</script>" not in own and "<img" not in own and "<b>" not in own
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)=", own)
    assert "default-src 'none'" in own


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    """The page in a browser, drawn."""
    if browser.find() is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    folder = tmp_path_factory.mktemp("page")
    path = folder / "page.html"
    path.write_text(make_page(), encoding="utf-8")
    with browser.opened(folder / "profile") as chromium:
        chromium.call("Page.navigate", url=path.as_uri())
        chromium.wait(
            "window.Plotly && document.querySelectorAll('.gl-container canvas').length >= 2"
        )
        chromium.wait("document.querySelectorAll('#spectra .scatterlayer path').length >= 2")
        yield chromium


def middle(chromium: browser.Browser, name: str) -> tuple[float, float]:
    """The middle of a figure's drawing in 3D, in the window's pixels."""
    chromium.run(f"document.getElementById('{name}').scrollIntoView({{block: 'center'}})")
    box = f"document.querySelector('#{name} canvas').getBoundingClientRect()"
    x, y, width, height = chromium.run(f"(b => [b.x, b.y, b.width, b.height])({box})")
    return x + 0.5 * width, y + 0.55 * height


def eye(chromium: browser.Browser, name: str) -> np.ndarray:
    """From where a surface is seen."""
    camera = f"document.getElementById('{name}')._fullLayout.scene._scene.getCamera()"
    seen = chromium.run(f"(c => [c.eye.x, c.eye.y, c.eye.z])({camera})")
    return np.array(seen)


def test_a_value_is_read_under_the_mouse(opened: browser.Browser) -> None:
    """What the page says at a point is what the file has there.

    Plotly takes the numbers beside a surface by column and row, so that other points' were shown.
    """
    graph = "document.getElementById('surface1')"
    keep = "window.found = [e.points[0].x, e.points[0].y]"
    opened.run(f"{graph}.on('plotly_hover', e => {{{keep}}}) && 1")
    x, y = middle(opened, "surface1")
    for step in range(200):  # it looks under the mouse when it draws, which may take a second
        opened.mouse("mouseMoved", x + step % 16, y + step // 16)
        if opened.run("!!window.found"):
            break
        time.sleep(0.2)
    at_x, at_y = opened.wait("window.found")
    text = opened.wait("document.querySelector('#surface1 .hovertext')?.textContent")
    row, column = np.abs(Y - at_y).argmin(), np.abs(X - at_x).argmin()
    assert (X[column], Y[row]) == pytest.approx((at_x, at_y))
    value = SURFACES[1].values["train_loss"][row, column]
    said = re.search(r"training loss ([\d.]+?)accuracy 72 %", text)
    assert said is not None and float(said[1]) == pytest.approx(value, rel=1e-5), text


def test_turning_one_surface_turns_all(opened: browser.Browser) -> None:
    before = eye(opened, "surface0")
    np.testing.assert_allclose(eye(opened, "surface1"), before)
    x, y = middle(opened, "surface0")
    opened.mouse("mousePressed", x, y, pressed=True)
    for step in (40, 80, 120):
        opened.mouse("mouseMoved", x + step, y + step / 3, pressed=True)
    opened.mouse("mouseReleased", x + 120, y + 40, pressed=True)
    opened.wait("!!document.getElementById('surface1').layout.scene?.camera?.up && !turning")
    after = eye(opened, "surface0")
    assert np.linalg.norm(after - before) > 0.2
    np.testing.assert_allclose(eye(opened, "surface1"), after, atol=1e-6)


def test_sharpness_is_shown_with_errors_units_and_definitions(opened: browser.Browser) -> None:
    """Under the mouse a value says what its error is of; markup from the file is text there too."""
    cells = "[...document.querySelectorAll('.sharpness tr')].map(r => [...r.children]"
    shown = opened.run(f"{cells}.map(c => c.textContent))")
    assert shown[0] == ["measure", *EVIL, "unit", "definition"]
    assert shown[1:] == [
        [
            *("lambda_max", "1.25 (within 0.5)", "2.5 (within 0.5)"),
            *("loss / w²", "largest eigenvalue of H"),
        ],
        [
            *("lambda_max_over_lambda_5", "-", "-"),
            *("1", "largest eigenvalue of H over the fifth largest"),
        ],
        ["trace", "1.25 ± 0.25", "2.5 ± 0.25", "loss / w²", "sum of H's eigenvalues"],
    ]
    hover = opened.run(f"{cells}.map(c => c.title))")
    off = "bound: of these samples it is off by 0.5 at most"
    assert hover[1][1] == f"'{EVIL[0]}'; {off}"
    assert hover[2][2] == "no fifth eigenvalue"
    assert hover[3][1] == f"standard error over {EVIL[1]}"
    caption = opened.run("document.querySelector('.sharpness caption').textContent")
    assert f"24 samples of {EVIL[0]}" in caption and "rho 0.05" in caption
    assert "batch norm: batch, batches of 8" in caption


def test_names_are_shown_as_they_are_and_nobody_is_asked(opened: browser.Browser) -> None:
    """The kind: names of files and titles with markup, quotes, line ends and length."""
    shown = opened.run("[...document.querySelectorAll('figcaption')].map(e => e.textContent)")
    assert shown == EVIL
    assert (
        opened.run(
            "[...document.querySelectorAll('.minima td:first-child')].map(e => e.textContent)"
        )
        == EVIL
    )
    legend = opened.run(
        "[...document.querySelectorAll('#spectra .legendtext')].map(e => e.textContent)"
    )
    assert legend[0] == EVIL[0]
    assert opened.run("typeof window.taken") == "undefined"
    assert opened.run("document.querySelectorAll('img').length") == 0
    # A name as long as a path widens nothing beyond the window.
    assert opened.run("document.documentElement.scrollWidth <= window.innerWidth")
    assert {url.split(":")[0] for url in opened.requests()} <= {"file", "data", "blob", "about"}
    assert opened.complaints() == []


def test_compare_writes_a_page_beside_the_picture(tmp_path: Path, run_here) -> None:
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    model = tmp_path / "to_plot" / "model_GCN_SAM_rho0.05.pt"
    output = tmp_path / "a.html"
    flags = ["--model_files", model, model, "--out_dir", tmp_path, "--output", tmp_path / "a.png"]
    result = run_here(compare.main, *flags, "--html", output)
    assert result.returncode == 0, result.stderr
    assert "a.html" in result.stdout and "a.png" in result.stdout
    text = output.read_text("utf-8")
    assert text.count("<figcaption>") == 2 and 'id="spectra"' in text
    assert (
        f"<td>{compare.read_minimum(model, model.with_suffix('.h5'), tmp_path).label}</td>" in text
    )
    result = run_here(compare.main, *flags, "--html", tmp_path / "a.png")
    assert result.returncode == 2 and "no page's name; end it in .html" in result.stderr
