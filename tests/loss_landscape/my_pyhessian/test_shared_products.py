"""Products and whole spectra of two processes are one's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
import torch.nn.functional as F
from curvature_cases import generator, in_batches, perceptron, points

from loss_landscape.my_pyhessian import hessian
from loss_landscape.my_pyhessian.operators import HessianOperator
from loss_landscape.my_pyhessian.shared_products import SharedProducts
from trainings import my_train_GCN
from utilities.ranks import Ranks

SCRIPT = "loss_landscape.my_pyhessian.hessian"
FEW = ("--dtype=float64", "--top_n=2", "--probes=2", "--lanczos_steps=5", "--trace_probes=4")


def operator_of_batches() -> HessianOperator:
    """Three batches of 5, 5 and 2, so that two processes have unequally many."""
    return HessianOperator(perceptron(), F.cross_entropy, in_batches(*points(12)))


def share(rank: int, world: int = 2) -> HessianOperator:
    ranks = Ranks(torch.device("cpu"))
    ranks.rank, ranks.world = rank, world
    operator = operator_of_batches()
    SharedProducts(operator, ranks)
    return operator


def test_the_shares_sum_up_to_the_whole() -> None:
    vectors = torch.randn(3, 43, generator=generator()).double()
    found = share(0).products(vectors) + share(1).products(vectors)
    torch.testing.assert_close(found, operator_of_batches().products(vectors))


def test_fewer_batches_than_processes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"--nproc_per_node 4: there are 3 batches.*--batch_size"):
        share(0, world=4)


def broken(rank: int) -> None:
    """The second process' products fail."""
    if rank:

        def fail(*_: object) -> None:
            raise RuntimeError("no memory left\nand more")

        HessianOperator.plain_product = fail


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    out = tmp_path_factory.mktemp("trained")
    my_train_GCN.main(processes.flags("GCN", data_dir, out))
    return next(p for p in out.glob("to_plot/*.pt") if "_last" not in p.name)


def spectrum(file: Path, out: Path, *more: str) -> tuple[dict, np.ndarray]:
    path = hessian.main(flags(file, out, *more))
    return json.loads(path.read_text()), np.load(str(path).replace(".json", "_eigen.npy"))


def flags(file: Path, out: Path, *more: str) -> list[str]:
    return [
        f"--model_file={file}",
        f"--out_dir={out}",
        *FEW,
        "--batch_size=16",
        "--threads=1",
        "--device=cpu",
        *more,
    ]


def test_a_spectrum_of_two_processes_is_ones(trained: Path, tmp_path: Path, data_dir: Path) -> None:
    """Standard errors too, for which each process takes its part of the groups of samples."""
    more = [f"--data_dir={data_dir}", "--per_layer"]
    record, nodes = spectrum(trained, tmp_path / "one", *more)
    out = tmp_path / "two"
    processes.train(SCRIPT, flags(trained, out, *more), out)
    (path,) = out.glob("Eigenvalues/*.json")
    theirs = json.loads(path.read_text())
    for name in ("eigenvalues", "trace", "lambda_min", "standard_errors"):
        np.testing.assert_allclose(theirs[name], record[name], rtol=1e-10, atol=1e-10)
    errors = [[row["standard_error"] for row in one["per_layer"]] for one in (theirs, record)]
    np.testing.assert_allclose(errors[0], errors[1], rtol=1e-6)
    assert min(errors[0]) > 0
    found = np.load(str(path).replace(".json", "_eigen.npy"))
    np.testing.assert_allclose(found, nodes, rtol=0, atol=1e-10)
    assert theirs["samples"] == record["samples"]


def test_a_process_whose_product_fails_ends_all_with_one_line(
    trained: Path, tmp_path: Path, data_dir: Path
) -> None:
    out = tmp_path / "out"
    argv = flags(trained, out, "--no-fast", f"--data_dir={data_dir}")
    assert processes.wait(processes.start(SCRIPT, argv, out, prepare=broken)) == [2, 0]
    first, second = processes.printed(out)
    assert "error: process 1: no memory left" in first and "and more" not in first
    assert "Traceback" not in first + second
    assert not list(out.glob("Eigenvalues/*.json"))
