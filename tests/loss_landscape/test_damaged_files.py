"""Damaged files through the command lines of all scripts that look at a minimum."""

from __future__ import annotations

from pathlib import Path

from loss_landscape import plot_2D, plot_surface
from loss_landscape.my_pyhessian import density_plot, hessian


def test_damaged_files_are_one_line_through_the_command_line(
    trained, tmp_path: Path, run_here
) -> None:
    cut = tmp_path / "cut.pt"
    cut.write_bytes(trained["GCN"].read_bytes()[:2000])
    bad = tmp_path / "bad.h5"
    bad.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    for script, *flags in (
        (plot_surface.main, "--model_file", cut),
        (hessian.main, "--model_file", cut),
        (plot_2D.main, "--surf_file", bad),
        (density_plot.main, "--spectrum", tmp_path / "none"),
    ):
        result = run_here(script, *flags)
        assert result.returncode == 2, script
        assert len(result.stderr.splitlines()) == 1
        assert "Traceback" not in result.stderr
