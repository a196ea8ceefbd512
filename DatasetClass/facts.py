"""What the files of a data set don't say: source, licence, names."""

from __future__ import annotations

from dataclasses import dataclass

from DatasetClass.batches import Dataset


@dataclass(frozen=True)
class Facts:
    """What the files themselves don't say.

    Attributes:
        source: paper and address.
        licence: as the source states it.
        classes: names by label; empty for "class 0" and so on.
        nodes: names of the node labels of a graph set.
        rate: samples a second of a signal, in Hz.
    """

    source: str
    licence: str
    classes: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    rate: float | None = None


_CIFAR = ("Krizhevsky 2009, www.cs.toronto.edu/~kriz/cifar.html", "none stated; cite the paper")
_TUD = ("Morris et al. 2020 (arXiv:2007.08663), chrsmrrs.github.io/datasets", "none stated; cite")
FACTS = {
    "cifar10": Facts(
        *_CIFAR,
        classes=(
            *("airplane", "automobile", "bird", "cat", "deer"),
            *("dog", "frog", "horse", "ship", "truck"),
        ),
    ),
    "cifar100": Facts(*_CIFAR),
    "mitbih": Facts(
        "Moody & Mark 2001, physionet.org/content/mitdb/1.0.0; beats as Kachuee et al. 2018",
        "Open Data Commons Attribution License 1.0",
        classes=("N normal", "S supraventricular", "V ventricular", "F fusion", "Q unknown, paced"),
        rate=125,
    ),
    "MUTAG": Facts(
        f"Debnath et al. 1991; {_TUD[0]}",
        f"{_TUD[1]} both papers",
        classes=("not mutagenic", "mutagenic"),
        nodes=("C", "N", "O", "F", "I", "Cl", "Br"),
    ),
    "PROTEINS": Facts(
        f"Borgwardt et al. 2005; {_TUD[0]}",
        f"{_TUD[1]} both papers",
        classes=("enzyme", "no enzyme"),
    ),
}


def facts_of(dataset: Dataset) -> Facts:
    """The facts of a data set; what its class says in attributes of these names comes first."""
    known = FACTS.get(dataset.name, Facts(_TUD[0], f"{_TUD[1]} the paper"))
    names = tuple(getattr(dataset, "class_names", ()) or known.classes)
    if len(names) != dataset.num_classes:
        names = tuple(f"class {label}" for label in range(dataset.num_classes))
    return Facts(
        known.source,
        getattr(dataset, "licence", known.licence),
        names,
        known.nodes,
        known.rate,
    )
