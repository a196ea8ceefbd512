"""Several minima side by side."""

from __future__ import annotations

from pathlib import Path

import pytest

from loss_landscape import compare


def test_comparison_refuses_what_was_never_computed(trained, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"plot_surface\.py writes it"):
        compare.main(["--model_files", str(trained["GCN"]), "--output", str(tmp_path / "a.png")])
