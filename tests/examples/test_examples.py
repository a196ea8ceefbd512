"""The worked example: trained by its own loop, then looked at by the commands that it shows."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from conftest import Run
from documents import indented

from examples.own_model import images, text
from loss_landscape import plot_surface
from loss_landscape.my_pyhessian import hessian
from loss_landscape.surface_file import read_surface
from utilities.files import ROOT

FEWER = ["--probes=1", "--lanczos_steps=2", "--trace_probes=1", "--max_steps=4", "--top_n=1"]


def shown(example: object) -> list[list[str]]:
    """The words of the commands in an example's docstring: train, surface, spectrum."""
    return [shlex.split(line, comments=True) for line in indented(example.__doc__ or "")]


@pytest.mark.parametrize(
    ("example", "train", "look"),
    [
        (text, ["--epochs=3"], []),
        (
            images,
            ["--epochs=1", "--samples=20", "--blocks=1"],
            ["--samples=4", "--model_args=blocks=1", "--dataset_args=samples=20"],
        ),
    ],
)
def test_the_example_does_what_it_shows(
    example, train, look, data_dir: Path, tmp_path: Path, monkeypatch, run_here: Run
) -> None:
    monkeypatch.chdir(ROOT)
    file = tmp_path / Path(shown(example)[0][-1]).name
    if example is images:
        train = [*train, f"--data_dir={data_dir}"]
        look = [*look[:-1], f"{look[-1]}, data_dir='{data_dir}'"]
    monkeypatch.setattr(sys, "argv", ["example.py", f"--file={file}", *train])
    example.main()
    common = [f"--out_dir={tmp_path}", "--threads=1", *look]
    for words, script in zip(shown(example)[1:], (plot_surface, hessian), strict=True):
        assert words[:2] == ["python", script.__file__.removeprefix(f"{ROOT}/")]
        flags = ["--x=-1:1:3", "--y=-1:1:3"] if script is plot_surface else FEWER
        flags = [str(file) if word == file.name else word for word in words[2:]] + flags
        done = run_here(script.main, *flags, *common)
        assert done.returncode == 0, done.stderr
    centre = read_surface(tmp_path / "to_plot" / f"{file.stem}.h5").values["train_loss"][1, 1]
    record = json.loads((tmp_path / "Eigenvalues" / f"{file.stem}.json").read_text())
    assert centre > 0 and record["lambda_max"] > 0
    assert re.fullmatch(r"(resnet|classifier) on loader, (resnet|text)", record["title"])
