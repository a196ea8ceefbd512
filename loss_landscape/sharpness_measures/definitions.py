"""What is said of each measure of sharpness wherever it is shown: unit, error, definition."""

from __future__ import annotations

from typing import Any, NamedTuple


class Kind(NamedTuple):
    """What is said of a measure wherever it is shown.

    Attributes:
        unit: of the value; w is a weight's.
        error_of: what is drawn at random, of which another draw would give another value.
        definition: with H the Hessian of the mean loss L, L_S the mean over a subset of m samples
            and w the weights; the rest are flags.
    """

    unit: str
    error_of: str
    definition: str


SUBSETS = "samples, by subsets of m"
GROUPS = "samples, to first order"
DRAWN = "mean of L_S(w + d) - L_S(w), d normal with deviation average_rho"
WORST = "largest L_S(w + d) - L_S(w) found, |d"
KINDS = {
    "lambda_max": Kind("loss / w^2", GROUPS, "largest eigenvalue of H"),
    "lambda_max_over_lambda_5": Kind("1", GROUPS, "largest eigenvalue of H over the fifth largest"),
    "trace": Kind("loss / w^2", "random vectors", "sum of H's eigenvalues"),
    "frobenius_norm": Kind(
        "loss / w^2", "random vectors", "root of the sum of H's squared eigenvalues"
    ),
    "epsilon_sharpness": Kind(
        "%",
        "",
        "100 (L(w + d) - L(w)) / (1 + L(w)), the largest found, |d_i| <= epsilon (|w_i| + 1)",
    ),
    "average_case_adaptive": Kind("loss", f"{SUBSETS}, and draws", f"{DRAWN} |w|"),
    "worst_case_adaptive": Kind("loss", SUBSETS, f"{WORST} / w| <= worst_rho in worst_norm"),
    "average_case": Kind("loss", f"{SUBSETS}, and draws", DRAWN),
    "worst_case": Kind("loss", SUBSETS, f"{WORST}| <= worst_rho in worst_norm"),
    "m_sharpness": Kind(
        "loss", SUBSETS, "L_S(w + rho g / |g|) - L_S(w), g the gradient of L_S at w"
    ),
}


def value(found: dict[str, Any]) -> str:
    """A measure's value with its error, or with its bound, for people."""
    if found["value"] is None:
        return "-"
    error, bound = found["standard_error"], found.get("bound")
    text = f"{found['value']:.4g}" + ("" if error is None else f" +- {error:.2g}")
    return text if bound is None or bound < (error or 0) else f"{text} (within {bound:.1g})"
