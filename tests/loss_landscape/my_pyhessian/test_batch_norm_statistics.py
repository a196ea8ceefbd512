"""Curvature and sharpness under each of batch norm's statistics, against the formula in float64."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from curvature_cases import generator, matrix
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from loss_landscape import sharpness
from loss_landscape.forward_pass.batch_norm import KINDS, batch_norms, statistics_of
from loss_landscape.my_pyhessian import density_plot, probes_on_ray
from loss_landscape.my_pyhessian import hessian as script
from loss_landscape.my_pyhessian.hessian import hessian
from loss_landscape.my_pyhessian.operators import (
    FisherOperator,
    GaussNewtonOperator,
    HessianOperator,
)
from loss_landscape.my_pyhessian.products import FastProducts, Way
from loss_landscape.my_pyhessian.shared_products import SharedProducts
from loss_landscape.my_pyhessian.unfinished import Unfinished
from loss_landscape.sharpness_measures.nearby_loss import NearbyLoss
from loss_landscape.sharpness_measures.sharpness_file import read_sharpness
from utilities.ranks import Ranks

Batches = list[tuple[Tensor, Tensor]]


def net() -> nn.Sequential:
    """A convolution, batch norm and a linear layer: 42 parameters, and running statistics."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.Dropout(0.5), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(8, 2)).double()
    nn.init.normal_(model[1].weight)
    model(torch.randn(9, 1, 4, 4, generator=generator(3)).double())  # running statistics
    return model


def images(sizes: Sequence[int] = (6, 4)) -> Batches:
    x = torch.randn(sum(sizes), 1, 4, 4, generator=generator(1)).double() + 0.3
    y = torch.arange(len(x)) % 2
    return list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))


def outputs(w: Tensor, x: Tensor, mean: Tensor | None = None, var: Tensor | None = None) -> Tensor:
    """``net`` by its formulas, batch norm's by Ioffe & Szegedy 2015, algorithm 1; w is (42,)."""
    kernel, bias, gain, shift, weight, last = w.split([18, 2, 2, 2, 16, 2])
    z = F.conv2d(x, kernel.view(2, 1, 3, 3), bias)
    if mean is None or var is None:
        mean, var = z.mean((0, 2, 3)), z.var((0, 2, 3), correction=0)
    scale = gain / (var + 1e-5).sqrt()
    z = z * scale.view(2, 1, 1) + (shift - mean * scale).view(2, 1, 1)
    return z.tanh().flatten(1) @ weight.view(2, 8).T + last


def mean_loss(model: nn.Sequential, batches: Batches, kind: str) -> Callable[[Tensor], Tensor]:
    """The mean loss over all samples as a function of the parameters."""
    statistics: tuple[Tensor, ...] = ()
    if kind == "eval":
        statistics = (model[1].running_mean.clone(), model[1].running_var.clone())
    if kind == "recalibrate":
        twin = net()
        twin[3].p = 0.0
        update_bn([x for x, _ in batches], twin)
        statistics = (twin[1].running_mean, twin[1].running_var)

    def loss(w: Tensor) -> Tensor:
        sums = [F.cross_entropy(outputs(w, x, *statistics), y, reduction="sum") for x, y in batches]
        return torch.stack(sums).sum() / sum(len(y) for _, y in batches)

    return loss


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def sizes_for(kind: str) -> tuple[int, ...]:
    return (5, 5) if kind == "recalibrate" else (6, 4)  # torch's update_bn weighs batches alike


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_hessian_is_the_dense_one_and_buffers_stay(kind: str, training: bool) -> None:
    """Whichever mode the model is in; derivatives go through the statistics of a batch."""
    model, batches = net().train(training), images(sizes_for(kind))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    pointers = [t.data_ptr() for t in model.state_dict().values()]
    expected = torch.func.hessian(mean_loss(model, batches, kind))(flat(model))
    found = hessian(model, F.cross_entropy, dataloader=batches, bn=kind)
    torch.testing.assert_close(matrix(found.operator), expected)
    exact = torch.linalg.eigvalsh(expected)
    top = exact[exact.abs().argmax()]
    assert found.eigenvalues(tol=1e-9)[0][0] == pytest.approx(float(top))
    gradient = torch.func.grad(mean_loss(model, batches, kind))(flat(model))
    torch.testing.assert_close(found.operator.gradient(), gradient)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert pointers == [t.data_ptr() for t in model.state_dict().values()]
    assert all(module.training == training for module in model.modules())


@pytest.mark.parametrize(
    "within", [torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)], ids=["inf", "half"]
)
def test_recalibrated_statistics_are_none_of_inference_mode_or_half_precision(within) -> None:
    """In inference mode products ended in an error, in autocast they were wrong by 2e-3."""
    model, batches = net().float(), [(x.float(), y) for x, y in images()]
    expected = hessian(model, F.cross_entropy, dataloader=batches, bn="recalibrate")
    with within:
        found = hessian(model, F.cross_entropy, dataloader=batches, bn="recalibrate")
        assert torch.equal(found.operator.gradient(), expected.operator.gradient())


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_that_was_told_to_track_no_more_has_these_statistics_too(kind: str) -> None:
    """It takes those that it has in eval mode; "recalibrate" and "batch" passed it over."""
    model, batches = net(), images(sizes_for(kind))
    model[1].track_running_stats = False
    expected = torch.func.grad(mean_loss(model, batches, kind))(flat(model))
    found = hessian(model, F.cross_entropy, dataloader=batches, bn=kind).operator.gradient()
    torch.testing.assert_close(found, expected)
    assert not model[1].track_running_stats and model[1].momentum == 0.1


def test_the_kinds_are_three_matrices() -> None:
    """What the test above compares would be worth little if they were nearly one."""
    model, batches = net(), images((5, 5))
    found = [torch.func.hessian(mean_loss(model, batches, kind))(flat(model)) for kind in KINDS]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert float((found[one] - found[other]).norm()) > 0.05 * float(found[0].norm())


@pytest.mark.parametrize("kind", ["recalibrate", "batch"])
@pytest.mark.parametrize(
    "way", [Way(), Way(kept=True), Way("quick", True), Way("quick"), Way(compiled=True)], ids=str
)
def test_each_way_of_making_products_takes_these_statistics(
    way: Way, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    model, batches = net(), images(sizes_for(kind))
    statistics = statistics_of(kind, model, batches)
    operator = HessianOperator(model, F.cross_entropy, batches, statistics=statistics)
    expected = torch.func.hessian(mean_loss(model, batches, kind))(flat(model))
    fast = FastProducts(operator, way)
    fast.try_out(torch.ones_like(operator.flat), math.inf)
    operator.batch_product = fast
    torch.testing.assert_close(matrix(operator), expected)
    assert len(fast.kept) == len(fast.held) == 2 * way.kept


def test_gauss_newton_goes_through_a_batchs_statistics() -> None:
    model, batches = net(), images((6,))
    (x, y), w = batches[0], flat(net())
    rows = torch.func.jacrev(lambda w: outputs(w, x))(w).reshape(12, -1)
    inner = torch.func.hessian(lambda z: F.cross_entropy(z, y))(outputs(w, x)).reshape(12, 12)
    statistics = statistics_of("batch", model, batches)
    operator = GaussNewtonOperator(model, F.cross_entropy, batches, statistics=statistics)
    torch.testing.assert_close(matrix(operator), rows.T @ inner @ rows)


def test_processes_share_whole_batches_and_so_their_statistics() -> None:
    def share(rank: int, world: int) -> HessianOperator:
        ranks = Ranks(torch.device("cpu"))
        ranks.rank, ranks.world = rank, world
        model, batches = net(), images((4, 3, 3))
        statistics = statistics_of("batch", model, batches)
        operator = HessianOperator(model, F.cross_entropy, batches, statistics=statistics)
        SharedProducts(operator, ranks)
        return operator

    vectors = torch.randn(2, 42, generator=generator()).double()
    parts = [share(rank, 2).products(vectors) for rank in (0, 1)]
    torch.testing.assert_close(sum(parts), share(0, 1).products(vectors))


@pytest.mark.parametrize("kind", KINDS)
def test_losses_near_the_weights_take_these_statistics(kind: str) -> None:
    """Recalibrated ones are those at the weights, also at a step from them."""
    model, batches = net(), images(sizes_for(kind))
    expected = mean_loss(model, batches, kind)
    criterion = nn.CrossEntropyLoss(reduction="none")
    forward = lambda model, batch: (model(batch[0]), batch[1])  # noqa: E731
    near = NearbyLoss(model, criterion, forward, statistics_of(kind, model, batches))
    step = 0.1 * torch.randn(42, generator=generator()).double()
    loss, gradient = near.with_gradient(batches, step)
    w = near.weights + step
    assert loss == pytest.approx(float(expected(w))) == near(batches, step)
    torch.testing.assert_close(gradient, torch.func.grad(expected)(w))


def test_what_cannot_be_right_is_refused() -> None:
    model, loss = net(), nn.CrossEntropyLoss(reduction="none")
    with pytest.raises(ValueError, match=r"--bn batch: a batch of one sample, maybe the last"):
        hessian(model, loss, dataloader=images((6, 1)), bn="batch")
    with pytest.raises(ValueError, match="no batch has two samples"):
        hessian(model, loss, dataloader=images((1, 1)), bn="recalibrate")
    statistics = statistics_of("batch", model, images())
    with pytest.raises(ValueError, match="gradients of single samples, and with --bn batch"):
        FisherOperator(model, loss, images(), statistics=statistics)
    with pytest.raises(ValueError, match="bn='train': must be one of eval, recalibrate, batch"):
        hessian(model, loss, dataloader=images(), bn="train")
    for kind in ("recalibrate", "batch"):
        with pytest.raises(ValueError, match=f"--bn {kind}: the model has no batch norm"):
            hessian(nn.Linear(4, 2), loss, data=images()[0], bn=kind)
    with pytest.raises(ValueError, match="no samples"):
        hessian(model, loss, dataloader=[], bn="batch")
    assert len(batch_norms(model)) == 1


# --- the command lines ----------------------------------------------------------------------------
FEW = ["--samples=20", "--batch_size=10", "--threads=1", "--device=cpu"]
SPECTRUM = ["--probes=2", "--lanczos_steps=3", "--top_n=1", "--bottom_n=0", "--max_steps=5"]
SPECTRUM += ["--trace_probes=2", "--tol=0.9", "--no-fast"]


def flags_of(trained: dict[str, Path], data_dir: Path, out: Path, *more: str) -> list[str]:
    common = ["--model_file", str(trained["cifar"]), "--data_dir", str(data_dir)]
    return [*common, "--out_dir", str(out), *FEW, *more]


def test_spectra_say_their_statistics_and_are_not_mixed(
    trained, data_dir: Path, tmp_path: Path, capsys
) -> None:
    stems, values = [], set()
    for kind in KINDS:
        argv = flags_of(trained, data_dir, tmp_path / kind, *SPECTRUM, f"--bn={kind}")
        path = script.main(argv)
        record = json.loads(path.read_text())
        said = "eval" if kind == "eval" else f"{kind}, batches of 10"
        assert record["bn"] == said and record["arguments"]["bn"] == kind
        assert (f"batch norm: {said}" in capsys.readouterr().out) == (kind != "eval")
        values.add(record["lambda_max"])
        stems.append(path.with_suffix(""))
    assert len(values) == 3
    for other in ("--bn=eval", "--bn=batch"):
        with pytest.raises(ValueError, match=r"another spectrum, which differs in --bn;"):
            script.main(flags_of(trained, data_dir, tmp_path / "recalibrate", *SPECTRUM, other))
    with pytest.raises(ValueError, match=r"--bn \(batch, batches of 10, not eval\)"):
        density_plot.main(
            ["--spectrum", *map(str, stems[::2]), "--output", str(tmp_path / "a.png")]
        )
    found = density_plot.read_spectrum(stems[2])
    title = density_plot.described([found], density_plot.kernel_of([found]))
    assert title.startswith("batch norm: batch, batches of 10\n")


def test_spectra_from_before_the_flag_were_in_eval_mode(
    trained, data_dir: Path, tmp_path: Path
) -> None:
    argv = flags_of(trained, data_dir, tmp_path, *SPECTRUM)
    path = script.main(argv)
    record = json.loads(path.read_text())
    del record["bn"], record["arguments"]["bn"]
    path.write_text(json.dumps(record))
    script.main(argv)
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="differs in --bn;"):
        script.main([*argv, "--bn=batch"])


def test_pieces_from_before_the_flag_are_gone_on_with_in_eval_mode_alone(tmp_path: Path) -> None:
    def begin(settings: dict[str, object]) -> Unfinished:
        return Unfinished(tmp_path / "a", settings, overwrite=False)

    begin({"--tol": 0.1}).add("way", {"way": torch.ones(1).numpy()})
    with pytest.raises(ValueError, match="another unfinished spectrum, which differs in --bn;"):
        begin({"--tol": 0.1, "--bn": "batch"})
    assert begin({"--tol": 0.1, "--bn": "eval"}).pieces.keys() == {"way"}


def test_workers_and_other_splits_have_the_same_statistics(
    trained, data_dir: Path, tmp_path: Path, monkeypatch
) -> None:
    """A worker restores model and flags; recalibrated statistics are of the training samples."""
    norms = []
    for more in (["--bn=batch"], ["--bn=recalibrate"], ["--bn=recalibrate", "--split=test"], []):
        args = script.parse_args(flags_of(trained, data_dir, tmp_path, *SPECTRUM, *more))
        restored = script.restore(args)
        batches = restored.batches(args.split, args.samples, args.batch_size)
        operators, sources = script.operators_of(restored, batches, args)
        ours = probes_on_ray.source(sources, operators(None))
        template = operators(None).flat
        known = {"values": [], "vectors": template[None][:0], "basis": template[None][:0]}
        sent = probes_on_ray.pickle.dumps((args, {**known, "projected": []}, []))
        probes_on_ray._restored.cache_clear()
        work, theirs = probes_on_ray._restored(sent)
        assert theirs == ours
        statistics = work.operator.statistics
        assert statistics.kind == args.bn
        norms.append(torch.cat([v for pair in statistics.values for v in pair] or [template[:0]]))
    assert torch.equal(norms[1], norms[2]) and len(norms[1]) > len(norms[0]) == len(norms[3])
    probes_on_ray._restored.cache_clear()


def test_sharpness_says_its_statistics_and_is_not_mixed(
    trained, data_dir: Path, tmp_path: Path, capsys
) -> None:
    measures = ["--m=8", "--measures", "m_sharpness", "average_case", "--draws=1"]
    values = []
    for kind in KINDS:
        argv = flags_of(trained, data_dir, tmp_path / kind, *measures, f"--bn={kind}")
        (path,) = sharpness.main(argv)
        record = read_sharpness(path)
        said = "eval" if kind == "eval" else f"{kind}, batches of 10"
        assert record["bn"] == said and record["subsets"] == 2
        assert (f"; batch norm: {said}" in capsys.readouterr().out) == (kind != "eval")
        values.append(tuple(m["value"] for m in record["measures"].values()))
    assert len(set(values)) == 3
    old = flags_of(trained, data_dir, tmp_path / "batch", *measures)
    with pytest.raises(ValueError, match="another sharpness, which differs in --bn;"):
        sharpness.main(old)
    with pytest.raises(ValueError, match="--m 1: one sample has no statistics for --bn batch"):
        sharpness.main([*old, "--bn=batch", "--m=1"])
