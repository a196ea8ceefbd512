"""Whether optimizers train at the value that was chosen for the base, such as its learning rate.

SAM's trials tune its radius, and its learning rate is one of the table's flags: by hand or by
default the one that the base's trials chose. At another one, what SAM differs in is not SAM alone.
"""

from __future__ import annotations

from collections.abc import Mapping

from studies.plan import TRAINING, Job, Plan
from studies.sentences import list_text


def other_values(plan: Plan, chosen: Mapping[str, float]) -> list[str]:
    """A line for each data set and value at which optimizers train that isn't the base's.

    Args:
        plan: of the study.
        chosen: for the base, by data set, where it is known.
    """
    study = plan.study
    base, lines = study.optimizer(study.base), []
    for data, value in chosen.items():
        others: dict[object, list[str]] = {}
        for optimizer in study.optimizers:
            if optimizer.tuned != base.tuned:  # else it has a value of its own
                first = (study.seeds[0], study.folds[0], optimizer.values[0])
                args = plan.args(Job("runs", TRAINING, data, optimizer.name, *first))
                others.setdefault(getattr(args, base.tuned, None), []).append(optimizer.name)
        others.pop(value, None)
        lines += [
            f"on {data}, {list_text(names)}: {base.tuned} {other:g}, where {base.name} "
            f"trains at {value:g}, so that the difference to {base.name} is of that too"
            for other, names in others.items()
            if isinstance(other, int | float)
        ]
    return lines
