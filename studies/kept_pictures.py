"""Pictures of a report that only files of its runs could draw again, kept while they are true.

Where the checkpoints are gone, such as on another machine, the report before is the only place that
has the learning curves, surfaces and spectra of their runs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from studies.markdown import HEADING, LINK, PICTURE, picture, text
from studies.minima_files import names
from studies.runs_file import NoRunsError, TrainedRun, read_runs
from utilities.pictures import files_of_png

RUNS = re.compile(r"Runs: (.*?)(?: and (\d+) more)?\.(?: |$)")
KEPT = "Kept from an earlier report"
SAID = f"{KEPT}: this one was not drawn from all of these files."


@dataclass(frozen=True)
class EarlierPicture:
    """A picture of the report before.

    Attributes:
        data, heading: the data set, and what the picture stands below, in Markdown.
        kind, name, content: of the file.
        caption: in Markdown; it names the files of runs that were drawn, of many the first ones.
        files: names of all of them; none in a picture from before pictures listed them.
        is_true: whether the new report still has all runs of the data set as they were, and the
            caption is of this picture.
    """

    data: str
    heading: str
    kind: str
    name: str
    content: bytes
    caption: str
    files: frozenset[str]
    is_true: bool

    def shows_more_than(self, paths: Sequence[Path]) -> bool:
        """Whether it was drawn from files that are not among ``paths``, as far as can be told.

        Where only the caption names them, and not all, it counts as such unless the new caption
        would be the very same.
        """
        drawn = {path.name for path in paths}
        if self.files:
            return not self.files <= drawn
        found = RUNS.search(self.caption)
        if found is None or found[0].strip() == f"Runs: {names(paths)}.":
            return False
        return found[2] is not None or not _named(found) <= drawn

    @property
    def markdown(self) -> str:
        """The picture as the report before has it, and that it is kept."""
        said = "" if KEPT in self.caption else f" {SAID}"
        return picture(self.data, self.kind, self.name, self.caption + said)


def report_before(output: Path) -> str:
    """The Markdown of the report in a folder; "" without one.

    Raises:
        ValueError: it can't be read.
    """
    path = output / "report.md"
    try:
        return path.read_text("utf-8") if path.is_file() else ""
    except ValueError as error:
        raise ValueError(f"{path}: no report that can be read ({error}); move it away") from None


def pictures_of(output: Path) -> set[str]:
    """Names of the pictures in the report of this folder, if there is one."""
    return set(re.findall(LINK, report_before(output), re.MULTILINE))


def earlier_pictures(
    output: Path, runs: Sequence[TrainedRun], replaced: bool = False
) -> list[EarlierPicture]:
    """The pictures of the report in a folder.

    Args:
        output: the report's folder; without a report in it there are none.
        runs: of the new report. The pictures of a data set are true if each of its runs is among
            these with the very same weights: none was trained again, measured with other settings
            or left out.
        replaced: the folder's table is not the one of the report before. Without that one nothing
            tells whether a picture is true, and so none counts as such.

    Raises:
        ValueError: the report before, its table or a picture can't be read.
    """
    markdown, table = report_before(output), output / "runs.csv"
    try:
        before = [] if replaced or not table.is_file() else read_runs(table)
    except NoRunsError:
        before = []
    after = {_weights(run): run for run in runs}
    compared = [run for run in before if run.stage == "run"]
    changed = {text(run.data) for run in compared if _is_changed(run, after.get(_weights(run)))}
    same = {text(run.data) for run in compared} - changed
    pictures, heading = [], ""
    for found in re.finditer(f"{HEADING}|{PICTURE}", markdown, re.MULTILINE):
        if found["heading"] is not None:
            heading = found["heading"]
        elif (output / found["name"]).is_file():
            content = (output / found["name"]).read_bytes()
            words = {key: found[key] for key in ("data", "kind", "name", "caption")}
            try:
                files = files_of_png(content)
            except ValueError as error:
                raise ValueError(f"{output / found['name']}: {error}; remove it") from None
            is_true = found["data"] in same and _fits(found["caption"], files)
            pictures.append(
                EarlierPicture(
                    heading=heading, content=content, files=files, is_true=is_true, **words
                )
            )
    return pictures


def _named(found: re.Match[str]) -> set[str]:
    """The names in what ``RUNS`` found in a caption."""
    return set(re.findall(r"`([^`]+)`", found[1]))


def _fits(caption: str, files: frozenset[str]) -> bool:
    """Whether a caption is of the picture of these files: a report may have been cut short."""
    found = RUNS.search(caption)
    if found is None or not files:
        return True
    named = _named(found)
    return named <= files and len(named) + int(found[2] or 0) == len(files)


def _weights(run: TrainedRun) -> tuple[object, ...]:
    """What two rows of the same trained network agree in, and what pictures call it."""
    return run.stage, run.pair, run.data, run.optimizer, run.chosen, run.sha256


def _is_changed(before: TrainedRun, after: TrainedRun | None) -> bool:
    """Whether a run is gone, trained again, or measured with other settings."""
    if after is None:
        return True
    settings = before.sharpness_settings_digest
    return bool(settings) and settings != after.sharpness_settings_digest
