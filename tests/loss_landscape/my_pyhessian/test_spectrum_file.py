"""Names and files of spectra."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from loss_landscape.my_pyhessian import density_plot, hessian
from loss_landscape.my_pyhessian.spectrum_file import (
    Spectrum,
    read_spectrum,
    refuse_other_spectrum,
    stem_of,
    write_spectrum,
)
from utilities import checkpoint
from utilities.files import ROOT

RECORD = {"lambda_max": 9.0, "lambda_min": -3.0, "trace": 15.0, "trace_standard_error": 0.5}


def spectrum(**record: object) -> Spectrum:
    return Spectrum(np.array([[-3.0, 0, 9]]), np.array([[0.1, 0.7, 0.2]]), {**RECORD, **record})


def test_folds_have_spectra_of_their_own(tmp_path: Path) -> None:
    """Kind: the checkpoints of two runs have two names, and their spectra had one."""
    content = checkpoint.load(ROOT / "tests" / "old_files" / "to_plot" / "model_GCN_SAM_rho0.05.pt")
    flags = ["--out_dir", str(tmp_path), "--data_dir", str(tmp_path), "--samples", "9"]
    flags += ["--top_n", "1", "--probes", "1", "--lanczos_steps", "2", "--trace_probes", "2"]
    names = []
    for fold in (0, 1):
        for part in ("train_args", "data_args"):
            content[part] |= {"fold": fold, "folds": 10}
        path = tmp_path / f"{fold}.pt"
        checkpoint.save(path, content)
        names.append(hessian.main(["--model_file", str(path), *flags]).name)
    assert names == ["GCN_SAM_fold0.json", "GCN_SAM_fold1.json"]
    assert read_spectrum(tmp_path / "Eigenvalues" / "GCN_SAM_fold1").title.endswith("fold 1")


@pytest.mark.parametrize("ending", ["", ".json", "_eigen.npy", "_weight.npy"])
@pytest.mark.parametrize("name", ["GCN_SAM", "GCN_SAM_rho0.1", "json"])
def test_a_spectrum_is_named_by_any_of_its_files(name: str, ending: str, tmp_path: Path) -> None:
    write_spectrum(tmp_path / name, spectrum(title="of a GCN"))
    path = tmp_path / f"{name}{ending}"
    assert read_spectrum(path).title == "of a GCN"
    flags = ["--spectrum", str(path), "--out_dir", str(tmp_path)]
    assert density_plot.main(flags) == tmp_path / "plots" / f"eig_{name}.png"
    assert stem_of(Path(".json")) == Path(".json")


@pytest.mark.parametrize("name", [".", "", "/"])
def test_what_names_no_file_names_no_spectrum(name: str) -> None:
    with pytest.raises(ValueError, match="no name of a spectrum"):
        read_spectrum(Path(name))


@pytest.mark.parametrize("ending", ["_eigen.npy", "_weight.npy", ".json"])
def test_a_link_to_nothing_is_found_before_the_products(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kind: a result that can't be written, of which only the lock's name was looked at before."""
    monkeypatch.setattr(hessian, "measure", lambda *_: pytest.fail("computed first"))
    folder = tmp_path / "Eigenvalues"
    folder.mkdir()
    (folder / f"GCN_SAM{ending}").symlink_to("nowhere")
    model = ROOT / "tests" / "old_files" / "to_plot" / "model_GCN_SAM_rho0.05.pt"
    flags = ["--model_file", str(model), "--out_dir", str(tmp_path), "--data_dir", str(tmp_path)]
    with pytest.raises(OSError, match="a symbolic link to nowhere"):
        hessian.main([*flags, "--samples", "9"])


def test_all_files_of_one_spectrum_are_one_curve(tmp_path: Path) -> None:
    paths = write_spectrum(tmp_path / "x", spectrum())
    flags = ["--spectrum", *map(str, paths), "--out_dir", str(tmp_path)]
    assert density_plot.main(flags).name == "eig_x.png"


def test_arrays_of_another_spectrum_are_refused(tmp_path: Path) -> None:
    """As two writers of one name leave them."""
    write_spectrum(tmp_path / "x", spectrum())
    other = spectrum()
    other.nodes = other.nodes + 1
    write_spectrum(tmp_path / "y", other)
    (tmp_path / "y_eigen.npy").replace(tmp_path / "x_eigen.npy")
    with pytest.raises(ValueError, match="another spectrum's"):
        read_spectrum(tmp_path / "x")


def test_an_older_spectrum_still_opens(tmp_path: Path) -> None:
    """It has no digest of its arrays."""
    write_spectrum(tmp_path / "x", spectrum(trace_standard_error=float("nan")))
    record = json.loads((tmp_path / "x.json").read_text())
    assert record.pop("arrays_sha256")
    assert record["trace_standard_error"] is None
    (tmp_path / "x.json").write_text(json.dumps(record))
    found = read_spectrum(tmp_path / "x")
    assert found.record == record
    np.testing.assert_array_equal(found.nodes, spectrum().nodes)


LAYER = {"layer": "a", "parameters": 3, "lambda_max": 2.0, "residual": 0.1, "trace": 1.0}
LAYER |= {"standard_error": None, "trace_standard_error": None}


@pytest.mark.parametrize(
    "wrong",
    [
        {"lambda_max": float("nan")},
        {"lambda_max": None},
        {"trace": "15"},
        {"lambda_min": 10**400},
        {"trace_standard_error": float("inf")},
        {"parameters": "many"},
        {"parameters": 0},
        {"trace_standard_error": ""},
        {"standard_errors": [-1.0], "eigenvalues": [2.0], "residuals": [0.1]},
        {"standard_errors": [None], "eigenvalues": ["2"], "residuals": [0.1]},
        {"per_layer": {"layer": "a"}},
        {"per_layer": [1]},
        {"per_layer": [LAYER | {"layer": None}]},
        {"per_layer": [LAYER | {"standard_error": "abc"}]},
        {"per_layer": [LAYER, LAYER | {"standard_error": -1}]},
        {"per_layer": [LAYER | {"lambda_max": None}]},
        {"per_layer": [LAYER | {"residual": True}]},
        {"per_layer": [{"layer": "a"}]},
    ],
)
def test_numbers_of_a_record_are_checked_where_it_is_read(wrong: dict, tmp_path: Path) -> None:
    """Kind: a number from a file reaches a picture or a table unchecked."""
    write_spectrum(tmp_path / "x", spectrum())
    record = json.loads((tmp_path / "x.json").read_text()) | wrong
    (tmp_path / "x.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=rf"x\.json.*({'|'.join(wrong)})"):
        read_spectrum(tmp_path / "x")


def test_layers_whose_errors_are_not_known_are_read(tmp_path: Path) -> None:
    rows = [LAYER, {name: LAYER[name] for name in LAYER if name != "standard_error"}]
    wanted = spectrum()
    wanted.record["per_layer"] = rows
    write_spectrum(tmp_path / "x", wanted)
    assert read_spectrum(tmp_path / "x").record["per_layer"] == rows


@pytest.mark.parametrize("weights", [[[0.1, 0.7, 0.1]], [[-0.1, 0.9, 0.2]]])
def test_weights_that_are_no_shares_are_refused(weights: list, tmp_path: Path) -> None:
    wrong = spectrum()
    wrong.weights = np.array(weights)
    write_spectrum(tmp_path / "x", wrong)
    with pytest.raises(ValueError, match="no shares of 1"):
        read_spectrum(tmp_path / "x")


def test_another_spectrum_is_not_replaced(tmp_path: Path) -> None:
    record = {"checkpoint_sha256": "a", "arguments": {"top_n": 5, "seed": 0}}
    refuse_other_spectrum(tmp_path / "x", record)
    write_spectrum(tmp_path / "x", spectrum(**record))
    refuse_other_spectrum(tmp_path / "x", record)
    other = {"checkpoint_sha256": "b", "arguments": {"top_n": 6, "seed": 0}}
    with pytest.raises(ValueError, match="differs in checkpoint, --top_n;"):
        refuse_other_spectrum(tmp_path / "x", other)
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match="an unreadable record"):
        refuse_other_spectrum(tmp_path / "x", record)


@pytest.mark.parametrize("size", [64, 127, 200])
def test_damaged_arrays_are_refused_cheaply(size: int, tmp_path: Path) -> None:
    path = tmp_path / "x_eigen.npy"
    np.save(path, np.zeros((4, 4)))
    header = path.read_bytes().replace(b"(4, 4)", b"(9999999, 999)".ljust(6))[:size]
    path.write_bytes(header)
    with pytest.raises(ValueError, match="x_eigen"):
        read_spectrum(tmp_path / "x")
    np.save(path, np.array([[object()]]), allow_pickle=True)
    with pytest.raises(ValueError, match="x_eigen"):
        read_spectrum(tmp_path / "x")
