"""Sharpness-Aware Minimization (SAM) around any PyTorch optimizer, in one file to copy.

SAM (Foret et al. 2021, arXiv:2010.01412) looks for weights whose whole neighbourhood has a low
loss. A step climbs to the worst point within distance ``rho``, takes the gradient there, comes
back and lets the base optimizer step with that gradient. It costs two forward and backward
passes; where time is the limit, plain SGD for twice the epochs is the comparison to beat.

    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)

    def closure():  # one whole forward and backward pass
        optimizer.zero_grad()
        loss = loss_function(model(inputs), targets)
        loss.backward()
        return loss

    loss = optimizer.step(closure)  # the loss at the weights before the step

or, in two steps, as in https://github.com/davda54/sam, whose interface this keeps:

    loss_function(model(inputs), targets).backward()
    optimizer.first_step(zero_grad=True)
    with frozen_batch_norm(model):
        loss_function(model(inputs), targets).backward()
    optimizer.second_step(zero_grad=True)
"""

from __future__ import annotations

import gc
import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import zip_longest
from operator import is_
from traceback import walk_stack
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, distributed, nn
from torch._compile import _disable_dynamo as outside_graphs  # torch.compiler's imports for 2 s
from torch.amp.grad_scaler import GradScaler, OptState
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

__all__ = ["SAM", "ascent_scale", "frozen_batch_norm", "global_norm", "normalisation_only"]

Tensors: TypeAlias = list[Tensor]  # one long vector
# A number on a CPU, where reading it is free; else a 0-dim tensor, lest the host wait for it.
Scalar: TypeAlias = Any  # float | Tensor

# === Formulas, in the papers' letters: g is the gradient at w, g_s that at w + e(w) =============
# What is said to be written into an argument is so for speed: _foreach functions in place halve
# what a loop over the parameters takes, and save a copy of the weights.


def ascent(w: Tensors, g: Tensors, rho: float, norm: Scalar) -> None:
    """Write w + e(w) into w, e(w) = rho g / |g| (Foret et al. 2021, eq. 2); on a GPU into g too."""
    scale = ascent_scale(rho, norm)
    if isinstance(scale, Tensor):  # 0 times an infinite direction would be NaN
        torch._foreach_mul_([finite(x) for x in g], scale)
        scale = 1.0
    if scale:
        torch._foreach_add_(w, g, alpha=scale)


def ascent_scale(rho: float, norm: Scalar) -> Scalar:
    """Factor that makes a direction of length ``norm`` one of length ``rho``.

    A zero direction stays zero; one of infinite or NaN length gets 0.
    """
    if isinstance(norm, Tensor):
        return (rho / norm).nan_to_num_(nan=0.0, posinf=0.0)
    return rho / norm if norm and math.isfinite(norm) else 0.0


def asam_scale(w: Tensor, eta: float) -> Tensor:
    """T_w = |w| + eta; ASAM's e(w) = rho T_w^2 g / |T_w g| (Kwon et al. 2021, eq. 7)."""
    return w.abs().add_(eta)


def friendly_direction(g: Tensors, m: Tensors, sigma: float, decay: float) -> None:
    """Write m = lambda m + (1 - lambda) g and g - sigma m (Li et al. 2024, alg. 1) into m and g."""
    torch._foreach_mul_(m, decay)
    torch._foreach_add_(m, [finite(x.clone()) for x in g], alpha=1 - decay)
    torch._foreach_sub_(g, m, alpha=sigma)


def gsam_gradient(g_s: Tensors, g: Tensors, alpha: float) -> None:
    """Write g_s - alpha g_orthogonal, the part to g_s, into g_s (Zhuang et al. 2022, alg. 1)."""
    torch._foreach_sub_(g_s, orthogonal_part(g, g_s), alpha=alpha)


def looksam_gradient(g: Tensors, g_v: Tensors, alpha: float) -> None:
    """Write g + alpha |g| / |g_v| g_v into g (Liu et al. 2022, alg. 1)."""
    scale = ascent_scale(alpha, global_norm(g_v)) * global_norm(g)
    torch._foreach_add_(g, [scale * x for x in g_v])


def orthogonal_part(a: Tensors, b: Tensors) -> Tensors:
    """The part of ``a`` that is orthogonal to ``b``; LookSAM's g_v is that of g_s to g."""
    wide = torch.promote_types(a[0].dtype, torch.float32)
    products = [torch.sum(x.to(wide) * y.to(wide)) for x, y in zip(a, b, strict=True)]
    along = over_shards(torch.stack(products).sum()) * ascent_scale(1.0, global_norm(b)) ** 2
    return [x - along * y for x, y in zip(a, b, strict=True)]


def global_norm(tensors: Tensors) -> Scalar:
    """Euclidean norm of all tensors together, accumulated in float32 or wider."""
    wide = torch.float64 if torch.float64 in {t.dtype for t in tensors} else torch.float32
    if is_sharded(tensors[0]):  # DTensor's _foreach_norm knows no dtype
        norms = [torch.linalg.vector_norm(t, dtype=wide) for t in tensors]
        norm = over_shards(torch.linalg.vector_norm(torch.stack(norms)))
        return float(norm) if norm.is_cpu else norm
    norms = list(torch._foreach_norm(tensors, 2, dtype=wide))
    if norms[0].is_cpu:
        return math.hypot(*[norm.item() for norm in norms])
    return torch.linalg.vector_norm(torch.stack(norms))


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor, such as FSDP2's; importing that class takes a second."""
    return type(tensor).__name__ == "DTensor"


def over_shards(tensor: Any) -> Tensor:
    """A DTensor summed over its mesh, as one process would have it; any other as it is."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def gradient(p: Tensor) -> Tensor | None:
    return p.grad


def finite(tensor: Tensor) -> Tensor:
    """Write zeros for what is infinite or NaN."""
    return tensor.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)


def copy(to: Tensors, values: Tensors) -> None:
    """Write ``values`` into ``to``."""
    if not is_sharded(to[0]):
        torch._foreach_copy_(to, values)
    else:  # DTensor has no _foreach_copy_
        for x, y in zip(to, values, strict=True):
            x.copy_(y)


# === Models ======================================================================================
@contextmanager
def frozen_batch_norm(*models: nn.Module) -> Iterator[None]:
    """Put back what the forward passes inside write into buffers of layers in training mode.

    For the second pass of a SAM step, so that running statistics (batch and instance norm's,
    spectral norm's vectors, a quantiser's codes) are those of the real weights and move once a
    step. The layers work as ever inside. Can be nested, and undoes itself on exceptions.
    """
    layers = [layer for model in models for layer in model.modules() if layer.training]
    places = {(layer, k): b for layer in layers for k, b in layer._buffers.items() if b is not None}
    values = [buffer.clone() for buffer in places.values()]
    try:
        yield
    finally:
        with torch.no_grad():
            for ((layer, name), buffer), value in zip(places.items(), values, strict=True):
                buffer.copy_(value)
                if layer._buffers[name] is not buffer:  # the layer has put another in its place
                    layer._buffers[name] = buffer


def normalisation_only(model: nn.Module) -> list[dict[str, Any]]:
    """Groups for SAM-ON (Mueller et al. 2023, arXiv:2306.04226): only normalisation layers climb.

    Their parameters are the first group; the second, all others, has ``rho`` 0.
    """
    kinds = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    layers = [layer for layer in model.modules() if isinstance(layer, kinds)]
    chosen = dict.fromkeys(p for layer in layers for p in layer.parameters(recurse=False))
    others = [p for p in model.parameters() if p not in chosen]
    return [{"params": list(chosen)}, {"params": others, "rho": 0.0}]


def models_of(params: Tensors) -> list[nn.Module]:
    """The models in this process that hold some of ``params``, without those inside others."""
    wanted = {p for p in params if isinstance(p, nn.Parameter)}
    if wanted and gc.get_freeze_count():
        raise ValueError("SAM needs model= after gc.freeze(), which hides models from it")
    modules = [m for m in living(nn.Module) if "_parameters" in vars(m)] if wanted else []
    holders = [m for m in modules if not wanted.isdisjoint(m.parameters())]
    inner = {part for m in holders for part in m.modules() if part is not m}
    return [m for m in holders if m not in inner]


def living(kind: type) -> list[Any]:
    """All objects of a kind in this process, which takes 0.1 s and changes nothing in it."""
    objects = gc.get_objects()
    kinds = {each for each in set(map(type, objects)) if issubclass(each, kind)}
    return [x for x in objects if type(x) in kinds]


# === The optimizer ===============================================================================
SETTINGS = ("rho", "adaptive", "eta", "normalise_bias")
IN_GROUPS = {*SETTINGS, "steps", "skipped"}  # beside the base optimizer's own
BASES = {"base_" + name: name for name in IN_GROUPS}  # what the base has of these names
IN_STATE = {"fsam_m", "looksam_g_v"}


class Block(NamedTuple):
    """The parameters of a group that climb together."""

    rho: float
    params: Tensors
    direction: Tensors  # T_w g
    t_w: Tensors  # ASAM's T_w, empty if it is 1


class Copies(dict[Tensor, Tensor]):
    """A tensor for each parameter, kept from step to step: new memory costs 0.1 ms a megabyte."""

    def __missing__(self, p: Tensor) -> Tensor:
        self[p] = buffer = torch.zeros_like(p)
        return buffer

    def of(self, params: Tensors) -> Tensors:
        return [self[p] for p in params]


class SAM(Optimizer):
    """Sharpness-Aware Minimization and its relatives; a base optimizer makes the actual step.

    ``param_groups`` and ``state`` are the base optimizer's own, so learning-rate schedulers
    attach to this object and ``state_dict`` holds all that a resumed run needs. A group's ``rho``,
    ``adaptive``, ``eta`` and ``normalise_bias`` are SAM's; where the base has a setting of that
    name (Adadelta's ``rho``), it is the group's ``base_rho``. A step with an infinite or NaN
    gradient in either pass is left out and counted in ``skipped``. The only extra memory is one
    copy of the weights, and one more for each option so marked (*). Parameters may be sharded by
    FSDP2's ``fully_shard``.

    Args:
        params: parameters or groups of them; a group may set its own ``rho``, 0 for none.
        base_optimizer: class of the base optimizer, such as ``torch.optim.SGD``.
        rho: radius of the neighbourhood; published: 0.05 on CIFAR-10, 0.5 when adaptive.
        adaptive, eta: measure the radius in units of T_w = |w| + eta for weights, 1 for biases
            (ASAM, Kwon et al. 2021, arXiv:2102.11600, eq. 7 and the authors' code) (*). Weights
            are the parameters that ``model`` or named parameters call so; without names, those
            of two or more dimensions.
        normalise_bias: T_w = |w| + eta for biases too; with ``eta=0``, davda54's variant.
        model: module whose buffers (running statistics) ``step`` puts back after the second pass;
            without it, the modules of this process that hold the parameters, which are looked for
            once, in the first step (0.1 s). Needed where the closure runs other ones, such as with
            ``torch.func.functional_call``, and for ``sync_ascent=False``.
        every: climb in every k-th step only, with plain steps between.
        looksam_alpha: weight with which those plain steps reuse the last ascent's orthogonal part
            (LookSAM, Liu et al. 2022, arXiv:2203.02714, alg. 1; there 0.7) (*).
        start: plain steps before the first ascent (Zhou et al. 2024, arXiv:2410.10373).
        gsam_alpha: weight of the surrogate gap (GSAM, Zhuang et al. 2022, arXiv:2203.08065,
            alg. 1; there 0.1 to 0.4) (*).
        fsam_sigma, fsam_lambda: how much of the gradients' running mean to take out of the ascent,
            and its decay (Friendly SAM, Li et al. 2024, arXiv:2403.12350, alg. 1; there 1) (*).
        msam: perturb by -rho v / |v|, v the base's momentum, in one pass a step (MSAM, Becker
            et al. 2024, arXiv:2401.12033, alg. 1) (*); ``step`` returns the loss there.
        same_dropout: replay the generators, so that both passes draw the same masks.
        sync_ascent: False lets each rank of ``model``, a DistributedDataParallel, climb along its
            own gradient: m-sharpness (Foret et al. 2021, section 4.1).
        kwargs: the base optimizer's arguments (``lr``, ``momentum``, ...).

    Raises:
        ValueError: a value is out of its range, two options exclude each other, or parameters or
            base optimizer are of a kind with which a step would be wrong.
    """

    _step_supports_amp_scaling = True  # so that GradScaler.step asks ``step``, which refuses it

    def __init__(
        self,
        params: Any,
        base_optimizer: Callable[..., Optimizer],
        rho: float = 0.05,
        adaptive: bool = False,
        *,
        eta: float = 0.01,
        normalise_bias: bool = False,
        model: nn.Module | None = None,
        every: int = 1,
        looksam_alpha: float = 0.0,
        start: int = 0,
        gsam_alpha: float = 0.0,
        fsam_sigma: float = 0.0,
        fsam_lambda: float = 0.9,
        msam: bool = False,
        same_dropout: bool = False,
        sync_ascent: bool = True,
        **kwargs: Any,
    ) -> None:
        self.model, self.every, self.start, self.msam = model, every, start, msam
        self.looksam_alpha, self.gsam_alpha = looksam_alpha, gsam_alpha
        self.fsam_sigma, self.fsam_lambda = fsam_sigma, fsam_lambda
        self.same_dropout, self.sync_ascent = same_dropout, sync_ascent
        self._models: list[nn.Module] | None = None  # None: to be looked for
        self._scalers: list[GradScaler] | None = None  # None: to be looked for
        self._hides = True  # whether the base must not see SAM's settings
        self._dense = False  # whether the gradients were seen not to be sparse
        self._ascent_norm: Scalar = 0.0  # summed over unsynchronised ranks; to be finite
        self._flag, self._one = torch.tensor([0.0, 1.0], device="cpu", dtype=torch.float32)
        self._biases: set[Tensor] = set()  # for which ASAM's T_w is 1
        self._perturbed: Tensors = []  # parameters that are not at w now
        self._climbed: Tensors = []  # parameters that climbed last
        self._weights: Tensors = []  # w of these
        self._w = Copies()
        self._g = Copies()  # the gradient at w, for GSAM and LookSAM
        if any("zero_redundancy" in frame.f_code.co_filename for frame, _ in walk_stack(None)):
            raise ValueError(
                "SAM needs all parameters, ZeroRedundancyOptimizer has a part: use FSDP2"
            )
        own = dict(rho=rho, adaptive=adaptive, eta=eta, normalise_bias=normalise_bias)
        self.base_optimizer: Any = SimpleNamespace()  # holds groups until the base can
        super().__init__(params, own)
        with self._as_base_knows_it():
            self.base_optimizer = base_optimizer(self.base_optimizer.param_groups, **kwargs)
        self.defaults = {**self.base_optimizer.defaults, **own, "steps": 0, "skipped": 0}
        self._watch_base()
        _ = self.param_groups  # checks them

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The base optimizer's groups, whatever has replaced them there."""
        groups = self.base_optimizer.param_groups
        for group in groups:
            if "skipped" not in group and isinstance(self.base_optimizer, Optimizer):
                self._complete(group)
        return groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.base_optimizer.param_groups = groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The base optimizer's state, with what SAM remembers of a parameter in it."""
        return self.base_optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        self.base_optimizer.state = state

    @property
    def steps(self) -> int:
        """Steps made so far, with those left out."""
        return self.param_groups[0]["steps"]

    @steps.setter
    def steps(self, steps: int) -> None:
        for group in self.param_groups:
            group["steps"] = steps

    @property
    def climbs(self) -> bool:
        """Whether the coming step perturbs the weights, as ``start``, ``every`` and rho say."""
        groups = self.param_groups
        after_start = groups[0]["steps"] - self.start
        due = after_start >= 0 and after_start % self.every == 0
        return due and any(group["rho"] > 0 for group in groups)

    @property
    def passes(self) -> int:
        """Forward and backward passes that the coming step makes: 2, or 1 for a plain one."""
        return 2 if self.climbs and not self.msam else 1

    @property
    def skipped(self) -> int:
        """Steps left out so far because a gradient was infinite or NaN."""
        return int(self.param_groups[0]["skipped"])

    @outside_graphs
    def step(self, closure: Any = None, scaler: GradScaler | None = None) -> Any:
        """Make one whole step and return the loss at the weights before it.

        ``closure`` runs one forward and backward pass (or those of all micro-batches) and returns
        the loss. It is called ``passes`` times; no backward pass is needed beforehand. ``scaler``
        is the one with which it scales the loss, if any.

        Raises:
            TypeError: no closure.
            RuntimeError: called by ``GradScaler.step``, or gradients unscaled too early.
        """
        if hasattr(self, "grad_scale"):  # GradScaler.step sets it
            del self.grad_scale, self.found_inf  # type: ignore[attr-defined]
            self.restore()
            raise RuntimeError(
                "SAM: GradScaler.step can't make SAM's two passes; call step(closure, scaler), or "
                "second_step(scaler=scaler) after first_step"
            )
        if closure is None:
            return self._make_state()
        if self._scalers is None:  # there is no need to look
            self._scalers = [] if scaler is None else [scaler]
        try:
            with torch.enable_grad():
                self.zero_grad()
                if self.passes == 2:
                    loss = self._two_passes(closure)
                else:
                    self.first_step()
                    loss = closure()
        except BaseException:
            self.restore()
            raise
        self.second_step(scaler=scaler)
        return loss

    def _two_passes(self, closure: Callable[[], Any]) -> Any:
        model: Any = self.model
        fork: Any = nullcontext()
        if self.same_dropout:  # the generators' state comes back, so the masks come again
            fork = torch.random.fork_rng({p.get_device() for p in self._params() if p.is_cuda})
        with fork, nullcontext() if self._synchronised() else model.no_sync():
            loss = closure()
        self.first_step(zero_grad=True)
        if self._models is None:
            self._models = models_of(self._params())
        with frozen_batch_norm(*self._models):
            closure()
        return loss

    @outside_graphs
    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        """Climb from w to w + e(w) along the gradients in ``.grad`` (Foret et al. 2021, eq. 2).

        Stays at w in the plain steps of ``every`` and ``start``. RuntimeError if called twice, or
        if a GradScaler has unscaled the gradients already: it does so once a step, for the second.
        """
        self._refuse_between_steps("first_step")
        if self._scalers is None:
            self._scalers = living(GradScaler)
        if any(map(self._unscaled, self._scalers)):
            raise RuntimeError(
                "SAM: GradScaler.unscale_ before first_step can't unscale the second gradient too; "
                "call it between the second backward pass and second_step(scaler=scaler)"
            )
        if not self._dense:
            self._refuse_sparse()
        blocks = []
        for group in [g for g in self.param_groups if g["rho"] > 0] if self.climbs else []:
            source = self._momentum if self.msam else gradient
            pairs = [(p, x) for p in group["params"] if (x := source(p)) is not None]
            if pairs:
                params, along = map(list, zip(*pairs, strict=True))
                blocks.append(self._block(group, params, along, zero_grad))
        if blocks:
            self._climb(blocks)
        if zero_grad:
            self._drop_gradients()

    def restore(self) -> None:
        """Give the ascent up: put the weights back, bit for bit, to where they were before it."""
        if self._perturbed:
            with torch.no_grad():
                copy(self._perturbed, self._weights)
            self._perturbed = []

    @outside_graphs
    @torch.no_grad()
    def second_step(self, zero_grad: bool = False, scaler: GradScaler | None = None) -> None:
        """Come back to w and let the base optimizer step with the gradients found at w + e(w).

        Without ``first_step`` before it, this is one of the plain steps between ascents.
        """
        climbed = self._perturbed
        self.restore()
        unscaled = self._unscaled(scaler)
        grads = [g for p in self._params() if (g := p.grad) is not None]
        if not self._dense:
            self._refuse_sparse()
        if self.looksam_alpha or self.gsam_alpha:
            self._combine_passes(climbed, scaler.get_scale() if scaler and unscaled else 1.0)
        skip = self._nonfinite(grads) if grads else 0.0
        if grads:
            self._base_step(skip, scaler, unscaled)
        groups = self.param_groups
        steps, skipped = groups[0]["steps"] + 1, groups[0]["skipped"] + skip
        for group in groups:
            group["steps"], group["skipped"] = steps, skipped
        self._ascent_norm = 0.0
        self._opt_called = True  # by which torch's schedulers see that a step was made
        if zero_grad:
            self._drop_gradients()

    def _momentum(self, p: Tensor) -> Tensor | None:
        state = self.state.get(p, {})
        return state.get("momentum_buffer", state.get("exp_avg"))

    def _block(self, group: dict[str, Any], params: Tensors, g: Tensors, consume: bool) -> Block:
        """What a group climbs along: the gradients themselves where they may be overwritten."""
        if self.msam:
            g, consume = list(torch._foreach_neg(g)), True
        if self.looksam_alpha or self.gsam_alpha:
            copy(self._g.of(params), g)
        if not consume:
            g = [x.clone() for x in g]
        if any(dtype.itemsize < 4 for dtype in {x.dtype for x in g}):
            # The ascent's small factor would vanish in float16.
            g = [x.float() if x.dtype.itemsize < 4 else x for x in g]
        if self.fsam_sigma:
            m = self._remembered("fsam_m", params)
            friendly_direction(g, m, self.fsam_sigma, self.fsam_lambda)
        t_w: Tensors = []
        if group["adaptive"]:
            ones = set() if group["normalise_bias"] else self._biases
            for w in params:
                t_w.append(torch.ones_like(w) if w in ones else asam_scale(w, group["eta"]))
            torch._foreach_mul_(g, t_w)  # T_w g, whose norm is the ascent's
        return Block(group["rho"], params, g, t_w)

    def _climb(self, blocks: list[Block]) -> None:
        params = [p for block in blocks for p in block.params]
        norm = global_norm([d for block in blocks for d in block.direction])
        self._ascent_norm = norm
        if not self._synchronised():  # all ranks skip a step, or none
            self._ascent_norm = torch.as_tensor(norm).clone()
            distributed.all_reduce(self._ascent_norm)
        if not (len(params) == len(self._climbed) and all(map(is_, params, self._climbed))):
            self._climbed, self._weights = params, self._w.of(params)  # a tenth of the ascent
        copy(self._weights, params)
        self._perturbed = params
        for block in blocks:
            if block.t_w:
                torch._foreach_mul_(block.direction, block.t_w)
            ascent(block.params, block.direction, block.rho, norm)

    def _combine_passes(self, climbed: Tensors, unscaled_by: float) -> None:
        """Make the gradients those of GSAM; of LookSAM in plain steps, for which g_v is kept.

        The gradients at w are still multiplied by ``unscaled_by``, a GradScaler's scale.
        """
        g_s = [p.grad for p in climbed if p.grad is not None]
        both = [p for p in climbed if p.grad is not None]  # with gradients of both passes
        if climbed and self.looksam_alpha:
            for p in climbed:
                self.state[p].pop("looksam_g_v", None)
            g_v = orthogonal_part(g_s, self._g.of(both)) if both else []
            for p, x in zip(both, g_v, strict=True):
                self.state[p]["looksam_g_v"] = finite(x).to(p.dtype)
        if both and self.gsam_alpha:
            gsam_gradient(g_s, self._g.of(both), self.gsam_alpha / unscaled_by)
        else:
            self._g.clear()
        if self.looksam_alpha and not climbed:
            kept = [p for p in self._params() if "looksam_g_v" in self.state.get(p, ())]
            kept = [p for p in kept if p.grad is not None]
            if kept:
                g_v = [self.state[p]["looksam_g_v"] for p in kept]
                looksam_gradient(
                    [p.grad for p in kept if p.grad is not None], g_v, self.looksam_alpha
                )

    def _remembered(self, key: str, params: Tensors) -> Tensors:
        state = self.state
        for p in params:
            if key not in state[p]:
                state[p][key] = torch.zeros_like(p)
        return [state[p][key] for p in params]

    def _nonfinite(self, grads: Tensors) -> Scalar:
        """1 if either pass has met something infinite or NaN, else 0."""
        if is_sharded(grads[0]) or not grads[0].is_cpu:
            norm = torch.as_tensor(global_norm(grads) + self._ascent_norm)
            return (~norm.isfinite()).float()
        # GradScaler's own check, at a third of the price of a norm; it multiplies by 1.
        torch._amp_foreach_non_finite_check_and_unscale_(grads, self._flag, self._one)
        if self._flag:
            self._flag.zero_()
            return 1
        return int(not math.isfinite(self._ascent_norm))

    def _base_step(self, skip: Scalar, scaler: GradScaler | None, unscaled: bool) -> None:
        """Let the base optimizer step unless ``skip`` is 1."""
        base: Any = self.base_optimizer
        with self._as_base_knows_it():
            if scaler is not None and scaler.is_enabled():
                if not unscaled:  # else it was, for clipping
                    scaler.unscale_(base)
                for flag in scaler._found_inf_per_device(base).values():  # adds the first pass's
                    flag.copy_(torch.as_tensor(skip))
                scaler.step(base)
            elif getattr(base, "_step_supports_amp_scaling", False):
                base.grad_scale, base.found_inf = None, torch.as_tensor(skip, dtype=torch.float32)
                base.step()  # fused: skips by itself
                del base.grad_scale, base.found_inf
            elif not skip:  # only here the host waits for an accelerator: unless fused=True
                base.step()

    def _unscaled(self, scaler: GradScaler | None) -> bool:
        """Whether ``scaler`` has unscaled the gradients, as those of this object or of its base."""
        if scaler is None or not scaler.is_enabled():
            return False
        states, base = scaler._per_optimizer_states, id(self.base_optimizer)
        stages = [states[key]["stage"] for key in (id(self), base) if key in states]
        if stages.count(OptState.UNSCALED) == 2:
            raise RuntimeError("SAM: unscale_ for the optimizer and for its base_optimizer: once")
        if id(self) in states:
            states[base] = states.pop(id(self))
        return OptState.UNSCALED in stages

    def _refuse_sparse(self) -> None:
        """Look at the first gradients; later ones are taken to be alike."""
        names, params = self._names(), [p for p in self._params() if p.grad is not None]
        for p in params:
            if p.grad is not None and p.grad.layout is not torch.strided:
                name = names.get(p, f"the parameter of shape {tuple(p.shape)}")
                raise ValueError(f"SAM needs dense gradients: that of {name} is sparse")
        self._dense = bool(params)

    def _make_state(self) -> None:
        """Make all state, as torch.distributed.checkpoint wants it from a fresh optimizer.

        It steps without closure along zero gradients, with which nothing climbs.
        """
        params = [p for p in self._params() if p.grad is not None]
        if not params or any(over_shards(p.grad).any() for p in params):
            raise TypeError("SAM.step needs a closure that runs forward and backward passes")
        for key, used in (("fsam_m", self.fsam_sigma), ("looksam_g_v", self.looksam_alpha)):
            if used:
                self._remembered(key, params)
        with self._as_base_knows_it():
            self.base_optimizer.step()

    def _synchronised(self) -> bool:
        return self.sync_ascent or not distributed.is_initialized()

    def _params(self) -> Tensors:
        return [p for group in self.param_groups for p in group["params"]]

    def _names(self) -> dict[Tensor, str]:
        """Names of the parameters, as far as ``model`` or the groups know them."""
        named = () if self.model is None else self.model.named_parameters()
        names: dict[Tensor, str] = {p: name for name, p in named}
        for group in self.base_optimizer.param_groups:
            names.update(zip(group["params"], group.get("param_names", ()), strict=False))
        return names

    def _drop_gradients(self) -> None:
        for p in self._params():  # zero_grad would take 8 us for its profiler's hook
            p.grad = None

    def _refuse_between_steps(self, call: str) -> None:
        if self._perturbed:
            raise RuntimeError(f"SAM: {call} between first_step and second_step; restore() first")

    # --- groups and state, which are the base optimizer's ----------------------------------------
    @contextmanager
    def _as_base_knows_it(self) -> Iterator[None]:
        """Groups without SAM's settings and with the base's of such names; state likewise."""
        base = self.base_optimizer
        base.asked_by_sam = True
        ours: list[dict[str, Any]] = []
        for group in base.param_groups if self._hides else ():
            ours.append({k: group.pop(k) for k in IN_GROUPS if k in group})
            for name in BASES.keys() & group.keys():
                group[BASES[name]] = group.pop(name)
        remembered: dict[Tensor, Any] = {}
        if self.fsam_sigma or self.looksam_alpha:  # bases start where the state is empty
            lone = [p for p, s in base.state.items() if s and s.keys() <= IN_STATE]
            remembered = {p: base.state.pop(p) for p in lone}
        try:
            yield
        finally:
            self.base_optimizer.asked_by_sam = False
            for p, kept in remembered.items():
                self.state[p].update(kept)
            groups = self.base_optimizer.param_groups if self._hides else []
            own: dict[str, Any]
            for group, own in zip_longest(groups, ours, fillvalue={}):
                for name in group.keys() & IN_GROUPS:
                    group["base_" + name] = group.pop(name)
                group.update(own)  # type: ignore[arg-type]

    def _watch_base(self) -> None:
        base = self.base_optimizer
        torchs = type(base).__module__.startswith("torch.optim.")  # read what they have defaults of
        self._hides = not torchs or bool(IN_GROUPS & base.defaults.keys())  # 8 us a step
        base.register_step_pre_hook(refuse_lone_step)
        base.register_load_state_dict_pre_hook(keep_settings)
        for name in [k for k in vars(base) if k.endswith(("dict_pre_hooks", "dict_post_hooks"))]:
            setattr(self, name, getattr(base, name))  # whose state_dict is the base's

    def _complete(self, group: dict[str, Any]) -> None:
        """Check a group that the base optimizer got, and give it the settings that it lacks."""
        base = self.base_optimizer
        for name in [k for k in SETTINGS if k in group and k in base.defaults]:
            if "base_" + name not in group:
                group["base_" + name] = group.pop(name)
        for name, value in self.defaults.items():
            group.setdefault(name, value)
        self._check(group)
        names = self._names()
        for p in group["params"]:
            if "weight" not in names.get(p, "weight" if p.ndim > 1 else "bias"):
                self._biases.add(p)
        first = base.param_groups[0]
        group.update(steps=first["steps"], skipped=first["skipped"])
        self._models = None if self.model is None else [self.model]

    def _check(self, group: dict[str, Any]) -> None:
        for name in ("rho", "eta", "looksam_alpha", "gsam_alpha", "fsam_sigma", "start"):
            value = group[name] if name in group else getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"SAM: {name}={value} is not a finite number >= 0")
        parts = bool(self.looksam_alpha or self.gsam_alpha)
        momentum = group.get("momentum") or "betas" in group
        params = group["params"]
        closure = inspect.signature(self.base_optimizer.step).parameters.get("closure")
        flat = any(hasattr(p, "_is_flat_param") or hasattr(p, "_fsdp_flattened") for p in params)
        alone = not self.sync_ascent
        for wrong, need in (
            (self.every < 1, "every >= 1"),
            (not 0 <= self.fsam_lambda < 1, "0 <= fsam_lambda < 1"),
            (self.msam and not momentum, "a base optimizer with momentum for msam"),
            (self.msam and (parts or self.fsam_sigma), "a gradient at w, which msam has not"),
            (alone and self.model is None, "model= for sync_ascent=False"),
            (alone and parts, "sync_ascent for LookSAM and GSAM: ranks would part"),
            (alone and any(map(is_sharded, params)), "sync_ascent for sharded parameters"),
            (flat, "whole parameters or FSDP2's fully_shard: FSDP1 has each rank climb alone"),
            (group.get("maximize"), "a negated loss instead of maximize=True"),
            (any(p.is_complex() for p in params), "real parameters: view_as_real"),
            (len(set(params)) < len(params), "each parameter once"),
            (closure and closure.default is closure.empty, "a base whose step needs no closure"),
        ):
            if wrong:
                raise ValueError(f"SAM needs {need}")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if not isinstance(self.base_optimizer, Optimizer):  # there is none yet
            return super().add_param_group(param_group)
        ours = {k: v for k, v in param_group.items() if k in SETTINGS}
        with self._as_base_knows_it():
            theirs = {k: v for k, v in param_group.items() if k not in SETTINGS}
            self.base_optimizer.add_param_group(theirs)
        self.base_optimizer.param_groups[-1].update(ours)
        _ = self.param_groups  # completes it

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's whole state; RuntimeError while the weights are perturbed."""
        self._refuse_between_steps("state_dict")
        for group in self.param_groups:
            group["skipped"] = self.skipped
        return self.base_optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` gave, that of a base optimizer or of davda54's SAM."""
        self._refuse_between_steps("load_state_dict")
        self.base_optimizer.load_state_dict(keep_settings(self.base_optimizer, state_dict))
        for group in self.param_groups:
            self._check(group)

    def __getstate__(self) -> dict[str, Any]:
        # Hooks stay behind, as in torch, and so does the wrapper that schedulers put around step.
        state = {k: v for k, v in vars(self).items() if k != "step" and not k.endswith("_hooks")}
        return state | {"_scalers": None, "_models": self.model and [self.model]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name in ("state", "param_groups"):  # as torch's own optimizers are given them
            if name in state:
                setattr(self, name, state[name])
        super().__setstate__({k: v for k, v in state.items() if k not in ("state", "param_groups")})
        self._watch_base()


def refuse_lone_step(base: Optimizer, *_: Any) -> None:
    """Hook of the base optimizer's step."""
    if not getattr(base, "asked_by_sam", False):
        raise RuntimeError(
            "SAM: base_optimizer.step() would leave SAM out; call step(closure, scaler), or "
            "second_step(scaler=scaler), which is a plain step without first_step before it"
        )


def keep_settings(base: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Hook of the base's load_state_dict: a group keeps what the file doesn't say of it.

    The file may be of a base optimizer alone, of davda54's SAM, or of a SAM of this file that had
    an entry "sam" of its own.
    """
    older = state_dict.get("sam", {})
    counted = {name: older.get(name, 0) for name in ("steps", "skipped")}
    groups = []
    for index, saved in enumerate(state_dict["param_groups"]):
        group = dict(base.param_groups[index]) if index < len(base.param_groups) else {}
        alone = "skipped" not in saved and not older  # its "rho" may be Adadelta's
        renamed = {"base_" + k if alone and "base_" + k in group else k: saved[k] for k in saved}
        groups.append({**group, **counted, **renamed})
    state = {i: {k: s[k] for k in s if k != "old_p"} for i, s in state_dict["state"].items()}
    for name, key in (("mean", "fsam_m"), ("g_v", "looksam_g_v")):
        for i, kept in older.get(name, {}).items():
            state.setdefault(i, {}).setdefault(key, kept)
    rest = {k: v for k, v in state_dict.items() if k != "sam"}
    return {**rest, "state": state, "param_groups": groups}
