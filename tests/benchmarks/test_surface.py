"""The benchmark of surfaces measures the same points in all ways."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import surface
from benchmarks.surface import CASES, Peer, PlainLoop, Subject, peer_points
from loss_landscape.points.fast_evaluation import PLAIN, FastVisits


def arguments(data_dir: Path, *flags: str):
    return surface.parse_args([f"--data_dir={data_dir}", "--threads=1", "--rounds=2", *flags])


@pytest.mark.parametrize(
    ("label", "name"), [("WRN", "cifar"), ("Transformer", "mitbih"), ("MUTAG", "GCN")]
)
def test_all_tools_give_the_same_losses(label: str, name: str, trained, data_dir: Path) -> None:
    subject = Subject(trained[name], 9, arguments(data_dir))
    for p in subject.restored.model.parameters():  # the classifier of a short training is near zero
        p.data.mul_(1.5)
    points = peer_points(2)
    expected = subject.task().plain(points)["train_loss"]
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(PlainLoop(subject)(points), expected, rtol=1e-5)
    np.testing.assert_allclose(Peer(subject)(2), expected, rtol=1e-5)


def test_points_are_those_that_the_peer_visits() -> None:
    assert peer_points(2).tolist() == [[0, 0.5], [0, 1], [0.5, 0], [0.5, 0.5]]


def test_the_table_holds_all_tools(trained, data_dir: Path, monkeypatch) -> None:
    monkeypatch.setattr(surface, "faster", lambda task, *args: FastVisits(task, PLAIN))
    rows = surface.compare("MUTAG", trained["GCN"], arguments(data_dir, "--samples=9"))
    assert [row[2] for row in rows] == ["loss-landscapes", "ours, fp32", "plain loop"]
    assert all(float(row[4]) > 0 for row in rows)
    ours = rows[1]
    gain = float(rows[2][4]) / float(ours[4])
    assert float(ours[5].split()[0]) == pytest.approx(gain, rel=0.02)
    assert 0 <= float(ours[6] or 0) < 1e-5


def test_another_loss_is_no_row(trained, data_dir: Path, monkeypatch) -> None:
    monkeypatch.setattr(surface, "faster", lambda task, *args: FastVisits(task, PLAIN))
    monkeypatch.setattr(surface, "peer_points", lambda steps: np.full((steps**2, 2), 0.3))
    with pytest.raises(ValueError, match="MUTAG, loss-landscapes: differs by"):
        surface.compare("MUTAG", trained["GCN"], arguments(data_dir, "--samples=9"))


def test_a_checkpoint_is_trained_where_none_is_given(
    data_dir: Path, tmp_path: Path, monkeypatch
) -> None:
    case = CASES["MUTAG"]._replace(flags=("--dataset=TINY", "--epochs=1"))
    monkeypatch.setitem(CASES, "MUTAG", case)
    path = surface.trained("MUTAG", tmp_path, arguments(data_dir))
    assert path.exists() and Subject(path, 5, arguments(data_dir)).count == 5
