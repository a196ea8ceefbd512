"""Report on a study: Markdown with pictures, and one HTML page that needs no network.

    python study.py report studies/gcn.toml

takes the finished runs in the folder of the study's results, while the study goes on too, and
draws the histories, surfaces and spectra that lie there. ``--runs`` takes a table of runs instead,
such as the ``runs.csv`` of a report. All is computed before anything is written.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from studies import report_pictures, report_settings, report_text
from studies.beside import beside
from studies.collect import rows
from studies.comparisons import ACCURACY, F1, LAMBDA_MAX, TRACE, Comparison, Results
from studies.fewer_runs import add_fewer_runs_flag, refuse_fewer_runs
from studies.kept_pictures import EarlierPicture, earlier_pictures, pictures_of
from studies.known_runs import add_known_flag
from studies.markdown import code, picture, text
from studies.minima_files import (
    MinimaFiles,
    names,
    said_of_edges,
    said_of_lacking,
    said_of_none,
)
from studies.report_page import page
from studies.report_text import Analysis
from studies.runner import add_set_flag
from studies.runs_file import read_runs, write_runs
from studies.table import ALONG, Study, read_study
from utilities.cli import Parser, report_files, run
from utilities.files import ROOT, atomic_write, target
from utilities.pictures import small_png
from utilities.tables import table

OF_THE_TABLE = re.compile(r"_(differences|minima)(_\d+)?\.png$")  # pictures that need no other file


class Report:
    """The text of a report and its pictures, in memory.

    Args:
        study: its table.
        analysis: of its runs.
        files: what can be drawn.
        before: pictures of the report before, of which those are kept that can't be drawn.

    Attributes:
        markdown: the whole text.
        pictures: PNG files by name.
        settled: names of earlier pictures that are kept, or of which a new one shows all.
    """

    def __init__(
        self,
        study: Study,
        analysis: Analysis,
        files: MinimaFiles,
        before: Sequence[EarlierPicture] = (),
    ) -> None:
        self.study, self.analysis, self.files, self.before = study, analysis, files, before
        self.numbers = report_pictures.looks([o.name for o in study.optimizers])
        self.pictures: dict[str, bytes] = {}
        self.settled: list[str] = []
        results = analysis.results
        parts = [
            f"# {text(study.title)}",
            text(study.note),
            f"{report_settings.completeness(results)} {report_settings.machines(results)}",
            report_text.answers(analysis),
            *(self._data_set(data) for data in results.data),
            "## What was run",
            report_settings.plan(results),
            report_settings.settings(results),
            report_settings.edges(results),
            report_settings.rates(results),
            self._origin(),
            "## How to read it",
            report_text.METHODS.strip(),
            report_settings.missing(results, analysis.judged),
            *self._notes(),
        ]
        self.markdown = "\n\n".join(part for part in parts if part) + "\n"

    # --- sections ---------------------------------------------------------------------------------
    def _data_set(self, data: str) -> str:
        analysis, results = self.analysis, self.analysis.results
        parts = [f"## {text(data)}", report_text.results_table(results, data)]
        parts.append(
            "Mean ± half the 95 % interval over runs. Seconds are those of a run's training, the "
            "median, with whatever else the machine did." + self._tested(data)
        )
        parts += ["### Beside the base", report_text.differences_table(analysis, data)]
        parts += [self._differences(data), report_text.in_words(analysis, data)]
        if analysis.correlations_of(data):
            parts += ["### Sharpness", report_text.sharpness_table(analysis, data)]
            parts += [
                report_text.samples_note(results, data),
                "Times the base's, in pairs of runs:",
                report_text.ratios_table(analysis, data),
            ]
            parts += ["### Sharpness and test error"]
            parts += [report_text.correlations_table(analysis, data), self._minima(data)]
        parts += [self._curves(data), self._surfaces(data), self._spectra(data)]
        parts += [self._along_training(data), self._beside(data)]
        return "\n\n".join(part for part in parts if part)

    def _tested(self, data: str) -> str:
        """How many test samples there are, and what one of them is worth."""
        counts = self.files.tested(data)
        if not counts:
            return ""
        several = " to ".join(dict.fromkeys(map(str, (counts[0], counts[-1]))))
        worth = f"{100 / counts[0]:.2g} points of accuracy"
        return f" A test set has {several} samples, so that one of them is worth {worth}."

    def _differences(self, data: str) -> str:
        panels: list[tuple[str, list[Comparison]]] = []
        for quantity in (ACCURACY, F1, LAMBDA_MAX, TRACE):
            made = [c for c in self.analysis.of(quantity, data) if c.estimate.n > 1]
            if made and len(panels) < 3:
                ratio = all(c.ratio for c in made)
                if quantity.ratio and not ratio:
                    continue
                panels.append((report_pictures.quantity_axis(quantity, ratio), made))
        if not panels:
            return ""
        return self._picture(
            data,
            "differences",
            report_pictures.draw_differences(panels, self.numbers),
            "Paired differences with their 95 % intervals; a filled mark is claimed, an empty one "
            "can't be told apart. Runs: those of `runs.csv`.",
        )

    def _minima(self, data: str) -> str:
        correlations = self.analysis.correlations_of(data)
        figure = report_pictures.draw_minima(
            self.analysis.results, data, correlations, self._shown(data)
        )
        caption = "Each point is a run's minimum: test error over sharpness. "
        left = [text(c.quantity.text) for c in correlations[report_pictures.MOST_PANELS :]]
        caption += f"Only in the table: {', '.join(left)}. " if left else ""
        return self._picture(data, "minima", figure, f"{caption}Runs: those of `runs.csv`.")

    def _shown(self, data: str) -> dict[str, int]:
        results = self.analysis.results
        return {name: self.numbers[name] for name in results.optimizers if results.of(data, name)}

    def _curves(self, data: str) -> str:
        curves, paths = self.files.curves(data, self.numbers)
        folds = self.analysis.results.test_to_train(data) > 0
        figure = report_pictures.draw_histories(curves, folds, data) if curves else None
        caption = f"Mean over runs. Runs: {names(paths)}."
        return self._drawn("Learning curves", data, "curves", figure, caption, paths)

    def _surfaces(self, data: str) -> str:
        surfaces = self.files.surfaces(data)
        figure = report_pictures.draw_surfaces(surfaces, "train_loss") if surfaces else None
        caption = f"Loss around one minimum each, {surfaces.which}. "
        caption += self._none(data, "surface", surfaces) + f"Runs: {names(surfaces.paths)}."
        heading = "Surfaces on one scale"
        return self._drawn(heading, data, "surfaces", figure, caption, surfaces.paths)

    def _spectra(self, data: str) -> str:
        spectra = self.files.spectra(data)
        figure = report_pictures.draw_spectra(spectra, self.numbers) if spectra else None
        caption = f"Hessian of one minimum each, {spectra.which}. "
        caption += self._none(data, "spectrum", spectra) + f"Runs: {names(spectra.paths)}."
        return self._drawn("Spectra", data, "spectra", figure, caption, spectra.paths)

    def _along_training(self, data: str) -> str:
        found = self.files.along_training(data)
        figure = report_pictures.draw_along_training(found, self.numbers) if found else None
        said = [said_of_edges(found), said_of_lacking(found)]
        caption = f"One run each, {found.which}. {text(' '.join(filter(None, said)))} "
        caption += self._none(data, ALONG, found) + f"Runs: {names(found.paths)}."
        heading = "Sharpness along the training"
        return self._drawn(heading, data, "along_training", figure, caption, found.paths)

    def _none(self, data: str, kind: str, found: Collection[str]) -> str:
        said = text(said_of_none(self.study, data, kind, found))
        return f"{said} " if said else ""

    def _beside(self, data: str) -> str:
        two = (self.study.base, report_text.TRAINED)
        made = beside(self.files, data, two) if len(set(two)) == 2 else None
        heading = f"{text(two[1])} beside {text(two[0])}"
        if made is None:
            return self._drawn(heading, data, "beside", None, "", [])
        caption = (
            f"Two minima as `compare.py` shows them, {made.which}, and the test accuracies of "
        )
        caption += f"{' and '.join(map(str, made.runs))} runs. Runs: {names(made.paths)}."
        return self._drawn(heading, data, "beside", made.figure, caption, made.paths)

    def _drawn(
        self,
        heading: str,
        data: str,
        kind: str,
        figure: Figure | None,
        caption: str,
        paths: Sequence[Path],
    ) -> str:
        """What runs' files show, and what of the report before only files that are gone show."""
        place = (text(data), heading)
        shown = []
        for each in self.before:
            if (each.data, each.heading) != place:
                continue
            if not each.shows_more_than(paths):
                self.settled += [each.name] if figure else []
            elif each.is_true:
                self.settled.append(each.name)
                kept = replace(each, name=self._free(each.name))
                self.pictures[kept.name] = kept.content
                shown.append(kept.markdown)
        shown += [self._picture(data, kind, figure, caption, paths)] if figure else []
        return "\n\n".join([f"### {heading}", *shown]) if shown else ""

    def _picture(
        self, data: str, kind: str, figure: Figure, caption: str, paths: Sequence[Path] = ()
    ) -> str:
        stem = re.sub(r"[^\w.-]", "-", data, flags=re.ASCII)
        name = self._free(f"{stem}_{kind}.png")
        self.pictures[name] = small_png(figure, [path.name for path in paths])
        return picture(text(data), kind, name, caption)

    def _free(self, name: str) -> str:
        """A name that no picture has, an earlier one or of a data set of nearly this name."""
        stem, number = name.removesuffix(".png"), 2
        while name in self.pictures:
            name, number = f"{stem}_{number}.png", number + 1
        return name

    # --- where it is from -------------------------------------------------------------------------
    def _origin(self) -> str:
        study = self.study
        changes = "".join(f" --set {key}={value}" for key, value in study.changes.items())
        lines = [
            "The study, and this report:",
            "",
            f"    python study.py {_shown_path(study.path)}{changes}",
            f"    python study.py report {_shown_path(study.path)}{changes}",
            "",
            "Without its folder of results `--runs` and this report's `runs.csv` make the report.",
        ]
        gone = len(self.analysis.results.runs) - len(self.files.minima)
        if gone:
            lines += ["", f"Of {gone} runs the checkpoints are not at hand, only their rows of"]
            lines[-1] += " `runs.csv` and what pictures an earlier report had of them."
        origins = self.files.origins()
        if origins:
            rows = [[name, "; ".join(map(text, values))] for name, values in origins.items()]
            lines += ["", "What the checkpoints say of where they are from:", ""]
            lines.append(table(["", "value"], rows))
        commands = report_settings.example_commands(
            self.analysis.results.runs, self.analysis.results.optimizers
        )
        if commands:
            lines += ["", "The first run of each optimizer; `runs.csv` has every command line:", ""]
            lines += [f"- {text(name)}: {code(command)}" for name, command in commands.items()]
        return "\n".join(lines)

    def _notes(self) -> list[str]:
        if not self.files.notes:
            return []
        notes = list(dict.fromkeys(self.files.notes))
        return ["Files that were left out:\n\n" + "\n".join(f"- {text(note)}" for note in notes)]


def _shown_path(path: Path) -> str:
    try:
        return path.resolve().relative_to(ROOT).as_posix()
    except ValueError:
        return path.name


def refuse_fewer_pictures(output: Path, report: Report) -> None:
    """Stop before pictures are lost whose runs' files may be gone.

    Pictures of the table alone are as the new table has them; a new one of the same name is no
    proof that all of any other picture is shown.

    Raises:
        ValueError: the report of this folder has pictures that the new one lacks, or that show
            more than its own do.
    """
    settled = {*report.settled, *filter(OF_THE_TABLE.search, report.pictures)}
    lost = sorted(n for n in pictures_of(output) - settled if (output / n).is_file())
    if lost:
        raise ValueError(
            f"{output}: {len(lost)} of its pictures would be lost, such as {lost[0]}, because not "
            "all that they show can be drawn again (files that are not at hand, runs that changed, "
            "another base); another --output keeps them, --fewer_runs drops them"
        )


def write(report: Report, runs_csv: bytes, output: Path) -> list[Path]:
    """Write all files and remove pictures that only the report before had.

    The table of runs is the last: a report that was cut short goes with the runs before it.
    """
    before = pictures_of(output)
    files = dict(report.pictures)
    files["report.html"] = page(report.markdown, report.pictures).encode()
    files["report.md"] = report.markdown.encode()
    files["runs.csv"] = runs_csv
    written = []
    for name, content in files.items():
        with atomic_write(output / name) as part:
            part.write_bytes(content)
        written.append(output / name)
    for name in before - set(files):
        (output / name).unlink(missing_ok=True)
    return written


def collect(study: Study, out_dir: Path, folder: Path, known: Path | None = None) -> Path:
    """Write the finished and the known runs as a table into ``folder``; return its path.

    Raises:
        FileNotFoundError: no folder of results, or no table of known runs.
        ValueError: no finished run in it, or one of other settings than the study's.
    """
    if not out_dir.is_dir():
        raise FileNotFoundError(
            f"{out_dir}: no such folder; carry the study out, or name a table with --runs"
        )
    found = rows(study, out_dir, known)
    if not found:
        raise ValueError(f"{out_dir}: no finished run of the study yet; wait for the first")
    write_runs(folder / "runs.csv", found)
    return folder / "runs.csv"


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("table", type=Path, help="the study's table, such as studies/gcn.toml")
    parser.add_argument(
        "--out_dir", type=Path, help="folder of the results (default: outputs/studies/<table>)"
    )
    parser.add_argument(
        "--runs", type=Path, help="a table of runs, in place of those in the folder of results"
    )
    add_known_flag(parser)
    add_fewer_runs_flag(parser)
    add_set_flag(parser, "as the study was carried out with")
    parser.add_argument(
        "--output", type=Path, help="folder of the report (default: studies/reports/<table>)"
    )
    args = parser.parse_args(argv)
    if args.runs and args.known:
        parser.error("--known: has no effect with --runs, which is all that is reported on")
    return args


def main(argv: Sequence[str] | None = None) -> Path:
    """Report as the command line says; return the Markdown's path."""
    args = parse_args(argv)
    study = read_study(args.table, dict(args.set))
    out_dir = args.out_dir or ROOT / "outputs" / "studies" / study.name
    output = args.output or ROOT / "studies" / "reports" / study.name
    target(output / "report.md")
    before = output / "runs.csv"
    with tempfile.TemporaryDirectory() as folder:
        runs_csv = args.runs or collect(study, out_dir, Path(folder), args.known)
        runs, content = read_runs(runs_csv), runs_csv.read_bytes()
    if not args.fewer_runs:
        refuse_fewer_runs(before, runs, "--output", known=not (args.runs or args.known))
    results = Results(study, runs)
    # The folder of the results has the new table already.
    replaced = output.resolve() == out_dir.resolve()
    earlier = [] if args.fewer_runs else earlier_pictures(output, runs, replaced)
    report = Report(study, Analysis(results), MinimaFiles(results, out_dir), earlier)
    if not args.fewer_runs:
        refuse_fewer_pictures(output, report)
    report_files(write(report, content, output))
    return output / "report.md"


if __name__ == "__main__":
    run(main)
