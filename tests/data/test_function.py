"""The function source: a user's own dataset, named as package.module:function."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data.errors import DatasetError
from data.function import FunctionSource
from pipeline.dataset import Dataset

numbers = itertools.count()

Module = Callable[[str], str]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Module:
    """Writes a module of the user's, on the import path under a new name, and returns the name."""

    def write(source: str) -> str:
        name = f"users_own_dataset_{next(numbers)}"
        (tmp_path / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        return name

    monkeypatch.syspath_prepend(str(tmp_path))
    return write


def source_of(name: str, folder: Path) -> FunctionSource:
    return FunctionSource(name, folder, validation=0.2, test=0.2, split_seed=0)


ARRAYS = """
import numpy as np

def build(folder):
    values = np.arange(120.0).reshape(60, 2)
    return {"x": values, "y": np.arange(60) % 2}
"""

LISTS = """
def build(folder):
    return {"x": [[i, i + 1] for i in range(60)], "y": [i % 2 for i in range(60)], "class_names": ["even", "odd"]}
"""

PROTOCOL = """
import hashlib
import numpy as np

class Words:
    class_names = ("short", "long")
    sample_shape = (4,)

    def __init__(self, split, words):
        self.split, self.words = split, words
    def __len__(self):
        return len(self.words)
    def sample(self, index):
        return np.array([ord(letter) for letter in self.words[index].ljust(4)], np.float32)
    def samples(self, indices):
        return np.stack([self.sample(i) for i in indices])
    def label(self, index):
        return int(len(self.words[index]) > 2)
    def labels(self):
        return np.array([self.label(i) for i in range(len(self))])
    def sample_digests(self):
        digests = [hashlib.blake2b(word.encode(), digest_size=16).digest() for word in self.words]
        return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16)

def build(folder):
    read = (folder / "words.txt").read_text().split()
    return {split: Words(split, read[i::3]) for i, split in enumerate(("training", "validation", "test"))}
"""


@pytest.mark.parametrize(("code", "classes", "step"), [(ARRAYS, ("0", "1"), 2), (LISTS, ("even", "odd"), 1)])
def test_arrays_that_a_function_returns_are_checked_and_split(
    module: Module, tmp_path: Path, code: str, classes: tuple[str, ...], step: int
) -> None:
    parts = source_of(f"{module(code)}:build", tmp_path).load()
    assert list(parts) == ["training", "validation", "test"]
    assert sum(len(part) for part in parts.values()) == 60
    for part in parts.values():
        assert isinstance(part, Dataset)
        assert part.class_names == classes
        assert part.sample_shape == (2,)
        first_values = np.asarray(part.values)[:, 0].astype(np.int64)
        np.testing.assert_array_equal(part.labels(), first_values // step % 2)


def test_datasets_of_the_user_s_own_class_are_passed_on(module: Module, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("a bb ccc dddd ee fff")
    parts = source_of(f"{module(PROTOCOL)}:build", tmp_path).load()
    assert {split: len(part) for split, part in parts.items()} == {"training": 2, "validation": 2, "test": 2}
    for split, part in parts.items():
        assert isinstance(part, Dataset)
        assert part.split == split


def test_a_function_that_declares_version_and_files_is_known_by_them(module: Module, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("a bb ccc dddd ee fff")
    code = PROTOCOL + '\nbuild.version = 3\nbuild.files = ["words.txt"]\n'
    source = source_of(f"{module(code)}:build", tmp_path)
    assert source.version == 3
    assert source.files() == {"0": tmp_path / "words.txt"}


@pytest.mark.parametrize("declared", ["", "build.version = 3", 'build.files = ["words.txt"]'])
def test_a_function_that_declares_less_is_called_each_time(module: Module, tmp_path: Path, declared: str) -> None:
    assert source_of(f"{module(ARRAYS + declared)}:build", tmp_path).files() is None


def test_a_declared_file_that_is_missing_is_named(module: Module, tmp_path: Path) -> None:
    code = ARRAYS + '\nbuild.version = 1\nbuild.files = ["gone.bin"]\n'
    with pytest.raises(DatasetError, match=r"gone\.bin: no such file, but \w+:build declares it in its `files`"):
        source_of(f"{module(code)}:build", tmp_path).files()


def test_something_else_than_a_mapping_is_refused_by_its_type(module: Module, tmp_path: Path) -> None:
    name = module("def build(folder):\n    return [1, 2]\n")
    with pytest.raises(DatasetError, match=f"{name}:build returned list; a mapping is needed: arrays named x and"):
        source_of(f"{name}:build", tmp_path).load()


def test_bad_arrays_are_refused_by_the_function_s_name_and_the_row(module: Module, tmp_path: Path) -> None:
    code = "import numpy as np\ndef build(folder):\n    x = np.ones((9, 2)); x[4] = np.nan\n    return {'x': x}\n"
    name = module(code)
    with pytest.raises(DatasetError, match=rf"{name}:build \(x\): row 4 of the samples holds NaN"):
        source_of(f"{name}:build", tmp_path).load()


def test_lists_that_are_no_array_are_refused_by_name(module: Module, tmp_path: Path) -> None:
    name = module("def build(folder):\n    return {'x': [[1], [1, 2]]}\n")
    with pytest.raises(DatasetError, match=f"{name}:build: x is no array"):
        source_of(f"{name}:build", tmp_path).load()


@pytest.mark.parametrize(
    "name", ["no_such_module:build", "no_such_package.module:build", "math:build", "math", ":f", ".m:f"]
)
def test_a_function_that_cannot_be_imported_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match=f"data.function = '{name}' cannot be imported"):
        source_of(name, tmp_path)


def test_something_that_is_no_function_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"data\.function = 'math:pi' is a float, not a function"):
        source_of("math:pi", tmp_path)
