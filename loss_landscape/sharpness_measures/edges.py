"""Edges of stability: the largest eigenvalue of the Hessian above which an optimizer's steps grow.

On a quadratic loss with Hessian H, the part of w along an eigenvector with eigenvalue l goes its
own way. Gradient descent multiplies it by 1 - lr l in each step, so that it shrinks for l < 2 / lr.
Trained with the whole set in each batch, networks sharpen until lambda_max reaches that edge, and
then hover at it (Cohen et al. 2021, arXiv:2103.00065).

- Momentum b (heavy ball): v <- b v + g, w <- w - lr v has the characteristic polynomial
  z^2 - (1 + b - lr l) z + b, whose roots lie within the unit circle for l < (2 + 2 b) / lr
  (there, appendix B).
- Weight decay d adds d w to the gradient, so that l + d takes the place of l: the edge is lower
  by d.
- SAM steps along the gradient at w + rho g / norm(g), which is g + rho H g / norm(g). Its part
  along the eigenvector is (1 + rho l / norm(g)) times that of g, whichever way g points, so that
  l (1 + rho l / norm(g)) takes the place of l. With C for the edge of the base optimizer this is
  below C for l < norm(g) / (2 rho) (sqrt(1 + 4 rho C / norm(g)) - 1); with C = 2 / lr that is the
  edge of Long & Bartlett 2024 (arXiv:2309.12488). It moves: where l is above it, norm(g) grows, and
  the edge with it. So even the quadratic of one weight doesn't diverge unless l > C, but ends in
  jumps from side to side, at the norm(g) whose edge is l.
  Momentum is not in their paper. C with momentum in place of 2 / lr is right as long as norm(g)
  hardly changes within the 1 / (1 - b) steps that momentum remembers, which it does near the edge.

What breaks them:

- Adam and its kin precondition the gradient. Their edge, (2 + 2 b1) / ((1 - b1) lr), 38 / lr for
  b1 = 0.9, is for the largest eigenvalue of the preconditioned Hessian (Cohen et al. 2022,
  arXiv:2207.14484), which takes Adam's second moments; kept weights come without. The Hessian's own
  lambda_max may go on rising, so no line is drawn.
- Mini-batches: lambda_max stays below the edge, the lower the smaller the batches. What hovers
  is the curvature that a batch has along its own gradient (Andreyev & Beneventano 2024,
  arXiv:2412.20553); with momentum and small batches at 2 (1 - b) / lr (Andreyev 2026,
  arXiv:2604.14108). The line is then an upper bound. And with cross-entropy lambda_max falls again
  where the training set is learnt (Cohen et al. 2021, appendix C).
- Dropout, augmentation and batch norm's batch statistics make the training's loss another one than
  the loss in eval mode, whose Hessian this is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from utilities.history import read_history
from utilities.runs import Run

ADAM = "Adam's edge is one of the Hessian preconditioned by its second moments, not in the file"
# Flags that make another optimizer of SAM, with the value that does not.
PLAIN_SAM = {
    **{"every": 1, "looksam_alpha": 0.0, "gsam_alpha": 0.0, "fsam_sigma": 0.0},
    **{"msam": False, "only_norm": False, "ascent_fraction": 1.0, "sam_start": 0.0},
    "ascent_sync": True,
}


def momentum_edge(rate: float, momentum: float = 0.0, weight_decay: float = 0.0) -> float:
    """(2 + 2 momentum) / rate - weight_decay, in units of the loss over a weight's squared.

    Cohen et al. 2021, section 2 and appendix B; without momentum and decay 2 / rate.
    """
    return (2 + 2 * momentum) / rate - weight_decay


def sam_edge(base_edge: float, rho: float, gradient_norm: float) -> float:
    """SAM's edge, |g| / (2 rho) (sqrt(1 + 4 rho C / |g|) - 1), in the base optimizer's units.

    Long & Bartlett 2024, section 3, with C = 2 / rate; written 2 C / (1 + sqrt(...)), which loses
    no digits for small rho and is C for rho = 0. See the module's text for the derivation.

    Args:
        base_edge: C, the edge of the optimizer that SAM is built on.
        rho: radius of the ascent.
        gradient_norm: |g| over all samples; for 0 the limit, 0.
    """
    if not rho:
        return base_edge
    if not gradient_norm:
        return 0.0
    return 2 * base_edge / (1 + math.sqrt(1 + 4 * rho * base_edge / gradient_norm))


class Edge(NamedTuple):
    """Which edge a run has.

    Attributes:
        formula: in words for a legend; "" if none is known.
        why: there is none, or what else has to be known of it, a line each.
        momentum, weight_decay, rho: what it takes.
    """

    formula: str
    why: tuple[str, ...]
    momentum: float = 0.0
    weight_decay: float = 0.0
    rho: float = 0.0

    def at(self, rate: float, gradient_norm: float) -> float:
        """Its value while the learning rate is ``rate``."""
        return sam_edge(
            momentum_edge(rate, self.momentum, self.weight_decay), self.rho, gradient_norm
        )


def edge_of(content: Mapping[str, Any], samples: int) -> Edge:
    """The edge of the run that a checkpoint is of.

    Args:
        content: as ``checkpoint.load`` returns it.
        samples: of the training split.
    """
    args = content["train_args"]
    optimizer, rho = args["optimizer"], float(args["rho"])
    base = args.get("base_optimizer", "SGD") if optimizer in ("SAM", "ASAM") else optimizer
    if base != "SGD":
        return Edge("", (ADAM if base == "ADAM" else f"no edge of {base} is known",))
    if optimizer == "ASAM" and rho:
        return Edge("", ("ASAM climbs in coordinates of its own; no edge of it is known",))
    other = [f"--{k}" for k, plain in PLAIN_SAM.items() if args.get(k, plain) != plain and rho]
    if other:
        return Edge("", (f"no edge of SAM with {', '.join(other)} is known",))
    if args.get("average", "none") != "none":
        return Edge("", (f"the weights are an average ({args['average']}), not those that step",))
    momentum, decay = float(args.get("momentum", 0.0)), float(args.get("weight_decay", 0.0))
    base_formula = "(2 + 2 momentum) / lr" if momentum else "2 / lr"
    base_formula += " - weight decay" if decay else ""
    formula = f"SAM's, of {base_formula} and |g|" if rho else base_formula
    return Edge(formula, caveats(content, samples), momentum, decay, rho)


def caveats(content: Mapping[str, Any], samples: int) -> tuple[str, ...]:
    """Why a run's largest eigenvalue may not go to its edge."""
    args, said = content["train_args"], []
    if args.get("batch_size", samples) < samples:
        said.append(
            f"batches of {args['batch_size']} of {samples} samples: the eigenvalue stays below the "
            "edge of full batches"
        )
    if args.get("momentum") and args["rho"]:
        said.append("momentum is not in the derivation of SAM's edge: it holds roughly")
    for flag in ("class_weights", "balanced_sampling"):
        if args.get(flag):
            said.append(f"--{flag}: the training's loss weighs the samples otherwise")
    changed = {
        "dropout": content["model_args"].get("dropout"),
        "augmentation": content["data_args"].get("augment"),
        "batch statistics": any("running_mean" in name for name in content["state_dict"]),
    }
    if any(changed.values()):
        what = ", ".join(name for name, is_there in changed.items() if is_there)
        said.append(f"the training's loss has {what}; this is the Hessian of the loss without")
    return tuple(said)


def rates(content: Mapping[str, Any], folder: Path) -> dict[int, float] | str:
    """The learning rate with which each epoch was trained; that of epoch 0 is the first one's.

    A constant one is among the checkpoint's arguments, any other in the run's history beside it.

    Args:
        content: of a checkpoint.
        folder: that of the results, with outputs/ and to_plot/.

    Returns:
        By epoch, or why it isn't known.
    """
    args = content["train_args"]
    if args.get("schedule", "constant") == "constant" and not args.get("warmup_epochs"):
        return dict.fromkeys(range(int(args["epochs"]) + 1), float(args["learning_rate"]))
    path = Run.from_checkpoint(content, folder).history
    try:
        settings, columns = read_history(path)
        by_epoch = dict(enumerate(columns["learning_rate"], start=1))
    except (ValueError, OSError, KeyError) as error:
        return f"no edge without the learning rates, which change by --schedule: {error}"
    wrong = [
        name
        for name in ("seed", "rho", "learning_rate", "schedule", "epochs", "batch_size")
        if settings.get(name) != str(args.get(name))
    ]
    if wrong:
        return f"no edge without the learning rates: {path} is another run's ({', '.join(wrong)})"
    return {0: by_epoch[1], **by_epoch}
