"""Damaged files through the command lines of all scripts that look at a minimum."""

from __future__ import annotations

from pathlib import Path

from conftest import run_script


def test_damaged_files_are_one_line_through_the_command_line(trained, tmp_path: Path) -> None:
    cut = tmp_path / "cut.pt"
    cut.write_bytes(trained["GCN"].read_bytes()[:2000])
    bad = tmp_path / "bad.h5"
    bad.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    for script, *flags in (
        ("loss_landscape/plot_surface.py", "--model_file", cut),
        ("loss_landscape/my_pyhessian/hessian.py", "--model_file", cut),
        ("loss_landscape/plot_2D.py", "--surf_file", bad),
        ("loss_landscape/my_pyhessian/density_plot.py", "--spectrum", tmp_path / "none"),
    ):
        result = run_script(script, *flags)
        assert result.returncode == 2, script
        assert len(result.stderr.splitlines()) == 1
        assert "Traceback" not in result.stderr
