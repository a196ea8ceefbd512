"""Pictures of a report that only files of its runs could draw again, kept while they are true.

Where the checkpoints are gone, such as on another machine, the report before is the only place that
has the learning curves, surfaces and spectra of their runs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from studies.markdown import HEADING, PICTURE, picture, text
from studies.minima_files import names
from studies.runs_file import NoRunsError, TrainedRun, read_runs

RUNS = re.compile(r"Runs: (.*?)(?: and (\d+) more)?\.(?: |$)")
SAID = "Kept from an earlier report, because not all files of these runs are at hand."


@dataclass(frozen=True)
class EarlierPicture:
    """A picture of the report before.

    Attributes:
        data, heading: the data set, and what the picture stands below, in Markdown.
        kind, name, content: of the file.
        caption: in Markdown; it names the files of runs that were drawn.
        is_true: whether the new report still has all runs of the data set as they were.
    """

    data: str
    heading: str
    kind: str
    name: str
    content: bytes
    caption: str
    is_true: bool

    def shows_more_than(self, paths: Sequence[Path]) -> bool:
        """Whether it was drawn from files that are not among ``paths``.

        Of many files the caption names the first ones and the number of the others.
        """
        found = RUNS.search(self.caption)
        if found is None or found[0].strip() == f"Runs: {names(paths)}.":
            return False
        named = set(re.findall(r"`([^`]+)`", found[1]))
        drawn = {path.name for path in paths}
        return not named <= drawn or len(named) + int(found[2] or 0) > len(drawn)

    @property
    def markdown(self) -> str:
        """The picture as the report before has it, and that it is kept."""
        said = "" if self.caption.endswith(SAID) else f" {SAID}"
        return picture(self.data, self.kind, self.name, self.caption + said)


def earlier_pictures(output: Path, runs: Sequence[TrainedRun]) -> list[EarlierPicture]:
    """The pictures of the report in a folder.

    Args:
        output: the report's folder; without a report in it there are none.
        runs: of the new report. The pictures of a data set are true if each of its runs is among
            these with the very same weights: none was trained again, measured with other settings
            or left out.

    Raises:
        ValueError: the table of the report before can't be read.
    """
    markdown, table = output / "report.md", output / "runs.csv"
    if not (markdown.is_file() and table.is_file()):
        return []
    try:
        before = read_runs(table)
    except NoRunsError:
        return []
    after = {_weights(run): run for run in runs}
    compared = [run for run in before if run.stage == "run"]
    changed = {text(run.data) for run in compared if _is_changed(run, after.get(_weights(run)))}
    pictures, heading = [], ""
    for found in re.finditer(f"{HEADING}|{PICTURE}", markdown.read_text("utf-8"), re.MULTILINE):
        if found["heading"] is not None:
            heading = found["heading"]
        elif (output / found["name"]).is_file():
            content = (output / found["name"]).read_bytes()
            words = {key: found[key] for key in ("data", "kind", "name", "caption")}
            is_true = found["data"] not in changed
            pictures.append(
                EarlierPicture(heading=heading, content=content, is_true=is_true, **words)
            )
    return pictures


def _weights(run: TrainedRun) -> tuple[object, ...]:
    """What two rows of the same trained network agree in, and what pictures call it."""
    return run.identity, run.data, run.optimizer, run.chosen, run.sha256


def _is_changed(before: TrainedRun, after: TrainedRun | None) -> bool:
    """Whether a run is gone, trained again, or measured with other settings."""
    if after is None:
        return True
    settings = before.sharpness_settings_digest
    return bool(settings) and settings != after.sharpness_settings_digest
