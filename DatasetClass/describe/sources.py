"""Where a data set is from and under which licence, which its files don't say."""

from __future__ import annotations

from typing import NamedTuple


class Source(NamedTuple):
    """Paper and address, and the licence as the source states it."""

    citation: str
    licence: str


_CIFAR = Source(
    "Krizhevsky 2009, www.cs.toronto.edu/~kriz/cifar.html", "none stated; cite the paper"
)
_TUD = "Morris et al. 2020 (arXiv:2007.08663), chrsmrrs.github.io/datasets"
_TUD_LICENCE = "none stated; cite both papers"
SOURCES = {
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
    "mitbih": Source(
        "Moody & Mark 2001, physionet.org/content/mitdb/1.0.0; beats as Kachuee et al. 2018",
        "Open Data Commons Attribution License 1.0",
    ),
    "MUTAG": Source(f"Debnath et al. 1991; {_TUD}", _TUD_LICENCE),
    "PROTEINS": Source(f"Borgwardt et al. 2005; {_TUD}", _TUD_LICENCE),
}


def source_of(name: str) -> Source:
    """The source of the data set ``name``; of other graph sets the collection's."""
    return SOURCES.get(name, Source(_TUD, "none stated; cite the paper"))
