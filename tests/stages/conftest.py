"""Workspaces of the toy experiment, each built once and copied for every test that changes one."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from stages import cli
from tests.stages.toy import FIXED_TEACHER, RECIPE, Toy, new_toy


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """The toy's tensors are too small to share among threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _imports_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A recipe's folder goes to sys.path; a test's own modules must not be found by the next test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("users_"):
            del sys.modules[name]


@pytest.fixture(scope="session")
def _finished(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    toy = new_toy(tmp_path_factory.mktemp("finished"))
    toy.run("evaluate")
    return toy


@pytest.fixture(scope="session")
def _with_fixed_teacher(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    recipe = RECIPE.replace('dtype = "float16"', 'dtype = "float32"') + FIXED_TEACHER
    toy = new_toy(tmp_path_factory.mktemp("fixed_teacher"), recipe)
    toy.run("student")
    return toy


@pytest.fixture
def fresh(tmp_path: Path) -> Toy:
    """A workspace in which nothing ran yet."""
    return new_toy(tmp_path / "fresh")


@pytest.fixture
def finished(_finished: Toy, tmp_path: Path) -> Toy:
    """A workspace in which every stage ran."""
    return Toy(shutil.copytree(_finished.folder, tmp_path / "finished"))


@pytest.fixture
def fixed_teacher(_with_fixed_teacher: Toy, tmp_path: Path) -> Toy:
    """A workspace whose teacher has data of its own, with a float32 cache and students."""
    return Toy(shutil.copytree(_with_fixed_teacher.folder, tmp_path / "fixed_teacher"))


@dataclass(frozen=True)
class Said:
    """How a command ended: its exit code, its results (stdout) and its messages (stderr)."""

    code: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture
def softcache(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line, in this process: `softcache("student", "toy.toml", ...)`."""

    def command(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["softcache", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        code = ended.value.code
        assert code is None or isinstance(code, int)
        return Said(code or 0, captured.out, captured.err)

    return command
