"""Shapes, arguments and known facts of the models."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch_geometric.data import Batch, Data

import models
from models.smooth_crossentropy import smooth_crossentropy
from models.transformer.dropout import Dropout, keep_mask
from models.transformer.encoder import MultiHeadAttention, sinusoidal_positions


def test_wide_res_net_has_the_published_size() -> None:
    # Zagoruyko & Komodakis 2016, table 4: WRN-16-8 has 11.0 and WRN-28-10 36.5 million parameters.
    for depth, width, millions in ((16, 8, 11.0), (28, 10, 36.5), (40, 4, 8.9)):
        model = models.build("cifar", depth=depth, width_factor=width)
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_depth_counts_the_convolutions() -> None:
    # 6n in the units, one in front and one in each group's shortcut: 6n + 4.
    model = models.build("cifar", depth=22, width_factor=2)
    assert len([m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]) == 22


@pytest.mark.parametrize(
    ("name", "bad"),
    [("cifar", {"depth": 17}), ("cifar", {"width_factor": 0}), ("mitbih", {"dim": 10, "heads": 3})],
)
def test_bad_arguments_are_named(name: str, bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        models.build(name, **bad)


def test_unknown_names_and_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown, choose from cifar"):
        models.build("resnet56")
    with pytest.raises(ValueError, match="colour"):
        models.build("GCN", colour=1)


def test_positions_run_along_the_sequence() -> None:
    encoding = sinusoidal_positions(50, 8).double()
    for position in (0, 7, 49):
        for i in range(4):
            angle = position / 10_000 ** (2 * i / 8)
            assert float(encoding[position, 2 * i]) == pytest.approx(math.sin(angle), abs=1e-5)
            assert float(encoding[position, 2 * i + 1]) == pytest.approx(math.cos(angle), abs=1e-5)


def test_features_are_one_more_time_step_and_change_no_other_weight() -> None:
    torch.manual_seed(0)
    plain = models.build("mitbih", layers=0, length=20, dropout=0.0)
    torch.manual_seed(0)
    model = models.build("mitbih", layers=0, length=20, dropout=0.0, features=3)
    weights = model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in plain.state_dict().items())
    assert set(weights) - set(plain.state_dict()) == {
        "feature_embedding.weight",
        "feature_embedding.bias",
    }
    signals, features = torch.rand(2, 20), torch.randn(2, 3)
    steps = F.linear(signals.unflatten(1, (5, 4)), plain.embedding.weight, plain.embedding.bias)
    extra = features @ weights["feature_embedding.weight"].T + weights["feature_embedding.bias"]
    steps = torch.cat([steps + sinusoidal_positions(5, 64), extra[:, None]], dim=1)
    expected = plain.classifier(plain.norm(steps).mean(dim=1))
    torch.testing.assert_close(model(torch.cat([signals, features], dim=1)), expected)


@pytest.mark.parametrize(("features", "width"), [(0, 191), (0, 186), (4, 187)])
def test_inputs_of_another_width_are_refused(features: int, width: int) -> None:
    """With patches of 8 samples they made as many time steps, and wrong logits."""
    model = models.build("mitbih", patch=8, features=features)
    with pytest.raises(ValueError, match=f"inputs of {width} numbers, .* takes {187 + features}"):
        model(torch.rand(2, width))


def test_transformer_knows_the_order_in_time_and_not_the_batch() -> None:
    torch.manual_seed(0)
    model = models.build("mitbih").eval()
    beats = torch.rand(3, 187)
    alone = torch.cat([model(beat.unsqueeze(0)) for beat in beats])
    torch.testing.assert_close(model(beats), alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model(beats), model(beats.flip(1)), atol=1e-3)


def test_attention_is_torchs() -> None:
    torch.manual_seed(0)
    ours = MultiHeadAttention(16, 4, 0.0).eval()
    theirs = torch.nn.MultiheadAttention(16, 4, batch_first=True).eval()
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = ours.qkv.weight, ours.qkv.bias
    theirs.out_proj.load_state_dict(ours.output.state_dict())
    x = torch.randn(2, 9, 16)
    torch.testing.assert_close(ours(x), theirs(x, x, x)[0], rtol=1e-4, atol=1e-5)


def test_attention_weights_are_dropped_only_where_asked_for() -> None:
    x = torch.randn(2, 9, 16)
    for dropout, same in ((0.0, True), (0.5, False)):
        attention = MultiHeadAttention(16, 4, dropout).train()
        assert torch.equal(attention(x), attention(x)) is same
        attention.eval()
        assert torch.equal(attention(x), attention(x))


def test_attention_in_bf16_keeps_the_kernel_of_fp32() -> None:
    torch.manual_seed(0)
    attention = MultiHeadAttention(16, 4, 0.0)
    x = torch.randn(2, 9, 16)
    with torch.autocast("cpu", torch.bfloat16), torch.profiler.profile() as profiler:
        half = attention(x)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), attention(x), rtol=0.03, atol=0.01)
    kernel = "aten::_scaled_dot_product_flash_attention_for_cpu"
    assert kernel in {event.key for event in profiler.key_averages()}
    whole = attention.bfloat16()(x.bfloat16())  # without autocast
    torch.testing.assert_close(whole, half, rtol=0.03, atol=0.02)


def test_a_transformer_of_before_attention_dropout_still_builds() -> None:
    old = {"length": 187, "num_classes": 5, "dim": 8, "heads": 2, "layers": 1, "feedforward": 8}
    model = models.build("mitbih", **old, patch=4, dropout=0.1)
    assert [layer.attention.dropout for layer in model.layers] == [0.0]


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9999, 1.0])
def test_dropout_keeps_the_mean_and_drops_as_often_as_it_says(p: float) -> None:
    torch.manual_seed(0)
    count = 1_000_001  # not a multiple of the four that one random number serves
    mask = keep_mask(count, p)
    assert mask.shape == (count,)
    deviation = math.sqrt(p * (1 - p) / count)
    assert float((mask == 0).float().mean()) == pytest.approx(p, abs=5 * deviation + 1e-5)
    if p < 1:
        kept = 1 / (1 - round(p * 65_536) / 65_536)
        scaled = mask[mask != 0]
        torch.testing.assert_close(scaled, torch.full_like(scaled, kept))
        assert float(mask.mean()) == pytest.approx(1, abs=5 * deviation / (1 - p) + 1e-5)


def test_dropout_masks_are_independent_of_their_neighbours() -> None:
    torch.manual_seed(0)
    dropped = (keep_mask(4_000_000, 0.3) == 0).double() - 0.3
    for lag in (1, 2, 3, 4, 64):
        correlation = float((dropped[:-lag] * dropped[lag:]).mean()) / 0.21
        assert abs(correlation) < 5 / math.sqrt(4_000_000)


def test_dropout_passes_on_gradients_and_is_off_in_eval_mode() -> None:
    torch.manual_seed(0)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x = torch.randn(3, 5, 7, dtype=dtype, requires_grad=True)
        layer = Dropout(0.4)
        y = layer(x)
        assert y.dtype == dtype
        y.sum().backward()
        torch.testing.assert_close(x.grad * x.detach(), y.detach())
        assert layer.eval()(x) is x or torch.equal(layer(x), x)
    generator = torch.get_rng_state()
    first = layer.train()(x)
    torch.set_rng_state(generator)
    assert torch.equal(layer(x), first)  # a resumed run draws the same masks


def test_gcn_reads_each_graph_alone() -> None:
    torch.manual_seed(0)
    model = models.build("GCN", in_channels=3, num_classes=2).eval()
    ring = torch.tensor([[0, 1, 2, 1, 2, 0], [1, 2, 0, 0, 1, 2]])
    graphs = [
        Data(x=torch.rand(3, 3), edge_index=ring),
        Data(x=torch.rand(1, 3), edge_index=torch.empty(2, 0, dtype=torch.long)),
    ]
    together = model(Batch.from_data_list(graphs))
    alone = torch.cat([model(Batch.from_data_list([graph])) for graph in graphs])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smooth_crossentropy_is_the_divergence_from_smoothed_labels(smoothing: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 4, dtype=torch.float64)
    targets = torch.arange(6) % 4
    expected = []
    for row, target in zip(F.softmax(logits, dim=1).tolist(), targets.tolist(), strict=True):
        labels = [1 - smoothing if k == target else smoothing / 3 for k in range(4)]
        terms = [q * math.log(q / p) for q, p in zip(labels, row, strict=True) if q]
        expected.append(sum(terms))
    loss = smooth_crossentropy(logits, targets, smoothing)
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64))
    if not smoothing:
        torch.testing.assert_close(loss, F.cross_entropy(logits, targets, reduction="none"))
