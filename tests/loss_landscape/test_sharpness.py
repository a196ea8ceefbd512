"""sharpness.py through its command line: the values, the file, what is refused."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import own_things
import pytest
import torch
import torch.nn.functional as F
from sharpness_cases import generator
from torch import Tensor, nn

from loss_landscape import sharpness
from loss_landscape.my_pyhessian import sample_error
from loss_landscape.restore import restore
from loss_landscape.sharpness_measures.definitions import KINDS
from loss_landscape.sharpness_measures.sharpness_file import read_sharpness
from utilities import checkpoint

QUICK = ("--samples", 24, "--m", 8, "--probes", 12, "--draws", 2, "--iterations", 3, "--threads", 1)


def measured(run_here, *flags: object, code: int = 0):
    done = run_here(sharpness.main, *flags)
    assert done.returncode == code, done.stderr
    assert code == 0 or len(done.stderr.splitlines()) == 1
    return done


def test_all_measures_of_each_task_are_taken(trained, data_dir, tmp_path: Path, run_here) -> None:
    common = (*QUICK, "--tol", 0.1, "--data_dir", data_dir, "--out_dir", tmp_path)
    for name, file in trained.items():
        before = file.read_bytes()
        done = measured(run_here, "--model_file", file, *common)
        suffix = "_TINY" if name == "GCN" else ""
        record = read_sharpness(tmp_path / "Eigenvalues" / f"{name}_SAM{suffix}_sharpness.json")
        assert list(record["measures"]) == list(KINDS)
        assert record["samples"] == 24 and record["subsets"] == 3 and record["m"] == 8
        found = record["measures"]
        for measure, kind in KINDS.items():
            assert f"| {measure} | " in done.stdout
            assert found[measure]["unit"] == kind.unit
            has_error = found[measure]["standard_error"] is not None
            there = found[measure]["value"] is not None  # a ratio may have no positive fifth one
            assert has_error == (there and bool(kind.error_of))
        assert found["lambda_max"]["cost"]["products"] > 4
        assert found["lambda_max"]["value"] <= 1.01 * found["frobenius_norm"]["value"]
        assert found["worst_case"]["cost"] == {"products": 0, "gradients": 3, "passes": 1}
        assert found["m_sharpness"]["cost"] == {"products": 0, "gradients": 1, "passes": 1}
        assert file.read_bytes() == before


def test_measures_are_added_and_not_taken_twice(
    trained, data_dir, tmp_path: Path, run_here, monkeypatch
) -> None:
    file = tmp_path / "Eigenvalues" / "GCN_SAM_TINY_sharpness.json"
    flags = (*QUICK, "--model_file", trained["GCN"], "--data_dir", data_dir, "--out_dir", tmp_path)
    measured(run_here, *flags, "--measures", "m_sharpness", "trace")
    first = read_sharpness(file)["measures"]
    assert list(first) == ["m_sharpness", "trace"]
    measured(run_here, *flags, "--measures", "lambda_max", "trace")
    both = read_sharpness(file)["measures"]
    assert list(both) == [*first, "lambda_max"] and both["trace"] == first["trace"]
    measured(run_here, *flags, "--measures", "lambda_max", "trace", "--overwrite")
    again = read_sharpness(file)["measures"]
    assert again["trace"]["value"] == first["trace"]["value"]  # whichever came before
    assert again["m_sharpness"] == first["m_sharpness"]  # which was not asked for
    monkeypatch.setattr(sharpness, "top_eigenpairs", None)
    text = file.read_bytes()
    done = measured(run_here, *flags, "--measures", "lambda_max")
    assert "lambda_max is there already" in done.stdout and file.read_bytes() == text
    assert "--overwrite" not in done.stdout
    before = json.loads(text)
    before["measures"]["lambda_max"] |= {"standard_error": None, "error_of": ""}
    file.write_text(json.dumps(before))
    done = measured(run_here, *flags, "--measures", "lambda_max")
    assert "already, without a standard error; --overwrite takes it anew" in done.stdout
    file.write_bytes(text)
    done = measured(run_here, *flags, "--measures", "lambda_max", "--rho", 0.1, code=2)
    assert "holds another sharpness, which differs in --rho" in done.stderr
    assert file.read_bytes() == text
    other = (*flags, "--measures", "m_sharpness", "--rho", 0.1, "--overwrite")
    measured(run_here, *other)
    assert list(read_sharpness(file)["measures"]) == ["m_sharpness"]
    file.write_bytes(text[:-20])
    done = measured(run_here, *flags, code=2)
    assert "damaged" in done.stderr


def test_several_checkpoints_make_one_table(trained, data_dir, tmp_path: Path, run_here) -> None:
    names = ("--measures", "m_sharpness", "worst_case_adaptive")
    files = (trained["GCN"], trained["mitbih"])
    common = (*QUICK, "--data_dir", data_dir, "--out_dir", tmp_path)
    done = measured(run_here, "--model_file", *files, *names, *common)
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert rows[0] == "| checkpoint | m_sharpness | worst_case_adaptive |"
    assert len(rows) == 4 and "GCN on TINY" in rows[2] and "MIT-BIH" in rows[3]
    assert rows[2].count(" +- ") == 2
    last = trained["GCN"].with_name(f"{trained['GCN'].stem}_last.pt")
    measured(run_here, "--model_file", trained["GCN"], last, *names, *common)
    copy = tmp_path / "copy.pt"
    copy.write_bytes(trained["GCN"].read_bytes())
    done = measured(run_here, "--model_file", trained["GCN"], copy, *names, *common, code=2)
    assert "name one of them" in done.stderr


def test_a_users_own_model_is_measured(tmp_path: Path, run_here, monkeypatch) -> None:
    """In batches of its own, and its m-sharpness by torch alone."""
    torch.manual_seed(0)
    model, (x, y) = own_things.perceptron(), own_things.points()
    torch.save(model.state_dict(), tmp_path / "own.pt")
    own = ("--model_file", tmp_path / "own.pt", "--model", "own_things:perceptron")
    flags = (*own, "--dataset", "own_things:pairs", "--out_dir", tmp_path, "--measures")
    flags = (*flags, "m_sharpness", "trace", "--threads", 1)
    monkeypatch.chdir(Path(own_things.__file__).parent)
    done = measured(run_here, *flags, "--samples", 0, "--m", 8)  # the loader's number
    assert "note: 6 of 22 samples are in no subset of 8" in done.stdout
    rises = []
    for inputs, targets in zip(x.split(8)[:2], y.split(8)[:2], strict=True):
        weights = list(model.parameters())
        before = F.cross_entropy(model(inputs), targets)
        gradients = torch.autograd.grad(before, weights)
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        steps = [w + 0.05 * g / norm for w, g in zip(weights, gradients, strict=True)]
        named = dict(zip((n for n, _ in model.named_parameters()), steps, strict=True))
        after = F.cross_entropy(torch.func.functional_call(model, named, inputs), targets)
        rises.append((after - before).item())
    found = read_sharpness(tmp_path / "Eigenvalues" / "own_sharpness.json")["measures"]
    assert found["m_sharpness"]["value"] == pytest.approx(sum(rises) / 2, rel=1e-4)
    done = measured(run_here, *flags, "--samples", 0, "--m", 5, "--overwrite", code=2)
    assert "--m 5: no batch has as many samples" in done.stderr


@pytest.mark.parametrize("samples", [0, 16])
def test_errors_of_eigenvalues_are_over_random_groups(
    samples: int, trained, data_dir, tmp_path: Path
) -> None:
    """Neighbours, such as beats of one patient, are alike, so no group is of neighbours."""
    path = trained["mitbih"]
    flags = ["--model_file", path, "--samples", samples, "--m", 4, "--data_dir", data_dir]
    args = sharpness.parse_args([*map(str, flags), "--tol", "1e-6"])
    restored = restore(argparse.Namespace(**{**vars(args), "model_file": path}))
    at = sharpness.Measurement(restored, args)
    whole = torch.cat([inputs for inputs, _ in at.batches])
    count = min(sample_error.GROUPS, len(whole) // sample_error.SMALLEST_GROUP)
    groups = list(restored.groups("train", samples, 3, count))
    parts = [torch.cat([inputs for inputs, _ in group]) for group in groups]
    assert max(len(inputs) for group in groups for inputs, _ in group) <= 3
    places = [[int((whole == row).flatten(1).all(1).nonzero()) for row in part] for part in parts]
    assert sorted(np.concatenate(places)) == list(range(len(whole)))
    assert any(max(np.diff(sorted(place)), default=0) > 1 for place in places)
    at.take("lambda_max")
    quotients, sizes = at.quotients
    assert quotients.shape == (count, 2) and list(sizes) == list(map(len, parts))
    assert sizes @ quotients / len(whole) == pytest.approx(at.pairs.values[[0, -1]], rel=1e-3)


def own_measurement(path: Path, loader: str, *flags: str) -> sharpness.Measurement:
    """Of a model with batch norm, all samples of a loader."""
    torch.save(own_things.normed().state_dict(), path)
    own = ["--model", "own_things:normed", "--dataset", f"own_things:{loader}", "--samples", "0"]
    args = sharpness.parse_args(["--model_file", str(path), *own, "--threads", "1", *flags])
    return sharpness.Measurement(
        restore(argparse.Namespace(**vars(args) | {"model_file": path})), args
    )


def test_a_loaders_own_batches_are_the_groups(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(Path(own_things.__file__).parent)
    at = own_measurement(tmp_path / "own.pt", "pairs", "--m", "8")
    assert at.take("lambda_max")["standard_error"] > 0
    assert list(at.quotients[1]) == [8, 8, 6]


@pytest.mark.parametrize("size", [2, 4, 5])
def test_groups_with_their_own_statistics_are_about_a_batch(
    size: int, tmp_path: Path, monkeypatch
) -> None:
    """A sixteenth of all samples in one pass might not fit into memory."""
    monkeypatch.chdir(Path(own_things.__file__).parent)
    flags = ("--batch_size", str(size), "--bn", "batch", "--m", "11")
    at = own_measurement(tmp_path / "own.pt", "arrays", *flags)
    at.take("lambda_max")
    del at.quotients  # to make them again, and be told of the batches
    seen: list[int] = []

    def forward(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        seen.append(len(batch[0]))
        return model(batch[0]), batch[1]

    at.how["forward"] = forward
    sizes = at.quotients.sizes
    assert sum(sizes) == 22 and set(seen) == set(sizes)
    assert size <= min(sizes) and max(sizes) < 2 * size


def test_normalised_logits_know_no_scale(trained, data_dir, tmp_path: Path) -> None:
    """A last layer ten times as large has the same loss."""
    losses = []
    content = checkpoint.load(trained["mitbih"])
    for factor in (1.0, 10.0):
        state = {
            name: value * factor if name.startswith("classifier.") else value
            for name, value in content["state_dict"].items()
        }
        path = tmp_path / f"{factor}.pt"
        checkpoint.save(path, {**content, "state_dict": state})
        flags = [*map(str, QUICK), "--normalise_logits", "--data_dir", str(data_dir)]
        args = sharpness.parse_args(["--model_file", str(path), *flags])
        restored = restore(argparse.Namespace(**{**vars(args), "model_file": path}))
        at = sharpness.Measurement(restored, args)
        losses.append(at.loss(at.batches))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_what_cannot_be_right_is_refused(trained, data_dir, tmp_path: Path, run_here) -> None:
    flags = (*QUICK, "--data_dir", data_dir, "--out_dir", tmp_path)
    at = ("--model_file", trained["GCN"])
    done = measured(run_here, *at, *flags, "--m", 25, code=2)
    assert "--m 25: there are 24 samples" in done.stderr
    done = measured(run_here, *at, *flags, "--measures", "sharpness", code=2)
    assert "invalid choice" in done.stderr
    done = measured(run_here, *at, *flags, "--max_steps", 4, code=2)
    assert "five eigenvalues take 5 or more" in done.stderr
    content = checkpoint.load(trained["GCN"])
    state = {name: value.clone() for name, value in content["state_dict"].items()}
    state["classifier.weight"][0, 0] = torch.nan
    checkpoint.save(tmp_path / "nan.pt", {**content, "state_dict": state})
    done = measured(run_here, "--model_file", tmp_path / "nan.pt", *flags, code=2)
    assert "NaN" in done.stderr
    state["classifier.weight"] = 1e30 * torch.randn(state["classifier.bias"].shape[0], 8)
    checkpoint.save(tmp_path / "huge.pt", {**content, "state_dict": state})
    huge = (
        "--model_file",
        tmp_path / "huge.pt",
        "--measures",
        "average_case",
        "--average_rho=1e30",
    )
    done = measured(run_here, *huge, *flags, code=2)
    assert "lower --average_rho" in done.stderr
    assert not list(tmp_path.glob("Eigenvalues/*.json"))


def test_files_that_are_none_of_sharpness_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(FileNotFoundError, match="writes it"):
        read_sharpness(path)
    good = {
        "measures": {"trace": {"value": 1.0, "standard_error": None}},
        "arguments": {},
        "checkpoint_sha256": "0",
    }
    path.write_text(json.dumps(good))
    assert read_sharpness(path) == good
    for wrong in ('"a"', "[]", "{}", json.dumps({**good, "measures": {"trace": 1}})):
        path.write_text(wrong)
        with pytest.raises(ValueError, match="no record of sharpness"):
            read_sharpness(path)
    for value in ('"x"', "NaN", "true", "[1]", 400 * "9"):
        path.write_text(json.dumps(good).replace("1.0", value))
        with pytest.raises(ValueError, match="no finite number"):
            read_sharpness(path)


def test_one_seed_gives_one_record(trained, data_dir, tmp_path: Path, run_here) -> None:
    records = []
    for out in ("a", "b", "c"):
        flags = (*QUICK, "--data_dir", data_dir, "--out_dir", tmp_path / out)
        torch.rand(1, generator=generator())
        measured(run_here, "--model_file", trained["GCN"], *flags, "--seed", int(out == "c"))
        path = tmp_path / out / "Eigenvalues" / "GCN_SAM_TINY_sharpness.json"
        found = read_sharpness(path)["measures"]
        records.append({name: measure["value"] for name, measure in found.items()})
    assert records[0] == records[1]
    drawn = ("trace", "average_case", "average_case_adaptive")
    assert all(records[2][name] != records[0][name] for name in drawn)
    assert records[2]["m_sharpness"] == records[0]["m_sharpness"]
