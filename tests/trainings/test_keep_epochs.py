"""Weights of epochs that a run keeps: all there, each once, whole, and only that run's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from processes import flags
from processes import train as train_together
from toy import Toy, killed_at_save, make_model, train

from trainings import my_train_GCN
from utilities import checkpoint
from utilities.interrupt import Interrupted
from utilities.runs import Run


def kept(out: Path) -> dict[str, dict]:
    """The kept epochs' checkpoints by name; reading checks that they are whole."""
    return {path.name: checkpoint.load(path) for path in out.glob("to_plot/*_epoch*.pt")}


def same(a: dict[str, dict], b: dict[str, dict]) -> bool:
    def plain(content: dict) -> dict:
        weights = {name: tensor.tolist() for name, tensor in content["state_dict"].items()}
        return {"weights": weights, "epoch": content["epoch"], "metrics": content["metrics"]}

    return {n: plain(c) for n, c in a.items()} == {n: plain(c) for n, c in b.items()}


def test_each_kth_epoch_is_a_checkpoint_of_the_weights_then(tmp_path: Path) -> None:
    """They are those that the epoch was validated with, and those of a shorter run's end."""
    args = train(tmp_path, "--keep_epochs=2")
    files = args.run.kept_epochs()
    stem = args.run.best.stem
    assert [path.name for path in files.values()] == [f"{stem}_epoch{k}.pt" for k in (0, 2, 4)]
    contents = {epoch: checkpoint.load(path) for epoch, path in files.items()}
    first, last = make_model().state_dict(), checkpoint.load(args.run.last)
    assert all(torch.equal(contents[0]["state_dict"][name], first[name]) for name in first)
    for name, value in last["state_dict"].items():
        assert torch.equal(contents[4]["state_dict"][name], value)
    assert contents[4]["metrics"] == last["metrics"] and contents[0]["metrics"] == {}
    best = checkpoint.load(args.run.best)
    if best["epoch"] in contents:
        assert best["state_dict"].keys() == contents[best["epoch"]]["state_dict"].keys()
    for epoch, content in contents.items():
        run = Run.from_checkpoint(content, tmp_path)
        assert content["epoch"] == run.epoch == epoch and not run.is_state
        assert run.title.endswith(f"epoch {epoch}")


def test_a_kept_epoch_takes_about_half_of_a_state(tmp_path: Path) -> None:
    """Of a run with momentum, where what it says of itself weighs nothing."""
    wide = torch.nn.Sequential(torch.nn.Linear(4, 20_000), torch.nn.Linear(20_000, 3))
    args = train(tmp_path, "--keep_epochs=1", "--epochs=1", "--optimizer=SGD", model=wide)
    state, weights = (path.stat().st_size for path in (args.run.last, args.run.kept(1)))
    assert 0.45 < weights / state < 0.55


def test_keeping_changes_nothing_in_a_run_nor_whether_it_goes_on(tmp_path: Path) -> None:
    class Stopping(Toy):
        def fetch_augmented(self, indices: torch.Tensor):
            if self.fetched == 6:
                os.kill(os.getpid(), 15)
            return super().fetch_augmented(indices)

    with pytest.raises(Interrupted):
        train(tmp_path / "a", "--average=ema", data=Stopping())
    train(tmp_path / "a", "--average=ema", "--keep_epochs=1", "--resume")
    whole = train(tmp_path / "b", "--average=ema")
    a, b = (checkpoint.load(tmp_path / o / "to_plot" / whole.run.last.name) for o in "ab")
    for name, value in b["state_dict"].items():
        assert torch.equal(a["state_dict"][name], value)
    assert {c["epoch"] for c in kept(tmp_path / "a").values()} == {2, 3, 4}


def test_epochs_that_an_older_part_of_the_run_did_not_keep_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    train(tmp_path)
    train(tmp_path, "--keep_epochs=2", "--resume")
    assert "3 of the epochs that --keep_epochs asks for are over" in capsys.readouterr().out
    train(tmp_path / "b", "--keep_epochs=2")
    train(tmp_path / "b", "--keep_epochs=2", "--resume")
    assert "note" not in capsys.readouterr().out


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("number", range(1, 9))  # state, epochs 0 to 4, best, last
def test_no_kill_mixes_two_runs(number: int, written: bool, tmp_path: Path) -> None:
    """One that replaces a longer one and is killed at any of its saves, then resumed."""
    train(tmp_path / "a", "--keep_epochs=1")
    train(tmp_path / "b", "--keep_epochs=1", "--learning_rate=0.5", "--epochs=6")
    with killed_at_save(number, written):
        train(tmp_path / "b", "--keep_epochs=1", "--overwrite")
    if (number, written) == (1, False):
        assert len(kept(tmp_path / "b")) == 7  # nothing was replaced
    flag = "--overwrite" if (number, written) == (1, False) else "--resume"
    train(tmp_path / "b", "--keep_epochs=1", flag)
    assert len(kept(tmp_path / "a")) == 5 and same(kept(tmp_path / "a"), kept(tmp_path / "b"))


def test_what_another_run_kept_is_neither_lost_nor_taken(tmp_path: Path) -> None:
    """Whoever removed its state may still want its epochs; a tag can't make a name of them."""
    args = train(tmp_path, "--keep_epochs=2", "--learning_rate=0.5")
    args.run.last.unlink()
    args.run.best.unlink()
    before = kept(tmp_path)
    with pytest.raises(ValueError, match=r"_epoch0\.pt: holds another run, with --learning_rate"):
        train(tmp_path, "--keep_epochs=2")
    with pytest.raises(ValueError, match=r"_epoch0\.pt: holds no state to go on from"):
        train(tmp_path, "--keep_epochs=2", "--learning_rate=0.5", "--resume")
    assert same(kept(tmp_path), before)
    train(tmp_path, "--overwrite")
    assert not kept(tmp_path)
    with pytest.raises(ValueError, match="ends as the names of states or kept epochs do"):
        my_train_GCN.parse_args(["--tag=epoch12"])
    # Names that only begin as those of kept epochs do.
    for name in ("epoch3_x", "epoch", "epoch03", "epochs"):
        args.run.best.with_name(f"{args.run.best.stem}_{name}.pt").touch()
    assert args.run.kept_epochs() == {}


def refuse_to_write(rank: int) -> None:
    """Let only the first process write checkpoints."""
    if rank:
        checkpoint.save = lambda path, content: pytest.fail(f"process {rank} writes {path}")


def test_one_of_two_processes_writes_them(data_dir: Path, tmp_path: Path) -> None:
    argv = flags("GCN", data_dir, tmp_path, "--epochs=2", "--keep_epochs=1")
    train_together("GCN", argv, tmp_path, prepare=refuse_to_write)
    assert {content["epoch"] for content in kept(tmp_path).values()} == {0, 1, 2}
