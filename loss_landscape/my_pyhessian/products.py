"""Faster ways to a curvature operator's products, each compared with the plain one before use.

Which way is fastest depends on the model, on the memory that is free and on how many products are
ahead, so that ``choose`` measures them on the first batch. There are four means:

- what a batch's products have in common, the forward pass and the first backward pass, is kept,
  for as many batches as a quarter of the free memory holds;
- layers are replaced (``quick_layers.py``), and images lie in channels_last;
- graphs are merged (``forward_pass/merged_graphs.py``), which is the same function of the weights
  and so has the same Hessian;
- forward over reverse, compiled, where so many products are ahead that they pay for compiling.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from loss_landscape.forward_pass.memory_format import in_format
from loss_landscape.forward_pass.merged_graphs import MergedBatch, merge
from loss_landscape.forward_pass.stand_ins import UnsuitedError
from loss_landscape.my_pyhessian.batches import Forward, Pair, forward_pair
from loss_landscape.my_pyhessian.operators import (
    BatchProduct,
    CurvatureOperator,
    HessianOperator,
    Parts,
)
from loss_landscape.my_pyhessian.quick_layers import QuickLayers
from models.gnc import GCN
from models.sparse_product import SparseMatrix

SAME = {torch.float32: 1e-4, torch.float64: 1e-9}  # relative, of a product with a random vector
SHARE = 0.25  # of the free memory, for what is kept
FEWEST = 16  # products below which looking for a faster way takes longer than it saves
ENOUGH = 0.5  # seconds of a product from which on one timing is enough
NEAR = 1.5  # times the plain product's own error that another's may be
COMPILING = 40.0  # seconds that torch.compile takes on two cores, more or less
COMPILED = 0.6  # of the plain way's time that a compiled product takes, about, where it pays
MOST_SHAPES = 3  # of batches, each of which is compiled
GAIN = 0.95  # of the time, at most, that a compiled way has to take
DENSEST = 100_000  # entries of a merged matrix, zeros included, up to which it is taken as dense


class Way(NamedTuple):
    """How products are made.

    Attributes:
        layers: "plain", the model on the batches as they are; "quick"; "merged".
        kept: as many batches' first passes as memory holds; it makes no difference to a bit.
        compiled: forward over reverse, by torch.compile.
    """

    layers: str = "plain"
    kept: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        """As files keep it."""
        return json.dumps(self._asdict())

    @classmethod
    def read(cls, text: str) -> Way:
        """Back from a file's text.

        Raises:
            ValueError: it is none.
        """
        try:
            way = cls(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise ValueError(f"the products' way, {text[:60]!r}, is none") from error
        both = isinstance(way.kept, bool) and isinstance(way.compiled, bool)
        if not isinstance(way.layers, str) or way.layers not in SAID or not both:
            raise ValueError(f"the products' way, {text[:60]!r}, is unknown")
        return way

    @property
    def said(self) -> str:
        """For people."""
        kind = "forward over reverse, compiled" if self.compiled else "reverse over reverse"
        return f"{kind}, {SAID[self.layers]}"


SAID = {
    "plain": "the model itself",
    "quick": "quick convolutions and batch norms, channels_last",
    "merged": "nodes merged",
}
PLAIN = Way()


class FastProducts:
    """The batch products of ``operator`` by one way; ``operator.batch_product`` takes one.

    What was kept is forgotten where a weight or a buffer has moved.

    Args:
        operator: any.
        way: how.

    Attributes:
        held: the indices of the batches whose first passes are kept.
        first, again: seconds of the first batch's first product, and of another from what is kept.

    Raises:
        UnsuitedError: the way is for other models.
    """

    def __init__(self, operator: CurvatureOperator, way: Way) -> None:
        self.operator, self.way = operator, way
        self.forward, self.batches = prepared(operator, way.layers)
        self.compiled = Compiled(operator, self.forward) if way.compiled else None
        self.kept: dict[int, BatchProduct] = {}
        self.held: list[int] = []
        self.seen = self._state()
        self.first = self.again = math.inf

    def __call__(self, index: int) -> BatchProduct:
        if index not in self.held:
            return self.made(index)
        now = (*self.operator.model.parameters(), *self.operator.model.buffers())
        if not all(map(torch.equal, now, self.seen)):
            self.kept, self.seen = {}, self._state()
        if index not in self.kept:
            self.kept[index] = self.made(index)
        product = self.kept[index]
        return lambda vector, again: product(vector, True)

    def made(self, index: int) -> BatchProduct:
        """After what comes before the vector: the forward pass and the first backward pass."""
        if self.compiled is not None:
            return self.compiled.product(self.batches[index])
        with QuickLayers() if self.way.layers == "quick" else nullcontext():
            outputs, targets = self.forward(self.operator.model, self.batches[index])
            return self.operator.linearised(outputs, targets)

    def _state(self) -> list[Tensor]:
        model = self.operator.model
        return [x.detach().clone() for x in (*model.parameters(), *model.buffers())]

    def try_out(self, vector: Tensor, room: float) -> Tensor:
        """Time products of the first batch, see what ``room`` (bytes) holds, return a product."""
        parts = self.operator.split(vector)
        if self.compiled is not None:
            self._timed(parts)  # which compiles
            return self._timed(parts)
        with _saved() as sizes:
            found = self._timed(parts)
        if self.first < ENOUGH:
            self._timed(parts)
        share, counts = self.operator.share, np.array(self.operator.counts)
        taken = sum(sizes.values()) / counts[0] * np.cumsum(counts[share])
        self.held = list(share[: int((taken <= room).sum())]) if self.way.kept else []
        return found

    def _timed(self, parts: Parts) -> Tensor:
        with self.operator.evaluating():
            began = _now(self.operator)
            product = self.made(0)
            found = product(parts, self.way.kept)
            between = _now(self.operator)
            if self.way.kept:
                product(parts, False)
                self.again = min(self.again, _now(self.operator) - between)
        self.first = between - began if self.compiled else min(self.first, between - began)
        return _flat(found)

    @property
    def seconds(self) -> float:
        """Of a product over this process's batches, about, once their first passes are kept."""
        counts = self.operator.counts
        kept = sum(counts[index] for index in self.held)
        rest = sum(counts[index] for index in self.operator.share) - kept
        return ((self.again * kept if kept else 0.0) + self.first * rest) / counts[0]


@contextmanager
def _saved() -> Iterator[dict[int, int]]:
    """Within, collect the bytes of all memory that autograd keeps, by address."""
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield sizes


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on ``device`` without pushing anything else out."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


# --- what the model is asked on -------------------------------------------------------------------
def _suits(operator: CurvatureOperator, layers: str) -> bool:
    model = operator.model
    if layers == "quick":
        return any(isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d) for m in model.modules())
    return layers == "plain" or (type(model) is GCN and operator.forward is forward_pair)


def prepared(operator: CurvatureOperator, layers: str) -> tuple[Forward, list[Any]]:
    """Forward function and batches of a way.

    Raises:
        UnsuitedError: the way is for other models.
    """
    batches = operator.batches
    if not _suits(operator, layers):
        raise UnsuitedError(f"the model is not one for products by {SAID[layers]}")
    if layers == "quick" and operator.flat.device.type == "cpu":
        return operator.forward, [in_format(batch, torch.channels_last) for batch in batches]
    if layers == "merged":
        dtype = operator.flat.dtype
        return merged_pair, [
            (_usable(merge(graphs, dtype)), targets) for graphs, targets in batches
        ]
    return operator.forward, batches


def merged_pair(model: nn.Module, batch: Any) -> Pair:
    """A ``GCN``'s outputs on merged graphs, with all derivatives, and the targets."""
    assert isinstance(model, GCN)
    inputs, targets = batch
    x = F.linear(inputs.x, model.conv1.lin.weight, model.conv1.bias).relu()
    x = model.conv2(x, inputs.second).relu()
    return model.classifier(model.conv3(x, inputs.mean) * inputs.occupied), targets


def _usable(batch: MergedBatch) -> Any:
    """Small matrices as dense tensors, others with the transposed that derivatives need."""
    second = _derivable(batch.second, len(batch.x))
    return batch._replace(second=second, mean=_derivable(batch.mean, len(batch.second.offsets) - 1))


def _derivable(matrix: SparseMatrix, columns: int) -> Any:
    rows = torch.repeat_interleave(matrix.offsets.diff())
    count = len(matrix.offsets) - 1
    if count * columns <= DENSEST:
        dense = matrix.values.new_zeros(count, columns)
        return dense.index_put_((rows, matrix.columns), matrix.values)
    order = matrix.columns.argsort(stable=True)
    offsets = F.pad(matrix.columns.bincount(minlength=columns).cumsum(0), (1, 0))
    transposed = SparseMatrix(offsets, rows[order], matrix.values[order])
    return SparseMatrix(matrix.offsets, matrix.columns, matrix.values, transposed)


# --- compiled -------------------------------------------------------------------------------------
class _Whole(nn.Module):
    """From a batch to its loss, so that ``functional_call`` reaches the model's parameters."""

    def __init__(self, operator: CurvatureOperator, forward: Forward) -> None:
        super().__init__()
        self.model, self.pair, self.loss = operator.model, forward, operator.loss

    def forward(self, batch: Any) -> Tensor:
        return self.loss(*self.pair(self.model, batch))


class Compiled:
    """Forward over reverse (Pearlmutter 1994), as torch.compile makes it.

    Raises:
        UnsuitedError: the matrix is another than the Hessian.
    """

    def __init__(self, operator: CurvatureOperator, forward: Forward) -> None:
        if type(operator) is not HessianOperator:
            raise UnsuitedError("only products with the Hessian are compiled")
        whole = _Whole(operator, forward)
        chosen = {id(p): i for i, p in enumerate(operator.params)}
        named = [(n, p) for n, p in whole.named_parameters() if id(p) in chosen]
        self.names = [name for name, _ in named]
        self.order = [chosen[id(p)] for _, p in named]
        self.operator, self.back = operator, {place: i for i, place in enumerate(self.order)}

        def loss(values: tuple[Tensor, ...], batch: Any) -> Tensor:
            return functional_call(whole, dict(zip(self.names, values, strict=True)), (batch,))

        def product(values: Any, vector: Any, batch: Any) -> Any:
            with WrittenNorms():
                return jvp(lambda at: grad(loss)(at, batch), (values,), (vector,))[1]

        self.function: Callable[..., Any] = torch.compile(product, dynamic=False, fullgraph=True)

    def product(self, batch: Any) -> BatchProduct:
        def product(vector: Parts, again: bool) -> Parts:
            values = tuple(self.operator.params[i].detach() for i in self.order)
            found = self.function(values, tuple(vector[i] for i in self.order), batch)
            return [found[self.back[i]] for i in range(len(vector))]

        return product


class WrittenNorms(TorchFunctionMode):
    """Layer norms by their formula: forward over reverse, the fused one is wrong in torch 2.14."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.layer_norm:
            return _layer_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    dims = tuple(range(-len(normalized_shape), 0))
    centred = input - input.mean(dims, keepdim=True)
    y = centred * (centred.square().mean(dims, keepdim=True) + eps).rsqrt()
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


# --- the choice -----------------------------------------------------------------------------------
def choose(
    operator: CurvatureOperator,
    products: int,
    begun: str | None = None,
    compiling: bool = True,
    say: Callable[[str], None] = print,
) -> Way:
    """Let ``operator`` make its products the fastest way that agrees with the plain one.

    Args:
        operator: its ``batch_product`` is replaced.
        products: how many are ahead, about; for a few none is looked for.
        begun: the way, as text, of a result that is gone on with.
        compiling: whether torch.compile may be called.
        say: is given lines on what was chosen, and on what can't be and why.

    Raises:
        ValueError: what was begun can't be gone on with here.
    """
    trial = Trial(operator, say)
    if begun is not None:
        fast, reason = trial.attempt(Way.read(begun))
        if fast is None:
            raise ValueError(
                f"the spectrum can't be gone on with the way it was begun: {reason}; "
                "--no-fast --overwrite begins anew"
            )
    elif products < FEWEST:
        return PLAIN
    else:
        fast = trial.best(products, compiling)
        say(f"products by {trial.sentence(fast)}")
    operator.batch_product = fast
    return fast.way


class Trial:
    """Ways to make products, tried on the first batch.

    Args:
        operator: whose products; it is left as it is.
        say: is given lines.
    """

    def __init__(self, operator: CurvatureOperator, say: Callable[[str], None]) -> None:
        self.operator, self.say = operator, say
        # Of torchrun's processes on this machine each takes its part.
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self.room = SHARE * free_memory(operator.flat.device) / processes
        generator = torch.Generator().manual_seed(0)
        vector = torch.randn(operator.flat.numel(), generator=generator, dtype=torch.float64)
        self.vector = vector.to(operator.flat)
        self.plain = FastProducts(operator, Way(kept=True))
        self.expected = self.plain.try_out(self.vector, self.room)

    def sentence(self, fast: FastProducts) -> str:
        """What was chosen and why."""
        held, share = len(fast.held), len(self.operator.share)
        kept = f"first passes of {held} of {share} batches kept, " if held else ""
        return f"{fast.way.said}: {kept}{fast.seconds:.3g} s each instead of {self._alone:.3g} s"

    @property
    def _alone(self) -> float:
        """Seconds of a plain product."""
        counts = self.operator.counts
        return self.plain.first * sum(counts[i] for i in self.operator.share) / counts[0]

    def best(self, products: int, compiling: bool = True) -> FastProducts:
        """The fastest; compiled where that pays over ``products``."""
        best = self.plain
        for layers in ("quick", "merged"):
            if not _suits(self.operator, layers):
                continue
            fast, reason = self.attempt(Way(layers, kept=True))
            if fast is None:
                self.say(f"no products by {Way(layers).said}: {reason}")
            elif fast.seconds < best.seconds:
                best = fast
        pays = products * (best.seconds - COMPILED * self._alone) > COMPILING
        if compiling and pays and self._compiles(best.way):
            return self._compiled(best, products)
        return best

    def attempt(self, way: Way) -> tuple[FastProducts | None, str]:
        """Products by ``way`` that agree with the plain ones, or None and why there are none."""
        if way == self.plain.way:
            return self.plain, ""
        try:
            fast = FastProducts(self.operator, way)
            found = fast.try_out(self.vector, self.room)
        except UnsuitedError as error:
            return None, str(error)
        except Exception as error:  # of torch, or of a user's model: the plain way is still there
            lines = [line for line in str(error).splitlines() if line.strip()]
            return None, (lines or [type(error).__name__])[0][:160]
        off = _off(found, self.expected)
        if off <= SAME[found.dtype] or self._is_as_near(found):
            return fast, ""
        return None, f"a product is off by {off:.2g} of its norm"

    def _is_as_near(self, found: Tensor) -> bool:
        """Whether ``found`` is as near to a product in float64 as the plain one.

        A ReLU whose argument is 0 but for rounding may be on in one way and off in another.
        """
        if found.dtype == torch.float64 or not found.isfinite().all():
            return False
        operator = copy.copy(self.operator)
        names = {id(p): name for name, p in operator.model.named_parameters()}
        chosen = [names[id(p)] for p in operator.params]
        try:
            operator.model = copy.deepcopy(operator.model).double()
            twins = dict(operator.model.named_parameters())
            operator.params = [twins[name] for name in chosen]
            operator.batches = [tree_map(_widened, operator.batches[0])]
            with operator.evaluating():
                parts = operator.split(self.vector.double())
                exact = _flat(operator.linearised(*self._pair(operator))(parts, False))
        except Exception:  # a user's model may insist on its type
            return False
        return _off(found.double(), exact) <= NEAR * _off(self.expected.double(), exact)

    @staticmethod
    def _pair(operator: CurvatureOperator) -> Pair:
        return operator.forward(operator.model, operator.batches[0])

    def _compiles(self, way: Way) -> bool:
        """Whether all batches are alike enough for a few compiled graphs."""
        leaves = {
            tuple(leaf.shape if isinstance(leaf, Tensor) else type(leaf) for leaf in tree_leaves(b))
            for b in self.operator.batches
        }
        return way.layers != "merged" and len(leaves) <= MOST_SHAPES

    def _compiled(self, best: FastProducts, products: int) -> FastProducts:
        """The compiled way if it is faster than ``best`` and agrees, else ``best`` itself."""
        self.say(f"compiling for up to {products:,} products ...")
        quicker, reason = self.attempt(Way(compiled=True))
        if quicker is None:
            self.say(f"not compiled: {reason}")
            return best
        if quicker.seconds > GAIN * best.seconds:
            self.say(f"not compiled: {quicker.seconds:.3g} s each, no faster than the others")
            return best
        return quicker


def _off(found: Tensor, expected: Tensor) -> float:
    scale = max(float(expected.norm()), torch.finfo(expected.dtype).tiny)
    return float((found - expected).norm()) / scale


def _flat(parts: Parts) -> Tensor:
    return torch.cat([part.detach().flatten() for part in parts])


def _widened(leaf: Any) -> Any:
    floating = isinstance(leaf, Tensor) and leaf.is_floating_point()
    return leaf.double() if floating else leaf


def _now(operator: CurvatureOperator) -> float:
    if operator.flat.device.type == "cuda":
        torch.cuda.synchronize(operator.flat.device)
    return time.perf_counter()
