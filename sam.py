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

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.optim import Optimizer

Block = tuple[dict[str, Any], list[Tensor], list[Tensor]]  # group, parameters, directions

__all__ = ["SAM", "ascent_scale", "frozen_batch_norm", "global_norm", "normalisation_only"]


def global_norm(tensors: list[Tensor]) -> Tensor:
    """Euclidean norm of all tensors together, 0-dim, accumulated in float32 or wider."""
    dtype = functools.reduce(torch.promote_types, {t.dtype for t in tensors}, torch.float32)
    norms = list(torch._foreach_norm(tensors, 2, dtype=dtype))
    if len({norm.get_device() for norm in norms}) > 1:
        norms = [norm.to(norms[0].device) for norm in norms]
    return torch.linalg.vector_norm(torch.stack(norms))


def ascent_scale(rho: float, norm: float | Tensor) -> float | Tensor:
    """Factor that makes a direction of length ``norm`` one of length ``rho`` (Foret eq. 2).

    A zero direction stays zero; one of infinite or NaN length gets 0.
    """
    if isinstance(norm, Tensor):
        return (rho / norm).nan_to_num_(nan=0.0, posinf=0.0)
    return rho / norm if norm and math.isfinite(norm) else 0.0


def orthogonal_part(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
    """The part of ``a`` that is orthogonal to ``b``, each taken as one long vector."""
    products = [(x.flatten() @ y.flatten()).to(a[0].device) for x, y in zip(a, b, strict=True)]
    share = torch.stack(products).sum() / global_norm(b).square().clamp_min(1e-30)
    return [x - share.to(x) * y for x, y in zip(a, b, strict=True)]


@contextmanager
def frozen_batch_norm(*models: nn.Module) -> Iterator[None]:
    """Keep batch-norm layers' running statistics as they are; normalise by the batch as ever.

    For the second pass of a SAM step, so that the statistics are those of the real weights and
    move once a step. Can be nested, and undoes itself on exceptions.
    """
    layers = [m for model in models for m in model.modules() if isinstance(m, _BatchNorm)]
    layers = [layer for layer in layers if layer.training and layer.track_running_stats]
    try:
        for layer in layers:
            layer.track_running_stats = False
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


def normalisation_only(model: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups for SAM-ON: only normalisation layers' parameters, the first group, climb.

    Mueller et al. 2023, arXiv:2306.04226. The other group's ``rho`` is 0.
    """
    kinds = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    layers = [module for module in model.modules() if isinstance(module, kinds)]
    chosen = {p for layer in layers for p in layer.parameters(recurse=False)}
    others = [p for p in model.parameters() if p not in chosen]
    perturbed = [p for p in model.parameters() if p in chosen]
    return [{"params": perturbed}, {"params": others, "rho": 0.0}]


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
        adaptive: measure the radius in units of T_w = |w| + ``eta`` for weights and 1 for biases
            (ASAM, Kwon et al. 2021, arXiv:2102.11600, eq. 7 and the authors' code) (*). Weights
            are the parameters that ``model`` or named parameters call so; without names, those
            of two or more dimensions.
        eta: added to |w| when adaptive.
        normalise_bias: T_w = |w| + ``eta`` for biases too; with ``eta=0``, davda54's variant.
        model: module whose batch-norm statistics ``step`` freezes in the second pass; needed
            only by models with batch normalisation, and for ``sync_ascent=False``.
        every: climb in every k-th step only, with plain steps between.
        looksam_alpha: weight with which those plain steps reuse the last ascent's orthogonal part
            (LookSAM, Liu et al. 2022, arXiv:2203.02714, alg. 1; there 0.7) (*).
        start: plain steps before the first ascent (Zhou et al. 2024, arXiv:2410.10373).
        gsam_alpha: weight of the surrogate gap (GSAM, Zhuang et al. 2022, arXiv:2203.08065,
            alg. 1; there 0.1 to 0.4) (*).
        fsam_sigma: how much of the gradients' running mean to take out of the ascent (Friendly
            SAM, Li et al. 2024, arXiv:2403.12350, alg. 1; there 1) (*).
        fsam_lambda: decay of that mean.
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
        self._skipped: float | Tensor = 0.0
        self._total: float | Tensor = 0.0  # norm of the first pass, over ranks; to be finite
        self._perturbed: list[Tensor] = []  # parameters that are not at w now
        self._weights: list[Tensor] = []  # where they were
        # per parameter: w; LookSAM's and GSAM's gradient at w, then LookSAM's g_v; FSAM's mean
        self._buffers: dict[str, dict[Tensor, Tensor]] = {"weight": {}, "gradient": {}, "mean": {}}
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

    def step(self, closure: Any = None, scaler: torch.amp.GradScaler | None = None) -> Any:
        """Make one whole step and return the loss at the weights before it.

        Args:
            closure: runs one forward and backward pass (or those of all micro-batches) and
                returns the loss. Called ``passes`` times; no backward pass is needed beforehand.
            scaler: the one with which the closure scales the loss, if any.

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
                    if self.climbs:
                        self.first_step()
                    loss = closure()
        except BaseException:
            self.restore()
            raise
        self.second_step(scaler=scaler)
        return loss

    def _two_passes(self, closure: Callable[[], Any]) -> Any:
        model: Any = self.model
        alone = not self.sync_ascent and distributed.is_initialized()
        devices = {p.get_device() for p in self._params() if p.is_cuda}
        # Forked generators return to their state, from which the second pass draws the same masks.
        forked = torch.random.fork_rng(devices, enabled=self.same_dropout)
        with forked, model.no_sync() if alone else nullcontext():
            loss = closure()
        self.first_step(zero_grad=True)
        with frozen_batch_norm(*([] if self.model is None else [self.model])):
            closure()
        return loss

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        """Climb from w to w + e(w) along the gradients in ``.grad`` (Foret et al. 2021, eq. 2).

        Raises:
            RuntimeError: the weights are perturbed already.
        """
        if self._perturbed:
            raise RuntimeError("SAM: first_step called twice; call second_step in between")
        blocks: list[Block] = []
        for group in self.param_groups:
            sources = self._sources(group["params"]) if group["rho"] > 0 else []
            found = [source for source in sources if source is not None]
            if found:
                pairs = zip(group["params"], sources, strict=True)
                params = [p for p, source in pairs if source is not None]
                blocks.append((group, params, self._directions(params, found, zero_grad)))
        if blocks:
            self._climb(blocks)
        if zero_grad:
            self._drop_gradients()

    def restore(self) -> None:
        """Give the ascent up: put the weights back, bit for bit, to where they were before it."""
        if self._perturbed:
            with torch.no_grad():
                torch._foreach_copy_(self._perturbed, self._weights)
            self._perturbed = []

    @torch.no_grad()
    def second_step(
        self, zero_grad: bool = False, scaler: torch.amp.GradScaler | None = None
    ) -> None:
        """Come back to w and let the base optimizer step with the gradients found at w + e(w).

        Without ``first_step`` before it, this is one of the plain steps between ascents.
        """
        climbed = self._perturbed
        if climbed:
            torch._foreach_copy_(self._perturbed, self._weights)
            self._perturbed = []
        if self.looksam_alpha or self.gsam_alpha:
            self._combine(climbed)
        grads = [p.grad for p in self._params() if p.grad is not None]
        if grads:
            self._base_step(grads, scaler)
        self.steps, self._total = self.steps + 1, 0.0
        self._opt_called = True  # by which torch's schedulers see that a step was made
        if zero_grad:
            self._drop_gradients()

    def _sources(self, params: list[Tensor]) -> list[Tensor | None]:
        if not self.msam:
            return [p.grad for p in params]
        states = [self.state.get(p, {}) for p in params]
        return [state.get("momentum_buffer", state.get("exp_avg")) for state in states]

    def _directions(self, params: list[Tensor], found: list[Tensor], consume: bool) -> list[Tensor]:
        """Ascent directions, free to be overwritten; the gradients themselves where they may be."""
        if self.msam:
            return list(torch._foreach_neg(found))
        if self.looksam_alpha or self.gsam_alpha:
            torch._foreach_copy_(self._buffer("gradient", params), found)
        # The ascent's small factor would vanish in float16.
        found = [g.float() if g.dtype.itemsize < 4 else g if consume else g.clone() for g in found]
        if self.fsam_sigma:  # m = lambda m + (1 - lambda) g; g - sigma m
            mean = self._buffer("mean", params)
            torch._foreach_mul_(mean, self.fsam_lambda)
            torch._foreach_add_(
                mean, [_finite(g.clone()) for g in found], alpha=1 - self.fsam_lambda
            )
            torch._foreach_sub_(found, mean, alpha=self.fsam_sigma)
        return found

    def _climb(self, blocks: list[Block]) -> None:
        operators = [self._operators(group, params) for group, params, _ in blocks]
        for (*_, directions), t in zip(blocks, operators, strict=True):
            if t:  # T_w g, whose norm is the ascent's; the step itself is T_w^2 g (Kwon eq. 7)
                torch._foreach_mul_(directions, t)
        norm = global_norm([d for *_, directions in blocks for d in directions])
        total = norm
        if not self.sync_ascent and distributed.is_initialized():  # all ranks skip, or none
            total = norm.clone()
            distributed.all_reduce(total)
        # Reading is free on a CPU; an accelerator's would make the host wait.
        self._total = float(total) if norm.device.type == "cpu" else total
        length = float(norm) if norm.device.type == "cpu" else norm
        self._perturbed = [p for _, params, _ in blocks for p in params]
        self._weights = self._buffer("weight", self._perturbed)
        torch._foreach_copy_(self._weights, self._perturbed)
        for (group, params, directions), t in zip(blocks, operators, strict=True):
            if t:
                torch._foreach_mul_(directions, t)
            _add_scaled(params, directions, ascent_scale(group["rho"], length))

    def _operators(self, group: dict[str, Any], params: list[Tensor]) -> list[Tensor]:
        """T_w of each parameter, none at all if they are all 1."""
        if not group["adaptive"]:
            return []
        bias = set() if group["normalise_bias"] else self._biases
        return [torch.ones_like(p) if id(p) in bias else p.abs().add_(group["eta"]) for p in params]

    def _combine(self, climbed: list[Tensor]) -> None:
        """Make the gradients those of GSAM and LookSAM."""
        kept = {p: g for p, g in self._buffers["gradient"].items() if p.grad is not None}
        if climbed:  # those of both passes of this step, and of no other
            kept = self._buffers["gradient"] = {p: kept[p] for p in climbed if p in kept}
        if not kept:
            return
        grads, first = [p.grad for p in kept if p.grad is not None], list(kept.values())
        if climbed:
            orthogonal = orthogonal_part(grads, first)
            if self.gsam_alpha:  # g_s - alpha g_orthogonal
                torch._foreach_sub_(grads, orthogonal_part(first, grads), alpha=self.gsam_alpha)
            torch._foreach_copy_(first, [_finite(g) for g in orthogonal])  # LookSAM's g_v
        elif self.looksam_alpha:  # g + alpha |g| / |g_v| g_v
            scale = ascent_scale(self.looksam_alpha, global_norm(first)) * global_norm(grads)
            torch._foreach_add_(grads, [scale.to(g) * g for g in first])

    def _base_step(self, grads: list[Tensor], scaler: torch.amp.GradScaler | None) -> None:
        base: Any = self.base_optimizer
        found = _nonfinite(grads)
        if isinstance(self._total, Tensor):
            first = (~self._total.isfinite()).float()
            found = torch.maximum(torch.as_tensor(found, device=first.device), first)
        elif not math.isfinite(self._total):
            found = 1.0
        self._skipped += found
        as_flag = partial(torch.as_tensor, found, dtype=torch.float32, device=grads[0].device)
        if scaler is not None and scaler.is_enabled():
            grads[0].div_(1 - as_flag())  # shows the scaler what the first pass found
            scaler.step(base)
        elif getattr(base, "_step_supports_amp_scaling", False):  # fused: skips by itself
            base.grad_scale, base.found_inf = None, as_flag()
            base.step()
            del base.grad_scale, base.found_inf
        elif not found:  # only here the host waits for an accelerator: unless fused=True
            base.step()

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _drop_gradients(self) -> None:
        for p in self._params():  # zero_grad would take 8 us for its profiler's hook
            p.grad = None

    def _buffer(self, name: str, params: list[Tensor]) -> list[Tensor]:
        buffers = self._buffers[name]
        for p in params:
            if p not in buffers:
                buffers[p] = torch.zeros_like(p)
        return [buffers[p] for p in params]

    # --- one state and one list of groups, shared with the base optimizer -------------------------
    def _share_with_base(self) -> None:
        named = () if self.model is None else self.model.named_parameters()
        names = {id(p): name for name, p in named}
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
            self._check(group)
            names.update(zip(map(id, group["params"]), group.get("param_names", ()), strict=False))
        params = self._params()
        rule = {id(p): "weight" if p.ndim > 1 else "bias" for p in params} | names
        self._biases = {id(p) for p in params if "weight" not in rule[id(p)]}
        self.base_optimizer.param_groups = self.param_groups
        self.base_optimizer.state = self.state

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
        ):
            if wrong:
                raise ValueError(f"SAM needs {need}")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        if hasattr(self, "base_optimizer"):
            self._share_with_base()

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's whole state, the groups and what the options remember.

        Raises:
            RuntimeError: called between ``first_step`` and ``second_step``.
        """
        if self._perturbed:
            raise RuntimeError("SAM: no state_dict between first_step and second_step")
        own: dict[str, Any] = {"steps": self.steps, "skipped": self.skipped}
        for name in ("gradient", "mean"):
            buffers = self._buffers[name]
            own[name] = {i: buffers[p] for i, p in enumerate(self._params()) if p in buffers}
        return {**super().state_dict(), "sam": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` gave, or what that of davda54's SAM gave."""
        # davda54's keeps a backup of the weights in its state.
        entries = state_dict["state"].items()
        state = {i: {k: v for k, v in s.items() if k != "old_p"} for i, s in entries}
        super().load_state_dict({**state_dict, "state": state})
        own = state_dict.get("sam", {})
        self.steps, self._skipped = own.get("steps", 0), own.get("skipped", 0)
        params = self._params()
        for name in ("gradient", "mean"):
            kept = own.get(name, {}).items()
            self._buffers[name] = {params[i]: buffer.to(params[i]).clone() for i, buffer in kept}

    def __getstate__(self) -> dict[str, Any]:
        # Hooks stay behind, as in torch, and so does the wrapper that schedulers put around step.
        return {k: v for k, v in vars(self).items() if k != "step" and not k.endswith("_hooks")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "base_optimizer" in self.__dict__:  # absent while load_state_dict runs
            self._share_with_base()


def _finite(tensor: Tensor) -> Tensor:
    return tensor.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)


def _nonfinite(tensors: list[Tensor]) -> float | Tensor:
    """1 if any element is infinite or NaN, else 0; on accelerators a tensor, lest the host wait."""
    if {tensor.get_device() for tensor in tensors} != {-1}:
        return (~global_norm(tensors).isfinite()).float()
    found = torch.zeros(())
    # GradScaler's own check, at a third of the price of a norm; it multiplies by 1.
    torch._amp_foreach_non_finite_check_and_unscale_(tensors, found, torch.ones(()))
    return float(found)


def _add_scaled(params: list[Tensor], directions: list[Tensor], scale: float | Tensor) -> None:
    if isinstance(scale, Tensor):
        directions = [_finite(d) for d in directions]
        if len({p.get_device() for p in params}) > 1:
            torch._foreach_mul_(directions, [scale.to(d.device) for d in directions])
        else:
            torch._foreach_mul_(directions, scale.to(params[0].device))
        torch._foreach_add_(params, directions)
    elif scale:
        torch._foreach_add_(params, directions, alpha=scale)
