"""Whether optimizers train at the value that was chosen for the base, such as its learning rate.

SAM's trials tune its radius, and its learning rate is one of the table's flags: by hand, by default
or because the table says so the one that the base's trials chose. At another one, what SAM differs
in is not SAM alone.
"""

from __future__ import annotations

from collections.abc import Mapping

from studies.plan import TRAINING, Job, Plan
from studies.sentences import list_text


def other_values(plan: Plan, chosen: Mapping[tuple[str, str], float]) -> list[str]:
    """A line for each data set and value at which optimizers train that isn't the base's.

    Args:
        plan: of the study.
        chosen: by data set and optimizer, where it is known.
    """
    study = plan.study
    base, lines = study.optimizer(study.base), []
    for data in (each.name for each in study.data if (each.name, base.chosen_for) in chosen):
        value = chosen[data, base.chosen_for]
        others: dict[object, list[str]] = {}
        for optimizer in study.optimizers:
            if optimizer.tuned != base.tuned:  # else it has a value of its own
                trained = _trains_at(plan, data, optimizer.name, base.tuned, chosen)
                others.setdefault(trained, []).append(optimizer.name)
        others.pop(value, None)
        lines += [
            f"on {data}, {list_text(names)}: {base.tuned} {other:g}, where {base.name} "
            f"trains at {value:g}, so that the difference to {base.name} is of that too"
            for other, names in others.items()
            if isinstance(other, int | float)
        ]
    return lines


def _trains_at(
    plan: Plan, data: str, optimizer: str, flag: str, chosen: Mapping[tuple[str, str], float]
) -> object:
    """A flag's value in an optimizer's runs; None if there is none, or it is still to be chosen."""
    study = plan.study
    other = study.taken(data, optimizer).get(flag)
    if other is not None:
        return chosen.get((data, study.optimizer(other).chosen_for))
    job = plan.assumed(Job("runs", TRAINING, data, optimizer, study.seeds[0], study.folds[0]))
    return getattr(plan.args(job), flag, None)
