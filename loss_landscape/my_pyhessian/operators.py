"""Curvature of a training loss as operators: matrices known by their products with vectors.

``CurvatureOperator`` holds what all of them share: the batches and what each weighs, the
parameters as one vector, and the state that a model must be in. A subclass gives the product of
one batch. Every product is reverse over reverse, which all layers here and all kernels support.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from loss_landscape.my_pyhessian.batches import (
    REMEDY,
    Forward,
    Pair,
    check_additive,
    count_samples,
    forward_pair,
    steady,
)

Criterion = Callable[[Any, Any], Tensor]  # (outputs, targets) -> a mean, a sum, or many values
Denominator = Callable[[Any], Any]  # targets -> what the sum over a batch is divided by


class CurvatureOperator:
    """A symmetric matrix over a model's parameters as a map of vectors (P,) to (P,).

    It belongs to the mean loss over all samples of ``batches``. A criterion may give

    - one value a sample, (batch,) or (batch, ...) with equal shapes in every batch;
    - the mean over the batch. That of several batches is their mean weighted by samples, which is
      the mean over all samples only if every sample weighs the same: where it doesn't
      (``ignore_index``, class weights, token losses), the criterion is refused;
    - with ``denominator``, the sum over the batch (``reduction="sum"``), which is divided by the
      sum of ``denominator(targets)`` over all batches.

    Only parameters that require a gradient take part, in the order of ``model.parameters()``.
    Products are made in eval mode, without autocast, in the parameters' type; the model's mode,
    weights and gradients are left as they are.

    Args:
        model: any module whose parameters are float32 or float64.
        criterion: loss(outputs, targets), as above.
        batches: pairs (inputs, targets), or anything that ``forward`` takes.
        forward: (model, batch) -> (outputs, targets), for batches that are no such pairs.
        denominator: targets -> number, for criteria that sum.
        layers: names of modules or parameters, such as "classifier", whose block of the matrix is
            taken; all if not given.

    Attributes:
        params: the tensors that take part.
        flat: (P,), the parameters as one vector, detached.
        samples: their number over all batches.

    Raises:
        ValueError: no batch or parameter; half precision; a loss that is NaN, infinite, random or
            not the mean (or the sum) that it should be; a batch that isn't understood.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        batches: Iterable[Any],
        forward: Forward | None = None,
        denominator: Denominator | None = None,
        layers: Sequence[str] | None = None,
    ) -> None:
        self.model = getattr(model, "_orig_mod", model)  # compiled code has no second derivative
        self.criterion, self.denominator = criterion, denominator
        self.forward = forward or forward_pair
        self.batches = list(batches)
        self.params = self._chosen(layers)
        self._check_parameters()
        first = self.params[0]
        self.flat = torch.cat([p.detach().flatten().to(first.device) for p in self.params])
        with self._evaluating(), torch.no_grad():
            counts, totals = self._check_losses()
            self._check_first_batch()
        self.samples = sum(counts)
        # A sum counts once, a mean as often as it has samples.
        self.weights = [(1 if denominator else total) / sum(totals) for total in totals]

    def __call__(self, vector: Tensor) -> Tensor:
        """Product with ``vector`` (P,)."""
        with self._evaluating():
            parts = self.split(vector.clone())  # one of inference mode is no use to autograd
            total = torch.zeros_like(vector)
            for batch, weight in zip(self.batches, self.weights, strict=True):
                product = self.batch_product(*self.forward(self.model, batch), parts)
                total += weight * torch.cat([p.flatten().to(total) for p in product])
        return total

    def gradient(self) -> Tensor:
        """Gradient (P,) of the loss over all samples, at the weights that the model has now."""
        with self._evaluating():
            total = torch.zeros_like(self.flat)
            for batch, weight in zip(self.batches, self.weights, strict=True):
                loss = self.loss(*self.forward(self.model, batch))
                parts = torch.autograd.grad(loss, self.params, materialize_grads=True)
                total += weight * torch.cat([p.flatten().to(total) for p in parts])
        return total

    def batch_product(
        self, outputs: Any, targets: Any, vector: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """Product of the matrix of one batch's loss, as ``loss`` gives it, with ``vector``."""
        raise NotImplementedError

    def check(self, outputs: Any, targets: Any) -> None:
        """Refuse what the product can't be made of."""

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """One batch's loss: the sum where there is a ``denominator``, else the mean."""
        values = self.criterion(outputs, targets)
        return values.mean() if self.denominator is None else values.sum()

    def split(self, vector: Tensor) -> list[Tensor]:
        """Cut (P,) into tensors of the parameters' shapes and types."""
        parts = vector.split([p.numel() for p in self.params])
        return [part.view_as(p).to(p) for part, p in zip(parts, self.params, strict=True)]

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Eval mode, gradients on, without what has no second derivative or half precision."""
        training = [module for module in self.model.modules() if module.training]
        device = self.params[0].device.type
        self.model.eval()
        try:
            with ExitStack() as stack:
                stack.enter_context(torch.inference_mode(False))
                stack.enter_context(torch.enable_grad())
                stack.enter_context(torch.autocast(device, enabled=False))
                # The fused attention kernels have no second derivative.
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
                yield
        finally:
            for module in training:
                module.training = True

    # --- what is checked before the first product -------------------------------------------------
    def _chosen(self, layers: Sequence[str] | None) -> list[Tensor]:
        free = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        if layers is None:
            return list(free.values())
        if isinstance(layers, str):
            raise ValueError(f"layers={layers!r}: takes a list of names, not one name")
        for layer in layers:
            if not any(f"{name}.".startswith(f"{layer}.") for name in free):
                raise ValueError(f"layers: no parameter of {layer!r} requires a gradient")
        return [
            p
            for name, p in free.items()
            if any(f"{name}.".startswith(f"{layer}.") for layer in layers)
        ]

    def _check_parameters(self) -> None:
        if not self.params:
            raise ValueError("no parameter of the model requires a gradient")
        for name, p in self.model.named_parameters():
            if nn.parameter.is_lazy(p):
                raise ValueError(f"{name}: has no shape yet; call the model once before")
            if p.requires_grad and p.dtype not in (torch.float32, torch.float64):
                raise ValueError(
                    f"{name}: is {p.dtype}, whose curvature would be wrong by percents or more; "
                    "take model.float() and inputs of float32"
                )
        if not self.batches:
            raise ValueError("no samples to take the curvature of: there is no batch")

    def _check_losses(self) -> tuple[list[int], list[float]]:
        """Each batch's samples, and what it weighs against the others."""
        counts: list[int] = []
        totals: list[float] = []
        sizes: set[float] = set()  # values a sample; 0 stands for one value a batch
        before: Pair | None = None
        for batch in self.batches:
            outputs, targets = self.forward(self.model, batch)
            count = count_samples(targets)
            self.check(outputs, targets)
            values = self.criterion(outputs, targets)
            if not isinstance(values, Tensor):
                raise ValueError(f"the criterion gives a {type(values).__name__}, not a tensor")
            if not values.isfinite().all():
                raise ValueError("the loss is NaN or infinite at these weights: no curvature there")
            sizes.add(values.numel() / count if values.ndim and values.numel() >= count else 0)
            if self.denominator is None and len(sizes) > 1:
                raise ValueError(
                    f"the criterion gives more values a sample for some batches than "
                    f"for others; {REMEDY}"
                )
            counts.append(count)
            totals.append(self._total(targets, count))
            if self.denominator is not None:
                check_additive(self.loss, (outputs, targets), (outputs, targets), sums=True)
            elif sizes == {0}:
                if before is not None:
                    check_additive(self.loss, before, (outputs, targets), sums=False)
                before = outputs, targets
        if not sum(totals):
            raise ValueError("denominator: is 0 over all batches together")
        return counts, totals

    def _total(self, targets: Any, count: int) -> float:
        total = float(count if self.denominator is None else self.denominator(targets))
        if not 0 <= total < float("inf"):
            raise ValueError(f"denominator: gives {total} for a batch; it must be 0 or more")
        return total

    def _check_first_batch(self) -> None:
        """A second pass gives the same loss, and nothing that has a gradient is half precise."""
        first = self.batches[0]
        loss = steady(lambda: self.loss(*self.forward(self.model, first)))
        if not loss.requires_grad:
            raise ValueError(
                "the loss depends on no parameter that requires a gradient (torch.no_grad or "
                ".detach() within the model or the criterion?)"
            )


class HessianOperator(CurvatureOperator):
    """The Hessian of the loss (Pearlmutter 1994).

    A parameter that the loss doesn't use, or is linear in, contributes zeros.
    """

    def batch_product(
        self, outputs: Any, targets: Any, vector: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        gradients = torch.autograd.grad(
            self.loss(outputs, targets), self.params, create_graph=True, materialize_grads=True
        )
        return _contract(gradients, vector, self.params)


class GaussNewtonOperator(CurvatureOperator):
    """The generalised Gauss-Newton matrix, mean of J' H J (Schraudolph 2002).

    J are the derivatives of the outputs to the parameters, H the Hessian of the loss to the
    outputs: the Hessian without the curvature of the model. It has no negative eigenvalue where the
    loss is convex in the outputs, and is Fisher's information matrix for cross-entropy and squared
    error (Martens 2020, section 9). The model's outputs must be one tensor.
    """

    def check(self, outputs: Any, targets: Any) -> None:
        if not isinstance(outputs, Tensor):
            raise ValueError(
                f"the model's outputs are a {type(outputs).__name__}; the Gauss-Newton matrix "
                "needs one tensor, which forward= can take from it"
            )

    def batch_product(
        self, outputs: Any, targets: Any, vector: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        change = _derivative(outputs, self.params, vector)
        point = outputs.detach().requires_grad_()
        slope = torch.autograd.grad(self.loss(point, targets), point, create_graph=True)
        return _contract([outputs], _contract(slope, [change], [point]), self.params)


class FisherOperator(CurvatureOperator):
    """The empirical Fisher matrix, mean over the samples of g g', g a sample's gradient.

    It is not Fisher's information matrix, whose targets are drawn from the model, and far from a
    minimum nothing like the Hessian (Kunstner et al. 2019). The criterion must give values a
    sample (``reduction="none"``).
    """

    def check(self, outputs: Any, targets: Any) -> None:
        values, count = self.criterion(outputs, targets), count_samples(targets)
        if not values.ndim or len(values) != count:
            raise ValueError(
                f"the criterion gives values of shape {tuple(values.shape)} for {count} samples; "
                'the empirical Fisher matrix needs values a sample, reduction="none"'
            )

    def batch_product(
        self, outputs: Any, targets: Any, vector: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        values, count = self.criterion(outputs, targets), count_samples(targets)
        losses = values.reshape(count, -1)
        losses = losses.mean(dim=1) if self.denominator is None else losses.sum(dim=1)
        change = _derivative(losses, self.params, vector)
        scale = 1 / count if self.denominator is None else 1.0
        return _contract([losses], [scale * change], self.params)


def _contract(
    rows: Sequence[Tensor], vector: Sequence[Tensor], inputs: Sequence[Tensor]
) -> Sequence[Tensor]:
    """Derivative to ``inputs`` of the inner product of ``rows`` and ``vector``."""
    used = [(r, v) for r, v in zip(rows, vector, strict=True) if r.requires_grad]
    if not used:  # the rows are constant
        return [torch.zeros_like(x) for x in inputs]
    outer, inner = zip(*used, strict=True)
    return torch.autograd.grad(outer, inputs, inner, materialize_grads=True)


def _derivative(values: Tensor, params: Sequence[Tensor], vector: Sequence[Tensor]) -> Tensor:
    """J v, J the derivatives of ``values`` to ``params``; by two reverse passes.

    J'u is linear in u: its derivative to u, times v, is J v.
    """
    u = torch.zeros_like(values, requires_grad=True)
    rows = torch.autograd.grad(values, params, u, create_graph=True, materialize_grads=True)
    return _contract(rows, vector, [u])[0]
