"""Hessian products, eigenvalues, trace and density against dense matrices in float64."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from conftest import run_script
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch_geometric.data import Batch, Data

import models
from loss_landscape.my_pyhessian import density_plot
from loss_landscape.my_pyhessian import hessian as script
from loss_landscape.my_pyhessian import lanczos as linear
from loss_landscape.my_pyhessian.hessian import HessianOperator, hessian
from models.smooth_crossentropy import smooth_crossentropy
from utilities import checkpoint


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def graphs(count: int) -> Batch:
    ring = torch.tensor([[0, 1, 2, 1, 2, 0], [1, 2, 0, 0, 1, 2]])
    features = torch.rand(count, 3, 2, generator=generator(1), dtype=torch.float64)
    return Batch.from_data_list([Data(x=x, edge_index=ring) for x in features])


def case(name: str) -> tuple[nn.Module, object, Tensor]:
    """A tiny instance of a task's model in float64, with its inputs and targets."""
    torch.manual_seed(0)
    if name == "GCN":
        model = models.build("GCN", in_channels=2, num_classes=2, hidden_channels=4)
        inputs, targets = graphs(6), torch.arange(6) % 2
    elif name == "mitbih":
        args = dict(dim=4, heads=2, layers=1, feedforward=4, patch=5)
        model = models.build("mitbih", length=20, num_classes=3, **args)
        inputs, targets = torch.rand(6, 20, dtype=torch.float64), torch.arange(6) % 3
    else:
        # The published widths start at 16 channels: only the last layers take part here.
        model = models.build("cifar", depth=10, width_factor=1, num_classes=3)
        inputs, targets = torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.arange(6) % 3
        nn.init.normal_(model.classifier.weight, std=0.3)
        for part in (model.conv, *model.groups, model.norm):
            part.requires_grad_(False)
        model.groups[2][0].norm1.requires_grad_(True)
        model.groups[1][0].shortcut.requires_grad_(True)
    return model.double(), inputs, targets


def layer_norm(self: nn.LayerNorm, x: Tensor) -> Tensor:
    """By its formula: the fused one's forward derivative of its backward is wrong in torch 2.14
    (torch.func.hessian of it isn't symmetric; finite differences side with our product).
    """
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / ((centred**2).mean(-1, keepdim=True) + self.eps).sqrt() * self.weight + self.bias
    )


def dense(model: nn.Module, inputs, targets: Tensor, loss) -> Tensor:
    """The whole matrix by torch.func.hessian over one flat vector."""
    model.eval()
    free = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    def flat_loss(vector: Tensor) -> Tensor:
        parts = vector.split([p.numel() for p in free.values()])
        named = {n: v.view_as(p) for v, (n, p) in zip(parts, free.items(), strict=True)}
        return loss(functional_call(model, named, (inputs,)), targets).mean()

    start = torch.cat([p.flatten() for p in free.values()])
    with sdpa_kernel(SDPBackend.MATH), patch.object(nn.LayerNorm, "forward", layer_norm):
        matrix = torch.func.hessian(flat_loss)(start)
    torch.testing.assert_close(matrix, matrix.T)
    return matrix


@pytest.mark.parametrize("name", ["GCN", "mitbih", "cifar"])
def test_products_eigenvalues_and_trace_are_the_dense_matrixs(name: str) -> None:
    model, inputs, targets = case(name)
    matrix = dense(model, inputs, targets, smooth_crossentropy)
    operator = HessianOperator(model, smooth_crossentropy, [(inputs, targets)])
    assert operator.like.numel() == len(matrix)
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
    error = linear.standard_error(samples)
    assert abs(np.mean(samples) - float(matrix.trace())) < 4 * error


def test_density_has_the_dense_matrixs_moments() -> None:
    model, inputs, targets = case("GCN")
    matrix = dense(model, inputs, targets, smooth_crossentropy)
    nodes, weights = map(
        np.array,
        hessian(model, smooth_crossentropy, data=(inputs, targets)).density(iter=20, n_v=300),
    )
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    for power in (1, 2):
        moments = (weights * nodes**power).sum(axis=1)
        exact = float(torch.linalg.matrix_power(matrix, power).trace()) / len(matrix)
        assert abs(moments.mean() - exact) < 4 * linear.standard_error(moments)


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
    vector = torch.randn(whole.like.numel(), generator=generator(), dtype=torch.float64)
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
    assert results[0] == results[1]  # PyHessian's second object doubles the eigenvalues
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


# --- linear algebra -------------------------------------------------------------------------------
def symmetric(values: list[float], seed: int = 0) -> Tensor:
    dim = len(values)
    q, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator(seed), dtype=torch.float64))
    return q @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ q.T


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=25), st.integers(0, 99))
def test_lanczos_keeps_its_equation(values: list[float], seed: int) -> None:
    matrix = symmetric(values, seed)
    start = torch.randn(len(values), generator=generator(seed), dtype=torch.float64)
    t = linear.lanczos(lambda v: matrix @ v, start, steps=40)
    n = len(t.diagonal)
    assert n <= len(values)
    torch.testing.assert_close(t.basis @ t.basis.T, torch.eye(n).double(), atol=1e-10, rtol=0)
    expected = np.diag(t.diagonal) + np.diag(t.off_diagonal, 1) + np.diag(t.off_diagonal, -1)
    found = t.basis @ matrix @ t.basis.T
    scale = max(map(abs, values)) + 1
    np.testing.assert_allclose(found, expected, atol=1e-7 * scale)
    ritz, _ = t.ritz()
    assert ritz.min() >= min(values) - 1e-7 * scale  # never outside the spectrum
    assert ritz.max() <= max(values) + 1e-7 * scale


@pytest.mark.parametrize(
    "values", [[0.0] * 6, [2.0] * 6, [-5.0, 1.0, 1.0, 1.0, 0.0], [1.0], [3.0, 3.0, -3.0, 0.5]]
)
def test_degenerate_spectra(values: list[float]) -> None:
    matrix = symmetric(values)
    start = torch.randn(len(values), generator=generator(), dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pairs = linear.extreme_eigenvalues(lambda v: matrix @ v, start, count=2)
    assert abs(pairs.values[0]) == pytest.approx(max(map(abs, values)), abs=1e-9)
    assert pairs.converged
    assert (pairs.residuals <= 1e-9).all()
    nodes, weights = linear.quadrature(lambda v: matrix @ v, start, generator(), 3, 10)
    assert nodes.shape == weights.shape == (3, 10)
    np.testing.assert_allclose(weights.sum(axis=1), 1)


def test_no_convergence_is_said_with_residuals() -> None:
    matrix = symmetric(np.linspace(0, 1, 200).tolist())
    start = torch.randn(200, generator=generator(), dtype=torch.float64)
    with pytest.warns(UserWarning, match="not converged after 20 Lanczos steps"):
        pairs = linear.extreme_eigenvalues(lambda v: matrix @ v, start, 5, max_steps=20, tol=1e-8)
    for value, vector, residual in zip(pairs.values, pairs.vectors, pairs.residuals, strict=True):
        assert float((matrix @ vector - value * vector).norm()) == pytest.approx(residual, rel=1e-4)


def test_a_product_of_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        linear.lanczos(lambda v: v * math.nan, torch.ones(3), 3)


def test_hutchinson_stops_on_the_standard_error() -> None:
    matrix = symmetric(np.linspace(0.5, 1.5, 50).tolist())
    like = torch.zeros(50, dtype=torch.float64)
    samples = linear.hutchinson(lambda v: matrix @ v, like, generator(), 10_000, tol=0.005)
    assert 10 <= len(samples) < 10_000
    assert linear.standard_error(samples) <= 0.005 * np.mean(samples)
    assert np.mean(samples) == pytest.approx(50, rel=0.03)


# --- density plot ---------------------------------------------------------------------------------
def test_density_integrates_to_one_and_hides_no_eigenvalue() -> None:
    nodes, weights = np.array([[-3.0, 0.0, 9.0]]), np.array([[0.1, 0.7, 0.2]])
    grid = np.linspace(-5, 11, 20_001)
    rows = density_plot.density(nodes, weights, grid, 0.1)
    integral = np.trapezoid if hasattr(np, "trapezoid") else np.trapz
    assert integral(rows[0], grid) == pytest.approx(1, abs=1e-6)
    assert integral(rows[0] * grid, grid) == pytest.approx(-0.3 + 1.8, abs=1e-6)
    peak = 0.2 / (0.1 * math.sqrt(2 * math.pi))
    assert rows[0][np.argmin(abs(grid - 9))] == pytest.approx(peak)


def test_the_scripts_write_a_spectrum_and_its_picture(trained, data_dir, tmp_path: Path) -> None:
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
        done = run_script("loss_landscape/my_pyhessian/hessian.py", *model, *flags, *common)
        assert done.returncode == 0, done.stderr
        suffix = "_TINY" if name == "GCN" else ""
        stem = tmp_path / "Eigenvalues" / f"{name}_SAM{suffix}"
        spectrum = density_plot.read_spectrum(stem)
        assert spectrum.nodes.shape == (2, 5)
        record = json.loads(Path(f"{stem}.json").read_text())
        assert record["lambda_max"] >= spectrum.nodes.max()
        assert len(record["residuals"]) == 1
        assert record["trace_standard_error"] > 0
        assert density_plot.main(["--spectrum", str(stem), "--out_dir", str(tmp_path)]).is_file()
    again = run_script("loss_landscape/my_pyhessian/hessian.py", *model, *flags[:-1], 21, *common)
    assert again.returncode == 2
    assert "differs in --max_steps" in again.stderr


def test_names_carry_what_is_not_the_default(trained) -> None:
    content = checkpoint.load(trained["cifar"])
    path = trained["cifar"]
    assert script.spectrum_stem(content, path) == "cifar_SAM"
    content["train_args"] |= {"rho": 0.1, "seed": 7, "tag": "wide"}
    assert script.spectrum_stem(content, Path("x_last.pt")) == "cifar_SAM_rho0.1_seed7_wide_last"


@pytest.mark.parametrize("size", [64, 127, 200])
def test_damaged_arrays_are_refused_cheaply(size: int, tmp_path: Path) -> None:
    path = tmp_path / "x_eigen.npy"
    np.save(path, np.zeros((4, 4)))
    header = path.read_bytes().replace(b"(4, 4)", b"(9999999, 999)".ljust(6))[:size]
    path.write_bytes(header)
    with pytest.raises(ValueError, match="x_eigen"):
        density_plot.read_spectrum(tmp_path / "x")
    np.save(path, np.array([[object()]]), allow_pickle=True)
    with pytest.raises(ValueError, match="x_eigen"):
        density_plot.read_spectrum(tmp_path / "x")
