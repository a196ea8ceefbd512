"""Pictures of a report that only files of its runs could draw again, kept while they are true.

Where the checkpoints are gone, such as on another machine, the report before is the only place that
has the learning curves, surfaces and spectra of their runs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from studies.markdown import text
from studies.minima_files import names
from studies.runs_file import NoRunsError, TrainedRun, read_runs

HEADING = r"^### (?P<heading>.*)$"
PICTURE = r"^!\[(?P<data>.*): (?P<kind>\w+)\]\((?P<name>[\w.-]+\.png)\)\n\n\*(?P<caption>.*)\*$"
RUNS = re.compile(r"Runs: (.*?)(?: and (\d+) more)?\.(?: |$)")
KEPT = "Kept from an earlier report: these runs' files are not at hand."


@dataclass(frozen=True)
class KeptPicture:
    """A picture of the report before.

    Attributes:
        data, heading: the data set, and what the picture stands below, in Markdown.
        kind, name, content: of the file.
        caption: in Markdown; it names the files of runs that were drawn.
    """

    data: str
    heading: str
    kind: str
    name: str
    content: bytes
    caption: str

    def shows_more_than(self, paths: Sequence[Path]) -> bool:
        """Whether it was drawn from files that are not among ``paths``."""
        found = RUNS.search(self.caption)
        if found is None:
            return False
        listed = set(re.findall(r"`([^`]+)`", found[1]))
        unlisted = int(found[2] or 0)
        drawn = {path.name for path in paths}
        # The caption of many names the first ones alone; those of a report made anew are the same.
        return found[0].strip() != f"Runs: {names(paths)}." and (
            not listed <= drawn or len(listed) + unlisted > len(drawn)
        )

    @property
    def markdown(self) -> str:
        """The picture as the report before has it, and that it is kept."""
        caption = self.caption if self.caption.endswith(KEPT) else f"{self.caption} {KEPT}"
        return f"![{self.data}: {self.kind}]({self.name})\n\n*{caption}*"


def kept_pictures(output: Path, runs: Sequence[TrainedRun]) -> list[KeptPicture]:
    """The pictures of the report in a folder that the runs of a new one leave true.

    Those are the pictures of a data set of which each run is among the new ones with the very same
    weights: none was trained again, and none left out.

    Args:
        output: the report's folder; without a report in it there are none.
        runs: of the new report.

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
    there = {(run.identity, run.sha256) for run in runs}
    changed = {text(run.data) for run in before if (run.identity, run.sha256) not in there}
    kept, heading = [], ""
    for found in re.finditer(f"{HEADING}|{PICTURE}", markdown.read_text("utf-8"), re.MULTILINE):
        if found["heading"] is not None:
            heading = found["heading"]
        elif found["data"] not in changed and (output / found["name"]).is_file():
            content = (output / found["name"]).read_bytes()
            words = {key: found[key] for key in ("data", "kind", "name", "caption")}
            kept.append(KeptPicture(heading=heading, content=content, **words))
    return kept
