"""A report from a table of runs and their files: its numbers, sentences, pictures and page."""

from __future__ import annotations

import csv
import hashlib
import os
import re
import shutil
import sys
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
from study_runs import rows, write

from loss_landscape import compare, plot_sharpness, plot_surface
from loss_landscape.my_pyhessian import hessian
from loss_landscape.my_pyhessian.spectrum_file import Spectrum
from loss_landscape.sharpness_measures.epoch_sharpness import EdgeRead
from studies import report, report_pictures
from studies.beside import beside
from studies.comparisons import Results
from studies.kept_pictures import KEPT, SAID, EarlierPicture, earlier_pictures
from studies.minima_files import (
    AlongTraining,
    MinimaFiles,
    names,
    said_of_edges,
    said_of_lacking,
)
from studies.plot_history import read_curves
from studies.report_page import page
from studies.report_text import Analysis
from studies.runs_file import read_runs
from studies.table import read_study
from trainings import my_train_GCN
from utilities import checkpoint, cli
from utilities.pictures import SMALL_DPI, files_of_png, line_style, small_png


# --- files ----------------------------------------------------------------------------------------
def words(folder: Path, output: Path) -> list[str]:
    """The command line of a report on the made table in ``folder``."""
    files = ["--runs", str(folder / "runs.csv"), "--out_dir", str(folder)]
    return [str(folder / "small.toml"), *files, "--output", str(output)]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


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


@pytest.fixture(scope="module")
def real(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real study of two optimizers and one seed, with surfaces and spectra."""
    folder = tmp_path_factory.mktemp("real")
    made = [row for row in rows(["MUTAG"]) if (row["seed"], row["fold"]) == (1, 0)]
    made = [row for row in made if row["optimizer"] in ("ADAM", "SAM")]
    common = [f"--data_dir={data_dir}", f"--out_dir={folder}", "--threads=1"]
    for row in made:
        training = ["--dataset=TINY", "--seed=1", "--fold=0", "--epochs=2", "--hidden_channels=8"]
        training += [f"--optimizer={row['optimizer']}", "--keep_epochs=1", *common]
        run_main(my_train_GCN.main, training)
        (best,) = (folder / "to_plot").glob(f"model_GCN_{row['optimizer']}_*_seed1.pt")
        row["test_acc"] = checkpoint.load(best)["metrics"]["test_acc"]
        file = f"--model_file={best}"
        run_main(plot_surface.main, [file, "--x=-1:1:3", "--y=-1:1:3", *common])
        few = ["--probes=2", "--trace_probes=2", "--lanczos_steps=5", "--top_n=1"]
        run_main(hessian.main, [file, *few, *common])
        kept = sorted(map(str, best.parent.glob(f"{best.stem}_epoch*.pt")))
        run_main(plot_sharpness.main, [*kept, *common])
        row |= {"checkpoint": str(best.relative_to(folder)), "sha256": digest(best)}
    write(folder, made)
    return folder


def run_main(main: cli.Main, argv: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["script.py", *argv])
        main(argv)


def report_of(folder: Path, output: Path) -> str:
    report.main(words(folder, output))
    return (output / "report.md").read_text("utf-8").replace("\\", "")


def files_of(folder: Path) -> MinimaFiles:
    results = Results(read_study(folder / "small.toml"), read_runs(folder / "runs.csv"))
    return MinimaFiles(results, folder)


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


def test_pictures_of_runs_whose_files_are_gone_are_kept(real: Path, tmp_path: Path) -> None:
    output, gone = tmp_path / "report", tmp_path / "gone"
    report_of(real, output)
    before = {path.name: path.read_bytes() for path in output.glob("*.png")}
    gone.mkdir()
    for name in ("runs.csv", "small.toml"):
        shutil.copy(real / name, gone)
    for _ in range(2):  # what was kept is kept again, and says so once
        text = report_of(gone, output)
        kinds = ("curves", "surfaces", "spectra", "along_training", "beside")
        captions = [re.search(rf"_{kind}\.png\)\n\n(.*)", text)[1] for kind in kinds]
        assert all(caption.count(SAID) == 1 for caption in captions)
        assert "### Sharpness along the training\n\n![MUTAG: along_training]" in text
        assert {path.name: path.read_bytes() for path in output.glob("*.png")} == before
    # With the files again all is drawn anew.
    assert SAID not in report_of(real, output)
    # A run's files that are back give its own picture beside the one of both.
    for path in real.rglob("*_SAM_*"):
        (gone / path.relative_to(real)).parent.mkdir(exist_ok=True)
        shutil.copy(path, gone / path.relative_to(real))
    text = report_of(gone, output)
    curves = re.findall(r"!\[MUTAG: curves\]\((.*)\)\n\n\*(.*)\*", text)
    assert [SAID in caption for _, caption in curves] == [True, False]
    assert [caption.count(".dat") for _, caption in curves] == [2, 1]
    assert (output / curves[0][0]).read_bytes() == before["MUTAG_curves.png"]
    assert (output / curves[1][0]).read_bytes() != before["MUTAG_curves.png"]
    # With all files again one picture shows all, and the second one is of no use.
    assert KEPT not in report_of(real, output) and not (output / "MUTAG_curves_2.png").exists()
    report_of(gone, output)
    # When that run was trained again, what only the old picture shows would be lost.
    best = next((gone / "to_plot").glob("model_GCN_SAM_*_seed1.pt"))
    table, before = (gone / "runs.csv").read_text(), digest(best)
    content = checkpoint.load(best)
    content["state_dict"]["classifier.bias"] += 1
    checkpoint.save(best, content)
    (gone / "runs.csv").write_text(table.replace(before, digest(best)))
    results = Results(read_study(gone / "small.toml"), read_runs(gone / "runs.csv"))
    earlier = earlier_pictures(output, results.runs)
    again = report.Report(results.study, Analysis(results), MinimaFiles(results, gone), earlier)
    assert "MUTAG_curves.png" in again.pictures and "MUTAG_curves.png" in again.lost
    with pytest.raises(ValueError, match="of its pictures would be lost, such as MUTAG_"):
        report.main(words(gone, output))


def test_pictures_of_runs_that_were_trained_again_are_not_kept(real: Path, tmp_path: Path) -> None:
    output, gone = tmp_path / "report", tmp_path / "gone"
    report_of(real, output)
    gone.mkdir()
    shutil.copy(real / "small.toml", gone)
    table = (real / "runs.csv").read_text()
    sha256 = read_runs(real / "runs.csv")[0].sha256
    for old, new in ((sha256, "0" * 64), (",ADAM,", ",other,")):
        (gone / "runs.csv").write_text(table.replace(old, new))
        before = read_runs(gone / "runs.csv")
        assert not any(each.is_true for each in earlier_pictures(output, before))
    (gone / "runs.csv").write_text(table.replace(sha256, "0" * 64))
    with pytest.raises(ValueError, match="5 of its pictures would be lost"):
        report.main(words(gone, output))
    assert len(list(output.glob("*.png"))) >= 5


def test_what_an_interrupted_report_left_is_not_kept(real: Path, tmp_path: Path) -> None:
    """Its pictures are new, its Markdown is that of the report before."""
    output = tmp_path / "report"
    report_of(real, output)
    runs = read_runs(real / "runs.csv")
    assert all(each.is_true for each in earlier_pictures(output, runs))
    (output / "MUTAG_curves.png").write_bytes((output / "MUTAG_surfaces.png").read_bytes())
    assert [each.kind for each in earlier_pictures(output, runs) if not each.is_true] == ["curves"]
    (output / "MUTAG_curves.png").write_bytes(b"PNG")
    with pytest.raises(ValueError, match=r"MUTAG_curves\.png: no picture that can be read"):
        report.main(words(real, output))
    (output / "report.md").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"report\.md: no report that can be read"):
        report.main(words(real, output))


def test_pictures_of_runs_that_were_measured_otherwise_are_not_kept(
    real: Path, tmp_path: Path
) -> None:
    output = tmp_path / "report"
    report_of(real, output)
    measured = [replace(r, sharpness_settings_digest="1") for r in read_runs(real / "runs.csv")]
    # The first time that anything is measured no picture is wrong, the next time it is.
    assert all(each.is_true for each in earlier_pictures(output, measured))
    with (output / "runs.csv").open(newline="") as file:
        made = [{**row, "sharpness_settings_digest": "1"} for row in csv.DictReader(file)]
    with (output / "runs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(made[0]))
        writer.writeheader()
        writer.writerows(made)
    assert all(each.is_true for each in earlier_pictures(output, measured))
    otherwise = [replace(run, sharpness_settings_digest="2") for run in measured]
    assert not any(each.is_true for each in earlier_pictures(output, otherwise))


def test_a_caption_tells_whether_a_picture_shows_more() -> None:
    paths = [Path(f"{number}.dat") for number in range(14)]
    others = [Path("x.dat"), Path("y.dat")]
    words = ("MUTAG", "Spectra", "spectra", "a.png", b"", f"Of. Runs: {names(paths)}.")
    kept = EarlierPicture(*words, frozenset(path.name for path in paths), is_true=True)
    older = replace(kept, files=frozenset())  # whose caption alone names files, the first ones
    assert "and 2 more" in kept.caption
    for drawn, more in ((paths, False), (paths[:13], True), (paths[:3], True), (paths[1:], True)):
        assert kept.shows_more_than(drawn) == more and older.shows_more_than(drawn) == more
    assert kept.shows_more_than(paths[:12] + others)
    assert older.shows_more_than(paths[:12] + others[:1])
    assert not kept.shows_more_than(paths + others) and older.shows_more_than(paths + others)
    few = replace(older, caption=f"Of. Runs: {names(paths[:2])}. {SAID}")
    assert not few.shows_more_than(paths[:2]) and not few.shows_more_than(paths[:3])
    assert few.shows_more_than(paths[1:]) and few.shows_more_than([])
    assert not replace(kept, caption="Of all.").shows_more_than(paths)


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
    figure = report_pictures.draw_histories([curve], folds=False)
    assert figure.axes[0].lines[0].get_color() == line_style(4)["color"]


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
    figure = report_pictures.draw_histories(curves, folds)
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
        files_of_png(content[:40])
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
