"""Curvature of a training loss as operators: matrices known by their products with vectors.

``CurvatureOperator`` holds what all of them share: the batches and what each weighs, the
parameters as one vector, and the state that a model must be in. A subclass gives the product of
one batch. Every product is reverse over reverse, which all layers here and all kernels support;
``products.py`` has faster ways to the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from loss_landscape.forward_pass.batch_norm import EVAL, Statistics
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
Parts = Sequence[Tensor]  # of a vector, one for each parameter
# A batch's matrix times a vector; the second argument says whether it is asked for another one.
BatchProduct = Callable[[Parts, bool], Parts]


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
        statistics: which ones batch norm takes; the model's own if not given. With those of each
            batch the loss hangs on how the samples are batched, and derivatives go through them.

    Attributes:
        params: the tensors that take part.
        flat: (P,), the parameters as one vector, detached.
        samples, counts: their number over all batches, and in each.
        share: the indices of the batches whose products this process makes; all.
        batch_product: of the batch of this index, at the weights that the model has now.

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
        statistics: Statistics = EVAL,
    ) -> None:
        self.statistics = statistics
        self.model = getattr(model, "_orig_mod", model)  # compiled code has no second derivative
        self.criterion, self.denominator = criterion, denominator
        self.forward = forward or forward_pair
        self.batches = list(batches)
        self.params = self._chosen(layers)
        self._check_parameters()
        first = self.params[0]
        self.flat = torch.cat([p.detach().flatten().to(first.device) for p in self.params])
        with self.evaluating(), torch.no_grad():
            counts, totals = self._check_losses()
            self._check_first_batch()
        self.counts, self.samples = counts, sum(counts)
        # A sum counts once, a mean as often as it has samples.
        self.weights = [(1 if denominator else total) / sum(totals) for total in totals]
        self.share: Sequence[int] = range(len(self.batches))
        self.batch_product: Callable[[int], BatchProduct] = self.plain_product

    def __call__(self, vector: Tensor) -> Tensor:
        """Product with ``vector`` (P,)."""
        return self.products(vector[None])[0]

    def products(self, vectors: Tensor) -> Tensor:
        """Products with the rows of ``vectors`` (k, P), as rows; one row's are ``__call__``'s.

        The forward pass and the first backward pass are made once for all of them, which saves a
        third of the time, and kept in memory until the batch's last product.
        """
        with self.evaluating():
            rows = [self.split(vector.clone()) for vector in vectors]  # not of inference mode
            sums = [torch.zeros_like(vector) for vector in vectors]
            for index in self.share:
                product = self.batch_product(index)
                for number, parts in enumerate(rows):
                    found = product(parts, number + 1 < len(rows))
                    flat = torch.cat([p.flatten().to(vectors) for p in found])
                    sums[number] += self.weights[index] * flat
        return torch.stack(sums)

    def plain_product(self, index: int) -> BatchProduct:
        """The reference: reverse over reverse, by the model and on the batches as they are."""
        return self.linearised(*self.forward(self.model, self.batches[index]))

    def gradient(self) -> Tensor:
        """Gradient (P,) of the loss over all samples, at the weights that the model has now."""
        with self.evaluating():
            total = torch.zeros_like(self.flat)
            for batch, weight in zip(self.batches, self.weights, strict=True):
                loss = self.loss(*self.forward(self.model, batch))
                parts = torch.autograd.grad(loss, self.params, materialize_grads=True)
                total += weight * torch.cat([p.flatten().to(total) for p in parts])
        return total

    def linearised(self, outputs: Any, targets: Any) -> BatchProduct:
        """Products with the matrix of one batch's loss, as ``loss`` gives it, at its outputs."""
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
    def evaluating(self) -> Iterator[None]:
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
                stack.enter_context(self.statistics(self.model))
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

    def linearised(self, outputs: Any, targets: Any) -> BatchProduct:
        gradients = torch.autograd.grad(
            self.loss(outputs, targets), self.params, create_graph=True, materialize_grads=True
        )
        return lambda vector, again: _contract(gradients, vector, self.params, again)


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

    def linearised(self, outputs: Any, targets: Any) -> BatchProduct:
        tangent = _Derivative(outputs, self.params)
        point = outputs.detach().requires_grad_()
        slope = torch.autograd.grad(self.loss(point, targets), point, create_graph=True)

        def product(vector: Parts, again: bool) -> Parts:
            change = tangent(vector, again)
            curved = _contract(slope, [change], [point], again)
            return _contract([outputs], curved, self.params, again)

        return product


class FisherOperator(CurvatureOperator):
    """The empirical Fisher matrix, mean over the samples of g g', g a sample's gradient.

    It is not Fisher's information matrix, whose targets are drawn from the model, and far from a
    minimum nothing like the Hessian (Kunstner et al. 2019). The criterion must give values a
    sample (``reduction="none"``).
    """

    def check(self, outputs: Any, targets: Any) -> None:
        if self.statistics.kind == "batch":
            raise ValueError(
                "the empirical Fisher matrix needs gradients of single samples, and with --bn "
                "batch each hangs on the others of its batch; take another --matrix or --bn"
            )
        values, count = self.criterion(outputs, targets), count_samples(targets)
        if not values.ndim or len(values) != count:
            raise ValueError(
                f"the criterion gives values of shape {tuple(values.shape)} for {count} samples; "
                'the empirical Fisher matrix needs values a sample, reduction="none"'
            )

    def linearised(self, outputs: Any, targets: Any) -> BatchProduct:
        values, count = self.criterion(outputs, targets), count_samples(targets)
        losses = values.reshape(count, -1)
        losses = losses.mean(dim=1) if self.denominator is None else losses.sum(dim=1)
        scale = 1 / count if self.denominator is None else 1.0
        tangent = _Derivative(losses, self.params)

        def product(vector: Parts, again: bool) -> Parts:
            return _contract([losses], [scale * tangent(vector, again)], self.params, again)

        return product


def _contract(rows: Parts, vector: Parts, inputs: Parts, again: bool) -> Parts:
    """Derivative to ``inputs`` of the inner product of ``rows`` and ``vector``.

    ``again`` keeps what the next one needs.
    """
    used = [(r, v) for r, v in zip(rows, vector, strict=True) if r.requires_grad]
    if not used:  # the rows are constant
        return [torch.zeros_like(x) for x in inputs]
    outer, inner = zip(*used, strict=True)
    return torch.autograd.grad(outer, inputs, inner, retain_graph=again, materialize_grads=True)


class _Derivative:
    """v -> J v, J the derivatives of ``values`` to ``params``; by two reverse passes.

    J'u is linear in u: its derivative to u, times v, is J v.
    """

    def __init__(self, values: Tensor, params: Parts) -> None:
        self.u = torch.zeros_like(values, requires_grad=True)
        self.rows = torch.autograd.grad(
            values, params, self.u, create_graph=True, materialize_grads=True
        )

    def __call__(self, vector: Parts, again: bool) -> Tensor:
        return _contract(self.rows, vector, [self.u], again)[0]
