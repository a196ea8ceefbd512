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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

__all__ = ["SAM", "ascent_scale", "frozen_batch_norm", "global_norm"]


def global_norm(tensors: list[Tensor]) -> Tensor:
    """Euclidean norm of all tensors together, as a 0-dim tensor on the first one's device.

    Half-precision tensors are accumulated in float32: squares of gradients above 256 overflow
    float16.
    """
    device = tensors[0].device
    norms: list[Tensor] = []
    for dtype in {tensor.dtype for tensor in tensors}:
        wide = torch.promote_types(dtype, torch.float32)
        same = [tensor for tensor in tensors if tensor.dtype == dtype]
        norms += torch._foreach_norm(same, 2, dtype=wide)
    return torch.linalg.vector_norm(torch.stack([norm.to(device) for norm in norms]))


def ascent_scale(rho: float, norm: Tensor) -> Tensor:
    """Factor that turns a direction of length ``norm`` into one of length ``rho``; 0 for 0.

    The denominator is that of Foret et al. 2021, equation 2, made safe for a zero gradient.
    """
    return rho / norm.clamp_min(torch.finfo(norm.dtype).tiny) * (norm > 0)


def adaptive_operator(weight: Tensor, eta: float) -> Tensor:
    """T_w of adaptive SAM (Kwon et al. 2021, arXiv:2102.11600, section 4, and their code).

    |w| + eta for weights; 1 for vectors (biases, normalisation), which stay unnormalised.
    """
    return weight.abs().add_(eta) if weight.ndim > 1 else torch.ones_like(weight)


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


class SAM(Optimizer):
    """Sharpness-Aware Minimization; a base optimizer makes the actual step.

    ``param_groups`` and ``state`` are the base optimizer's own, so learning-rate schedulers
    attach to this object and ``state_dict`` holds all that a resumed run needs.

    Args:
        params: parameters or groups of them; a group may set its own ``rho``, 0 for none.
        base_optimizer: class of the base optimizer, such as ``torch.optim.SGD``.
        rho: radius of the neighbourhood; published: 0.05 on CIFAR-10, 0.5 when adaptive.
        adaptive: adaptive SAM (Kwon et al. 2021), whose radius doesn't depend on weights' scale.
        eta: added to |w| when adaptive.
        model: module whose batch-norm statistics ``step`` freezes in the second pass; needed only
            by models with batch normalisation.
        kwargs: the base optimizer's arguments (``lr``, ``momentum``, ...).

    Raises:
        ValueError: ``rho`` or ``eta`` is negative, infinite or NaN.
    """

    def __init__(
        self,
        params: Iterable[Any],
        base_optimizer: Callable[..., Optimizer],
        rho: float = 0.05,
        adaptive: bool = False,
        eta: float = 0.01,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(params, dict(rho=rho, adaptive=adaptive, eta=eta, **kwargs))
        self.base_optimizer = base_optimizer(self.param_groups, **kwargs)
        self.defaults = {**self.base_optimizer.defaults, **self.defaults}
        self.model = model
        self._perturbed: list[tuple[Tensor, Tensor]] = []  # (parameter, its value before ascent)
        self._share_with_base()

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        """Climb from w to w + e(w) along the gradients in ``.grad`` (Foret et al. 2021, eq. 2).

        Raises:
            RuntimeError: the weights are perturbed already.
        """
        if self._perturbed:
            raise RuntimeError("SAM: first_step called twice; call second_step in between")
        ascending = [
            (group, p, p.grad)
            for group in self.param_groups
            if group["rho"] > 0
            for p in group["params"]
            if p.grad is not None
        ]
        if ascending:
            self._climb(ascending)
        if zero_grad:
            self.zero_grad()

    def _climb(self, ascending: list[tuple[dict[str, Any], Tensor, Tensor]]) -> None:
        operators = [
            adaptive_operator(p, group["eta"]) if group["adaptive"] else None
            for group, p, _ in ascending
        ]
        # T_w g, whose norm is that of the ascent; the step itself is T_w^2 g (Kwon eq. 7).
        scaled = [
            g if t is None else g * t for (_, _, g), t in zip(ascending, operators, strict=True)
        ]
        norm = global_norm(scaled)
        for (group, p, _), g, t in zip(ascending, scaled, operators, strict=True):
            self._perturbed.append((p, p.clone()))
            direction = g if t is None else g * t
            p.add_(direction * ascent_scale(group["rho"], norm).to(p.device))

    @torch.no_grad()
    def restore(self) -> None:
        """Put the weights back, bit for bit, to where they were before ``first_step``."""
        for p, before in self._perturbed:
            p.copy_(before)
        self._perturbed.clear()

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        """Come back to w and let the base optimizer step with the gradients found at w + e(w)."""
        self.restore()
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor:  # type: ignore[override]
        """Make one whole step.

        Args:
            closure: runs one forward and backward pass and returns the loss. It is called twice;
                no backward pass is needed beforehand.

        Returns:
            The loss at the weights before the step.

        Raises:
            TypeError: no closure.
        """
        if closure is None:
            raise TypeError("SAM.step needs a closure that runs forward and backward passes")
        with torch.enable_grad():
            self.zero_grad()
            loss = closure()
            self.first_step(zero_grad=True)
            try:
                with frozen_batch_norm(*([] if self.model is None else [self.model])):
                    closure()
            except BaseException:
                self.restore()
                raise
        self.second_step()
        return loss

    # --- one state and one list of groups, shared with the base optimizer -------------------------
    def _share_with_base(self) -> None:
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
            for name in ("rho", "eta"):
                if not (math.isfinite(group[name]) and group[name] >= 0):
                    raise ValueError(f"SAM: {name}={group[name]} is not a finite number >= 0")
        self.base_optimizer.param_groups = self.param_groups
        self.base_optimizer.state = self.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        if hasattr(self, "base_optimizer"):
            self._share_with_base()

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's whole state and the groups; no copy of weights.

        Raises:
            RuntimeError: called between ``first_step`` and ``second_step``.
        """
        if self._perturbed:
            raise RuntimeError("SAM: no state_dict between first_step and second_step")
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share_with_base()

    def __getstate__(self) -> dict[str, Any]:
        own = ("base_optimizer", "model", "_perturbed")
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "base_optimizer" in self.__dict__:  # absent while load_state_dict runs
            self._share_with_base()
