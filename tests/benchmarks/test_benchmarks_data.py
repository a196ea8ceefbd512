"""The benchmark of the data pipeline compares like with like, and runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy import stats

from benchmarks import data_pipeline
from DatasetClass.augment import Augmentation, cut_out, random_values


def test_the_cutout_compared_with_has_our_holes() -> None:
    torch.manual_seed(0)
    theirs = data_pipeline.Cutout()
    areas = torch.stack([(theirs(torch.ones(3, 32, 32))[0] == 0).sum() for _ in range(4000)])
    values = random_values(4000, 32, Augmentation(), torch.Generator().manual_seed(1))
    holes = cut_out(torch.ones(4000, 32, 32, 1), values.cut, values.hole_top, values.hole_left, 16)
    ours = (holes == 0).sum(dim=(1, 2, 3))
    assert abs(float((areas == 0).float().mean()) - 0.5) < 0.03
    counts = [part[part > 0].bincount(minlength=257)[64:] for part in (areas, ours)]
    table = torch.stack(counts).view(2, -1)
    table = table[:, table.sum(dim=0) > 0]
    assert stats.chi2_contingency(table.numpy()).pvalue > 1e-3


def test_it_prints_a_row_for_each_loader(
    data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--rounds", "2", "--images", "100", "--batch_size", "40", "--threads", "1"]
    data_pipeline.main([*flags, "--data_dir", str(data_dir)])
    printed = capsys.readouterr().out
    assert "100 images, 2 rounds" in printed
    assert [line.split(" | ")[0] for line in printed.splitlines()[4:]] == [
        "| ours",
        "| ours, one thread",
        "| torchvision, DataLoader without workers",
        "| torchvision, DataLoader with 2 workers",
    ]
