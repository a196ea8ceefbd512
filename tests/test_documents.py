"""What the documents point to is there: files, headings, names in the code, commands and flags.

Of the benchmarks too, which are imported for that.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from documents import DOCUMENTS, FENCE, indented, name, prose, spans
from torch.distributed.run import get_args_parser

from utilities.cli import Parser
from utilities.files import ROOT

MADE = ("outputs", "to_plot", "Eigenvalues", "plots", "data", ".venv")  # by a run or by make
PATH = re.compile(r"[\w./-]+(/|\.(py|md|sh|ipynb|toml|txt|ya?ml|zip))")
MEMBER = re.compile(r"([\w./-]+\.py):([\w.]+)")  # as in sam.py:SAM.step
RUNNERS = ("python", ".venv/bin/python", "torchrun", "sbatch", "make")
OTHERS = {"git", "pip", ".venv/bin/pip", "pre-commit", "jupyter", ".", "cd"}  # not ours
MODULES = {"venv", "pytest", "pip"}  # not ours, after python -m


def files() -> Iterator[Path]:
    """The repository's files and folders, from its root."""
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [f for f in folders if f not in (*MADE, ".git") and "cache" not in f]
        yield from (Path(folder, entry).relative_to(ROOT) for entry in (*folders, *names))


FILES = list(files())
SCRIPTS = [
    path
    for path in FILES
    if path.suffix == ".py"
    and path.parts[0] != "tests"
    and re.search(r"^    run\(main\)$", (ROOT / path).read_text("utf-8"), flags=re.MULTILINE)
]
PRESENT = [document for document in DOCUMENTS if document.name != "CHANGELOG.md"]  # that is past
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=name)


# --- links and names ------------------------------------------------------------------------------
def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


def anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", prose(document.read_text("utf-8")), flags=re.MULTILINE)
    return {slug(heading) for heading in headings}


@each_document
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", prose(document.read_text("utf-8")))
    for link in links:
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("document", PRESENT, ids=name)
def test_paths_and_names_in_backticks_exist(document: Path) -> None:
    for span in spans(document):
        member = MEMBER.fullmatch(span)
        path = member[1] if member else span
        if not PATH.fullmatch(path) or Path(path).parts[0] in MADE:
            continue
        bare = "/" not in path.rstrip("/")  # a name alone may be that of any file
        found = [f for f in FILES if (f.name if bare else f.as_posix()) == path.rstrip("/")]
        assert found, span
        if member:
            assert any(defines((ROOT / f).read_text("utf-8"), member[2]) for f in found), span


def defines(source: str, dotted: str) -> bool:
    """Whether a module defines a name, or a class in it one of its own: ``Class.method``."""
    body: Sequence[ast.AST] = ast.parse(source).body
    for part in dotted.split("."):
        found = [node for node in body if part in _names(node)]
        if not found:
            return False
        body = getattr(found[0], "body", [])
    return True


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def test_the_tree_shows_what_is_there() -> None:
    blocks = FENCE.findall((ROOT / "README.md").read_text("utf-8"))
    tree = next(body for kind, body in blocks if not kind and "sam.py" in body)
    above = Path()
    for line in tree.splitlines():
        entries = re.split(r" {2,}", line.strip())[0].split()
        assert entries, line
        for entry in entries:
            path = above / entry if line.startswith("  ") else Path(entry)
            assert path in FILES or path.parts[0] in MADE, line
        above = above if line.startswith("  ") else Path(entries[0])


# --- commands and flags ---------------------------------------------------------------------------
class Parsed(BaseException):
    """Raised by a script's parser when it has read the command line, before anything is done."""


@pytest.fixture
def only_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every script end as soon as its command line is read."""

    def parse_args(parser: Parser, *args: Any) -> argparse.Namespace:
        super(Parser, parser).parse_args(*args)
        raise Parsed(parser)

    monkeypatch.setattr(Parser, "parse_args", parse_args, raising=False)


def module_name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts)


def parse(words: list[str], folder: Path) -> None:
    """Check one command line; ``folder`` is the one that it may have been given in.

    A flag or value that the script doesn't take ends in SystemExit, after a line on stderr.
    """
    head, *rest = words
    if head == "torchrun":
        args = get_args_parser().parse_args(rest)
        parse(["python", args.training_script, *args.training_script_args], folder)
    elif head == "sbatch":
        assert Path(rest[0]) in FILES, words
        parse(["python", *rest[1:]], folder)
    elif head == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert set(rest) <= set(targets), words
    elif head.endswith("python") and rest[0] == "-m":
        if rest[1] not in MODULES:
            run_parser(rest[1], rest[2:])
    elif head.endswith("python") and rest[0].startswith("examples/"):
        assert Path(rest[0]) in FILES, words  # which no script of ours parses
    elif head.endswith("python"):
        path = next(p for p in (Path(rest[0]), folder / rest[0]) if p in SCRIPTS)
        run_parser(module_name(path), rest[1:])
    else:
        assert head in OTHERS, words


def run_parser(module: str, flags: list[str]) -> None:
    if Path(*module.split(".")) in FILES:  # a package
        module += ".__main__"
    with pytest.raises(Parsed):
        importlib.import_module(module).main(flags)


def commands(document: Path) -> list[list[str]]:
    """The command lines in indented blocks, and those in backticks."""
    lines = indented(prose(document.read_text("utf-8")))
    lines += [span for span in spans(document) if span.split()[0] in RUNNERS and " " in span]
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("document", PRESENT, ids=name)
def test_commands_are_taken(document: Path, only_parse: None) -> None:
    for words in commands(document):
        parse(words, Path())


def help_commands(script: Path) -> list[str]:
    """The command lines in a script's docstring, which ``--help`` shows."""
    text = ast.get_docstring(ast.parse((ROOT / script).read_text("utf-8"))) or ""
    return [line for line in indented(text) if line.split()[0] in RUNNERS]


@pytest.mark.parametrize("script", filter(help_commands, SCRIPTS), ids=str)
def test_commands_of_the_help_are_taken(script: Path, only_parse: None) -> None:
    for line in help_commands(script):
        parse(shlex.split(line, comments=True), script.parent)


def options() -> set[str]:
    """The flags of all scripts, and torchrun's."""
    taken = set(get_args_parser()._option_string_actions)
    with pytest.MonkeyPatch.context() as patch:

        def parse_args(parser: Parser, *args: Any) -> argparse.Namespace:
            raise Parsed(parser)

        patch.setattr(Parser, "parse_args", parse_args, raising=False)
        for script in SCRIPTS:
            with pytest.raises(Parsed) as parsed:
                importlib.import_module(module_name(script)).main([])
            taken |= set(parsed.value.args[0]._option_string_actions)
    return taken


def test_flags_in_backticks_exist() -> None:
    taken = options()
    for document in PRESENT:
        for span in spans(document):
            unknown = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", span)) - taken
            assert not unknown, (name(document), span)


@pytest.mark.parametrize(("document", "most"), [("README.md", 180), ("CONTRIBUTING.md", 30)])
def test_documents_stay_short(document: str, most: int) -> None:
    assert len((ROOT / document).read_text("utf-8").splitlines()) <= most
