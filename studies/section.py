"""One table of a study's file: its keys taken one by one, each checked, none left over."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

Flag = bool | int | float | str
Flags = Mapping[str, Flag | Sequence[Flag]]
MOST = 1000  # seeds, folds or values in a list
LONGEST = 60  # characters of a name
# What a study sets itself, in each command line.
OWN_FLAGS = frozenset(
    {
        *("seed", "fold", "tag", "threads", "data_dir", "out_dir", "resume", "overwrite"),
        *("model_file", "surf_file", "output", "help"),
    }
)


class Section:
    """One table of the file; each method takes a key of it, ``end`` refuses those not taken."""

    def __init__(self, where: str, content: Mapping[str, Any], name: str = "") -> None:
        self.where, self.content, self.name = where, content, name
        self.taken: set[str] = set()

    def error(self, key: str, problem: str) -> ValueError:
        where = f"{self.where}, {key}" if key else self.where
        return ValueError(f"{where}: {problem}")

    def take(self, key: str, default: Any = None) -> Any:
        self.taken.add(key)
        value = self.content.get(key, default)
        if value is None:
            raise self.error(key, "is missing")
        return value

    def end(self) -> None:
        for key in self.content:
            if key not in self.taken:
                near = difflib.get_close_matches(key, self.taken, 1)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(self.taken)}"
                raise self.error(shown(key), f"is no key of a study's table; {hint}")

    def table(self, key: str, default: Any = None) -> Mapping[str, Any]:
        value = self.take(key, default)
        if not isinstance(value, dict):
            raise self.error(key, f"{shown(value)} is no table of names and values")
        return value

    def section(self, key: str) -> Section:
        return Section(f"{self.where}, {key}", self.table(key), key)

    def sections(self, key: str, optional: bool = False) -> list[Section]:
        """The tables [key.<name>], in the file's order."""
        tables = self.table(key, {} if optional else None)
        if not tables and not optional:
            raise self.error(key, f"is empty; write [{key}.<name>] for each")
        sections = []
        for name, content in tables.items():
            where = f"{key}.{shown(name)}"
            if not re.search(r"[A-Za-z0-9]", name) or len(name) > LONGEST or "\n" in name:
                raise self.error(where, f"a name has letters and at most {LONGEST} characters")
            if not isinstance(content, dict):
                raise self.error(where, f"{shown(content)} is no table; write [{key}.<name>]")
            sections.append(Section(f"{self.where}, {where}", content, name))
        return sections

    def text(self, key: str, default: str | None = None) -> str:
        value = self.take(key, default)
        if not isinstance(value, str) or not value.isprintable():
            raise self.error(key, f"{shown(value)} is no text of one line")
        return value

    def one_of(self, key: str, known: Sequence[str]) -> str:
        value = self.text(key)
        if value not in known:
            raise self.error(key, f"{shown(value)} is none of {', '.join(known) or 'nothing yet'}")
        return value

    def number(self, key: str, default: int, most: int) -> int:
        value = self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise self.error(key, f"{shown(value)} is no whole number from 1 to {most}")
        return value

    def numbers(self, key: str, most: int) -> tuple[int, ...]:
        """Whole numbers from 0, each once."""
        value = self.take(key)
        numbers: list[Any] = value if isinstance(value, list) else [None]
        right = (isinstance(n, int) and not isinstance(n, bool) for n in numbers)
        if not all(right) or not all(0 <= n <= most for n in numbers):
            raise self.error(key, f"{shown(value)} is no list of whole numbers from 0 to {most}")
        return tuple(self._each_once(key, numbers))

    def folds(self, usual: tuple[int | None, ...] | None) -> tuple[int | None, ...]:
        """The key ``folds``; without it ``usual``, or no cross-validation."""
        if "folds" not in self.content:
            return usual or (None,)
        if usual == (None,):
            raise self.error("folds", "the study has none; leave them out here too")
        return self.numbers("folds", MOST)

    def some_of(self, key: str, known: tuple[Any, ...]) -> tuple[Any, ...]:
        """Those of ``known`` that the key lists, in the study's order; all without the key."""
        chosen = self.take(key, list(known))
        if not isinstance(chosen, list):
            raise self.error(key, f"{shown(chosen)} is no list")
        for each in chosen:
            if isinstance(each, bool) or each not in known:
                raise self.error(key, f"{shown(each)} is none of the study's {key}")
        return tuple(each for each in known if each in self._each_once(key, chosen))

    def rising(self, key: str, values: Any) -> tuple[float, ...]:
        """Values to choose from: of two that are equally good the first, smaller one is taken."""
        numbers: list[Any] = values if isinstance(values, list) else [None]
        right = (isinstance(v, int | float) and not isinstance(v, bool) for v in numbers)
        if not all(right) or not all(0 <= v < math.inf for v in numbers):
            raise self.error(key, f"{shown(values)} is no list of numbers of 0 or more")
        if list(self._each_once(key, numbers)) != sorted(numbers):
            raise self.error(key, f"{shown(values)}: list the values in rising order")
        return tuple(numbers)

    def flags(self) -> Flags:
        """The key ``flags``: of a command line, without those that a study sets itself."""
        flags = self.table("flags", {})
        for name, value in flags.items():
            self.check_flag("flags", name)
            values = value if isinstance(value, list) and len(value) <= MOST else [value]
            if not values or not all(map(_is_plain, values)):
                raise self.error(f"flags.{name}", f"{shown(value)} is no value of a flag")
        return flags

    def check_flag(self, key: str, name: str) -> None:
        if name in OWN_FLAGS:
            raise self.error(f"{key}.{name}", "is set by the study itself; leave it out")
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,40}", name):
            raise self.error(f"{key}.{shown(name)}", "is no flag's name; write it without --")

    def _each_once(self, key: str, values: list[Any]) -> list[Any]:
        if not values or len(values) > MOST:
            raise self.error(key, f"has {len(values)} entries; 1 to {MOST} are possible")
        if len(set(values)) < len(values):
            raise self.error(key, f"{shown(values)} lists one twice")
        return values


def _is_plain(value: Any) -> bool:
    """Whether a command line can have the value."""
    if isinstance(value, str):
        return value.isprintable() and len(value) <= MOST
    return isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
