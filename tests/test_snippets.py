"""The documents' Python snippets run as they are printed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from documents import DOCUMENTS, name, snippets
from torch import distributed, nn

from sam import SAM, frozen_batch_norm, normalisation_only

SNIPPETS = [
    pytest.param(document, index, id=f"{name(document)}-{index}")
    for document in DOCUMENTS
    for index in range(len(snippets(document)))
]


@pytest.mark.parametrize(("document", "index"), SNIPPETS)
def test_snippet_makes_one_finite_step(document: Path, index: int, tmp_path: Path) -> None:
    first, snippet = snippets(document)[0], snippets(document)[index]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    names = {
        "torch": torch,
        "SAM": SAM,
        "frozen_batch_norm": frozen_batch_norm,
        "normalisation_only": normalisation_only,
        "model": model,
        "device": torch.device("cpu"),
        "inputs": torch.randn(8, 4),
        "targets": torch.arange(8) % 3,
        "loss_function": nn.functional.cross_entropy,
        "scaler": torch.amp.GradScaler("cpu", init_scale=8.0),
    }
    exec(first, names)  # the others use its optimizer and closure
    before = [p.detach().clone() for p in model.parameters()]
    parallel = "DistributedDataParallel" in snippet
    if parallel:
        store = distributed.FileStore(str(tmp_path / "store"), 1)
        distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        exec(snippet, names)
    finally:
        if parallel:
            distributed.destroy_process_group()
    changes = [not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)]
    assert any(changes)
    assert all(p.isfinite().all() for p in model.parameters())
    assert names["optimizer"].skipped == 0


def test_every_pattern_is_shown() -> None:
    counts = {name(document): len(snippets(document)) for document in DOCUMENTS}
    assert {k: v for k, v in counts.items() if v} == {"README.md": 2, "docs/sam.md": 7}
