"""Hessian products, eigenvalues, trace and density against dense matrices in float64."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run
from curvature_cases import case, dense, generator
from torch import nn

from loss_landscape.my_pyhessian import density_plot
from loss_landscape.my_pyhessian.hessian import hessian, main
from loss_landscape.my_pyhessian.operators import HessianOperator
from loss_landscape.my_pyhessian.spectrum_file import read_spectrum
from loss_landscape.my_pyhessian.stochastic import standard_error
from models.smooth_crossentropy import smooth_crossentropy


@pytest.mark.parametrize("name", ["GCN", "mitbih", "cifar"])
def test_products_eigenvalues_and_trace_are_the_dense_matrixs(name: str) -> None:
    model, inputs, targets = case(name)
    matrix = dense(model, inputs, targets, smooth_crossentropy)
    operator = HessianOperator(model, smooth_crossentropy, [(inputs, targets)])
    assert operator.flat.numel() == len(matrix)
    vector = torch.randn(len(matrix), generator=generator(), dtype=torch.float64)
    torch.testing.assert_close(operator(vector), matrix @ vector, rtol=1e-8, atol=1e-10)

    exact = torch.linalg.eigvalsh(matrix)
    largest = exact[exact.abs().argsort(descending=True)][:5]
    values, vectors = hessian(model, smooth_crossentropy, data=(inputs, targets)).eigenvalues(
        top_n=5, tol=1e-9, maxIter=len(matrix)
    )
    # Pairs of +v and -v have no order, so magnitudes are compared, and then each with the nearest.
    np.testing.assert_allclose(np.abs(values), largest.abs(), rtol=1e-6)
    assert all(float((exact - value).abs().min()) < 1e-6 * abs(value) for value in values)
    top = torch.cat([v.flatten() for v in vectors[0]])
    assert float((matrix @ top - values[0] * top).norm()) < 1e-6 * abs(values[0])

    samples = hessian(model, smooth_crossentropy, data=(inputs, targets)).trace(400, tol=0)
    error = standard_error(samples)
    assert abs(np.mean(samples) - float(matrix.trace())) < 4 * error


def test_density_has_the_dense_matrixs_moments() -> None:
    model, inputs, targets = case("GCN")
    matrix = dense(model, inputs, targets, smooth_crossentropy)
    nodes, weights = map(
        np.array,
        hessian(model, smooth_crossentropy, data=(inputs, targets)).density(iter=20, n_v=60),
    )
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    for power in (1, 2):
        moments = (weights * nodes**power).sum(axis=1)
        exact = float(torch.linalg.matrix_power(matrix, power).trace()) / len(matrix)
        assert abs(moments.mean() - exact) < 4 * standard_error(moments)


def test_logistic_regression_is_the_closed_form() -> None:
    torch.manual_seed(0)
    x = torch.randn(30, 4, dtype=torch.float64)
    model = nn.Linear(4, 3, bias=False).double()
    p = torch.softmax(x @ model.weight.T, dim=1).detach()
    blocks = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    expected = torch.einsum("nij,nk,nl->ikjl", blocks, x, x).reshape(12, 12) / 30
    operator = HessianOperator(model, nn.functional.cross_entropy, [(x, torch.arange(30) % 3)])
    found = torch.stack([operator(e) for e in torch.eye(12, dtype=torch.float64)])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found, found.T)


def test_an_unequal_last_batch_changes_nothing() -> None:
    model, x, y = case("mitbih")
    loss = nn.functional.cross_entropy  # the mean over a batch, as PyHessian's users pass it
    whole = HessianOperator(model, loss, [(x, y)])
    parts = HessianOperator(model, loss, [(x[:4], y[:4]), (x[4:], y[4:])])
    vector = torch.randn(whole.flat.numel(), generator=generator(), dtype=torch.float64)
    torch.testing.assert_close(parts(vector), whole(vector))


@pytest.mark.parametrize("name", ["GCN", "mitbih", "cifar"])
def test_looking_changes_nothing(name: str) -> None:
    model, inputs, targets = case(name)
    model.train()
    model.classifier.eval()  # a mixed mode must come back as it was
    model.classifier.weight.grad = torch.ones_like(model.classifier.weight)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.random.get_rng_state()
    results = [
        hessian(model, smooth_crossentropy, data=(inputs, targets)).eigenvalues(top_n=2)[0]
        for _ in range(2)
    ]
    # PyHessian's second object doubles the eigenvalues. Ours may make products another way.
    np.testing.assert_allclose(results[0], results[1], rtol=1e-6)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(model.classifier.weight.grad, torch.ones_like(model.classifier.weight))
    assert all(p.grad is None for n, p in model.named_parameters() if n != "classifier.weight")


def test_unused_and_linear_parameters_give_zeros() -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 1), "unused": nn.Linear(2, 1)}).double()
    model.forward = lambda x: model["used"](x)
    operator = HessianOperator(
        model, lambda out, _: out.mean(), [(torch.ones(3, 2).double(), torch.zeros(3))]
    )
    assert not operator(torch.ones(6, dtype=torch.float64)).any()


def test_bad_input_is_refused() -> None:
    model, x, y = case("mitbih")
    with pytest.raises(ValueError, match="either data or dataloader"):
        hessian(model, smooth_crossentropy)
    with pytest.raises(ValueError, match="no samples"):
        hessian(model, smooth_crossentropy, dataloader=[])
    with pytest.raises(ValueError, match="NaN"):
        hessian(model, smooth_crossentropy, data=(x * math.nan, y))


def test_the_scripts_write_a_spectrum_and_its_picture(
    trained, data_dir, tmp_path: Path, run_here: Run
) -> None:
    common = ("--data_dir", data_dir, "--out_dir", tmp_path, "--threads", 1)
    flags = (
        "--probes",
        2,
        "--lanczos_steps",
        5,
        "--top_n",
        1,
        "--trace_probes",
        3,
        "--max_steps",
        20,
    )
    for name in trained:
        model = ("--model_file", trained[name], "--samples", 20)
        done = run_here(main, *model, *flags, *common)
        assert done.returncode == 0, done.stderr
        suffix = "_TINY" if name == "GCN" else ""
        stem = tmp_path / "Eigenvalues" / f"{name}_SAM{suffix}"
        spectrum = read_spectrum(stem)
        record = json.loads(Path(f"{stem}.json").read_text())
        assert spectrum.nodes.shape == (2, record["known"] + 5)
        assert record["lambda_max"] >= spectrum.nodes.max()
        assert len(record["residuals"]) == 2 and record["ends"] == ["top", "bottom"]
        assert record["trace_standard_error"] > 0
        assert density_plot.main(["--spectrum", str(stem), "--out_dir", str(tmp_path)]).is_file()
    again = run_here(main, *model, *flags[:-1], 21, *common)
    assert again.returncode == 2
    assert "differs in --max_steps" in again.stderr


def test_pyhessians_example_runs_as_written(tmp_path: Path, monkeypatch) -> None:
    """The calls of its example_pyhessian_analysis.py, that its README starts; two imports changed.

    Its model is wrapped in DataParallel and its loader's batches are pairs.
    """
    monkeypatch.chdir(tmp_path)
    model, inputs, targets = case("mitbih")
    model = torch.nn.DataParallel(model)
    criterion = nn.CrossEntropyLoss()
    args = {"data": (inputs, targets), "dataloader": [(inputs[:3], targets[:3])]}
    for name, value in args.items():
        hessian_comp = hessian(model, criterion, cuda=False, **{name: value})
        top_eigenvalues, _ = hessian_comp.eigenvalues()
        trace = hessian_comp.trace()
        density_eigen, density_weight = hessian_comp.density()
        assert len(top_eigenvalues) == 1 and np.isfinite(np.mean(trace))
        assert np.shape(density_eigen) == np.shape(density_weight) == (1, 100)
        density_plot.get_esd_plot(density_eigen, density_weight)
        assert (tmp_path / "example.pdf").is_file()
