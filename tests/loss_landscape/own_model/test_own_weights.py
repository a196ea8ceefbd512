"""Factories that are imported by name, and weights of any file that a user has."""

from __future__ import annotations

import random
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import own_things
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import models
from loss_landscape.own_model.model import build, import_named, keyword_arguments, read_weights


def prefixed(prefix: str) -> OrderedDict[str, torch.Tensor]:
    return OrderedDict((prefix + k, v) for k, v in own_things.perceptron().state_dict().items())


HOLDERS: dict[str, Any] = {
    "plain": lambda weights: weights,
    "state_dict": lambda weights: {"epoch": 3, "state_dict": weights},
    "model_state_dict": lambda weights: {"optimizer": {}, "model_state_dict": weights},
    "model": lambda weights: {"args": [1], "model": weights},
}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("holder", HOLDERS)
def test_weights_are_found_where_frameworks_put_them(holder, prefix, tmp_path: Path) -> None:
    weights, path = prefixed(prefix), tmp_path / "w.pth"
    torch.save(HOLDERS[holder](weights), path)
    found = read_weights(path, own_things.perceptron())
    assert {prefix + k for k in found} == set(weights)
    assert all(torch.equal(v, weights[prefix + k]) for k, v in found.items())
    if holder == "plain":
        save_file(dict(weights), tmp_path / "w.safetensors")
        assert (
            read_weights(tmp_path / "w.safetensors", own_things.perceptron()).keys() == found.keys()
        )


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.decide = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.decide.weight = self.embed.weight


def test_tied_weights_need_to_be_there_once(tmp_path: Path) -> None:
    weight = torch.randn(5, 3)
    save_file({"embed.weight": weight}, tmp_path / "w.safetensors")
    model = Tied()
    model.load_state_dict(read_weights(tmp_path / "w.safetensors", model))
    assert torch.equal(model.decide.weight, weight) and model.decide.weight is model.embed.weight


def test_a_compiled_or_parallel_model_is_taken_out_of_its_wrapper(monkeypatch) -> None:
    for wrap in (nn.DataParallel, torch.compile):
        monkeypatch.setattr(own_things, "wrapped", lambda w=wrap: w(nn.Linear(2, 1)), raising=False)
        assert type(build("own_things:wrapped", {})) is nn.Linear


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, r"no state dict, alone or as state_dict, .* \(epoch\); write it with"),
        ([1, 2], r"no state dict, .* \(no dict\)"),
        ({"model": prefixed(""), "state_dict": prefixed("")}, "as state_dict and model; keep one"),
        ({"a": torch.ones(1)}, "0.weight is missing; 0.bias is missing; 2.weight is missing and 2"),
        ({**prefixed(""), "b": torch.ones(1)}, "b is unknown"),
        (nn.Linear(2, 1), r"refused, .*torch.save\(model.state_dict\(\), path\) writes what is"),
    ],
)
def test_what_is_no_fitting_state_dict_is_named(content, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=rf"w\.pt: .*{message}"):
        read_weights(tmp_path / "w.pt", own_things.perceptron())


def test_a_pickle_in_a_file_of_weights_never_runs(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    torch.save({"state_dict": Payload()}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="refused"):
        read_weights(tmp_path / "w.pt", own_things.perceptron())
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_damaged_weights_are_read_whole_or_named(name: str, tmp_path: Path) -> None:
    """Cut at every 5 %, and with bytes changed at random: no traceback, none that doesn't fit."""
    path, model, draw = tmp_path / name, own_things.perceptron(), random.Random(0)
    write: Any = save_file if path.suffix == ".safetensors" else torch.save
    write(dict(model.state_dict()), path)
    whole = path.read_bytes()
    damaged = [whole[: len(whole) * k // 20] for k in range(20)]
    for _ in range(150):
        at = draw.randrange(len(whole) if draw.random() < 0.3 else min(400, len(whole)))
        damaged.append(whole[:at] + bytes([draw.randrange(256)]) + whole[at + 1 :])
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            model.load_state_dict(read_weights(path, model))
        except ValueError as error:
            assert name in str(error)
            refused += 1
    assert refused > 30


# --- names ----------------------------------------------------------------------------------------
def test_only_the_named_module_is_imported_and_from_here(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    package = tmp_path / "mine_xyz"
    package.mkdir()
    (package / "nets.py").write_text("class Zoo:\n    @staticmethod\n    def net(): return 3\n")
    (package / "other.py").write_text("raise SystemExit(1)\n")
    assert import_named("--model", "mine_xyz.nets:Zoo.net")() == 3
    assert "mine_xyz.other" not in sys.modules
    with pytest.raises(ValueError, match=r"mine_xyz.other can't be imported \(SystemExit: 1\)"):
        import_named("--model", "mine_xyz.other:net")


def test_a_package_that_this_project_hides_is_named(tmp_path: Path, monkeypatch) -> None:
    """Users have ``models`` too; ours is loaded, so that theirs would never be found."""
    assert sys.modules["models"] is models
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "resnet.py").write_text("def net(): pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(ValueError, match=rf"hides yours; .* {tmp_path.name}\.models\.resnet:net"):
        import_named("--model", "models.resnet:net")
    monkeypatch.chdir(tmp_path.parent)
    assert import_named("--model", f"{tmp_path.name}.models.resnet:net")() is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, {}),
        ("", {}),
        ("depth=20", {"depth": 20}),
        (
            "a=-1.5, b='x y', c=(1, 2), d=None, e=True,",
            dict(a=-1.5, b="x y", c=(1, 2), d=None, e=True),
        ),
    ],
)
def test_keyword_arguments_are_pythons(text: str | None, expected: dict[str, Any]) -> None:
    assert keyword_arguments("--model_args", text) == expected


@pytest.mark.parametrize(
    "text",
    ["20", "a", "a=b", "a=open('x')", "a=1) + f(b=2", "**{'a': 1}", "a=1, a=2", "a=", "(" * 500],
)
def test_other_arguments_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^--model_args .*: not of the form depth=20"):
        keyword_arguments("--model_args", text)
