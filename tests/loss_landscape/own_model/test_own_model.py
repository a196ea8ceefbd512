"""A user's own model, data and losses through the command lines: right values, or one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import own_things
import pytest
import torch
import torch.nn.functional as F
from own_things import logits_of, pictures, points, sentences, values, volumes
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call

import DatasetClass
from loss_landscape import plot_surface
from loss_landscape.my_pyhessian import hessian
from loss_landscape.own_model.loss_functions import LOSSES
from loss_landscape.restore import Restored, restore
from loss_landscape.surface_file import read_directions, read_surface
from utilities.files import ROOT

PROBES = ["--top_n=1", "--probes=1", "--lanczos_steps=4", "--trace_probes=2", "--max_steps=40"]


def saved(model: nn.Module, folder: Path) -> Path:
    path = folder / "weights.pt"
    torch.save(model.state_dict(), path)
    return path


def flags_of(file: Path, out: Path, model: str, dataset: str, *others: object) -> list[str]:
    names = [f"--model=own_things:{model}", f"--dataset=own_things:{dataset}"]
    return [f"--model_file={file}", *names, f"--out_dir={out}", "--threads=1", *map(str, others)]


def crossentropy(model: nn.Module, data: tuple[Any, Any]) -> Tensor:
    return F.cross_entropy(model(data[0]), data[1].long())


def object_crossentropy(model: nn.Module, data: tuple[Any, Any]) -> Tensor:
    return F.cross_entropy(logits_of(model(data[0])), data[1])


def squared(model: nn.Module, data: tuple[Any, Any]) -> Tensor:
    x, y = (torch.from_numpy(a).float() for a in data)
    return F.mse_loss(model(x), y[:, None])


Loss = Callable[[nn.Module, tuple[Any, Any]], Tensor]
# The model, the loader and flags; all its samples in one batch, and their mean loss by torch.
CASES: dict[str, tuple[str, str, list[str], Callable[[], Any], Loss]] = {
    "pairs": ("perceptron", "pairs", [], points, crossentropy),
    "arrays": ("perceptron", "arrays", ["--batch_size=5"], points, crossentropy),
    "a Dataset": ("perceptron", "dataset", ["--batch_size=5"], points, crossentropy),
    "a shuffling loader": ("perceptron", "shuffled", [], points, crossentropy),
    "one buffer": ("perceptron", "one_buffer", [], points, crossentropy),
    "half precise weights": (
        "perceptron",
        "pairs",
        ["--model_args=half=True"],
        points,
        crossentropy,
    ),
    "tokens": ("Tokens", "token_pairs", [], sentences, object_crossentropy),
    "a dict for output": (
        "Tokens",
        "token_pairs",
        ["--model_args=as_dict=True"],
        sentences,
        object_crossentropy,
    ),
    "dicts, losses": (
        "Tokens",
        "token_dicts",
        ["--forward=own_things:token_losses"],
        sentences,
        object_crossentropy,
    ),
    "dicts, outputs": (
        "Tokens",
        "token_dicts",
        ["--forward=own_things:token_outputs"],
        sentences,
        object_crossentropy,
    ),
    "pixels": ("Pixels", "pictures", ["--batch_size=4"], pictures, crossentropy),
    "volumes": ("volume_model", "volumes", [], volumes, crossentropy),
    "regression": ("curve", "values", ["--loss_name=mse"], values, squared),
}


def module(name: str, flags: list[str]) -> nn.Module:
    torch.manual_seed(1)
    arguments = {"as_dict": True} if "--model_args=as_dict=True" in flags else {}
    return getattr(own_things, name)(**arguments)


@pytest.mark.parametrize("case", CASES)
def test_surface_and_hessian_are_those_of_the_mean_over_samples(case: str, tmp_path: Path) -> None:
    """Against torch's loss of all samples in one batch, and the dense matrix of torch.func."""
    name, loader, flags, data, loss = CASES[case]
    samples = data()
    model = module(name, flags)
    common = flags_of(saved(model, tmp_path), tmp_path, name, loader, *flags)
    path = plot_surface.main([*common, "--x=-1:1:3", "--y=-1:0:2"])
    surface, (x, y) = read_surface(path), read_directions(path)
    weights = {k: p.detach().clone() for k, p in model.named_parameters()}

    def at(vector: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        parts = vector.to(dtype).split([w.numel() for w in weights.values()])
        moved = {k: p.view_as(w) for (k, w), p in zip(weights.items(), parts, strict=True)}
        return functional_call(
            Wrapped(model, loss), {f"model.{k}": v for k, v in moved.items()}, (samples,)
        )

    flat = torch.cat([w.flatten() for w in weights.values()])
    for row, b in enumerate(surface.y):
        for column, a in enumerate(surface.x):
            moved = flat + torch.cat([(a * d + b * e).flatten() for d, e in zip(x, y, strict=True)])
            expected = float(at(moved.float()))
            assert surface.values["train_loss"][row, column] == pytest.approx(expected, rel=1e-4)
    record = json.loads(hessian.main([*common, *PROBES, "--tol=1e-6"]).read_text())
    matrix = torch.func.hessian(at)(flat).double()
    exact = torch.linalg.eigvalsh(matrix)
    largest = float(exact[exact.abs().argmax()])
    assert abs(record["eigenvalues"][0]) == pytest.approx(abs(largest), rel=1e-3)
    assert record["samples"] == len(samples[1])


class Wrapped(nn.Module):
    """The mean loss as a module, for ``functional_call``."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, data: Any) -> Tensor:
        return self.loss(self.model, data)


# --- splits, samples, names, sameness -------------------------------------------------------------
def restored(tmp_path: Path, *flags: object, model: str = "perceptron") -> Restored:
    file = saved(module(model, []), tmp_path)
    loader = "arrays" if model == "perceptron" else "token_dicts"
    return restore(plot_surface.parse_args(flags_of(file, tmp_path, model, loader, *flags)))


def test_accuracy_is_there_where_something_is_classified(tmp_path: Path) -> None:
    path = plot_surface.main(
        flags_of(
            saved(module("perceptron", []), tmp_path),
            tmp_path,
            "perceptron",
            "arrays",
            "--x=0:0:1",
            "--test",
        )
    )
    surface = read_surface(path)
    for split in ("train", "test"):
        x, y = points(split)
        expected = 100 * float((module("perceptron", [])(x).argmax(dim=1) == y).float().mean())
        assert surface.values[f"{split}_acc"][0] == pytest.approx(expected)
        assert f"{split}_data_sha256" in surface.attributes
    forward = "--forward=own_things:token_losses"
    assert restored(tmp_path, forward, model="Tokens").correct is None
    outputs = "--forward=own_things:token_outputs"
    assert restored(tmp_path, outputs, model="Tokens").correct is not None


def test_samples_are_chosen_once_and_are_the_loaders(tmp_path: Path) -> None:
    x, y = points()
    ours = {tuple(row): int(label) for row, label in zip(x.tolist(), y, strict=True)}
    found = [restored(tmp_path).batches("train", 9, 4) for _ in range(2)]
    assert [len(targets) for _, targets in found[0]] == [4, 4, 1]
    rows = [tuple(row) for inputs, _ in found[0] for row in inputs.tolist()]
    labels = [int(label) for _, targets in found[0] for label in targets]
    assert len(set(rows)) == 9 and all(ours[r] == k for r, k in zip(rows, labels, strict=True))
    for (one, a), (two, b) in zip(*found, strict=True):
        assert torch.equal(one, two) and torch.equal(a, b)


def test_results_are_named_and_titled_after_the_command_line(tmp_path: Path) -> None:
    file = saved(module("perceptron", []), tmp_path)
    flags = flags_of(file, tmp_path, "perceptron", "pairs")
    surface = plot_surface.main([*flags, "--x=-1:1:3", "--plot"])
    assert surface == tmp_path / "to_plot" / "weights.h5"
    assert (tmp_path / "plots" / "weights.h5_1d.png").is_file()
    spectrum = hessian.main([*flags, *PROBES])
    assert spectrum == tmp_path / "Eigenvalues" / "weights.json"
    titles = [read_surface(surface).attributes["title"], json.loads(spectrum.read_text())["title"]]
    assert titles == ["perceptron on pairs, weights"] * 2


@pytest.mark.parametrize(
    ("flag", "setting"),
    [
        ("--model=own_things:curve", "model"),
        ("--dataset=own_things:arrays", "dataset"),
        ("--model_args=width=5", "model_args"),
        ("--loss_name=mse", "loss_name"),
        ("--forward=own_things:pair", "forward"),
        ("OTHER WEIGHTS", "checkpoint"),
    ],
)
def test_another_ones_results_are_refused(
    flag: str, setting: str, tmp_path: Path, monkeypatch
) -> None:
    """Whatever the command line says otherwise makes another surface and another spectrum."""
    # One that fits all of them, so that only the settings can tell.
    monkeypatch.setattr(own_things, "curve", own_things.perceptron)
    monkeypatch.setattr(own_things, "pair", lambda m, b: (m(b[0]), b[1]), raising=False)
    monkeypatch.setitem(LOSSES, "mse", LOSSES["crossentropy"])
    file = saved(module("perceptron", []), tmp_path)
    flags = flags_of(file, tmp_path, "perceptron", "pairs")
    grid = ["--x=-1:1:3"]
    surface, spectrum = plot_surface.main([*flags, *grid]), hessian.main([*flags, *PROBES])
    before = surface.read_bytes(), spectrum.read_bytes()
    if flag == "OTHER WEIGHTS":
        saved(own_things.perceptron(), tmp_path)
    others = [flag] if flag.startswith("--") else []
    with pytest.raises(ValueError, match=rf"weights\.h5: holds another surface, .*{setting}"):
        plot_surface.main([*flags, *others, *grid])
    with pytest.raises(ValueError, match=rf"weights\.json: holds another spectrum, .*{setting}"):
        hessian.main([*flags, *others, *PROBES])
    assert (surface.read_bytes(), spectrum.read_bytes()) == before


def test_a_stopped_surface_goes_on_with_a_shuffling_loader(tmp_path: Path) -> None:
    """Its order is the same again, so that no point differs; that of unseeded data is refused."""
    file = saved(module("perceptron", []), tmp_path)
    flags = flags_of(file, tmp_path, "perceptron", "shuffled", "--x=-1:1:3")
    first = plot_surface.main(flags)
    again = plot_surface.main([*flags, f"--surf_file={tmp_path / 'again.h5'}"])
    for name, cells in read_surface(first).values.items():
        np.testing.assert_array_equal(read_surface(again).values[name], cells)
    assert plot_surface.main(flags) == first
    noisy = flags_of(file, tmp_path / "noisy", "perceptron", "noisy", "--x=-1:1:3")
    plot_surface.main(noisy)
    with pytest.raises(ValueError, match="differs in train_data_sha256"):
        plot_surface.main(noisy)


def test_random_numbers_go_on_as_before(tmp_path: Path) -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    file = saved(module("perceptron", []), tmp_path)
    torch.manual_seed(5)
    restore(plot_surface.parse_args(flags_of(file, tmp_path, "perceptron", "shuffled")))
    drawn = torch.rand(1), np.random.rand()
    torch.manual_seed(5)
    own_things.perceptron()  # the factory draws its weights
    np.random.seed(5)
    assert drawn == (torch.rand(1), np.random.rand())


def test_own_model_on_this_projects_data(data_dir: Path, tmp_path: Path) -> None:
    """Its pictures lie in channels_last, which a view after a convolution doesn't take."""
    model = own_things.ViewAfter(32, 10)
    flags = [f"--model_file={saved(model, tmp_path)}", "--model=own_things:ViewAfter"]
    flags += ["--model_args=size=32, classes=10", "--dataset=cifar10", f"--data_dir={data_dir}"]
    flags += ["--dataset_args=train_samples=30", "--x=0:0:1", f"--out_dir={tmp_path}"]
    surface = read_surface(plot_surface.main(flags))
    images, labels = DatasetClass.load("cifar10", data_dir, train_samples=30).fixed("train", 100)[0]
    expected = float(F.cross_entropy(model(images.contiguous()), labels))
    assert surface.values["train_loss"][0] == pytest.approx(expected, rel=1e-5)


# --- directions between weights -------------------------------------------------------------------
def test_a_line_between_two_files_of_weights(tmp_path: Path) -> None:
    start, end = own_things.perceptron(), own_things.perceptron()
    file = saved(start, tmp_path)
    other = tmp_path / "other.safetensors"
    save_file(end.state_dict(), other)
    flags = flags_of(file, tmp_path, "perceptron", "pairs", f"--model_file2={other}", "--x=0:1:2")
    loss = read_surface(plot_surface.main(flags)).values["train_loss"]
    expected = [float(crossentropy(model, points())) for model in (start, end)]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


# --- what can't be right --------------------------------------------------------------------------
REFUSED: list[tuple[str, str, list[str], str]] = [
    # the model
    ("perceptron", "pairs", ["--model=own_things:"], "--model own_things:: not of the form"),
    ("nothing", "pairs", [], "--model own_things:nothing: own_things has no nothing"),
    ("perceptron", "pairs", ["--model=no_such:net"], "no_such can't be imported (ModuleNotFound"),
    ("SAMPLES", "pairs", [], "a int, which can't be called"),
    ("fails", "pairs", [], "fails with --model_args {} (KeyError: 'nothing here')"),
    ("perceptron", "pairs", ["--model_args=depth=3"], "unexpected keyword argument 'depth'"),
    ("perceptron", "pairs", ["--model_args=width=7"], "don't fit the model: 0.weight is (5, 4)"),
    ("perceptron", "pairs", ["--model_args=width 7"], "--model_args 'width 7': not of the form"),
    ("perceptron", "pairs", ["--model_args=width=open('a')"], "not of the form depth=20"),
    ("no_module", "pairs", [], "gives a int, not a torch.nn.Module"),
    ("lazy", "pairs", [], "has lazy parameters"),
    ("Dropping", "pairs", [], "something is random in eval mode"),
    ("Half", "pairs", [], "computes in torch.bfloat16"),
    # the data
    ("perceptron", "fails", [], "--dataset own_things:fails: fails with {} (KeyError"),
    ("perceptron", "fails", ["--dataset_args=a=1"], "fails with {'a': 1}"),
    ("perceptron", "empty", [], "gives no batch of the train split"),
    ("perceptron", "dataset", ["--test"], "has no parameter split, so it gives no test samples"),
    ("perceptron", "triples", [], "a batch is a tuple of 3, not a pair"),
    ("perceptron", "token_dicts", [], "a batch is a dict of 2, not a pair"),
    ("Tokens", "unequal", [], "differ in their first dimension"),
    ("perceptron", "no_module", [], "'int' object is not iterable"),
    # the losses
    ("perceptron", "token_pairs", [], "the model fails on a batch (RuntimeError"),
    ("Tokens", "token_dicts", ["--forward=own_things:batch_mean"], "a loss of shape () for 8 sam"),
    ("Tokens", "token_dicts", ["--forward=own_things:shared_mean"], "it hangs on the others"),
    ("Tokens", "token_dicts", ["--forward=own_things:fails"], "--forward fails on a batch (Type"),
    ("Tokens", "token_dicts", ["--forward=own_things:text_given"], "--forward gives a str"),
    (
        "Tokens",
        "token_dicts",
        ["--forward=own_things:token_losses", "--loss_name=mse"],
        "--loss_name mse: --forward gives the losses; leave one out",
    ),
    ("perceptron", "ignoring", [], "targets go from -100 to 2 for 3 classes"),
    ("perceptron", "values", [], "targets are torch.float32, crossentropy takes numbers of cla"),
    ("perceptron", "arrays", ["--loss_name=mse"], "mse needs one shape"),
    ("one_logit", "ignoring", [], "crossentropy of one class is always 0"),
    ("swapped", "swapped_pairs", [], "may be the classes, which can't be seen"),
    ("perceptron", "pairs", ["--loss_name=smooth_crossentropy"], "how much the training smoothed"),
]


@pytest.mark.parametrize(("model", "dataset", "others", "message"), REFUSED)
@pytest.mark.parametrize("script", [plot_surface, hessian])
def test_what_cant_be_right_is_one_line(
    script, model: str, dataset: str, others: list[str], message: str, tmp_path: Path, run_here
) -> None:
    if "--test" in others and script is hessian:
        others = ["--split=test"]
    made = getattr(own_things, model, None)
    file = tmp_path / "in" / "weights.pt"
    file.parent.mkdir()
    try:
        torch.save(made().state_dict(), file)  # type: ignore[misc]
    except Exception:  # of those that make no model
        torch.save(own_things.perceptron().state_dict(), file)
    out = tmp_path / "out"
    flags = [*flags_of(file, out, model, dataset), *(["--x=-1:1:3"] * (script is plot_surface))]
    result = run_here(script.main, *flags, *others)
    assert result.returncode == 2, result.stdout
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--forward=own_things:token_losses"], "--forward: is for a model of your own"),
        (["--model_args=depth=3"], "--model_args: is for a model of your own"),
        (["--dataset=own_things:pairs"], "--dataset: is for a model of your own"),
        (["--model=own_things:perceptron"], "name its data too, with --dataset"),
        (["--loss_name=mse"], "classifies"),
    ],
)
def test_own_things_go_together(flags: list[str], message: str, run_here) -> None:
    ours = ROOT / "tests" / "old_files" / "to_plot" / "model_GCN_SAM_rho0.05.pt"
    result = run_here(plot_surface.main, "--model_file", ours, *flags)
    assert result.returncode == 2 and message in result.stderr
    assert len(result.stderr.splitlines()) == 1
