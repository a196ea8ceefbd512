"""One process alone, and what torchrun's environment says; test_distributed has the rest."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from utilities.ranks import Ranks, launcher, rank_and_world


def test_one_process_needs_no_group_even_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    ranks, model = Ranks(torch.device("cpu")), nn.Linear(2, 2)
    assert rank_and_world() == (0, 1) and launcher() == ["python"] and ranks.writer
    assert ranks.wrap(model, sync_batch_norm=False) is model
    assert ranks.gather(3) == [3] and ranks.from_writer(lambda: 4) == 4
    with ranks.in_turn():
        ranks.close()
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("machines", "words"),
    [
        ("1", ["torchrun", "--nproc_per_node=4"]),
        ("2", ["torchrun", "--nnodes=2", "--nproc_per_node=4"]),
    ],
)
def test_the_launcher_is_that_of_the_run(
    machines: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"WORLD_SIZE": "8", "RANK": "5", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GROUP_WORLD_SIZE", machines)
    assert rank_and_world() == (5, 8) and launcher() == words


def test_a_device_that_cant_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="--device mps: several processes need cpu or cuda"):
        Ranks(torch.device("mps"))
    monkeypatch.setenv("LOCAL_RANK", str(torch.cuda.device_count()))
    with pytest.raises(ValueError, match="has no GPU of its own"):
        Ranks(torch.device("cuda"))
