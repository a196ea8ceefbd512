"""Batch norm's statistics at a point: right, and as they were afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from loss_landscape.forward_pass.batch_norm import batch_norms, recalibrated


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(8)]
    model = nn.Sequential(*layers, nn.BatchNorm1d(8, track_running_stats=False))
    model(torch.randn(20, 4))  # so that the statistics aren't those of a new model
    return model


def make_batches(*sizes: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(size, 4), torch.zeros(size, dtype=torch.int64)) for size in sizes]


def test_equal_batches_give_what_torch_gives() -> None:
    """torch's ``update_bn`` runs the whole model in training mode, so without its dropout."""
    model, oracle, batches = make_model(), make_model(), make_batches(5, 5, 5)
    oracle[3].p = 0.0
    update_bn([inputs for inputs, _ in batches], oracle)
    with recalibrated(model, batches):
        for layer, expected in zip(batch_norms(model), batch_norms(oracle), strict=True):
            torch.testing.assert_close(layer.running_mean, expected.running_mean)
            torch.testing.assert_close(layer.running_var, expected.running_var)
        assert not any(module.training for module in model.modules())


def test_unequal_batches_weigh_as_their_samples() -> None:
    model, batches = make_model(), make_batches(7, 1, 2)
    kept = [model[0](inputs) for inputs, _ in batches if len(inputs) > 1]  # one has no variance
    with recalibrated(model, batches):
        mean, var = model[1].running_mean, model[1].running_var
        for found, statistic in ((mean, torch.mean), (var, torch.var)):
            first, last = (statistic(outputs, dim=0) for outputs in kept)
            torch.testing.assert_close(found, (7 * first + 2 * last) / 9)


def test_the_statistics_come_back_bit_for_bit() -> None:
    model = make_model()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    pointers = [t.data_ptr() for t in model.state_dict().values()]
    with pytest.raises(KeyError), recalibrated(model, make_batches(5)):
        assert not torch.equal(model[1].running_mean, before["1.running_mean"])
        raise KeyError
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert pointers == [t.data_ptr() for t in model.state_dict().values()]
    assert {layer.momentum for layer in batch_norms(model)} == {0.1}


def test_batches_of_one_sample_are_refused() -> None:
    with (
        pytest.raises(ValueError, match="no batch has two samples; raise --batch_size"),
        recalibrated(make_model(), make_batches(1, 1)),
    ):
        pytest.fail("it was let in")
