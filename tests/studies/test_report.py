"""A report from a table of runs and their files: its numbers, sentences, pictures and page."""

from __future__ import annotations

import os
import re
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import browser
import h5py
import numpy as np
import pytest
from conftest import Run
from histories import run_rows
from histories import write as write_history
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image
from real_study import files_of, report_of, run_main, words
from study_runs import rows, write

from loss_landscape import compare, plot_surface
from loss_landscape.my_pyhessian.spectrum_file import Spectrum
from loss_landscape.sharpness_measures.epoch_sharpness import EdgeRead
from studies import report, report_pictures
from studies.beside import beside
from studies.comparisons import Results
from studies.minima_files import (
    AlongTraining,
    MinimaFiles,
    said_of_edges,
    said_of_lacking,
    said_of_none,
)
from studies.plot_history import read_curves
from studies.report_page import page
from studies.report_text import Analysis
from studies.runs_file import read_runs
from studies.table import ALONG, Measures, read_study
from utilities import checkpoint
from utilities.pictures import SMALL_DPI, files_of_png, line_style, small_png


# --- files ----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of numbers alone."""
    folder = tmp_path_factory.mktemp("study")
    write(folder, rows())
    return folder


@pytest.fixture(scope="module")
def reported(study: Path) -> Path:
    """Its report's folder."""
    output = study / "report"
    report.main(words(study, output))
    return output


def test_names_from_files_are_text_and_break_no_table(reported: Path) -> None:
    markdown = (reported / "report.md").read_text("utf-8")
    for lines in re.findall(r"(?:^\|.*\n)+", markdown, flags=re.MULTILINE):
        bars = [len(re.findall(r"(?<!\\)\|", line)) for line in lines.splitlines()]
        assert len(set(bars)) == 1, lines
    shown = (reported / "report.html").read_text("utf-8")
    assert "<i>" not in shown and "A | B &lt;i&gt;" in shown
    assert "default-src 'none'" in shown
    assert not re.search(r"(src|href)=\"(?!data:image/png;base64,)", shown)


def test_files_are_small_and_no_others_are_there(reported: Path) -> None:
    markdown = (reported / "report.md").read_text("utf-8")
    pictures = set(re.findall(r"\]\(([^)]+)\)", markdown))
    assert pictures | {"report.md", "report.html", "runs.csv"} == set(os.listdir(reported))
    assert {"MUTAG_differences.png", "MUTAG_minima.png"} < pictures
    assert all((reported / name).stat().st_size < 150_000 for name in pictures)
    assert "36 of 36 planned runs are in this report" in markdown


def test_a_report_again_is_the_same_and_takes_old_pictures_away(
    study: Path, reported: Path, tmp_path: Path
) -> None:
    before = {path.name: path.read_bytes() for path in reported.iterdir()}
    output = tmp_path / "again"
    output.mkdir()
    (output / "report.md").write_text("![x](gone.png)\n")
    for name in ("gone.png", "mine.png"):
        (output / name).write_bytes(b"PNG")
    with pytest.raises(ValueError, match=r"1 of its pictures would be lost, such as gone\.png"):
        report.main(words(study, output))
    assert sorted(os.listdir(output)) == ["gone.png", "mine.png", "report.md"]
    report.main([*words(study, output), "--fewer_runs"])
    after = {path.name: path.read_bytes() for path in output.iterdir()}
    assert after.pop("mine.png") == b"PNG" and after == before


@pytest.mark.parametrize("damage", ["cut", "nan", "no table", "no runs"])
def test_bad_input_is_one_line_code_2_and_leaves_the_report(
    tmp_path: Path, run_here: Run, damage: str
) -> None:
    table, output = write(tmp_path, rows(["MUTAG"])), tmp_path / "out"
    output.mkdir()
    (output / "report.md").write_text("old")
    path = tmp_path / "runs.csv"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "nan":
        path.write_text(path.read_text().replace(",74.", ",nan", 1).replace(",80.0", ",nan", 1))
    elif damage == "no runs":
        path.unlink()
    else:
        table.write_text("task = 1")
    done = run_here(report.main, *words(tmp_path, output))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert os.listdir(output) == ["report.md"] and (output / "report.md").read_text() == "old"


def test_the_files_of_real_runs_are_drawn_and_named(real: Path, tmp_path: Path) -> None:
    text = report_of(real, tmp_path)
    for kind in ("curves", "surfaces", "spectra", "along_training", "beside"):
        assert f"![MUTAG: {kind}](MUTAG_{kind}.png)" in text
        assert Image.open(tmp_path / f"MUTAG_{kind}.png").size[0] > 500
    for name in (
        *(
            "my_train_GCN_ADAM_0.0_TINY_fold0_seed1.dat",
            "my_train_GCN_SAM_0.05_TINY_fold0_seed1.dat",
        ),
        *("model_GCN_ADAM_rho0.0_TINY_fold0_seed1.h5", "model_GCN_SAM_rho0.05_TINY_fold0_seed1.h5"),
        *("GCN_ADAM_seed1_TINY_fold0.json", "GCN_SAM_seed1_TINY_fold0.json"),
        "GCN_SAM_seed1_TINY_fold0_sharpness_epochs.json",
    ):
        assert f"`{name}`" in text
    assert "Two minima as `compare.py` shows them, seed 1, fold 0" in text
    assert "A test set has 4 samples, so that one of them is worth 25 points" in text
    assert re.search(r"^\| torch \| \d", text, flags=re.MULTILINE)
    assert "Files that were left out" not in text


def test_two_minima_are_beside_each_other_as_compare_draws_them(
    real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is shown is what its command line shows."""
    drawn: list[Figure] = []
    whole = compare.draw
    monkeypatch.setattr(compare, "draw", lambda *args: drawn.append(whole(*args)) or drawn[-1])
    made = beside(files_of(real), "MUTAG", ("ADAM", "SAM"))
    assert made is not None and (made.which, made.runs) == ("seed 1, fold 0", [1, 1])
    files = [str(next((real / "to_plot").glob(f"*_{o}_*_seed1.pt"))) for o in ("ADAM", "SAM")]
    flags = ["--model_files", *files, "--along", "--repetitions", *files, f"--out_dir={real}"]
    compare.main([*flags, f"--output={tmp_path / 'both.png'}"])
    ours, theirs = (list(map(shown, figure.axes)) for figure in drawn)
    assert len(ours) == 2 * 2 + 1 + 3  # surfaces, their scale, and what is below
    assert ours == theirs


def shown(ax: Axes) -> tuple[str, list[bytes], int]:
    """What a panel shows: its title, its lines, and how many areas and marks."""
    return ax.get_title(), [line.get_xydata().tobytes() for line in ax.lines], len(ax.collections)


def test_files_of_other_checkpoints_are_left_out_and_named(real: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(real, folder)
    best = next((folder / "to_plot").glob("model_GCN_SAM_*_seed1.pt"))
    surface = best.with_suffix(".h5")
    with h5py.File(surface, "r+") as file:
        file.attrs["checkpoint_sha256"] = "0" * 64
    kept = best.with_name(f"{best.stem}_epoch1.pt")
    kept.write_bytes(kept.read_bytes()[:-1])
    text = report_of(folder, tmp_path / "one")
    assert "GCN_SAM_seed1_TINY_fold0_sharpness_epochs.json is of another" in text
    assert f"{surface.name} is of another checkpoint than the one that is there" in text
    assert "`model_GCN_ADAM_rho0.0_TINY_fold0_seed1.h5`" in text and f"`{surface.name}`" not in text
    best.write_bytes(best.read_bytes()[:-1])
    files = files_of(folder)
    assert list(files.spectra("MUTAG")) == ["ADAM"]
    assert files.notes == [f"to_plot/{best.name} has changed since the table of runs was written"]


@pytest.mark.parametrize(
    ("keep_epochs", "said"),
    [
        (1, "{}: not measured at epochs 3, 4, 5, 6, 7 and 3 more, as the table asks."),
        (6, "{}: not measured at epochs 6, as the table asks."),
        (11, ""),
    ],
)
def test_epochs_that_the_table_asks_for_and_a_file_lacks_are_said(
    real: Path, tmp_path: Path, keep_epochs: int, said: str
) -> None:
    """The made rows have 10 epochs, of which the real trainings kept 0 to 2."""
    shutil.copy(real / "runs.csv", tmp_path)
    table = (real / "small.toml").read_text()
    table += f"[measures.along_training]\nkeep_epochs = {keep_epochs}\n"
    (tmp_path / "small.toml").write_text(table)
    results = Results(read_study(tmp_path / "small.toml"), read_runs(tmp_path / "runs.csv"))
    found = MinimaFiles(results, real).along_training("MUTAG")
    assert list(found) == ["ADAM", "SAM"] and list(found["SAM"].values) == [0, 1, 2]
    assert said_of_lacking(found) == " ".join(said.format(name) for name in found).strip()


def test_a_training_run_once_more_that_ended_otherwise_is_left_out(
    real: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(real, folder)
    best = next((folder / "to_plot").glob("model_GCN_SAM_*_seed1.pt"))
    again = folder / "kept_epochs" / "to_plot" / best.name
    again.parent.mkdir(parents=True)
    shutil.copy(best, again)
    assert list(files_of(folder).along_training("MUTAG")) == ["ADAM", "SAM"]
    content = checkpoint.load(best)
    content["state_dict"]["classifier.bias"] += 1
    checkpoint.save(again, content)
    files = files_of(folder)
    assert list(files.along_training("MUTAG")) == ["ADAM"]
    (note,) = files.notes
    assert note.startswith(f"{again.relative_to(folder)}, run once more to keep epochs, has other")
    made = beside(files, "MUTAG", ("ADAM", "SAM"))
    assert made is not None and set(files.notes) == {note}
    assert "Sharpness along the training" not in [ax.get_title() for ax in made.figure.axes]


def test_a_picture_names_the_optimizers_that_it_lacks(study: Path) -> None:
    asked = Measures("spectrum", {}, (1,), (0,), ("ADAM", "SAM"), ("MUTAG",))
    table = replace(read_study(study / "small.toml"), measures=(asked,))
    assert said_of_none(table, "MUTAG", "spectrum", ["ADAM"]) == (
        "Not there, though the table asks for it: SAM."
    )
    assert said_of_none(table, "MUTAG", "spectrum", ["ADAM", "SAM", "ASAM"]) == ""
    assert said_of_none(table, "MUTAG", "surface", []) == ""
    assert said_of_none(table, "A | B <i>", "spectrum", []) == ""


def test_captions_say_what_their_pictures_lack(real: Path) -> None:
    files = files_of(real)
    shown, asked = files.results.study, ("ADAM", "SAM", "ADAM, twice the epochs")
    kinds = ("surface", "spectrum", ALONG)
    table = replace(
        shown, measures=tuple(Measures(k, {}, (1,), (0,), asked, ("MUTAG",)) for k in kinds)
    )
    made = report.Report(table, Analysis(files.results), files).markdown
    said = "Not there, though the table asks for it: ADAM, twice the epochs. Runs: `"
    assert made.count(said) == len(kinds)


def test_a_study_whose_base_is_sam_puts_it_beside_nothing(real: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(real, folder)
    table = folder / "small.toml"
    table.write_text(table.read_text().replace('base = "ADAM"', 'base = "SAM"'))
    text = report_of(folder, tmp_path / "out")
    assert "SAM beside SAM" not in text and "Files that were left out" not in text


def test_edges_of_stability_are_drawn_where_they_are_near() -> None:
    near = EdgeRead("2 / lr", (), {0: 9.0, 1: 5.0})
    far = EdgeRead("2 / lr", ("batches of 1",), {0: 90.0, 1: 80.0})
    runs = {"SGD": AlongTraining({0: 1.0, 1: 4.0}, near), "SAM": AlongTraining({1: 3.0}, far)}
    ax = report_pictures.draw_along_training(runs, {"SGD": 0, "SAM": 1}).axes[0]
    found = {line.get_label(): list(line.get_ydata()) for line in ax.lines}
    assert found == {
        **{"SGD": [1.0, 4.0], "edge of stability, SGD": [9.0, 5.0], "SAM": [3.0]},
        "edge of stability, SAM: 80 and more, above the picture": [],
    }
    assert said_of_edges(runs).endswith("SAM: batches of 1.")
    alone = {"SAM": AlongTraining({0: 1.0}, EdgeRead("", ("none is known",), {}))}
    assert said_of_edges(alone) == "SAM: none is known."


def test_surfaces_taken_in_other_ways_are_no_picture(
    real: Path, data_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(real, folder)
    best = next((folder / "to_plot").glob("model_GCN_SAM_*_seed1.pt"))
    best.with_suffix(".h5").unlink()
    common = [f"--data_dir={data_dir}", f"--out_dir={folder}", "--threads=1"]
    run_main(plot_surface.main, [f"--model_file={best}", "--x=-1:1:3", "--y=-2:2:3", *common])
    text = report_of(folder, tmp_path / "out")
    assert "no picture of surfaces of MUTAG" in text and "differs from" in text
    assert "MUTAG_surfaces.png" not in text and "MUTAG_spectra.png" in text
    assert "no picture of ADAM beside SAM on MUTAG" in text and "MUTAG_beside.png" not in text


def test_curves_keep_their_optimizers_colour(tmp_path: Path) -> None:
    path = write_history(tmp_path / "a.dat", run_rows(0), seed=0)
    (curve,) = read_curves([path], ["seed"])
    curve.number = 4
    figure = report_pictures.draw_histories([curve], False, "inter_patient")
    assert figure.axes[0].lines[0].get_color() == line_style(4)["color"]
    assert figure.get_suptitle() == "inter_patient"


@pytest.mark.parametrize(("folds", "count", "bands"), [(False, 2, 1), (True, 2, 0), (False, 5, 0)])
def test_bands_are_drawn_where_they_are_right_and_few(
    folds: bool, count: int, bands: int, tmp_path: Path
) -> None:
    curves = []
    for number in range(count):
        paths = [tmp_path / f"{number}{seed}.dat" for seed in (0, 1)]
        for seed, path in enumerate(paths):
            write_history(path, run_rows(seed), seed=seed, rho=number)
        curves += read_curves(paths, ["seed"])
    figure = report_pictures.draw_histories(curves, folds, "CIFAR-10")
    assert len(figure.axes[0].collections) == bands * count
    assert ("band" in figure.legends[0].get_title().get_text()) == bool(bands)


def test_spectra_have_their_optimizers_colours() -> None:
    rng = np.random.default_rng(0)
    spectra = {
        name: Spectrum(rng.normal(size=(2, 4)), np.full((2, 4), 0.25), {"optimizer": "SAM"})
        for name in ("SAM", "MSAM", "LookSAM")
    }
    ax = report_pictures.draw_spectra(spectra, {"MSAM": 1, "SAM": 4, "LookSAM": 0}).axes[0]
    curves, labels = ax.get_legend_handles_labels()
    assert labels == list(spectra)
    assert [c.get_color() for c in curves] == [line_style(n)["color"] for n in (4, 1, 0)]
    shown = {to_rgb(line.get_color()) for line in (*ax.lines, *ax.get_legend().get_lines())}
    bands = {
        to_rgb(band.get_facecolor()[0]) for band in ax.collections if len(band.get_facecolor())
    }
    own = {to_rgb(line_style(n)["color"]) for n in (0, 1, 4)}
    assert shown == own and bands == own


@pytest.mark.parametrize("which", ["x", "y"])
@pytest.mark.parametrize("ends", [(0.99, 1.01), (0.3, 0.4), (1e-7, 1e5), (2.0, 90.0)])
def test_a_logarithmic_axis_has_a_few_plain_numbers(which: str, ends: tuple[float, float]) -> None:
    figure = Figure()
    ax = figure.subplots()
    ax.plot(ends, ends)
    report_pictures._plain_log(ax, which)
    FigureCanvasAgg(figure).draw()
    axis = {"x": ax.xaxis, "y": ax.yaxis}[which]
    shown = [label.get_text() for label in axis.get_ticklabels(which="both") if label.get_text()]
    assert 2 <= len(shown) <= report_pictures.MOST_TICKS and len(set(shown)) == len(shown)
    assert [float(text) for text in shown] == pytest.approx(axis.get_ticklocs().tolist(), rel=0.01)


def test_a_picture_has_few_colours_and_keeps_them(tmp_path: Path) -> None:
    write(tmp_path, rows(["MUTAG"]))
    study, runs = read_study(tmp_path / "small.toml"), read_runs(tmp_path / "runs.csv")
    done = Analysis(Results(study, runs))
    figure = report_pictures.draw_minima(
        done.results, "MUTAG", done.correlations, report_pictures.looks(done.results.optimizers)
    )
    content = small_png(figure)
    assert files_of_png(content) == set()
    assert files_of_png(small_png(figure, ["a.dat", "b c.dat"])) == {"a.dat", "b c.dat"}
    with pytest.raises(ValueError, match="no picture that can be read"):
        files_of_png(content[: len(content) // 2])
    huge = content[:16] + 2 * (60_000).to_bytes(4, "big") + content[24:29]
    with pytest.raises(ValueError, match="no picture that can be read"):
        files_of_png(huge + zlib.crc32(huge[12:29]).to_bytes(4, "big") + content[33:])
    path = tmp_path / "p.png"
    path.write_bytes(content)
    whole = tmp_path / "whole.png"
    figure.savefig(whole, dpi=SMALL_DPI)
    ours, theirs = (np.asarray(Image.open(p).convert("RGB"), dtype=int) for p in (path, whole))
    assert np.abs(ours - theirs).max() < 32 and len(content) < 60_000


# --- the page -------------------------------------------------------------------------------------
def test_a_picture_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"x\.png: a picture that the report does not have"):
        page("![x](x.png)\n", {})


def test_markup_in_the_text_is_no_markup_of_the_page() -> None:
    shown = page(
        "# A\n\n<script>taken = 1</script>\n\n<b>bold</b> and [x](javascript:alert(1))\n", {}
    )
    assert "<script" not in shown and "<b>" not in shown and "href" not in shown


@pytest.fixture(scope="module")
def opened(reported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    """The page in a browser."""
    if browser.find() is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    with browser.opened(tmp_path_factory.mktemp("profile")) as chromium:
        chromium.call("Page.navigate", url=(reported / "report.html").as_uri())
        chromium.wait("document.readyState === 'complete' && document.images.length > 0")
        yield chromium


def test_the_page_shows_all_pictures_without_a_network(
    opened: browser.Browser, reported: Path
) -> None:
    sizes = opened.run("[...document.images].map(i => [i.naturalWidth, i.clientWidth])")
    assert len(sizes) == len(list(reported.glob("*.png")))
    assert all(natural > 400 and shown > 300 for natural, shown in sizes)
    assert opened.complaints() == []
    assert [u for u in opened.requests() if not u.startswith(("file:", "data:"))] == []


def test_the_page_fits_its_window_and_its_tables_have_their_cells(opened: browser.Browser) -> None:
    assert opened.run("document.body.scrollWidth <= window.innerWidth")
    rows_of = (
        "[...document.querySelectorAll('table')].map(t => [...t.rows].map(r => r.cells.length))"
    )
    assert all(len(set(cells)) == 1 for cells in opened.run(rows_of))
    assert opened.run("document.title") == "A small study"
    assert opened.run("[...document.querySelectorAll('td strong')].length") > 0
