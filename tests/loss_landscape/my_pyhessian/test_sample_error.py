"""Standard errors of eigenvalues over samples: closed forms, the spread of draws, the command."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from DatasetClass.splits import dealt, subset
from loss_landscape.forward_pass.batch_norm import Statistics
from loss_landscape.my_pyhessian import hessian as script
from loss_landscape.my_pyhessian import sample_error
from loss_landscape.my_pyhessian.operators import CurvatureOperator, HessianOperator
from loss_landscape.my_pyhessian.sample_error import Quotients, quotients_of, sample_groups
from loss_landscape.my_pyhessian.spectrum_file import lambda_max_error, read_spectrum
from loss_landscape.my_pyhessian.unfinished import Unfinished
from studies.collect import _of_spectrum

SCALES = (3.0, 2.0, 1.0, 0.5)
SMALL = ["--top_n=2", "--bottom_n=1", "--tol=1e-10", "--probes=2", "--lanczos_steps=3"]
SMALL += ["--trace_probes=2", "--threads=1", "--device=cpu", "--dtype=float64"]
MODULE = """
import torch


def model():
    return torch.nn.Linear(4, 1).double()


def single():
    return torch.nn.Linear(4, 1)


def points():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(100, 4, generator=generator).double() * torch.tensor([3.0, 2.0, 1.0, 0.5])
    return x * torch.rand(100, 1, generator=generator).double().exp(), x[:, :1].sin()


def arrays():
    return points()


def loader():  # the last batch is smaller than the others
    return list(zip(*(part.split(30) for part in points())))


def one_batch():
    return [points()]
"""


@pytest.fixture
def regression(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A linear regression as a user's own model; gives the record of hessian.py."""
    name = f"regression_{abs(hash(tmp_path))}"  # a module is imported once in a process
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    own = __import__(name)
    torch.manual_seed(0)
    model = own.model()
    torch.save(model.state_dict(), "own.pt")

    def measured(loader: str, *more: str, factory: str = "model") -> dict[str, Any]:
        flags = ["--model_file=own.pt", f"--model={name}:{factory}", f"--dataset={name}:{loader}"]
        flags += ["--loss_name=mse", f"--out_dir={tmp_path}", "--batch_size=5", "--overwrite"]
        path = script.main([*flags, *SMALL, *more])
        return json.loads(path.read_text())

    return SimpleNamespace(measured=measured, model=model, points=own.points())


def by_hand(regression: Any, matrix: str, weight_alone: bool = False) -> np.ndarray:
    """Each sample's own matrix (100, P, P): 2 z z', or of the Fisher matrix (2 r)^2 z z'."""
    x, y = (part.numpy() for part in regression.points)
    z = x if weight_alone else np.hstack([x, np.ones((len(x), 1))])
    factor = np.full(len(x), 2.0)
    if matrix == "fisher":
        weight, bias = (p.detach().numpy() for p in regression.model.parameters())
        factor = (2 * (x @ weight[0] + bias - y[:, 0])) ** 2
    return factor[:, None, None] * z[:, :, None] * z[:, None, :]


def errors_by_hand(matrices: np.ndarray, groups: list[np.ndarray], count: int = 3) -> np.ndarray:
    """Of the two largest eigenvalues and the lowest, by loops over groups of samples."""
    chosen = np.concatenate(groups)
    values, vectors = np.linalg.eigh(matrices[chosen].mean(axis=0))
    errors = []
    for k in (-1, -2, 0)[:count]:
        v, total = vectors[:, k], 0.0
        for group in groups:
            quotient = v @ matrices[group].mean(axis=0) @ v
            total += len(group) * (quotient - values[k]) ** 2
        errors.append(np.sqrt(total / (len(groups) - 1) / len(chosen)))
    return np.array(errors)


def random_groups(samples: int | None, count: int) -> list[np.ndarray]:
    chosen = subset(torch.arange(100), samples)
    return [dealt(chosen, number, count).numpy() for number in range(count)]


# --- closed forms ---------------------------------------------------------------------------------
@pytest.mark.parametrize("matrix", ["hessian", "ggn", "fisher"])
@pytest.mark.parametrize(("samples", "count"), [(None, 16), (80, 16), (30, 7)])
def test_errors_are_those_by_hand(
    matrix: str, samples: int | None, count: int, regression, capsys
) -> None:
    """Of the whole set, which is a draw too, and of parts of it; groups are of 4 to 7 samples."""
    more = [] if samples is None else [f"--samples={samples}"]
    record = regression.measured("arrays", f"--matrix={matrix}", *more)
    expected = errors_by_hand(by_hand(regression, matrix), random_groups(samples, count))
    assert record["standard_errors"] == pytest.approx(expected, rel=1e-6)
    of = f"samples, by {count} random groups, to first order"
    assert record["standard_errors_of"] == of and record["standard_errors_lack"] == ""
    assert record["products"]["standard_errors"] == 3
    said = capsys.readouterr().out
    first, error = record["eigenvalues"][0], record["standard_errors"][0]
    assert f"{first:>12.5g} {error:>8.2g} " in said and f"standard error over {of}" in said
    assert f"lambda_max {first:.4g} +- {error:.2g}, trace" in said


def test_layers_and_blocks_have_errors_of_their_own(regression) -> None:
    matrices = by_hand(regression, "hessian", weight_alone=True)
    expected = errors_by_hand(matrices, random_groups(None, 16))
    record = regression.measured("arrays", "--per_layer")
    assert [row["layer"] for row in record["per_layer"]] == ["weight", "bias"]
    weight, bias = (row["standard_error"] for row in record["per_layer"])
    assert weight == pytest.approx(expected[0], rel=1e-6)
    assert bias == pytest.approx(0, abs=1e-12)  # whose second derivative is 2 for every sample
    record = regression.measured("arrays", "--layers", "weight")
    assert record["standard_errors"] == pytest.approx(expected, rel=1e-6)


def test_a_loaders_own_batches_weigh_what_they_have(regression) -> None:
    """The last one has 10 samples and the others 30; with --samples all are cut."""
    matrices = by_hand(regression, "hessian")
    record = regression.measured("loader")
    batches = np.split(np.arange(100), [30, 60, 90])
    assert record["standard_errors"] == pytest.approx(errors_by_hand(matrices, batches), rel=1e-6)
    assert record["standard_errors_of"] == "samples, by the loader's 4 batches, to first order"
    record = regression.measured("loader", "--samples=80")
    expected = errors_by_hand(matrices, random_groups(80, 16))
    assert record["standard_errors"] == pytest.approx(expected, rel=1e-6)


def test_a_loaders_batches_are_not_loaded_again() -> None:
    """On the device they would be there twice."""
    batches = [(torch.ones(3, 1).double(), torch.ones(3, 1).double()) for _ in range(2)]

    def operator(batches: list[Any], layers: Any = None) -> CurvatureOperator:
        return HessianOperator(nn.Linear(1, 1).double(), nn.MSELoss(), batches)

    data: Any = SimpleNamespace(keeps_batches=lambda *_: True)
    args: Any = SimpleNamespace(bn="eval", batch_size=2, split="train", samples=None)
    groups = sample_groups(data, args, operator(batches), operator).operators(None)
    for group, batch in zip(groups, batches, strict=True):
        assert len(group.batches) == 1 and group.batches[0] is batch


@pytest.mark.parametrize("loader", ["arrays", "loader"])
def test_a_model_in_single_precision_has_errors_in_double(loader: str, regression) -> None:
    """Its samples are dealt out when it is in double precision already."""
    record = regression.measured(loader, factory="single")
    expected = regression.measured(loader)
    assert record["standard_errors"] == pytest.approx(expected["standard_errors"], rel=1e-4)
    assert record["standard_errors_of"] == expected["standard_errors_of"]


@pytest.mark.parametrize(
    ("loader", "more", "lack"),
    [
        ("one_batch", (), "one batch, which is not cut; --samples cuts it"),
        ("arrays", ("--samples=7",), "7 samples make no two groups of 4"),
    ],
)
def test_where_there_is_none_the_reason_is_told(
    loader: str, more: tuple[str, ...], lack: str, regression, capsys
) -> None:
    record = regression.measured(loader, "--per_layer", *more)
    assert record["standard_errors"] == [None] * 3 and record["standard_errors_of"] == ""
    assert {row["standard_error"] for row in record["per_layer"]} == {None}
    assert record["standard_errors_lack"].endswith(lack)
    assert record["products"]["standard_errors"] == 0 and lambda_max_error(record) is None
    said = capsys.readouterr().out
    assert f"no standard error over samples: {record['standard_errors_lack']}" in said
    assert f"lambda_max {record['lambda_max']:.4g}, trace" in said


def test_pieces_of_an_older_version_have_none_and_say_so(
    regression, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """A spectrum that it began is finished, with the eigenvalues that it found."""
    add = Unfinished.add

    def of_old(self: Unfinished, name: str, piece: dict[str, Any]) -> None:
        new = ("standard_errors", "standard_error", "quotients")
        add(self, name, {k: v for k, v in piece.items() if k not in new})

    monkeypatch.setattr(Unfinished, "add", of_old)
    record = regression.measured("arrays", "--per_layer")
    assert record["standard_errors"] == [None] * 3 and record["products"]["standard_errors"] == 0
    assert record["standard_errors_lack"].startswith("an older version found the eigenvalues")
    assert "no standard error over samples: an older version" in capsys.readouterr().out


# --- the spread of draws --------------------------------------------------------------------------
def test_errors_are_the_spread_of_both_ends_over_draws() -> None:
    """In groups of 40 samples and a last one of 10, as a loader's batches are."""
    values, errors = [], []
    for seed in range(300):
        rows = np.random.default_rng(seed).standard_t(6, (250, len(SCALES))) * SCALES
        hessian = 2 * rows.T @ rows / len(rows)
        found, vectors = np.linalg.eigh(hessian)
        both = torch.from_numpy(vectors.T[[-1, 0]].copy())
        groups = map(linear, torch.from_numpy(rows).split(40))
        values.append(found[[-1, 0]])
        errors.append(quotients_of(groups, both).errors())
    said = np.sqrt(np.mean(np.square(errors), axis=0))
    assert said == pytest.approx(np.std(values, axis=0, ddof=1), rel=0.15)


def linear(inputs: Tensor) -> HessianOperator:
    model = nn.Linear(inputs.shape[1], 1, bias=False).double()
    return HessianOperator(model, nn.MSELoss(), [(inputs, inputs.new_zeros(len(inputs), 1))])


def test_one_group_tells_of_no_other() -> None:
    found = Quotients(np.ones((1, 2)), np.array([5])).errors()
    assert found.shape == (2,) and np.isnan(found).all()


def test_errors_with_each_batchs_statistics_are_the_spread() -> None:
    """Kind: a group is one batch, and in groups of 8 the errors were twice the spread."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    x, y = draw(4000, 0)
    for step in range(200):
        part = slice(64 * (step % 60), 64 * (step % 60) + 64)
        optimizer.zero_grad()
        F.cross_entropy(model(x[part]), y[part]).backward()
        optimizer.step()

    def operator(batches: list[Any], layers: Any = None) -> CurvatureOperator:
        how: dict[str, Any] = {"statistics": Statistics("batch")}
        return HessianOperator(model, F.cross_entropy, batches, **how)

    args: Any = SimpleNamespace(bn="batch", batch_size=128, split="train", samples=None)
    values, errors = [], []
    for seed in range(1, 101):
        x, y = draw(128, seed)
        whole = operator([(x, y)])
        eye = torch.eye(whole.flat.numel(), dtype=torch.float64)
        found, vectors = torch.linalg.eigh(whole.products(eye))

        def grouped(*asked: Any, x: Tensor = x, y: Tensor = y) -> Any:
            parts = [dealt(torch.arange(len(x)), number, asked[3]) for number in range(asked[3])]
            return ([(x[part], y[part])] for part in parts)

        data: Any = SimpleNamespace(keeps_batches=lambda *_: False, groups=grouped)
        groups = sample_groups(data, args, whole, operator)
        assert groups.said.startswith("samples, by 4 random groups")
        values.append(float(found[-1]))
        errors.append(float(groups.quotients(vectors[:, -1:].T.contiguous()).errors()[0]))
    said = np.sqrt(np.mean(np.square(errors)))
    assert said == pytest.approx(np.std(values, ddof=1), rel=0.3)


def draw(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 3, generator=generator).double()
    x = x * (0.5 * torch.randn(samples, 1, generator=generator).double()).exp()
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0.5)


@pytest.mark.parametrize(
    ("samples", "batch_size", "count"),
    [(1024, 256, 16), (50_000, 256, 195), (64, 64, 2), (40, 64, 0), (20, 10, 2), (16, 10, 0)],
)
def test_groups_of_batch_statistics_are_about_as_large_as_the_batches(
    samples: int, batch_size: int, count: int
) -> None:
    """At most about --batch_size, which fits the memory, and at least 32 where that is no less."""
    args: Any = SimpleNamespace(bn="batch", batch_size=batch_size, split="train", samples=None)
    data: Any = SimpleNamespace(keeps_batches=lambda *_: False)
    whole: Any = SimpleNamespace(samples=samples)
    groups = sample_groups(data, args, whole, lambda *_: None)
    assert bool(groups.lack) == (not count)
    assert groups.said.startswith(f"samples, by {count or 1} random groups")
    assert sample_error.SMALLEST_BATCH == 32


# --- the files ------------------------------------------------------------------------------------
OLD = Path(__file__).parents[2] / "old_files" / "Eigenvalues" / "GCN_SAM"


def test_a_study_takes_the_error_where_a_spectrum_has_it(regression) -> None:
    record = regression.measured("arrays")
    row = _of_spectrum(record)
    assert row["sharpness_se:lambda_max"] == record["standard_errors"][0] > 0
    old = read_spectrum(OLD).record
    assert "standard_errors" not in old and "sharpness_se:lambda_max" not in _of_spectrum(old)


def test_the_error_of_another_eigenvector_is_not_taken() -> None:
    """A probe of the density may find an eigenvalue above all that were looked for."""
    record = {"eigenvalues": [5.0], "residuals": [1e-3], "standard_errors": [0.5]}
    assert lambda_max_error({**record, "lambda_max": 5.0005}) == 0.5
    assert lambda_max_error({**record, "lambda_max": 5.01}) is None


@pytest.mark.parametrize(
    "errors", [None, 1.0, [], [0.1], [0.1, "b", 0.1], [0.1, 10**400, 0.1], [0.1, float("inf"), 1]]
)
def test_damaged_errors_are_refused(errors: Any, regression, tmp_path: Path) -> None:
    record = regression.measured("arrays")
    path = tmp_path / "Eigenvalues" / "own.json"
    assert read_spectrum(path).record == record
    path.write_text(json.dumps({**record, "standard_errors": errors}))
    with pytest.raises(ValueError, match=r"own\.json: .*standard_errors"):
        read_spectrum(path)
