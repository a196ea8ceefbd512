"""The benchmarks measure what they say, on a tiny budget."""

from __future__ import annotations

import argparse
import random
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch
from forks import result_of
from torch import nn

from benchmarks import kill_saves, plain, training_throughput
from benchmarks.training_throughput import CASES, PRICED, Ours, our_epoch, plain_epoch
from models.transformer.dropout import Dropout
from models.wide_res_net import WideResNet
from utilities.precision import RoundedProducts

TINY_WRN = ("--depth=10", "--width_factor=1")


def arguments(data_dir: Path, *flags: str) -> argparse.Namespace:
    common = [f"--data_dir={data_dir}", f"--out_dir={data_dir}", "--threads=1", "--rounds=2"]
    return training_throughput.parse_args([*common, *flags])


def kill_ours(*flags: str) -> tuple[list[kill_saves.Outcome], str]:
    """What the benchmark finds and prints; it forks."""
    with redirect_stdout(StringIO()) as printed:
        found = kill_saves.main(flags)
    return found, printed.getvalue()


def test_no_kill_leaves_an_unreadable_or_a_lost_checkpoint() -> None:
    found, printed = result_of(kill_ours, "--kills=20", "--others=0")
    assert [f.kills for f in found] == [10, 10]
    assert all(f.saves >= f.kills for f in found)
    assert all(f.unreadable == f.lost == 0 for f in found)
    assert found[0].size > 5_000_000
    assert "| a GCN's training, resumed | 0.1" in printed


def kill_in_place(folder: Path) -> kill_saves.Outcome:
    writer = kill_saves.others(folder)[1]
    return kill_saves.kill_often(writer, kills=12, window=0.05, moments=random.Random(0))


def test_kills_are_found_in_files_written_in_place(tmp_path: Path) -> None:
    found = result_of(kill_in_place, tmp_path)
    assert found.unreadable >= 1  # 57 of 60, where it was measured
    assert found.lost >= found.unreadable


def kill_a_quitter(folder: Path) -> str:
    victim = kill_saves.Victim("quitter", lambda tell: tell(1), lambda: 1, folder / "x")
    with pytest.raises(RuntimeError) as error:
        kill_saves.kill(victim, 0.2)
    return str(error.value)


def test_a_victim_that_ends_by_itself_is_no_kill(tmp_path: Path) -> None:
    assert "quitter: ended before" in result_of(kill_a_quitter, tmp_path)


@pytest.mark.parametrize(
    ("label", "flags"),
    [
        ("MUTAG", ("--dropout=0", "--batch_size=200", "--weight_decay=0.1")),
        ("Transformer", ("--dropout=0", "--batch_size=200", "--layers=1", "--weight_decay=0.1")),
    ],
)
@pytest.mark.parametrize("optimizer", ["ADAM", "SAM"])
def test_the_plain_loop_trains_as_ours(
    label: str, flags: tuple[str, ...], optimizer: str, data_dir: Path
) -> None:
    # The batch is the whole split: both loops see the same samples, in another order.
    case = CASES[label]
    ours = Ours(case.script, [*case.flags, *flags, f"--data_dir={data_dir}"])
    state = ours.state(f"--optimizer={optimizer}")
    model = plain.stock(state.model, ours.model_args)
    loader, chosen = case.loader(state.dataset), plain.make_optimizer(state.args, model)
    for _ in range(3):
        our_epoch(state)
        plain.epoch(model, chosen, loader, state.args.label_smoothing, torch.device("cpu"))
    before, after = ours.model.state_dict(), state.model.state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(after[name], value, rtol=1e-3, atol=1e-4)
        assert not torch.equal(before[name], value)


def test_the_plain_models_are_of_stock_layers(data_dir: Path) -> None:
    case = CASES["Transformer"]
    ours = Ours(case.script, [f"--data_dir={data_dir}", "--dropout=0.3"])
    twin = plain.stock(ours.model, ours.model_args)
    kinds = [type(m) for m in twin.modules()]
    assert kinds.count(nn.Dropout) == 5 and Dropout not in kinds
    assert {m.dropout for m in twin.modules() if hasattr(m, "heads")} == {0.3}
    assert any(isinstance(m, Dropout) for m in ours.model.modules())  # itself untouched


def test_plain_images_are_davda54s(data_dir: Path) -> None:
    flags = [*TINY_WRN, f"--data_dir={data_dir}", "--batch_size=180"]
    ours = Ours(CASES["WRN-16-2"].script, flags)
    torch.manual_seed(0)
    images, labels = next(iter(plain.image_loader(ours.dataset)))
    theirs, _ = next(iter(ours.dataset.train))
    assert images.shape == theirs.shape and images.is_contiguous()
    torch.testing.assert_close(images.mean(), theirs.mean(), rtol=0.1, atol=0.05)
    torch.testing.assert_close(images.std(), theirs.std(), rtol=0.1, atol=0.05)
    assert labels.bincount().tolist() == [18] * 10


def test_a_comparison_reports_both_loops(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES["WRN-16-2"]._replace(flags=(*TINY_WRN, "--batch_size=8"))
    monkeypatch.setitem(CASES, "WRN-16-2", case)
    rows = training_throughput.compare("WRN-16-2", arguments(data_dir, "--samples=16"))
    assert [row[1] for row in rows] == ["SGD", "SAM"]
    for row in rows:
        old, new, gain = float(row[4]), float(row[5]), float(row[6].split()[0])
        assert gain == pytest.approx(new / old, rel=0.01)
        assert all(0.1 < float(peak) < 100 for peak in row[7:])  # MiB


def test_prices_are_of_as_many_passes_as_the_papers_say(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES["WRN-16-2"]._replace(flags=TINY_WRN)
    monkeypatch.setitem(CASES, "WRN-16-2", case)
    monkeypatch.setattr(training_throughput, "PRICE_BATCH", 4)
    seen: list[int] = []
    original = WideResNet.forward

    def counted(model: WideResNet, images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return original(model, images)

    monkeypatch.setattr(WideResNet, "forward", counted)
    args = arguments(data_dir, "--rounds=1")
    rows = training_throughput.price(args)  # 10 steps of 4 images, twice: the warm-up
    assert [row[0] for row in rows] == list(PRICED)
    per_step = {"SGD": 1, "SAM, half of the batch climbs": 1.5, "SAM, a quarter climbs": 1.25}
    per_step |= {"SAM in the run's second half": 1.5, "SAM in every fifth step": 1.2}
    per_step |= {"LookSAM, k = 5": 1.2, "MSAM": 1}
    assert sum(seen) == 2 * 10 * 4 * sum(per_step.get(name, 2) for name in PRICED)


def test_each_precision_gets_its_rows(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {k: v for k, v in training_throughput.GPU_FLAGS.items() if k in ("fp32", "bf16")}
    monkeypatch.setattr(training_throughput, "GPU_FLAGS", flags)
    args = arguments(data_dir, "--samples=20")
    rows = training_throughput.precisions(args, [*TINY_WRN, "--batch_size=10"])
    names = [(row[0], row[1]) for row in rows]
    assert names == [(p, o) for p in ("fp32", "bf16") for o in ("SGD", "SAM")]


def test_bf16_is_timed_with_and_without_our_roundings(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES["WRN-16-2"]._replace(flags=(*TINY_WRN, "--batch_size=8"))
    monkeypatch.setitem(CASES, "WRN-16-2", case)
    monkeypatch.setattr(training_throughput, "BF16_CASES", ("WRN-16-2",))
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)  # of a CPU without bf16
    original = RoundedProducts.__enter__
    entered: list[RoundedProducts] = []
    monkeypatch.setattr(
        RoundedProducts, "__enter__", lambda self: entered.append(self) or original(self)
    )
    rows = training_throughput.in_bf16(arguments(data_dir, "--samples=16", "--rounds=3"))
    assert len(rows) == 3 and [row[0] for row in rows] == ["WRN-16-2"] * 3
    base = float(rows[0][3])
    for row in rows[1:]:
        assert float(row[4].split()[0]) == pytest.approx(base / float(row[3]), rel=0.01)
    assert len(entered) == 4 * 2  # epochs of two steps, one of them to warm up, in one way of three


def test_the_gpu_part_says_that_it_needs_one(data_dir: Path) -> None:
    with pytest.raises(ValueError, match="--part gpu: no GPU here"):
        training_throughput.on_gpu(arguments(data_dir, "--device=cpu"))


def test_a_plain_epoch_needs_no_more_than_the_state(data_dir: Path) -> None:
    case = CASES["MUTAG"]
    ours = Ours(case.script, [*case.flags, f"--data_dir={data_dir}"])
    state = ours.state("--optimizer=SAM")
    assert plain_epoch(state, case, ours.model_args)() is None  # in_turns takes what isn't
