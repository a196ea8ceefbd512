"""Tables of studies: read as written, or refused in one line that names file and key."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import SMALL, write

from studies.plan import Plan
from studies.section import Section
from studies.table import Study, _study, read_study, tomllib
from utilities.files import ROOT

SHIPPED = sorted((ROOT / "studies").glob("*.toml"))


def test_a_table_is_read_as_written(tmp_path: Path) -> None:
    study = read_study(write(tmp_path), {"epochs": 1})
    assert (study.name, study.task, study.base) == ("small_epochs1", "GCN", "ADAM")
    assert (study.seeds, study.folds) == ((1, 2), (0, 1))
    names = [optimizer.name for optimizer in study.optimizers]
    assert names == ["ADAM", "ADAM, twice the epochs", "SAM"]
    twice = study.optimizer("ADAM, twice the epochs")
    assert (twice.times_epochs, twice.chosen_for, twice.tuned) == (2, "ADAM", "learning_rate")
    assert twice.flags == {"optimizer": "ADAM"}
    kinds = [measures.kind for measures in study.measures]
    assert kinds == ["spectrum", "sharpness", "surface", "along_training"]
    # 2 optimizers with 2 values; 3 optimizers x 2 seeds x 2 folds; 3 + 3 + 1 minima, and two
    # trainings once more, which are followed.
    assert study.planned() == {"trials": 4, "runs": 12, "measures": 11}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_tables_that_come_along_can_be_carried_out(path: Path, tmp_path: Path) -> None:
    study = read_study(path)
    plan = Plan(study, tmp_path, tmp_path)
    plan.check()
    jobs = list(plan.jobs())
    assert {s: sum(j.stage == s for j in jobs) for s in study.planned()} == study.planned()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('task = "GCN"', 'task = "GCM"', "task: 'GCM' has no script; known are GCN, cifar, mitbih"),
        ('task = "GCN"', "", "task: is missing"),
        ('base = "ADAM"', 'base = "SGD"', "base: 'SGD' is none of ADAM, ADAM, twice the epochs"),
        ("seeds = [1, 2]", "seed = [1, 2]", "seeds: is missing"),
        ("seeds = [1, 2]", "seeds = [1, 1]", "seeds: [1, 1] lists one twice"),
        ("seeds = [1, 2]", "seeds = []", "seeds: has 0 entries"),
        ("seeds = [1, 2]", "seeds = [-1]", "seeds: [-1] is no list of whole numbers from 0"),
        ("seeds = [1, 2]", "seeds = [true]", "seeds: [True] is no list of whole numbers"),
        ("seeds = [1, 2]", "seeds = 1", "seeds: 1 is no list of whole numbers"),
        ("seeds = [1, 2]", "seeds = [1, 100]", "trials, seeds: has a seed of the study"),
        ("folds = [0, 1]\nflags", "flags", "trials, folds: the study has none; leave them out"),
        ("times_epochs = 2", "times_epoch = 2", "times_epoch': is no key of a study's table; did"),
        ("times_epochs = 2", "times_epochs = 0", "times_epochs: 0 is no whole number from 1"),
        ('like = "ADAM"', 'like = "SAM"', "like: 'SAM' is none of ADAM"),
        ("[0.003, 0.01]", "[0.01, 0.003]", "learning_rate: [0.01, 0.003]: list the values in"),
        ("[0.003, 0.01]", "[nan, 0.01]", "learning_rate: [nan, 0.01] is no list of numbers"),
        ("[0.003, 0.01]", "[0.003]", "unequal_trials: values differ in number (ADAM 1, SAM 2)"),
        ("{ rho = [0.02, 0.05] }", "{ rho = [1], eta = [1] }", "tune: names one flag and its"),
        ("{ rho =", "{ Rho =", "tune.'Rho': is no flag's name"),
        ('{ optimizer = "SAM" }', '{ optimizer = "SAM", rho = 1 }', "tune: rho is among the flags"),
        ('{ optimizer = "SAM" }', '{ optimizer = "SAM", tag = "a" }', "flags.tag: is set by the"),
        ("epochs = 4,", "epochs = inf,", "flags.epochs: inf is no value of a flag"),
        ("epochs = 4,", "epochs = [[1]],", "flags.epochs: [[1]] is no value of a flag"),
        ('select = "val_acc"', 'select = "test_acc"', "select: 'test_acc' is none of val_acc"),
        ('optimizers = ["SAM"]', 'optimizers = ["SAN"]', "'SAN' is none of the study's optimizers"),
        ("[measures.surface]", "[measures.volume]", "measures.'volume': is no measure; known are"),
        ("keep_epochs = 2", "", "keep_epochs: is missing, and the trainings of ADAM on MUTAG keep"),
        ("keep_epochs = 2", "keep_epochs = 0", "keep_epochs: 0 is no whole number from 1"),
        ("probes = 1,", 'output = "a.png",', "flags.output: is set by the study itself"),
        ("[data.MUTAG]", '[data."???"]', "a name has letters"),
        ("[data.MUTAG]", "[data]", "data.'flags', 'dataset': is no key of a study's table"),
        ("[trials]", "[trials", "is no TOML"),
    ],
)
def test_what_is_wrong_is_named(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert SMALL.count(old) >= 1
    path = write(tmp_path, SMALL.replace(old, new, 1))
    with pytest.raises(ValueError) as raised:
        read_study(path)
    assert str(raised.value).startswith(str(path))
    assert message in str(raised.value).replace('"', "'"), raised.value


def test_trials_may_differ_in_number_for_a_reason(tmp_path: Path) -> None:
    text = SMALL.replace("[0.003, 0.01]", "[0.003]")
    text = text.replace('select = "val_acc"', 'select = "val_acc"\nunequal_trials = "published"')
    study = read_study(write(tmp_path, text))
    assert study.planned()["trials"] == 2  # of SAM alone: one value needs none


def test_a_table_without_choices_needs_no_trials(tmp_path: Path) -> None:
    text = SMALL.replace("[0.003, 0.01]", "[0.003]").replace("[0.02, 0.05]", "[0.02]")
    start, end = text.index("[trials]"), text.index("[measures.spectrum]")
    assert read_study(write(tmp_path, text[:start] + text[end:])).planned()["trials"] == 0


def test_an_unreadable_table_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such table"):
        read_study(tmp_path / "none.toml")
    (tmp_path / "big.toml").write_bytes(b"#" * (2**20 + 1))
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "deep.toml").write_text("a = " + "[" * 20_000)
    for name in ("big", "bytes", "deep"):
        with pytest.raises(ValueError, match=f"{name}.toml: "):
            read_study(tmp_path / f"{name}.toml")


# --- fuzzing --------------------------------------------------------------------------------------
ANYTHING = st.one_of(
    st.sampled_from([None, True, -1, 0, 2**70, 1.5, float("nan"), float("inf"), "", "SAM", "a\nb"]),
    st.lists(st.one_of(st.integers(), st.floats(), st.text(max_size=5), st.booleans()), max_size=4),
    st.dictionaries(st.text(max_size=8), st.one_of(st.integers(), st.text(max_size=5)), max_size=3),
)


def places(content: Any) -> list[tuple[Any, Any]]:
    """Each container in a table with a key of it."""
    found = []
    if isinstance(content, dict | list):
        for key in list(content) if isinstance(content, dict) else range(len(content)):
            found += [(content, key), *places(content[key])]
    return found


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_content_ends_in_a_traceback(data: st.DataObject) -> None:
    """A study, or a ValueError of one line that names the file."""
    content = copy.deepcopy(tomllib.loads(SMALL))
    for _ in range(data.draw(st.integers(1, 3))):
        found = places(content)
        if not found:
            break
        container, key = data.draw(st.sampled_from(found))
        action = data.draw(st.sampled_from(["replace", "remove", "add"]))
        if action == "replace" or isinstance(container, list):
            container[key] = data.draw(ANYTHING)
        elif action == "remove":
            del container[key]
        else:
            container[data.draw(st.text(max_size=8))] = data.draw(ANYTHING)
    try:
        study = _study(Section("study.toml", content), Path("study.toml"), {})
    except ValueError as error:
        assert str(error).startswith("study.toml") and "\n" not in str(error), error
    else:
        assert isinstance(study, Study) and min(study.planned()["runs"], 1) == 1


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(SMALL)), st.integers(0, 30), st.text(max_size=20))
def test_no_text_ends_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, start: int, length: int, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.toml"
    changed = SMALL[:start] + text + SMALL[start + length :]
    path.write_text(changed, encoding="utf-8", errors="backslashreplace")
    try:
        read_study(path)
    except ValueError as error:
        assert str(error).startswith(str(path))
