"""What each precision and each kernel choice does to a training, and how auto chooses."""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
import torch._inductor.config
import torch.nn.functional as F
from conftest import SMALL
from torch import Tensor, nn

import DatasetClass
import models
from models.smooth_crossentropy import smooth_crossentropy
from trainings import my_train_cifar, my_train_mitbih
from trainings.fit import train_epoch
from trainings.options import start
from trainings.state import TrainingState
from utilities import checkpoint, precision
from utilities.precision import (
    DTYPES,
    autocast,
    compile_options,
    fast_dtypes,
    make_scaler,
    resolve,
)

CPU = torch.device("cpu")
AVX2 = {"avx2": True, "avx512_f": False, "avx512_bf16": False, "amx_bf16": False}
MACHINES = [
    (AVX2, set()),
    ({**AVX2, "avx512_f": True}, set()),
    ({**AVX2, "avx512_f": True, "avx512_bf16": True}, {"bf16"}),
    ({**AVX2, "amx_bf16": True, "amx_fp16": True}, {"bf16", "fp16"}),
    ({"architecture": "aarch64"}, set()),
]


@pytest.mark.parametrize(("found", "fast"), MACHINES)
def test_auto_goes_by_what_the_processor_has(
    found: dict, fast: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert fast_dtypes(CPU) == fast
    assert resolve("auto", CPU) == ("bf16" if "bf16" in fast else "fp32")
    assert resolve("fp32", CPU) == "fp32"
    assert "".join(capsys.readouterr()) == ""


@pytest.mark.parametrize(
    ("capability", "fast"), [((9, 0), {"fp16", "bf16"}), ((7, 5), {"fp16"}), ((6, 1), set())]
)
def test_auto_goes_by_what_the_gpu_has(
    capability: tuple[int, int], fast: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert fast_dtypes(torch.device("cuda", 0)) == fast


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_a_precision_without_instructions_is_used_and_warned_of_in_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: AVX2)
    assert resolve(name, CPU) == name
    lines = "".join(capsys.readouterr()).splitlines()
    assert lines == [f"note: --precision {name} is no faster than fp32 on this cpu"]


def test_fp32_is_no_autocast_and_only_fp16_scales() -> None:
    with autocast("fp32", CPU):
        assert not torch.is_autocast_enabled("cpu")
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        with autocast(name, CPU):
            assert torch.get_autocast_dtype("cpu") == dtype
    assert [make_scaler(n, CPU).is_enabled() for n in ("fp32", "bf16", "fp16")] == [False] * 2 + [
        True
    ]


IMAGES, SERIES = torch.Size((2, 4, 9, 9)), torch.Size((2, 4, 20))
PRODUCTS = {
    "conv1d": (lambda x, w: F.conv1d(x, w, w[:, 0, 0], stride=2), SERIES, (6, 4, 3)),
    "conv2d": (lambda x, w: F.conv2d(x, w, bias=w[:, 0, 0, 0], padding=1), IMAGES, (6, 4, 3, 3)),
    "transposed": (F.conv_transpose2d, IMAGES, (4, 6, 3, 3)),
    "linear": (lambda x, w: F.linear(x, w, w[:, 0]), SERIES, (6, 20)),
    "@": (operator.matmul, SERIES, (20, 6)),
    "matmul": (torch.matmul, SERIES, (20, 6)),
    "bmm": (Tensor.bmm, SERIES, (2, 20, 5)),
    "mm": (lambda x, w: x[0].mm(w), SERIES, (20, 6)),
    "addmm": (lambda x, w: torch.addmm(w[0], x[0], w), SERIES, (20, 6)),
    "addbmm": (lambda x, w: torch.addbmm(w[0, 0], x, w), SERIES, (2, 20, 5)),
    "baddbmm": (lambda x, w: torch.baddbmm(w[:, :1], x, w), SERIES, (2, 20, 5)),
    "conv3d": (F.conv3d, torch.Size((1, 2, 4, 6, 6)), (3, 2, 2, 3, 3)),
    "attention": (lambda x, w: F.scaled_dot_product_attention(x, w, w), SERIES, SERIES),
}


@pytest.fixture
def without_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU whose instructions know neither bf16 nor fp16."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: AVX2)


@pytest.mark.usefixtures("without_half_precision")
@pytest.mark.parametrize("name", ["bf16", "fp16"])
@pytest.mark.parametrize("product", PRODUCTS)
def test_a_cpu_without_instructions_rounds_where_torchs_autocast_does(
    product: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    original = precision.rounded
    monkeypatch.setattr(precision, "rounded", lambda *args: seen.append(args) or original(*args))
    function, *shapes = PRODUCTS[product]
    dtype = DTYPES[name]
    step = torch.finfo(dtype).eps  # of the last place
    torch.manual_seed(0)
    # In fp32 no sum of products of these rounds, so that the outputs are known exactly.
    x, w = (torch.randint(-400, 401, shape) / 16 for shape in shapes)
    exact = product != "attention"
    if not exact:
        x, w = x / 25, w / 25
    expected = function(x.to(dtype).double(), w.to(dtype).double()).to(dtype)
    gradients = []
    ours = autocast(name, CPU)
    for context in (ours, torch.autocast("cpu", dtype)):
        leaves = [x.clone().requires_grad_(), w.clone().requires_grad_()]
        with context:
            y = function(*leaves)
        (y.float() / 64).square().sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
        if context is ours:
            assert len(seen) > 1  # torch computes rightly, too, what the mode doesn't know
            torch.testing.assert_close(y, expected, rtol=0 if exact else step, atol=0)
    for found, other in zip(*gradients, strict=True):
        assert found.dtype == torch.float32
        assert (found - other).norm() <= 2 * step * other.norm()
        once = product in ("transposed", "@", "matmul", "bmm", "mm")  # others sum several gradients
        assert not once or torch.equal(found, found.to(dtype).float())


@pytest.mark.usefixtures("without_half_precision")
def test_a_cpu_without_instructions_leaves_what_autocast_leaves() -> None:
    x, w = torch.randn(8, 8), torch.randn(8, 8)
    exact = x @ w
    with autocast("bf16", CPU):
        assert torch.is_autocast_enabled("cpu")
        assert (x.double() @ w.double()).dtype == torch.float64
        assert (x.int() @ w.int()).dtype == torch.int32
        assert (x + w).dtype == torch.float32
        assert (x.half() @ w).dtype == torch.bfloat16
        out = torch.empty(8, 8)
        assert torch.mm(x, w, out=out) is out and torch.equal(out, exact)
        with torch.autocast("cpu", torch.float16):
            assert (x @ w).dtype == torch.float16
        with torch.autocast("cpu", enabled=False):  # as a model may do for a part of itself
            assert (x @ w).dtype == torch.float32
        assert (x @ w).dtype == torch.bfloat16
    assert (x @ w).dtype == torch.float32
    assert not torch.is_autocast_enabled("cpu")
    with pytest.raises(ValueError, match="stop"), autocast("bf16", CPU):
        raise ValueError("stop")
    assert not torch.is_autocast_enabled("cpu")


def tiny_state(data_dir: Path, *flags: str) -> TrainingState:
    """Training of the smallest WRN with SAM; the same weights and data for the same flags."""
    words = (*SMALL["cifar"], "--optimizer=SAM", "--batch_size=20", *flags)
    args = my_train_cifar.parse_args([str(flag) for flag in words])
    ranks = start(args)
    dataset = DatasetClass.load("cifar10", data_dir, args.batch_size, train_samples=100)
    model = models.build("cifar", depth=args.depth, width_factor=args.width_factor)
    return TrainingState(args, dataset, model, ranks)


def losses(state: TrainingState) -> torch.Tensor:
    """The loss of each step of an epoch, (steps,)."""
    loss = partial(smooth_crossentropy, smoothing=state.args.label_smoothing)
    train_epoch(state, loss, lambda: None)
    return torch.stack(state.total.losses) / state.args.batch_size


def test_losses_in_half_precision_stay_near_those_of_fp32(data_dir: Path) -> None:
    fast = "--learning_rate=0.3"
    exact = losses(tiny_state(data_dir, "--precision=fp32", fast))
    assert exact[-1] < exact[0] - 0.2  # nothing is compared with a standstill
    # 8 and 11 bits of significand; the steps let a rounding grow, up to 2e-3 and 5e-4 (measured).
    for name, bound in (("bf16", 0.01), ("fp16", 0.002)):
        state = tiny_state(data_dir, f"--precision={name}", fast)
        other = losses(state)
        assert float((other - exact).abs().max()) < bound
        assert not torch.equal(other, exact)
        assert all(p.dtype == torch.float32 for p in state.model.parameters())
        assert state.optimizer.skipped == 0


def test_an_overflow_in_fp16_leaves_the_weights_and_halves_the_scale(data_dir: Path) -> None:
    state = tiny_state(data_dir, "--precision=fp16")
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)  # every gradient overflows
    before = copy.deepcopy(state.model.state_dict())
    steps = len(state.dataset.train)
    losses(state)
    assert state.optimizer.skipped == steps
    assert state.scaler.get_scale() == 2.0 ** (60 - steps)
    for name, p in state.model.named_parameters():
        assert torch.equal(p, before[name])


def weights(main, argv: Sequence[str], out: Path) -> dict[str, torch.Tensor]:
    main([*argv, f"--out_dir={out}", "--threads=1", "--epochs=2"])
    return checkpoint.load(next((out / "to_plot").glob("*_last.pt")))["state_dict"]


@pytest.mark.parametrize(
    ("name", "main"), [("cifar", my_train_cifar.main), ("mitbih", my_train_mitbih.main)]
)
def test_deterministic_runs_are_bitwise_equal(
    name: str, main, data_dir: Path, tmp_path: Path
) -> None:
    argv = [str(flag) for flag in (*SMALL[name], "--optimizer=SAM", f"--data_dir={data_dir}")]
    try:
        first = weights(main, [*argv, "--deterministic"], tmp_path / "a")
        assert torch.are_deterministic_algorithms_enabled()
        second = weights(main, [*argv, "--deterministic"], tmp_path / "b")
    finally:
        torch.use_deterministic_algorithms(False)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = weights(main, [*argv, "--deterministic", "--seed=7"], tmp_path / "c")
    torch.use_deterministic_algorithms(False)
    assert not all(torch.equal(first[key], other[key]) for key in first)


# No pool of workers. By torch's own patch, since pytest 9.2's monkeypatch deletes what it undoes
# unless it lies in the object's __dict__, where this module keeps none of its settings.
@torch._inductor.config.patch(compile_threads=1)
@pytest.mark.usefixtures("without_half_precision")
def test_a_compiled_model_rounds_as_the_plain_one() -> None:
    x = torch.randn(16, 8)
    model = nn.Linear(8, 4)
    with autocast("bf16", CPU):
        plain, compiled = model(x), torch.compile(model, options=compile_options("bf16", CPU))(x)
    assert compiled.dtype == torch.bfloat16
    assert torch.equal(compiled, plain)
    assert not torch.equal(plain, model(x).bfloat16())  # which rounds the outputs alone


@pytest.mark.usefixtures("without_half_precision")
@pytest.mark.parametrize(
    ("name", "kept"), [("bf16", {"emulate_precision_casts": True}), ("fp32", {})]
)
def test_a_compiled_training_keeps_the_casts_that_round(
    name: str,
    kept: dict[str, bool],
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[dict[str, object]] = []

    def not_compiled(network: nn.Module, options: dict[str, object]) -> nn.Module:
        asked.append(options)
        return network

    monkeypatch.setattr(torch, "compile", not_compiled)
    argv = [
        *map(str, SMALL["mitbih"]),
        f"--data_dir={data_dir}",
        "--compile",
        f"--precision={name}",
    ]
    weights(my_train_mitbih.main, argv, tmp_path)
    assert asked == [kept]


@torch._inductor.config.patch(compile_threads=1)
def test_a_compiled_model_trains_as_the_plain_one(data_dir: Path, tmp_path: Path) -> None:
    small = ("--dim=8", "--heads=2", "--layers=1", "--feedforward=8", "--patch=17", "--dropout=0")
    argv = [*small, f"--data_dir={data_dir}", "--batch_size=44", "--train_samples=88"]
    plain = weights(my_train_mitbih.main, argv, tmp_path / "plain")
    compiled = weights(my_train_mitbih.main, [*argv, "--compile"], tmp_path / "compiled")
    assert plain.keys() == compiled.keys()  # without torch.compile's prefix
    for key, value in plain.items():
        torch.testing.assert_close(compiled[key], value, rtol=1e-3, atol=1e-4)
