"""--bn batch under torchrun itself: two processes are one, or say in one line why they can't be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from forks import LIMIT
from torch import nn

from loss_landscape.my_pyhessian import hessian
from utilities.files import ROOT

COMMON = ["--bn=batch", "--threads=1", "--device=cpu"]
FEW = ["--dtype=float64", "--probes=2", "--lanczos_steps=4", "--top_n=1", "--max_steps=8"]
FEW += ["--trace_probes=3"]
RANKED = """
import os
import torch
from torch import nn


def make():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def load():  # as a DistributedSampler would
    generator = torch.Generator().manual_seed(int(os.environ.get("RANK", 0)))
    return [(torch.randn(6, 3, generator=generator), torch.arange(6) % 2) for _ in range(2)]
"""


def torchrun(script: str, *flags: object, at: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """What two processes print and end with."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node=2", str(ROOT / script), *map(str, flags)]
    return subprocess.run(command, cwd=at, capture_output=True, text=True, timeout=LIMIT)


def refusals(done: subprocess.CompletedProcess[str], script: str) -> list[str]:
    """The lines that our script itself printed to stderr; torchrun has its own report."""
    assert done.returncode, done.stdout
    return [line for line in done.stderr.splitlines() if line.startswith(Path(script).name + ":")]


HESSIAN = "loss_landscape/my_pyhessian/hessian.py"


def test_a_spectrum_of_two_processes_is_ones(trained, data_dir: Path, tmp_path: Path) -> None:
    """Each batch goes to one process whole, so that its statistics are those of one process."""
    own = [*COMMON, *FEW, "--samples=22", "--batch_size=8", f"--data_dir={data_dir}"]
    own += [f"--model_file={trained['cifar']}"]
    done = torchrun(HESSIAN, *own, f"--out_dir={tmp_path / 'two'}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("files written:") == 1
    path = hessian.main([*own, f"--out_dir={tmp_path / 'one'}"])
    two = next((tmp_path / "two").glob("Eigenvalues/*.json"))
    one, other = (json.loads(file.read_text()) for file in (path, two))
    assert one["bn"] == other["bn"] == "batch, batches of 8" and other["samples"] == 22
    for name in ("eigenvalues", "lambda_max", "lambda_min", "trace"):
        np.testing.assert_allclose(other[name], one[name], rtol=1e-10)
    nodes, others = (np.load(str(file).replace(".json", "_eigen.npy")) for file in (path, two))
    np.testing.assert_allclose(others, nodes, rtol=0, atol=1e-10 * abs(nodes).max())


def test_batches_too_few_to_be_shared_are_refused(trained, data_dir: Path, tmp_path: Path) -> None:
    own = [*COMMON, *FEW, "--samples=8", "--batch_size=8", f"--data_dir={data_dir}"]
    own += [f"--model_file={trained['cifar']}", f"--out_dir={tmp_path}"]
    (line,) = refusals(torchrun(HESSIAN, *own), HESSIAN)
    assert "--nproc_per_node 2: there are 1 batches" in line
    assert not list(tmp_path.glob("Eigenvalues/*"))


def test_processes_with_other_batches_are_refused(tmp_path: Path) -> None:
    """A loader that gives each process its own samples: their sum was a matrix of no set."""
    (tmp_path / "ranked_net.py").write_text(RANKED)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    torch.save(net.state_dict(), tmp_path / "net.pt")
    own = [*COMMON, *FEW, "--model_file=net.pt", "--model=ranked_net:make"]
    own += ["--dataset=ranked_net:load", f"--out_dir={tmp_path}"]
    (line,) = refusals(torchrun(HESSIAN, *own, at=tmp_path), HESSIAN)
    assert "process 1 has other batches than the first" in line
    assert not list(tmp_path.glob("Eigenvalues/*"))


LOCKING = ["sharpness", "plot_surface", "plot_sharpness", "plot_hessian_eigen", "plot_trajectory"]


@pytest.mark.parametrize("name", LOCKING)
def test_other_scripts_of_one_process_are_refused(
    name: str, trained, monkeypatch: pytest.MonkeyPatch, run_here
) -> None:
    """All did the whole, and one was ended by the other's lock."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    main = __import__(f"loss_landscape.{name}", fromlist=["main"]).main
    named = [] if name == "plot_sharpness" else ["--model_file"]
    done = run_here(main, *named, str(trained["GCN"]))
    assert done.returncode == 2 and "this script is for one process" in done.stderr
    assert len(done.stderr.splitlines()) == 1
