"""Pictures: saved whole, under a picture's name, in colours that can be told apart."""

from __future__ import annotations

import argparse
import os
from itertools import pairwise
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from utilities.files import ROOT
from utilities.pictures import (
    COLOURS,
    STYLES,
    SUFFIXES,
    line_style,
    picture_path,
    plain_number,
    save_picture,
)


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".PNG"])
def test_every_promised_kind_of_picture_is_written(suffix: str, tmp_path: Path) -> None:
    figure = Figure(figsize=(1, 1))
    path = save_picture(figure, tmp_path / "new" / f"a{suffix}")
    assert path.stat().st_size > 100 and os.listdir(path.parent) == [f"a{suffix}"]


@pytest.mark.parametrize("name", ["a", "a.xyz", "a.png.txt", ".png", "folder.png", "link.png", ""])
def test_a_name_that_is_no_pictures_is_refused_where_it_enters(name, tmp_path, capsys) -> None:
    """The kind: no suffix, a wrong one, a hidden file, a folder, a link to nothing."""
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to("none.png")
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=picture_path)
    with pytest.raises(SystemExit):
        parser.parse_args(["--output", str(tmp_path / name)])
    assert f"argument --output: {tmp_path / name}" in capsys.readouterr().err
    with pytest.raises((ValueError, OSError)):
        save_picture(Figure(), tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.png", "link.png"]


def test_a_picture_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.png"
    path.write_text("old")
    monkeypatch.setattr(Figure, "savefig", lambda self, part, **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_picture(Figure(), path)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.png"]


def test_no_picture_is_saved_in_another_way() -> None:
    """Each of the seven scripts that draw had its own, and two checked the name."""
    rooms = (path.parent for path in ROOT.glob("*/__init__.py"))
    files = [path for room in rooms for path in room.rglob("*.py")] + [ROOT / "demo.py"]
    found = [path.relative_to(ROOT) for path in files if "savefig(" in path.read_text("utf-8")]
    assert found == [Path("utilities/pictures.py")]


def test_neighbouring_curves_differ_in_colour_and_style() -> None:
    styles = [tuple(line_style(number).values()) for number in range(len(COLOURS) * len(STYLES))]
    assert len(set(styles)) == len(styles)
    assert all(a[0] != b[0] and a[1] != b[1] for a, b in pairwise(styles))


def test_numbers_below_a_million_have_no_power() -> None:
    values = (0.20049, 1.0, 448.83, 1348.0, 12345.6, 2e6)
    assert [plain_number(value) for value in values] == [
        "0.2",
        "1",
        "449",
        "1350",
        "12300",
        "2e+06",
    ]
