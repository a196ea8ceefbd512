"""Sharpness-Aware Minimization (SAM) around any PyTorch optimizer, in one file to copy.

SAM (Foret et al. 2021, arXiv:2010.01412) looks for weights whose whole neighbourhood has a low
loss. A step climbs to the worst point within distance ``rho``, takes the gradient there, comes
back and lets the base optimizer step with that gradient. It costs two forward and backward
passes; where time is the limit, plain SGD for twice the epochs is the comparison to beat.

    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9, model=model)

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

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from operator import attrgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor, distributed, nn
from torch.amp import GradScaler
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.optim import Optimizer

# A number on a CPU, where reading it is free; else a 0-dim tensor, lest the host wait for it.
Scalar: TypeAlias = Any  # float | Tensor

__all__ = ["SAM", "ascent_scale", "frozen_batch_norm", "global_norm", "normalisation_only"]


def global_norm(tensors: list[Tensor]) -> Scalar:
    """Euclidean norm of all tensors together, accumulated in float32 or wider."""
    wide = torch.float64 if torch.float64 in {t.dtype for t in tensors} else torch.float32
    norms = torch._foreach_norm(tensors, 2, dtype=wide)
    if norms[0].is_cpu:
        return math.hypot(*map(float, norms))
    return torch.linalg.vector_norm(torch.stack(norms))


def ascent_scale(rho: float, norm: Scalar) -> Scalar:
    """Factor that makes a direction of length ``norm`` one of length ``rho`` (Foret eq. 2).

    A zero direction stays zero; one of infinite or NaN length gets 0.
    """
    if isinstance(norm, Tensor):
        return (rho / norm).nan_to_num_(nan=0.0, posinf=0.0)
    return rho / norm if norm and math.isfinite(norm) else 0.0


def orthogonal_part(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
    """The part of ``a`` that is orthogonal to ``b``, each taken as one long vector."""
    wide = torch.promote_types(a[0].dtype, torch.float32)
    products = [torch.sum(x.to(wide) * y.to(wide)) for x, y in zip(a, b, strict=True)]
    share = torch.stack(products).sum() * ascent_scale(1.0, global_norm(b)) ** 2
    return [x - share * y for x, y in zip(a, b, strict=True)]


def _finite(tensor: Tensor) -> Tensor:
    return tensor.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)


def _nonfinite(grads: list[Tensor], ascent_norm: Scalar, found: Tensor, one: Tensor) -> Scalar:
    """1 if either pass has found something infinite or NaN, else 0; ``found`` is scratch."""
    if not grads[0].is_cpu:
        return (~(global_norm(grads) + ascent_norm).isfinite()).float()
    # GradScaler's own check, at a third of the price of a norm; it multiplies by 1.
    torch._amp_foreach_non_finite_check_and_unscale_(grads, found, one)
    if found:
        found.zero_()
        return 1.0
    return float(not math.isfinite(ascent_norm))


def _add_scaled(params: list[Tensor], directions: list[Tensor], scale: Scalar) -> None:
    if isinstance(scale, Tensor):  # on an accelerator, where 0 times an infinite one would be NaN
        torch._foreach_mul_([_finite(d) for d in directions], scale)
        scale = 1.0
    if scale:
        torch._foreach_add_(params, directions, alpha=scale)


@contextmanager
def frozen_batch_norm(model: nn.Module) -> Iterator[None]:
    """Keep batch-norm layers' running statistics as they are; normalise by the batch as ever.

    For the second pass of a SAM step, so that the statistics are those of the real weights and
    move once a step. Can be nested, and undoes itself on exceptions.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    layers = [layer for layer in layers if layer.training and layer.track_running_stats]
    try:
        for layer in layers:
            layer.track_running_stats = False
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


def normalisation_only(model: nn.Module) -> list[dict[str, Any]]:
    """Groups for SAM-ON (Mueller et al. 2023, arXiv:2306.04226): only normalisation layers climb.

    Their parameters are the first group; the second, all others, has ``rho`` 0.
    """
    kinds = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    layers = [layer for layer in model.modules() if isinstance(layer, kinds)]
    chosen = dict.fromkeys(p for layer in layers for p in layer.parameters(recurse=False))
    others = [p for p in model.parameters() if p not in chosen]
    return [{"params": list(chosen)}, {"params": others, "rho": 0.0}]


class _Buffers(dict[Tensor, Tensor]):
    """A tensor of its own for each parameter, made when it is first asked for."""

    def __missing__(self, p: Tensor) -> Tensor:
        self[p] = buffer = torch.zeros_like(p)
        return buffer

    def of(self, params: list[Tensor]) -> list[Tensor]:
        return [self[p] for p in params]


class SAM(Optimizer):
    """Sharpness-Aware Minimization and its relatives; a base optimizer makes the actual step.

    ``param_groups`` and ``state`` are the base optimizer's own, so learning-rate schedulers
    attach to this object and ``state_dict`` holds all that a resumed run needs. A step with an
    infinite or NaN gradient in either pass is left out and counted in ``skipped``. The only extra
    memory is one copy of the weights, and one more for each option so marked (*).

    Args:
        params: parameters or groups of them; a group may set its own ``rho``, 0 for none.
        base_optimizer: class of the base optimizer, such as ``torch.optim.SGD``.
        rho: radius of the neighbourhood; published: 0.05 on CIFAR-10, 0.5 when adaptive.
        adaptive, eta: measure the radius in units of T_w = |w| + eta for weights, 1 for biases
            (ASAM, Kwon et al. 2021, arXiv:2102.11600, eq. 7 and the authors' code) (*). Weights
            are the parameters that ``model`` or named parameters call so; without names, those
            of two or more dimensions.
        normalise_bias: T_w = |w| + eta for biases too; with ``eta=0``, davda54's variant.
        model: module whose batch-norm statistics ``step`` freezes in the second pass; needed
            only by models with batch normalisation, and for ``sync_ascent=False``.
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
        ValueError: a value is out of its range, or two options exclude each other.
    """

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
        own = dict(rho=rho, adaptive=adaptive, eta=eta, normalise_bias=normalise_bias)
        super().__init__(params, {**own, **kwargs})
        self.base_optimizer = base_optimizer(self.param_groups, **kwargs)
        self.defaults = {**self.base_optimizer.defaults, **self.defaults}
        self.model, self.every, self.start, self.msam = model, every, start, msam
        self.looksam_alpha, self.gsam_alpha = looksam_alpha, gsam_alpha
        self.fsam_sigma, self.fsam_lambda = fsam_sigma, fsam_lambda
        self.same_dropout, self.sync_ascent = same_dropout, sync_ascent
        self.steps = 0
        self._skipped: Scalar = 0.0
        self._ascent_norm: Scalar = 0.0  # summed over unsynchronised ranks; to be finite
        self._flags = torch.tensor([0.0, 1.0], dtype=torch.float32, device="cpu").unbind()
        self._perturbed: list[Tensor] = []  # parameters that are not at w now
        self._weight = _Buffers()  # w
        self._gradient = _Buffers()  # that at w, for GSAM and LookSAM; then LookSAM's g_v
        self._mean = _Buffers()  # Friendly SAM's running mean of gradients
        self._share_with_base()

    @property
    def climbs(self) -> bool:
        """Whether the coming step perturbs the weights, as ``start``, ``every`` and rho say."""
        due = self.steps >= self.start and (self.steps - self.start) % self.every == 0
        return due and any(group["rho"] > 0 for group in self.param_groups)

    @property
    def passes(self) -> int:
        """Forward and backward passes that the coming step makes: 2, or 1 for a plain one."""
        return 2 if self.climbs and not self.msam else 1

    @property
    def skipped(self) -> int:
        """Steps left out so far because a gradient was infinite or NaN."""
        return int(self._skipped)

    def step(self, closure: Any = None, scaler: GradScaler | None = None) -> Any:
        """Make one whole step and return the loss at the weights before it.

        ``closure`` runs one forward and backward pass (or those of all micro-batches) and returns
        the loss. It is called ``passes`` times; no backward pass is needed beforehand. ``scaler``
        is the one with which it scales the loss, if any.

        Raises:
            TypeError: no closure.
        """
        if closure is None:
            raise TypeError("SAM.step needs a closure that runs forward and backward passes")
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
        with nullcontext() if model is None else frozen_batch_norm(model):
            closure()
        return loss

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        """Climb from w to w + e(w) along the gradients in ``.grad`` (Foret et al. 2021, eq. 2).

        Stays at w in the plain steps of ``every`` and ``start``. RuntimeError if called twice.
        """
        self._refuse_between_steps("first_step")
        source: Callable[..., Any] = self._momentum if self.msam else attrgetter("grad")
        blocks = []
        for group in [g for g in self.param_groups if g["rho"] > 0] if self.climbs else []:
            params = [p for p in group["params"] if source(p) is not None]
            if params:
                directions = self._directions(params, [source(p) for p in params], zero_grad)
                blocks.append((group["rho"], params, directions, self._t_w(group, params)))
        if blocks:
            self._climb(blocks)
        if zero_grad:
            self._drop_gradients()

    def restore(self) -> None:
        """Give the ascent up: put the weights back, bit for bit, to where they were before it."""
        if self._perturbed:
            with torch.no_grad():
                torch._foreach_copy_(self._perturbed, self._weight.of(self._perturbed))
            self._perturbed = []

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False, scaler: GradScaler | None = None) -> None:
        """Come back to w and let the base optimizer step with the gradients found at w + e(w).

        Without ``first_step`` before it, this is one of the plain steps between ascents.
        """
        climbed = self._perturbed
        self.restore()
        if self.looksam_alpha or self.gsam_alpha:
            self._combine_passes(climbed)
        grads = [p.grad for p in self._params() if p.grad is not None]
        if grads:
            self._base_step(_nonfinite(grads, self._ascent_norm, *self._flags), scaler)
        self.steps, self._ascent_norm = self.steps + 1, 0.0
        self._opt_called = True  # by which torch's schedulers see that a step was made
        if zero_grad:
            self._drop_gradients()

    def _momentum(self, p: Tensor) -> Tensor | None:
        state = self.state.get(p, {})
        return state.get("momentum_buffer", state.get("exp_avg"))

    def _directions(self, params: list[Tensor], found: list[Tensor], consume: bool) -> list[Tensor]:
        """Ascent directions, free to be overwritten; the gradients themselves where they may be."""
        if self.msam:
            found, consume = list(torch._foreach_neg(found)), True
        if self.looksam_alpha or self.gsam_alpha:
            torch._foreach_copy_(self._gradient.of(params), found)
        # The ascent's small factor would vanish in float16.
        found = [g.float() if g.dtype.itemsize < 4 else g if consume else g.clone() for g in found]
        if self.fsam_sigma:  # m = lambda m + (1 - lambda) g; g - sigma m
            mean, finite = self._mean.of(params), [_finite(g.clone()) for g in found]
            torch._foreach_mul_(mean, self.fsam_lambda)
            torch._foreach_add_(mean, finite, alpha=1 - self.fsam_lambda)
            torch._foreach_sub_(found, mean, alpha=self.fsam_sigma)
        return found

    def _t_w(self, group: dict[str, Any], params: list[Tensor]) -> list[Tensor]:
        """ASAM's T_w of each parameter; none at all if they are all 1."""
        if not group["adaptive"]:
            return []
        ones = set() if group["normalise_bias"] else self._biases
        return [torch.ones_like(p) if id(p) in ones else p.abs().add_(group["eta"]) for p in params]

    def _climb(self, blocks: list[tuple[float, list[Tensor], list[Tensor], list[Tensor]]]) -> None:
        for _, _, directions, t_w in blocks:
            if t_w:  # T_w g, whose norm is the ascent's; the ascent itself is T_w^2 g (Kwon eq. 7)
                torch._foreach_mul_(directions, t_w)
        norm = global_norm([d for _, _, directions, _ in blocks for d in directions])
        self._ascent_norm = norm
        if not self._synchronised():  # all ranks skip a step, or none
            self._ascent_norm = torch.as_tensor(norm).clone()
            distributed.all_reduce(self._ascent_norm)
        params = [p for _, params, _, _ in blocks for p in params]
        torch._foreach_copy_(self._weight.of(params), params)
        self._perturbed = params
        for rho, params, directions, t_w in blocks:
            if t_w:
                torch._foreach_mul_(directions, t_w)
            _add_scaled(params, directions, ascent_scale(rho, norm))

    def _combine_passes(self, climbed: list[Tensor]) -> None:
        """Make the gradients those of GSAM; of LookSAM in plain steps, for which g_v is kept."""
        kept = {p: g for p, g in self._gradient.items() if p.grad is not None}
        if climbed:  # those of both passes of this step, and of no other
            kept = self._gradient = _Buffers({p: kept[p] for p in climbed if p in kept})
        if not kept:
            return
        grads, first = [p.grad for p in kept if p.grad is not None], list(kept.values())
        if climbed:
            g_v = [_finite(g) for g in orthogonal_part(grads, first)] if self.looksam_alpha else []
            if self.gsam_alpha:  # g_s - alpha g_orthogonal
                torch._foreach_sub_(grads, orthogonal_part(first, grads), alpha=self.gsam_alpha)
            if g_v:
                torch._foreach_copy_(first, g_v)
        elif self.looksam_alpha:  # g + alpha |g| / |g_v| g_v
            scale = ascent_scale(self.looksam_alpha, global_norm(first)) * global_norm(grads)
            torch._foreach_add_(grads, [scale * g for g in first])

    def _base_step(self, found: Scalar, scaler: GradScaler | None) -> None:
        """Let the base optimizer step unless ``found`` is 1: a gradient is infinite or NaN."""
        base: Any = self.base_optimizer
        self._skipped += found
        if scaler is not None and scaler.is_enabled():
            if not scaler._found_inf_per_device(base):  # else unscaled already, for clipping
                scaler.unscale_(base)
            for flag in scaler._found_inf_per_device(base).values():  # adds the first pass's
                flag.copy_(torch.as_tensor(found))
            scaler.step(base)
        elif getattr(base, "_step_supports_amp_scaling", False):  # fused: skips by itself
            base.grad_scale, base.found_inf = None, torch.as_tensor(found, dtype=torch.float32)
            base.step()
            del base.grad_scale, base.found_inf
        elif not found:  # only here the host waits for an accelerator: unless fused=True
            base.step()

    def _synchronised(self) -> bool:
        return self.sync_ascent or not distributed.is_initialized()

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _drop_gradients(self) -> None:
        for p in self._params():  # zero_grad would take 8 us for its profiler's hook
            p.grad = None

    def _refuse_between_steps(self, call: str) -> None:
        if self._perturbed:
            raise RuntimeError(f"SAM: {call} between first_step and second_step; restore() first")

    # --- one state and one list of groups, shared with the base optimizer -------------------------
    def _share_with_base(self) -> None:
        named = () if self.model is None else self.model.named_parameters()
        names = {id(p): name for name, p in named}
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
            self._check(group)
            names.update(zip(map(id, group["params"]), group.get("param_names", ()), strict=False))
        unnamed = {id(p): "weight" if p.ndim > 1 else "bias" for p in self._params()}
        self._biases = {i for i, name in (unnamed | names).items() if "weight" not in name}
        self.base_optimizer.__setstate__({"state": self.state, "param_groups": self.param_groups})

    def _check(self, group: dict[str, Any]) -> None:
        for name in ("rho", "eta", "looksam_alpha", "gsam_alpha", "fsam_sigma", "start"):
            value = group[name] if name in group else getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"SAM: {name}={value} is not a finite number >= 0")
        parts = bool(self.looksam_alpha or self.gsam_alpha)
        momentum = group.get("momentum") or "betas" in group
        for wrong, need in (
            (self.every < 1, "every >= 1"),
            (not 0 <= self.fsam_lambda < 1, "0 <= fsam_lambda < 1"),
            (self.msam and not momentum, "a base optimizer with momentum for msam"),
            (self.msam and (parts or self.fsam_sigma), "a gradient at w, which msam has not"),
            (not self.sync_ascent and self.model is None, "model= for sync_ascent=False"),
            (not self.sync_ascent and parts, "sync_ascent for LookSAM and GSAM: ranks would part"),
            (group.get("maximize"), "a negated loss instead of maximize=True"),
            (any(p.is_complex() for p in group["params"]), "real parameters: view_as_real"),
        ):
            if wrong:
                raise ValueError(f"SAM needs {need}")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        if hasattr(self, "base_optimizer"):
            self._share_with_base()

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's whole state; RuntimeError while the weights are perturbed."""
        self._refuse_between_steps("state_dict")
        own: dict[str, Any] = {"steps": self.steps, "skipped": self.skipped}
        g_v = self._gradient if self.looksam_alpha else {}
        for name, kept in (("g_v", g_v), ("mean", self._mean)):
            own[name] = {i: kept[p] for i, p in enumerate(self._params()) if p in kept}
        return {**super().state_dict(), "sam": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` gave, or what that of davda54's SAM gave."""
        self._refuse_between_steps("load_state_dict")
        # davda54's keeps a backup of the weights in its state.
        entries = state_dict["state"].items()
        state = {i: {k: v for k, v in s.items() if k != "old_p"} for i, s in entries}
        super().load_state_dict({**state_dict, "state": state})
        own = state_dict.get("sam", {})
        self.steps, self._skipped = own.get("steps", 0), own.get("skipped", 0)
        params = self._params()
        for name, buffers in (("g_v", self._gradient), ("mean", self._mean)):
            buffers.clear()
            for i, kept in own.get(name, {}).items():
                buffers[params[i]].copy_(kept)

    def __getstate__(self) -> dict[str, Any]:
        # Hooks stay behind, as in torch, and so does the wrapper that schedulers put around step.
        return {k: v for k, v in vars(self).items() if k != "step" and not k.endswith("_hooks")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share_with_base()
