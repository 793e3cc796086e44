"""Conventions of the code base that no other test would notice: imports, docstrings, names, machine paths."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from pipeline.keys import STAGE_SOURCES, STAGE_VERSIONS
from stages.chain import STAGES

ROOT = Path(__file__).parents[1]

MAY_IMPORT = {"stages": {"stages", "pipeline", "data"}, "pipeline": {"pipeline"}, "data": {"data"}}
OURS = {"stages", "pipeline", "data", "tests", "recipes", "benchmarks"}
TEXT_FOLDERS = (*OURS, "docs", ".ci")
TEXT_SUFFIXES = {"", ".py", ".toml", ".md", ".txt", ".cfg", ".sh", ".yml", ".yaml", ".json"}
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:work|root|home|Users|mnt)/\w")

PACKAGE_FILES = sorted(file for package in MAY_IMPORT for file in (ROOT / package).rglob("*.py"))


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"), str(file))


def imported_packages(file: Path) -> Iterator[tuple[int, str]]:
    """(line, top-level package) of every import, those inside functions included."""
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "" if node.level else str(node.module).partition(".")[0]


def relative(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@cache
def methods_of_protocols() -> frozenset[str]:
    """The names of all methods that a Protocol of ours asks for."""
    classes = [node for file in PACKAGE_FILES for node in ast.walk(tree_of(file)) if isinstance(node, ast.ClassDef)]
    protocols = [node for node in classes if any(getattr(base, "id", "") == "Protocol" for base in node.bases)]
    return frozenset(member.name for node in protocols for member in node.body if isinstance(member, ast.FunctionDef))


def is_property(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    names = {getattr(decorator, "id", getattr(decorator, "attr", "")) for decorator in function.decorator_list}
    return bool(names & {"property", "cached_property"})


def undocumented(body: list[ast.stmt], inside: str = "") -> Iterator[str]:
    """Public classes, functions and methods without a docstring.

    Properties need none of their own, and a method that a Protocol asks for needs one in one place only.
    """
    asked_for = methods_of_protocols()
    for node in body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        name = f"{inside}{node.name}"
        if isinstance(node, ast.ClassDef):
            if ast.get_docstring(node) is None:
                yield name
            yield from undocumented(node.body, f"{name}.")
        elif ast.get_docstring(node) is None and not (inside and (node.name in asked_for or is_property(node))):
            yield name


def texts() -> Iterator[Path]:
    """Every text file that is committed: of the root, and of the folders that hold code and documents."""
    candidates = [file for file in ROOT.iterdir() if file.is_file()]
    for folder in TEXT_FOLDERS:
        candidates += [file for file in (ROOT / folder).rglob("*") if file.is_file()]
    yield from (file for file in candidates if file.suffix in TEXT_SUFFIXES and "__pycache__" not in file.parts)


def test_there_is_something_to_check() -> None:
    assert {relative(file) for file in PACKAGE_FILES} >= {"stages/cli.py", "pipeline/losses.py", "data/npz.py"}
    assert ROOT / "pyproject.toml" in set(texts())


@pytest.mark.parametrize("file", PACKAGE_FILES, ids=relative)
def test_imports_go_one_way(file: Path) -> None:
    package = file.relative_to(ROOT).parts[0]
    forbidden = OURS - MAY_IMPORT[package]
    against = [f"line {line} imports {name}" for line, name in imported_packages(file) if name in forbidden or not name]
    assert against == []


@pytest.mark.parametrize("file", PACKAGE_FILES, ids=relative)
def test_every_module_says_what_it_is_responsible_for(file: Path) -> None:
    assert ast.get_docstring(tree_of(file))


@pytest.mark.parametrize("file", PACKAGE_FILES, ids=relative)
def test_every_public_class_and_function_has_a_docstring(file: Path) -> None:
    assert list(undocumented(tree_of(file).body)) == []


def test_no_module_is_a_drawer_for_odds_and_ends() -> None:
    drawers = {"utils.py", "util.py", "common.py", "helpers.py", "misc.py"}
    assert [relative(file) for package in OURS for file in (ROOT / package).rglob("*.py") if file.name in drawers] == []


def test_no_committed_text_names_a_path_of_one_machine() -> None:
    found = [
        f"{relative(file)}:{number}: {line.strip()}"
        for file in texts()
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert found == []


def test_every_stage_has_a_version_and_sources_that_exist() -> None:
    assert list(STAGE_VERSIONS) == list(STAGE_SOURCES) == list(STAGES)
    for sources in STAGE_SOURCES.values():
        assert len(set(sources)) == len(sources)
        for source in sources:
            assert (ROOT / source).is_file(), source
