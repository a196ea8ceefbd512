"""One run's names, its title, and what makes two runs the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utilities.runs import (
    INCIDENTAL,
    NameDefaults,
    Run,
    differing,
    identity,
    model_title,
    refuse_other,
    run_settings,
)

OUT = Path("results")
USUAL = NameDefaults(rho=0.05, seed=42, dataset="MUTAG")
PLAIN = Run("GCN", "SAM", 0.05, "MUTAG", 42, defaults=USUAL, model="GCN", out_dir=OUT)


def checkpoint_of(**train_args: Any) -> dict[str, Any]:
    """What a checkpoint says of its run."""
    args = {"optimizer": "SAM", "rho": 0.05, "seed": 42, "tag": "", "fold": None}
    args |= {"dataset": "MUTAG", "defaults": USUAL._asdict(), "device": "cpu", "epochs": 3}
    content = {"task": "GCN", "model": "GCN", "model_args": {"in_channels": 7}}
    content |= {"dataset": "MUTAG", "data_args": {"seed": 42, "fold": None}}
    return {**content, "train_args": {**args, **train_args}}


# --- names ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "run_name", "spectrum"),
    [
        ({}, "GCN_SAM_{}0.05", "GCN_SAM"),
        ({"rho": 0.1}, "GCN_SAM_{}0.1", "GCN_SAM_rho0.1"),
        ({"seed": 7}, "GCN_SAM_{}0.05_seed7", "GCN_SAM_seed7"),
        ({"dataset": "NCI1"}, "GCN_SAM_{}0.05_NCI1", "GCN_SAM_NCI1"),
        ({"fold": 0}, "GCN_SAM_{}0.05_fold0", "GCN_SAM_fold0"),
        ({"tag": "wide"}, "GCN_SAM_{}0.05_wide", "GCN_SAM_wide"),
        (
            {"rho": 0.1, "seed": 7, "dataset": "NCI1", "fold": 3, "tag": "a-b"},
            "GCN_SAM_{}0.1_NCI1_fold3_seed7_a-b",
            "GCN_SAM_rho0.1_seed7_NCI1_fold3_a-b",
        ),
    ],
)
def test_names_carry_what_is_not_the_default(
    change: dict[str, Any], run_name: str, spectrum: str
) -> None:
    run = replace(PLAIN, **change)
    model = f"model_{run_name.format('rho')}"
    assert run.history == OUT / "outputs" / f"my_train_{run_name.format('')}.dat"
    assert run.best == OUT / "to_plot" / f"{model}.pt"
    assert run.last == OUT / "to_plot" / f"{model}_last.pt"
    assert run.surface == OUT / "to_plot" / f"{model}.h5"
    assert run.surface_picture("2dheat") == OUT / "plots" / f"{model}.h5_2dheat.png"
    assert run.spectrum == OUT / "Eigenvalues" / spectrum
    assert run.spectrum_picture == OUT / "plots" / f"eig_{spectrum}.png"
    state = replace(run, is_state=True)
    assert state.surface == OUT / "to_plot" / f"{model}_last.h5"
    assert state.spectrum == OUT / "Eigenvalues" / f"{spectrum}_last"
    epoch = replace(run, epoch=12)
    assert run.kept(12) == OUT / "to_plot" / f"{model}_epoch12.pt"
    assert epoch.surface == OUT / "to_plot" / f"{model}_epoch12.h5"
    assert epoch.spectrum == OUT / "Eigenvalues" / f"{spectrum}_epoch12"


runs = st.builds(
    Run,
    task=st.sampled_from(["cifar", "GCN"]),
    optimizer=st.sampled_from(["ADAM", "SAM", "ASAM"]),
    rho=st.sampled_from([0.0, 0.05, 0.5]),
    dataset=st.sampled_from(["MUTAG", "NCI1"]),
    seed=st.integers(0, 50),
    fold=st.none() | st.integers(0, 9),
    tag=st.sampled_from(["", "a", "b"]),
    defaults=st.just(USUAL),
    is_state=st.booleans(),
    epoch=st.none() | st.integers(0, 9),
).map(lambda run: replace(run, model=run.task, is_state=run.is_state and run.epoch is None))


@given(runs, runs)
def test_runs_that_differ_share_no_name_and_the_same_one_has_all_its_names(a: Run, b: Run) -> None:
    """The kind: a setting that makes another run and is missing in a name, as the fold was."""
    names = [(run.surface, run.spectrum, run.title) for run in (a, b)]
    for one, other in zip(*names, strict=True):
        assert (one == other) == (a == b)
    trained = [replace(run, is_state=False, epoch=None) for run in (a, b)]
    assert (a.history == b.history) == (a.best == b.best) == (trained[0] == trained[1])


def test_a_checkpoint_gives_the_run_of_its_command_line() -> None:
    for change in ({}, {"rho": 0.2}, {"seed": 1}, {"fold": 0}, {"tag": "x"}, {"dataset": "NCI1"}):
        content = checkpoint_of(**change)
        args = content["train_args"]
        asked = Run.from_arguments("GCN", "GCN", args, USUAL, OUT)
        assert Run.from_checkpoint(content, OUT) == asked == replace(PLAIN, **change)
        state = Run.from_checkpoint({**content, "resume": {}}, OUT)
        assert state == replace(asked, is_state=True) and state.history == asked.history


def test_a_users_own_model_has_a_name_of_its_task() -> None:
    content = {**checkpoint_of(), "task": "leaves", "model": "my.nets:make_cnn", "dataset": "oak"}
    content["train_args"] = {"optimizer": "SGD", "rho": 0.0, "seed": 3}
    run = Run.from_checkpoint(content, OUT)
    assert run.best.name == "model_leaves_SGD_rho0.0_oak_seed3.pt"
    assert run.title == "make_cnn on oak, SGD, seed 3"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "../../x"}, r"task is '\.\./\.\./x'"),
        ({"task": "a\nb"}, "task is"),
        (
            {"train_args": {"optimizer": "SAM", "rho": 0.05, "seed": 1, "tag": "a/b"}},
            "tag is 'a/b'",
        ),
        ({"train_args": {"optimizer": 3, "rho": 0.05, "seed": 1}}, "optimizer is '3'"),
        ({"train_args": {"optimizer": "SAM", "rho": "x/y", "seed": 1}}, "name no run"),
        ({"train_args": {"rho": 0.05, "seed": 1}}, "name no run .*'optimizer'"),
        ({"train_args": {"optimizer": "SAM", "rho": 1, "seed": 1, "defaults": 3}}, "name no run"),
    ],
)
def test_a_strangers_checkpoint_names_no_file_elsewhere(change, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Run.from_checkpoint({**checkpoint_of(), **change})
    assert "\n" not in str(error.value)


# --- words ----------------------------------------------------------------------------------------
def test_titles_are_a_readers_words() -> None:
    wrn = {"depth": 16, "width_factor": 2, "num_classes": 10}
    content = {**checkpoint_of(), "task": "cifar", "model": "cifar", "model_args": wrn}
    usual = {"rho": 0.05, "seed": 42, "dataset": "cifar10"}
    content["train_args"] |= {"dataset": "cifar10", "defaults": usual}
    assert Run.from_checkpoint(content).title == "WRN-16-2 on CIFAR-10, SAM, rho 0.05"
    assert PLAIN.title == "GCN on MUTAG, SAM, rho 0.05"
    other = replace(PLAIN, fold=2, seed=1, tag="wide", is_state=True)
    assert other.title == "GCN on MUTAG, SAM, rho 0.05, fold 2, seed 1, wide, last epoch"
    assert replace(PLAIN, rho=0.0).title == "GCN on MUTAG, SAM, rho 0"
    adam = replace(PLAIN, optimizer="ADAM", rho=0.0, defaults=USUAL._replace(rho=0.0))
    assert adam.title == "GCN on MUTAG, ADAM"
    assert model_title("mitbih", {}) == "Transformer"
    assert model_title("cifar", {"depth": 10}) == "cifar"


# --- sameness -------------------------------------------------------------------------------------
def test_machines_and_times_make_no_other_run_and_all_else_does() -> None:
    old, new = run_settings(checkpoint_of()), run_settings(checkpoint_of())
    assert differing(old, new) == {}
    for name in INCIDENTAL:
        assert differing(old, {**new, name: "other"}) == {}
    for name in [key for key in new if key not in INCIDENTAL]:
        assert list(differing(old, {**new, name: "other"})) == [name]
    assert differing(old, {**new, "flag_of_tomorrow": 1}) == {"flag_of_tomorrow": None}
    # A run of a version without a flag is the same as one of today that leaves it off.
    for off in (None, False, 0.0):
        assert differing(old, {**new, "flag_of_tomorrow": off}) == {}
    assert differing({"fold": None}, {"fold": 0}) == {"fold": None}
    # Nothing in a model's own arguments is where or how.
    assert list(differing({"model_args": {"device": 1}}, {"model_args": {}})) == ["model_args"]


def test_repetitions_differ_in_what_they_are_taken_over() -> None:
    content = checkpoint_of(seed=1, fold=2)
    content["data_args"] = {"seed": 1, "fold": 2}
    over = ("seed", "fold")
    one, other = run_settings(checkpoint_of()), run_settings(content)
    assert identity(one, over) == identity(other, over)
    assert identity(one, ["seed"]) != identity(other, ["seed"])


def test_another_result_is_refused_and_the_same_is_not(tmp_path: Path) -> None:
    old, new = {"epochs": 3, "seed": 1, "threads": 1}, {"epochs": 5, "seed": 2, "threads": 2}
    path = tmp_path / "x.pt"
    refuse_other(path, old, {**old, "threads": 4}, "run", "name it")
    with pytest.raises(ValueError) as error:
        refuse_other(path, old, new, "run", "name this one with --tag", values=True)
    assert str(error.value) == (
        f"{path}: holds another run, with --epochs 3, --seed 1; name this one with --tag"
    )
    with pytest.raises(ValueError, match="another surface, which differs in epochs, seed; do so"):
        refuse_other(path, old, new, "surface", "do so")
    flags = ({f"--{k}": v for k, v in each.items()} for each in (old, new))
    with pytest.raises(ValueError, match="which differs in --epochs, --seed; do so"):
        refuse_other(path, *flags, "spectrum", "do so")
