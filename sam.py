"""Sharpness-Aware Minimization (SAM) around any PyTorch optimizer, in one file to copy.

SAM (Foret et al. 2021, arXiv:2010.01412) looks for weights whose whole neighbourhood has a low
loss. A step climbs to the worst point within distance ``rho``, takes the gradient there, comes
back and lets the base optimizer step with it. That costs two forward and backward passes; where
time is the limit, plain SGD for twice the epochs is the comparison to beat.

    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)

    def closure():  # one whole forward and backward pass
        optimizer.zero_grad()
        loss = loss_function(model(inputs), targets)
        loss.backward()
        return loss

    loss = optimizer.step(closure)  # the loss at the weights before the step

or in two steps, ``first_step`` and ``second_step`` with the second pass between them, as in
https://github.com/davda54/sam, whose interface this keeps.
"""

from __future__ import annotations

import gc
import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from operator import attrgetter
from traceback import walk_stack
from typing import Any, TypeAlias

import torch
from torch import Tensor, distributed, nn
from torch._compile import _disable_dynamo as outside_graphs  # torch.compiler's imports for 2 s
from torch.amp.grad_scaler import GradScaler, OptState
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

__all__ = ["SAM", "ascent_scale", "frozen_batch_norm", "global_norm", "normalisation_only"]

Tensors: TypeAlias = list[Any]  # one long vector
# A number on a CPU, where reading it is free; else a 0-dim tensor, lest the host wait for it.
Scalar: TypeAlias = Any  # float | Tensor


# === Formulas, in the papers' letters: g is the gradient at w, g_s that at w + e(w) ==============
# They write into their arguments where they say so: _foreach functions in place halve what a loop
# over the parameters takes, and save a copy of the weights.
def ascent(w: Tensors, g: Tensors, rho: float, norm: Scalar) -> None:
    """Write w + e(w) into w, e(w) = rho g / |g| (Foret et al. 2021, eq. 2); on a GPU into g too."""
    scale = ascent_scale(rho, norm)
    if isinstance(scale, Tensor):  # 0 times an infinite direction would be NaN
        torch._foreach_mul_([finite(x) for x in g], scale)
        scale = 1.0
    if scale:
        torch._foreach_add_(w, g, alpha=scale)


def ascent_scale(rho: float, norm: Scalar) -> Scalar:
    """Factor that makes length ``norm`` one of ``rho``; 0 where norm is 0, infinite or NaN."""
    if isinstance(norm, Tensor):
        return (rho / norm).nan_to_num_(nan=0.0, posinf=0.0)
    return rho / norm if norm and math.isfinite(norm) else 0.0


def asam_direction(w: Tensors, g: Tensors, eta: float) -> None:
    """Write T_w g into g, T_w = |w| + eta, for e(w) = rho T_w^2 g / |T_w g| (Kwon 2021, eq. 7)."""
    t_w = torch._foreach_abs(w)
    torch._foreach_add_(t_w, eta)
    torch._foreach_mul_(g, t_w)


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
    product: Any = torch.stack(products).sum()
    product = product.full_tensor() if is_sharded(product) else product
    along = product * ascent_scale(1.0, global_norm(b)) ** 2
    return [x - along * y for x, y in zip(a, b, strict=True)]


def global_norm(tensors: Tensors) -> Scalar:
    """Euclidean norm of all tensors together, accumulated in float32 or wider."""
    wide = torch.float64 if torch.float64 in {t.dtype for t in tensors} else torch.float32
    if is_sharded(tensors[0]):  # DTensor's _foreach_norm knows no dtype
        norms = [torch.linalg.vector_norm(t, dtype=wide) for t in tensors]
        return torch.linalg.vector_norm(torch.stack(norms)).full_tensor()
    norms = list(torch._foreach_norm(tensors, 2, dtype=wide))
    if norms[0].is_cpu:
        return math.hypot(*[norm.item() for norm in norms])
    return torch.linalg.vector_norm(torch.stack(norms))


def nonfinite(g: Tensors, ascent_norm: Scalar, flag: Tensor, one: Tensor) -> Scalar:
    """1 if ``g`` or the norm of the ascent has something infinite or NaN, else 0.

    On a CPU by GradScaler's own check, at a third of a norm's price; ``flag`` is 0, ``one`` is 1.
    """
    if is_sharded(g[0]) or not g[0].is_cpu:
        return (~(global_norm(g) + ascent_norm).isfinite()).float()
    torch._amp_foreach_non_finite_check_and_unscale_(g, flag, one)
    if flag:
        flag.zero_()
        return 1.0
    return float(not math.isfinite(ascent_norm))


def finite(tensor: Tensor) -> Tensor:
    """Write zeros for what is infinite or NaN."""
    return tensor.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor, such as FSDP2's; importing that class takes a second."""
    return type(tensor).__name__ == "DTensor"


def copy(to: Tensors, values: Tensors) -> None:
    """Write ``values`` into ``to``."""
    if is_sharded(to[0]):  # DTensor has no _foreach_copy_
        to, values = ([x.to_local() for x in tensors] for tensors in (to, values))
    torch._foreach_copy_(to, values)


# === Models ======================================================================================
@contextmanager
def frozen_batch_norm(*models: nn.Module) -> Iterator[None]:
    """Put back what the forward passes inside write into buffers of layers in training mode.

    For the second pass of a SAM step, so that running statistics (batch norm's, spectral norm's
    vectors) are those of the real weights and move once a step; the layers work as ever inside.
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
                layer._buffers[name] = buffer  # a layer may have put another in its place


def normalisation_only(model: nn.Module) -> list[dict[str, Any]]:
    """Groups for SAM-ON (Mueller et al. 2023, arXiv:2306.04226): only normalisation layers climb.

    Their parameters are the first group; the second, all others, has ``rho`` 0. A model without
    such layers is refused: nothing would climb.
    """
    kinds = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    layers = [layer for layer in model.modules() if isinstance(layer, kinds)]
    chosen = dict.fromkeys(p for layer in layers for p in layer.parameters(recurse=False))
    if not chosen:
        raise ValueError("SAM-ON: the model has no normalisation layer; nothing would climb")
    others = [p for p in model.parameters() if p not in chosen]
    return [{"params": list(chosen)}, {"params": others, "rho": 0.0}]


def models_of(params: Tensors) -> list[nn.Module]:
    """The models in this process that hold some of ``params``, without those inside others."""
    wanted = {p for p in params if isinstance(p, nn.Parameter)}
    if wanted and gc.get_freeze_count():
        raise ValueError("SAM needs model= after gc.freeze(), which hides models from it")
    objects = gc.get_objects() if wanted else []  # takes 0.1 s
    modules = [x for x in objects if issubclass(type(x), nn.Module) and "_modules" in vars(x)]
    holders = [m for m in modules if not wanted.isdisjoint(m.parameters())]
    inner = {part for m in holders for part in m.modules() if part is not m}
    return [m for m in holders if m not in inner]


# === The optimizer ===============================================================================
class SAM(Optimizer):
    """Sharpness-Aware Minimization and its relatives; a base optimizer makes the actual step.

    ``param_groups`` and ``state`` are the base optimizer's own, so learning-rate schedulers attach
    to this object and ``state_dict`` holds all that a resumed run needs. A step with an infinite
    or NaN gradient in either pass is left out and counted in ``skipped``. The only extra memory is
    one copy of the weights, and one more for each option so marked (*). ValueError says what of
    values, options, parameters or base optimizer can't be right.

    Args:
        params: parameters or groups of them; a group may set its own ``rho``, 0 for none.
        base_optimizer: class of the base optimizer, such as ``torch.optim.SGD``.
        rho: radius of the neighbourhood; published: 0.05 on CIFAR-10, 0.5 when adaptive.
        adaptive, eta: e(w) in units of T_w = |w| + eta, 1 for biases: all but what ``model`` or
            named parameters call weight, or without names what has one dimension (ASAM, Kwon et
            al. 2021, arXiv:2102.11600, eq. 7) (*).
        normalise_bias: T_w = |w| + eta for biases too; with ``eta=0``, davda54's variant.
        model: module whose buffers ``step`` puts back after the second pass; without it, those in
            this process that hold the parameters, looked for once (0.1 s). Needed where the
            closure runs other ones (``functional_call``) and for ``sync_ascent=False``.
        every: climb in every k-th step only, with plain steps between.
        looksam_alpha: weight of the last ascent's orthogonal part in those (LookSAM, Liu et al.
            2022, arXiv:2203.02714, alg. 1; there 0.7) (*).
        start: plain steps before the first ascent (Zhou et al. 2024, arXiv:2410.10373).
        gsam_alpha: weight of the surrogate gap (GSAM, Zhuang et al. 2022, arXiv:2203.08065,
            alg. 1; there 0.1 to 0.4) (*).
        fsam_sigma, fsam_lambda: share of the gradients' running mean to take out of the ascent,
            and its decay (Friendly SAM, Li et al. 2024, arXiv:2403.12350, alg. 1; there 1) (*).
        msam: perturb by -rho v / |v|, v the base's momentum, in one pass a step (MSAM, Becker
            et al. 2024, arXiv:2401.12033, alg. 1) (*); ``step`` returns the loss there.
        same_dropout: replay the generators, so that both passes draw the same masks.
        sync_ascent: False lets each rank of ``model``, a DistributedDataParallel, climb along its
            own gradient: m-sharpness (Foret et al. 2021, section 4.1).
        kwargs: the base optimizer's arguments (``lr``, ``momentum``, ...).
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
        self._ranks_part = distributed.is_initialized() and not sync_ascent
        self._models: Any = None  # to be looked for
        self._scalers: Any = None  # to be looked for
        self._names = {p: k for k, p in model.named_parameters()} if model is not None else {}
        self._ascent_norm: Scalar = 0.0  # summed over unsynchronised ranks; to be finite
        self._flags = torch.tensor([0.0, 1.0], device="cpu", dtype=torch.float32).unbind()
        self._w: dict[Tensor, Tensor] = {}  # kept, for new memory costs 0.1 ms a megabyte
        self._g: dict[Tensor, Tensor] = {}  # for GSAM and LookSAM
        self._perturbed: Tensors = []  # parameters that are not at w now
        self._weights: Tensors = []  # w of these
        self._base_may_step = False
        self.base_optimizer: Any = base_optimizer(params, **kwargs)
        own = dict(rho=rho, adaptive=adaptive, eta=eta, normalise_bias=normalise_bias)
        for name in self.base_optimizer.defaults.keys() & {*own, "steps", "skipped"}:
            raise ValueError(f"SAM: the base has a setting of its own named {name}; use another")
        self.defaults = {**self.base_optimizer.defaults, **own}
        self.__setstate__({})  # not Optimizer.__init__, which makes groups and state of its own
        _ = self.param_groups  # checks them

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The base optimizer's groups, whatever has replaced them there."""
        groups = self.base_optimizer.param_groups
        for group in [group for group in groups if "skipped" not in group]:  # new ones
            counts = {name: groups[0].get(name, 0) for name in ("steps", "skipped")}
            complete = {**self.defaults, **counts, **group}
            self._check(complete)
            group.update(complete)
            self._names.update(zip(group["params"], group.get("param_names", ()), strict=False))
            for p in group["params"]:
                self._names.setdefault(p, "weight" if p.ndim > 1 else "bias")
            self._models, self._dense = None, False
        return groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The base optimizer's state, with what SAM remembers of a parameter in it."""
        return self.base_optimizer.state

    @property
    def steps(self) -> int:
        """Steps made so far, with those left out."""
        return self.param_groups[0]["steps"]

    @property
    def skipped(self) -> int:
        """Steps left out so far because a gradient was infinite or NaN."""
        return int(self.param_groups[0]["skipped"])

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

    @outside_graphs
    def step(self, closure: Any = None, scaler: GradScaler | None = None) -> Any:
        """Make one whole step and return the loss at the weights before it.

        ``closure`` runs one forward and backward pass (or those of all micro-batches) and returns
        the loss. It is called ``passes`` times; no backward pass is needed beforehand. ``scaler``
        is the one with which it scales the loss, if any. TypeError without closure.
        """
        if hasattr(self, "grad_scale"):  # GradScaler.step sets it
            del self.grad_scale, self.found_inf  # type: ignore[attr-defined]
            self._refuse_lone_step()
        if closure is None:  # torch.distributed.checkpoint steps along zeros to make all state
            params = [p for p in self._params() if p.grad is not None]
            if not params or float(global_norm([p.grad for p in params])):
                raise TypeError("SAM.step needs a closure that runs forward and backward passes")
            keys = {"fsam_m": self.fsam_sigma, "looksam_g_v": self.looksam_alpha}
            for p in params:
                zeros = {key: torch.zeros_like(p) for key, used in keys.items() if used}
                self.state[p].update({**zeros, **self.state[p]})
            return self._base_step(0.0, None, False)
        self._scalers = {*(self._scalers or ()), scaler} - {None}  # there is no need to look
        try:
            with torch.enable_grad():
                self._drop_gradients()
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
        with fork, model.no_sync() if self._ranks_part else nullcontext():
            loss = closure()
        self.first_step(zero_grad=True)
        if self._models is None:
            self._models = models_of(self._params()) if model is None else [model]
        with frozen_batch_norm(*self._models):
            closure()
        return loss

    @outside_graphs
    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        """Climb from w to w + e(w) along the gradients in ``.grad`` (Foret et al. 2021, eq. 2).

        Stays at w in the plain steps of ``every`` and ``start``. RuntimeError if called twice, or
        if a GradScaler has unscaled the gradients already.
        """
        self._refuse_between_steps("first_step")
        if self._scalers is None:
            gc.collect()  # for scalers that are garbage know dead optimizers by ids, used again
            self._scalers = {x for x in gc.get_objects() if issubclass(type(x), GradScaler)}
        if any(map(self._unscaled, self._scalers)):
            raise RuntimeError("SAM: call unscale_ before second_step, it came before first_step")
        self._refuse_sparse()
        source: Callable[..., Any] = self._momentum if self.msam else attrgetter("grad")
        blocks = []
        for group in [g for g in self.param_groups if g["rho"] > 0] if self.climbs else []:
            params = [p for p in group["params"] if source(p) is not None]
            if params:
                g = self._direction(params, [source(p) for p in params], zero_grad)
                blocks.append((group, params, g))
        if blocks:
            self._climb(blocks)
        if zero_grad:
            self._drop_gradients()

    def restore(self) -> None:
        """Give the ascent up: put the weights back, bit for bit, to where they were before it."""
        if self._perturbed:
            with torch.no_grad():
                copy(self._perturbed, self._weights)
        self._perturbed, self._ascent_norm = [], 0.0

    @outside_graphs
    @torch.no_grad()
    def second_step(self, zero_grad: bool = False, scaler: GradScaler | None = None) -> None:
        """Come back to w and let the base optimizer step with the gradients found at w + e(w).

        Without ``first_step`` before it, this is one of the plain steps between ascents.
        """
        climbed, ascent_norm = self._perturbed, self._ascent_norm
        self.restore()
        self._refuse_sparse()
        unscaled = self._unscaled(scaler)
        if unscaled and self._scalers is not None and scaler not in self._scalers:
            raise RuntimeError("SAM: make the GradScaler before first_step is called first")
        if self.looksam_alpha or self.gsam_alpha:
            self._combine_passes(climbed, scaler.get_scale() if scaler and unscaled else 1.0)
        grads = [p.grad for p in self._params() if p.grad is not None]
        skip = nonfinite(grads, ascent_norm, *self._flags) if grads else 0.0
        if grads:
            self._base_step(skip, scaler, unscaled)
        groups = self.param_groups
        counts = dict(steps=groups[0]["steps"] + 1, skipped=groups[0]["skipped"] + skip)
        for group in groups:
            group.update(counts)
        self._dense = True
        self._opt_called = True  # by which torch's schedulers see that a step was made
        if zero_grad:
            self._drop_gradients()

    def _momentum(self, p: Tensor) -> Tensor | None:
        state = self.state.get(p, {})
        return state.get("momentum_buffer", state.get("exp_avg"))

    def _direction(self, params: Tensors, g: Tensors, consume: bool) -> Tensors:
        """What to climb along, free to be overwritten: the gradients where they may be."""
        if self.msam:
            g, consume = list(torch._foreach_neg(g)), True
        if self.looksam_alpha or self.gsam_alpha:
            self._g.update(zip(params, [x.clone() for x in g], strict=True))
        # The ascent's small factor would vanish in float16.
        g = [x.float() if x.dtype.itemsize < 4 else x if consume else x.clone() for x in g]
        if self.fsam_sigma:
            for p in [p for p in params if "fsam_m" not in self.state[p]]:
                self.state[p]["fsam_m"] = torch.zeros_like(p)
            m = [self.state[p]["fsam_m"] for p in params]
            friendly_direction(g, m, self.fsam_sigma, self.fsam_lambda)
        return g

    def _climb(self, blocks: list[tuple[dict[str, Any], Tensors, Tensors]]) -> None:
        for block in [block for block in blocks if block[0]["adaptive"]]:
            self._times_t_w(*block)  # T_w g, whose norm is the ascent's
        norm = self._ascent_norm = global_norm([x for _, _, g in blocks for x in g])
        if self._ranks_part:  # all ranks skip a step, or none
            self._ascent_norm = torch.as_tensor(norm).clone()
            distributed.all_reduce(self._ascent_norm)
        params = [p for _, params, _ in blocks for p in params]
        weights = [self._w.get(p) for p in params]
        for i, (p, w) in enumerate(zip(params, weights, strict=True)):
            if w is None or w.dtype != p.dtype:  # new, or the model was given another type
                weights[i] = self._w[p] = torch.zeros_like(p)
        copy(weights, params)
        self._perturbed, self._weights = params, weights
        for group, params, g in blocks:
            if group["adaptive"]:
                self._times_t_w(group, params, g)
            ascent(params, g, group["rho"], norm)

    def _times_t_w(self, group: dict[str, Any], params: Tensors, g: Tensors) -> None:
        """Multiply g by ASAM's T_w, which is 1 for biases."""
        scaled = [group["normalise_bias"] or "weight" in self._names[p] for p in params]
        if any(scaled):
            w, g_w = ([x for x, yes in zip(xs, scaled, strict=True) if yes] for xs in (params, g))
            asam_direction(w, g_w, group["eta"])

    def _combine_passes(self, climbed: Tensors, unscaled_by: float) -> None:
        """Make the gradients GSAM's or LookSAM's; g still has a GradScaler's ``unscaled_by``."""
        state, params = self.state, [p for p in climbed or self._params() if p.grad is not None]
        for p in self._params() if climbed else []:  # which gets a new g_v, or none
            state.get(p, {}).pop("looksam_g_v", None)
        if not climbed:  # a plain step, which GSAM leaves alone
            params = [p for p in params if "looksam_g_v" in state.get(p, ())]
            if params and self.looksam_alpha:
                g_v = [state[p]["looksam_g_v"] for p in params]
                looksam_gradient([p.grad for p in params], g_v, self.looksam_alpha)
        elif params:  # with gradients of both passes
            g_s, g = [p.grad for p in params], [self._g[p] for p in params]
            if self.looksam_alpha:
                for p, g_v in zip(params, orthogonal_part(g_s, g), strict=True):
                    state[p]["looksam_g_v"] = finite(g_v)
            if self.gsam_alpha:
                gsam_gradient(g_s, g, self.gsam_alpha / unscaled_by)
        if not self.gsam_alpha:
            self._g.clear()

    def _base_step(self, skip: Scalar, scaler: GradScaler | None, unscaled: bool) -> None:
        """Let the base optimizer step unless ``skip`` is 1."""
        base, state, ours = self.base_optimizer, self.state, {"fsam_m", "looksam_g_v"}
        fresh = list(state) if self.fsam_sigma or self.looksam_alpha else []
        fresh = [p for p in fresh if state[p].keys() <= ours]  # which bases begin where it is empty
        remembered = {p: state.pop(p) for p in fresh}
        self._base_may_step = True
        try:
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
        finally:
            self._base_may_step = False
            for p, kept in remembered.items():
                state[p].update(kept)

    def _unscaled(self, scaler: GradScaler | None) -> bool:
        """Whether ``scaler`` has unscaled the gradients, as those of this object or of its base."""
        if scaler is None or not scaler.is_enabled():
            return False
        states = scaler._per_optimizer_states
        ours, base = id(self), id(self.base_optimizer)
        stages = [states[key]["stage"] for key in (ours, base) if key in states]
        if stages.count(OptState.UNSCALED) == 2:
            raise RuntimeError("SAM: unscale_ for the optimizer and for its base_optimizer: once")
        if ours in states:
            states[base] = states.pop(ours)
        return OptState.UNSCALED in stages

    def _params(self) -> Tensors:
        return [p for group in self.base_optimizer.param_groups for p in group["params"]]

    def _drop_gradients(self) -> None:
        for p in self._params():  # zero_grad would take 8 us for its profiler's hook
            p.grad = None

    def _refuse_between_steps(self, call: str) -> None:
        if self._perturbed:
            raise RuntimeError(f"SAM: {call} between first_step and second_step; restore() first")

    def _refuse_lone_step(self, *_: Any) -> None:
        """Hook of the base optimizer's step."""
        if not self._base_may_step:
            raise RuntimeError(
                "SAM: a step of the base_optimizer or of a GradScaler leaves SAM out; call "
                "step(closure, scaler), or second_step(scaler=scaler), plain without first_step"
            )

    def _refuse_sparse(self) -> None:
        """Look at a group's gradients in its first step; later ones are taken to be alike."""
        for p in () if self._dense else self._params():
            if p.grad is not None and p.grad.layout is not torch.strided:
                name = f"{self._names[p]}, shape {tuple(p.shape)},"
                raise ValueError(f"SAM needs dense gradients: that of {name} is sparse")

    def _check(self, group: dict[str, Any]) -> None:
        for name in ("rho", "eta", "looksam_alpha", "gsam_alpha", "fsam_sigma", "start"):
            value = group[name] if name in group else getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"SAM: {name}={value} is not a finite number >= 0")
        params, step = group["params"], self.base_optimizer.step
        mixes = bool(self.looksam_alpha or self.gsam_alpha)
        momentum = group.get("momentum") or "betas" in group
        closure = inspect.signature(step).parameters.get("closure")
        part = any(hasattr(p, "_is_flat_param") or hasattr(p, "_fsdp_flattened") for p in params)
        part |= any("zero_redundancy" in frame.f_code.co_filename for frame, _ in walk_stack(None))
        common = self.model is None or mixes or any(map(is_sharded, params))
        for wrong, need in (
            (self.every < 1, "every >= 1"),
            (not 0 <= self.fsam_lambda < 1, "0 <= fsam_lambda < 1"),
            (self.msam and not momentum, "a base optimizer with momentum for msam"),
            (self.msam and (mixes or self.fsam_sigma), "a gradient at w, which msam has not"),
            (common and not self.sync_ascent, "sync_ascent, or model= of DDP and no GSAM, LookSAM"),
            (part, "FSDP2's fully_shard: FSDP1, ZeroRedundancyOptimizer have ranks climb alone"),
            (group.get("maximize"), "a negated loss instead of maximize=True"),
            (any(p.is_complex() for p in params), "real parameters: view_as_real"),
            (len(set(params)) < len(params), "each parameter once"),
            (closure and closure.default is closure.empty, "a base whose step needs no closure"),
        ):
            if wrong:
                raise ValueError(f"SAM needs {need}")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.base_optimizer.add_param_group(param_group)
        try:
            _ = self.param_groups  # checks it
        except ValueError:
            self.base_optimizer.param_groups.pop()
            raise

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's whole state; RuntimeError while the weights are perturbed."""
        self._refuse_between_steps("state_dict")
        for group in self.param_groups:
            group["skipped"] = self.skipped
        return self.base_optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` gave, that of a base optimizer or of davda54's SAM."""
        self._refuse_between_steps("load_state_dict")
        self.base_optimizer.load_state_dict(state_dict)
        for group in self.param_groups:
            self._check(group)

    def __getstate__(self) -> dict[str, Any]:
        # Hooks stay behind, as in torch, and so does the wrapper that schedulers put around step.
        state = {k: v for k, v in vars(self).items() if k != "step" and not k.endswith("_hooks")}
        return {**state, "_models": None, "_scalers": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        base = self.base_optimizer
        base.register_step_pre_hook(self._refuse_lone_step)
        base.register_load_state_dict_pre_hook(keep_settings)
        for name in [k for k in vars(base) if k.endswith(("dict_pre_hooks", "dict_post_hooks"))]:
            setattr(self, name, getattr(base, name))  # whose state_dict is the base's


def keep_settings(base: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Hook of the base's load_state_dict: a group keeps what the file doesn't say of it.

    The file may be of a base optimizer, of davda54's SAM, or an older one with an entry "sam".
    """
    older, saved = state_dict.get("sam", {}), state_dict["param_groups"]
    counts = {name: older.get(name, 0) for name in ("steps", "skipped")}
    pairs = zip(base.param_groups, saved, strict=False)
    groups = [{**mine, **counts, **theirs} for mine, theirs in pairs]
    groups += saved[len(groups) :]  # too many, which torch says
    state = {i: {k: s[k] for k in s if k != "old_p"} for i, s in state_dict["state"].items()}
    for name, key in (("mean", "fsam_m"), ("g_v", "looksam_g_v")):
        for i, kept in older.get(name, {}).items():
            state.setdefault(i, {}).setdefault(key, kept)
    return {**state_dict, "state": state, "param_groups": groups}
