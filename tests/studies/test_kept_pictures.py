"""Pictures of a report that only files of its runs could draw again."""

from __future__ import annotations

import csv
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from real_study import digest, report_of, words

from studies import report
from studies.comparisons import Results
from studies.kept_pictures import KEPT, SAID, EarlierPicture, earlier_pictures
from studies.minima_files import MinimaFiles, names
from studies.report_text import Analysis
from studies.runs_file import read_runs
from studies.table import read_study
from utilities import checkpoint


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
    assert "MUTAG_curves.png" in again.pictures and "MUTAG_curves.png" not in again.settled
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


def test_pictures_without_their_table_or_place_are_not_replaced(real: Path, tmp_path: Path) -> None:
    """Kind: a new picture of fewer runs has the name of the one before."""
    folder, output = tmp_path / "folder", tmp_path / "report"
    shutil.copytree(real, folder)
    report_of(folder, output)
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    report_of(folder, output)  # with the same files nothing is lost
    for path in (folder / "outputs").glob("*_ADAM_*.dat"):
        path.unlink()
    for content in (None, (folder / "runs.csv").read_text().splitlines()[0] + "\n"):
        (output / "runs.csv").unlink()
        if content:
            (output / "runs.csv").write_text(content)
        with pytest.raises(ValueError, match=r"1 of its pictures would be lost, such as MUTAG_cur"):
            report.main(words(folder, output))
        (output / "runs.csv").write_bytes(before["runs.csv"])
    text = (output / "report.md").read_text()
    (output / "report.md").write_text(text.replace("### Learning curves", "### Curves"))
    with pytest.raises(ValueError, match=r"1 of its pictures would be lost, such as MUTAG_cur"):
        report.main(words(folder, output))
    assert {path.name for path in output.iterdir()} == set(before)
    assert (output / "MUTAG_curves.png").read_bytes() == before["MUTAG_curves.png"]
    report.main([*words(folder, output), "--fewer_runs"])
    assert (output / "MUTAG_curves.png").read_bytes() != before["MUTAG_curves.png"]


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
