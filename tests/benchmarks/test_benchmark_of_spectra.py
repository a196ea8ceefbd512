"""The benchmark of spectra counts and measures the same matrix with all tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import hessian, hessian_counts, hessian_reference, hessian_steps
from benchmarks.hessian_counts import Cost, Counts, beside, count_all, curvlinops
from benchmarks.hessian_products import peak, product_of
from benchmarks.hessian_reference import Reference, reference
from benchmarks.surface import Subject
from loss_landscape.my_pyhessian.operators import HessianOperator
from loss_landscape.my_pyhessian.stochastic import Known, probe

SIZE = 300
EIGENVALUES = np.concatenate([[-9.5, 5, 6, 7, 8.5, 10], np.linspace(-0.5, 0.5, SIZE - 6)])


class Dense:
    """A matrix with these eigenvalues, as far as algorithms know an operator."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        basis = torch.linalg.qr(torch.randn(SIZE, SIZE, dtype=torch.float64))[0]
        matrix = basis @ torch.diag(torch.tensor(EIGENVALUES)) @ basis.T
        self.matrix, self.flat = matrix.float(), torch.zeros(SIZE)
        self.model, self.params = torch.nn.Linear(1, 1), [torch.zeros(SIZE)]

    def __call__(self, vector: Tensor) -> Tensor:
        return self.matrix @ vector

    def split(self, vector: Tensor) -> list[Tensor]:
        return [vector]


def exact() -> Reference:
    magnitudes = EIGENVALUES[np.argsort(-np.abs(EIGENVALUES))][:5]
    falling = np.sort(EIGENVALUES)[::-1][:5]
    weights = np.full((1, SIZE), 1 / SIZE)
    return Reference(falling, magnitudes, EIGENVALUES.sum(), 0.0, EIGENVALUES[None], weights)


def arguments(data_dir: Path, *flags: str):
    return hessian.parse_args([f"--data_dir={data_dir}", "--threads=1", *flags])


@pytest.fixture(scope="module")
def costs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Cost]]:
    operator: Any = Dense()
    path = tmp_path_factory.mktemp("counts") / "kept"
    found = count_all("MUTAG", operator, exact(), Counts(path))
    assert count_all("MUTAG", None, exact(), Counts(path)) == found  # type: ignore[arg-type]
    return found


def test_all_tools_find_a_known_spectrum(costs: dict[str, dict[str, Cost]]) -> None:
    for parts in costs.values():
        assert parts["top 5"].off <= 1e-3 and 5 <= parts["top 5"].products < 500
        assert parts["trace"].off <= 0.02
        assert parts["density"].off <= 0.05 or parts["density"].about
    assert costs["ours"]["density"].off <= 0.05


def test_ours_is_as_near_as_the_peers(costs: dict[str, dict[str, Cost]]) -> None:
    near = min(costs[tool]["top 5"].off for tool in ("PyHessian", "curvlinops"))
    assert costs["ours"]["top 5"].off <= max(near, hessian_counts.ROUNDING)
    parts = costs["ours"]
    assert parts["top 5"].products < parts["trace"].products <= parts["all"].products
    assert parts["all"].products < sum(parts[n].products for n in ("top 5", "trace", "density"))


def test_every_product_is_counted() -> None:
    operator: Any = Dense()
    counted = hessian_counts.Counted(operator)
    vectors = torch.eye(SIZE)[:, :3]
    torch.testing.assert_close(counted @ vectors, operator.matrix[:, :3])
    torch.testing.assert_close(counted @ vectors[:, 0], operator.matrix[:, 0])
    assert counted.count == 4 and counted.inside > 0
    makers = curvlinops("MUTAG", operator, exact(), lambda: Cost(10**6, 0, 0.02, True))
    assert makers["density"]()["density"].products >= 60


@pytest.mark.parametrize(
    ("label", "name", "tools"),
    [
        ("WRN", "cifar", ("PyHessian", "curvlinops")),
        ("Transformer", "mitbih", ("PyHessian",)),  # curvlinops' is wrong with layer norms
        ("MUTAG", "GCN", ("PyHessian", "curvlinops")),
    ],
)
def test_products_of_all_tools_are_the_same(
    label: str, name: str, tools: tuple[str, ...], trained, data_dir: Path
) -> None:
    subject = Subject(trained[name], 6, arguments(data_dir))
    with sdpa_kernel(SDPBackend.MATH):
        expected = hessian.in_order(product_of("ours", label, subject, False)[0]())
        for tool in tools:
            found = hessian.in_order(product_of(tool, label, subject, False)[0]())
            assert float((found - expected).norm() / expected.norm()) < 1e-3


def test_the_reference_is_that_of_float64(trained, data_dir: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(hessian_reference.LONG, "MUTAG", (2, 12, 10))
    subject = Subject(trained["GCN"], 6, arguments(data_dir))
    found = reference("MUTAG", subject, tmp_path)
    restored = subject.restored
    assert next(restored.model.parameters()).dtype == torch.float32
    batches = hessian_reference.tree_map(hessian_reference.double, subject.batches)
    model = restored.model.double()
    operator = HessianOperator(model, restored.loss, batches, restored.forward)
    size = operator.flat.numel()
    matrix = LinearOperator(
        (size, size), lambda x: operator(torch.as_tensor(x.ravel())).numpy(), dtype=np.float64
    )
    expected = eigsh(matrix, 5, which="LA", tol=1e-8, return_eigenvectors=False)
    restored.model.float()
    np.testing.assert_allclose(found.values, np.sort(expected)[::-1], rtol=1e-6)
    np.testing.assert_allclose(found.weights.sum(axis=1), 1, rtol=1e-9)
    monkeypatch.setattr(hessian_reference, "_long_run", None)  # it is kept
    assert reference("MUTAG", subject, tmp_path).trace == found.trace


def test_a_probes_first_steps_are_what_fewer_steps_give(trained, data_dir: Path) -> None:
    subject = Subject(trained["GCN"], 6, arguments(data_dir))
    operator, draw, pairs = hessian_reference.in_float64(subject)
    known, start = Known.of(pairs), draw((1, 1, 0))
    steps = beside(known, operator, start, 40)
    values, weights = hessian_counts.density([steps], 12)
    few = probe(operator, known, start, 12)
    np.testing.assert_allclose(values, few.nodes, atol=1e-9)
    np.testing.assert_allclose(weights, few.weights, atol=1e-9)
    whole = hessian_counts.density([steps, steps], 40)
    assert hessian_reference.distance(whole, hessian_counts.density([steps], 40)) < 1e-9
    shifted = (whole[0] + 3, whole[1])
    mean = float(whole[1] @ np.abs(whole[0]))
    assert hessian_reference.distance(shifted, whole) == pytest.approx(3 / mean)


def test_the_steps_table_is_of_each_probe(trained, data_dir: Path, capsys) -> None:
    flags = ("--part=Transformer", f"--Transformer={trained['mitbih']}", f"--data_dir={data_dir}")
    hessian_steps.main([*flags, "--steps=41", "--samples=6", "--threads=1"])
    said = capsys.readouterr().out
    rows = [line.split(" | ") for line in said.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[2:]] == ["| 20 steps", "| 40 steps", "| from the others"]
    assert all(len(row) == 3 for row in rows)
    assert float(rows[3][1]) < float(rows[2][1])  # of 41 steps 40 tell more than 20


def test_memory_is_what_a_product_takes(trained, data_dir: Path) -> None:
    args = arguments(data_dir, "--no-compiling")
    assert 0 <= peak("ours", "MUTAG", trained["GCN"], 6, args) < 500


def test_the_tables_hold_all_tools(trained, data_dir: Path, tmp_path, monkeypatch) -> None:
    made = {"top 5": Cost(10, 0.1, 1e-4), "trace": Cost(20, 0.1, 0.02), "density": Cost(9, 0, 0.04)}
    peer = made | {"tol 0.1": Cost(10, 0.1, 1e-4)}
    ours = made | {"all": Cost(25, 0.3, 0.04)}
    monkeypatch.setattr(hessian, "reference", lambda *args: None)
    monkeypatch.setattr(
        hessian, "count_all", lambda *args: {"ours": ours, "PyHessian": peer, "curvlinops": peer}
    )
    monkeypatch.setattr(hessian, "memory_of", lambda *args: 1.5)
    monkeypatch.setattr(hessian, "kept_folder", lambda args: tmp_path)
    args = arguments(data_dir, "--samples=6", "--rounds=1", "--no-compiling")
    rows, tolerances = hessian.compare("MUTAG", trained["GCN"], args)
    assert [row[2] for row in rows] == ["ours", "PyHessian", "curvlinops"]
    assert len(rows[0]) == len(hessian.HEADER) and len(tolerances[0]) == len(hessian.BY_TOLERANCE)
    assert all(float(row[3]) > 0 for row in rows)
    seconds = 10 * float(rows[1][3]) / 1e3 + 0.1
    assert float(rows[1][5].split("(")[1].split()[0]) == pytest.approx(seconds, rel=0.02)
    args = arguments(data_dir, "--samples=6", "--prepare", "--no-compiling")
    assert hessian.compare("MUTAG", trained["GCN"], args) == ([], [])
