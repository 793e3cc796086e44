"""softcache encoding on the command line: its numbers are those of real caches, and what it writes is what is used."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.recipe_reader import read_recipe
from pipeline.targets.encodings import encoding_name
from pipeline.targets.manifest import read_manifest
from tests.stages.conftest import Command
from tests.stages.imports import ESTIMATOR, OUTPUTS, PROGRAM, WEIGHTS, toy_with, with_teacher
from tests.stages.test_mistakes import assert_one_paragraph
from tests.stages.toy import RECIPE, Toy, new_toy, toy_arrays, write_npz

CLASSES = 40
ONE_BLOCK = ("targets.rows_per_block=4096",)  # a sum over blocks has other last digits

# What the file says, comment for comment, beside the encoding.
TARGETS = """\
[targets]                  # the cache
temperature = 4.0          # T
dtype = "float16"          # halves
rows_per_block = 4096      # all

# who learns
[student]
"""
WIDE = with_teacher('outputs = { path = "wide.npy" }').replace(
    RECIPE[RECIPE.index("[targets]") : RECIPE.index("[student]\n") + len("[student]\n")], TARGETS
)


@pytest.fixture
def wide(tmp_path: Path) -> Toy:
    """A toy of 40 classes whose teacher said all it knows in a file; nothing ran yet."""
    toy = new_toy(tmp_path / "wide", WIDE)
    names = np.array([f"class {number}" for number in range(CLASSES)])
    labels = np.arange(200) % CLASSES
    write_npz(toy.folder / "toy.npz", {**toy_arrays(), "y": labels, "class_names": names})
    logits = np.random.default_rng(0).normal(scale=5.0, size=(200, CLASSES))
    np.save(toy.folder / "wide.npy", logits.astype(np.float32))
    return toy


def tried(toy: Toy, softcache: Command, *options: str, settings: tuple[str, ...] = ()) -> dict[str, Any]:
    """What `encoding --json` prints."""
    said = softcache(*toy.arguments("encoding", then=["--json", *options], settings=settings))
    assert said.code == 0, said.err
    found: dict[str, Any] = json.loads(said.out)
    return found


def settings_of(parameters: Mapping[str, Any]) -> list[str]:
    """Overrides that give a recipe an encoding."""
    fields = {name: value for name, value in parameters.items() if name != "name"}
    replaced = ["targets.dtype=none", f'targets.encoding="{parameters["name"]}"']
    return replaced + [f"targets.{name}={json.dumps(value)}" for name, value in fields.items()]


def line_of(table: str, mark: str) -> str:
    [line] = [line for line in table.splitlines() if "<-" in line and mark in line.partition("<-")[2]]
    return line


def test_every_number_is_that_of_a_cache_really_made_with_the_encoding(wide: Toy, softcache: Command) -> None:
    settings = (*ONE_BLOCK, "student.distillation.temperature=2.5")
    found = tried(wide, softcache, settings=settings)
    assert found["samples"] == found["distinct_samples"] == len(wide.experiment().datasets("student")["training"])
    assert len(found["encodings"]) == 4 + 3 * 3
    for trial in found["encodings"]:
        chosen = (*settings, *settings_of(trial["parameters"]))
        said = softcache(*wide.arguments("teacher-targets", settings=chosen))
        assert said.code == 0, said.err
        manifest = read_manifest(wide.cache("training", *chosen))
        assert manifest.encoding == trial["parameters"]
        assert encoding_name(manifest.encoding) == trial["encoding"]
        assert sum(spec.row_bytes for spec in manifest.encoding_arrays()) == trial["bytes_per_row"]
        certified = manifest.certificate["temperatures"]
        assert {temperature: error["kl_mean"] for temperature, error in certified.items()} == trial["kl_mean"]
        assert {temperature: error["infinite_rows"] for temperature, error in certified.items()} == trial[
            "infinite_rows"
        ]


def test_the_numbers_of_a_trained_teacher_are_those_of_its_cache(fresh: Toy, softcache: Command) -> None:
    found = tried(fresh, softcache, settings=ONE_BLOCK)
    assert [trial["parameters"]["name"] for trial in found["encodings"]] == ["dense"] * 4
    assert found["recipe_has"] == {"name": "dense", "dtype": "float16"}
    assert fresh.run("teacher-targets", *ONE_BLOCK) == [
        f"teacher-targets {split}" for split in ("training", "validation", "test")
    ]
    certified = read_manifest(fresh.cache("training", *ONE_BLOCK)).certificate["temperatures"]
    [now] = [trial for trial in found["encodings"] if trial["parameters"] == found["recipe_has"]]
    assert now["kl_mean"] == {temperature: error["kl_mean"] for temperature, error in certified.items()}


def test_the_teacher_is_trained_once_and_stdout_holds_the_result_alone(fresh: Toy, softcache: Command) -> None:
    first = softcache(*fresh.arguments("encoding", then=["--json"]))
    assert first.code == 0, first.err
    assert "teacher: running, because no result yet" in first.err
    again = softcache(*fresh.arguments("encoding", then=["--json"]))
    assert "running" not in again.err
    assert json.loads(again.out) == json.loads(first.out)
    assert not (fresh.folder / "caches").exists()


@pytest.mark.parametrize(
    "recipe", [WEIGHTS, PROGRAM, ESTIMATOR, OUTPUTS], ids=["weights", "program", "estimator", "file"]
)
def test_an_imported_teacher_is_asked_as_it_is(tmp_path: Path, softcache: Command, recipe: str) -> None:
    toy = toy_with(tmp_path / "imported", recipe)
    found = tried(toy, softcache)
    assert found["choice"] is not None
    assert found["classes"] == 3
    assert not (toy.folder / "runs" / "teacher").exists()


@pytest.mark.parametrize("max_kl", [0.5, 0.1, 1e-2, 1e-3, 1e-5, 1e-7, 1e-9])
def test_the_choice_has_the_fewest_bytes_within_the_limit(wide: Toy, softcache: Command, max_kl: float) -> None:
    found = tried(wide, softcache, "--max-kl", str(max_kl))
    within = [trial for trial in found["encodings"] if trial["kl_mean"]["4.0"] <= max_kl]
    best = min(within, key=lambda trial: (trial["bytes_per_row"], trial["kl_mean"]["4.0"]))
    assert found["choice"] == best["parameters"]
    sizes = [trial["bytes_per_row"] for trial in found["encodings"]]
    assert sizes == sorted(sizes)
    said = softcache(*wide.arguments("encoding", then=["--max-kl", str(max_kl)]))
    marked = line_of(said.out, "chosen").split()
    assert marked[:2] == best["encoding"].split()[:2]
    assert f" {best['bytes_per_row']} " in line_of(said.out, "chosen")
    assert f"{best['kl_mean']['4.0']:.1e}" in marked


def test_different_limits_choose_differently(wide: Toy, softcache: Command) -> None:
    names = [
        tried(wide, softcache, "--max-kl", limit)["choice"].get("dtype", "top-k") for limit in ("0.5", "1e-4", "1e-8")
    ]
    assert names == ["top-k", "log-uint8", "log-uint16"]


def test_the_limit_is_the_recipes_or_a_thousandth(wide: Toy, softcache: Command) -> None:
    assert tried(wide, softcache)["max_kl"] == 1e-3
    assert tried(wide, softcache, settings=("student.distillation.max_kl=1e-6",))["max_kl"] == 1e-6


def test_infinite_and_unserved_temperatures_are_told_apart(wide: Toy, softcache: Command) -> None:
    logits = np.load(wide.folder / "wide.npy")
    np.save(wide.folder / "wide.npy", logits * 4)  # float16 loses classes at T = 4, float32 none
    table = softcache(*wide.arguments("encoding")).out
    by_name = {" ".join(line.split()[:2]): line.split() for line in table.splitlines()}
    assert by_name["dense float16"][-3:] == ["<-", "the", "recipe's"]
    assert by_name["dense float16"][3:7] == ["infinite"] * 4
    of_top_k = next(line.split() for line in table.splitlines() if line.startswith("top-k k=8 value_bits=8"))
    assert [cell == "-" for cell in of_top_k[4:]] == [True, True, False, True]
    assert "top-k lists the temperatures 4\n" in table
    assert "the recipe has dense float16, 80 bytes a row, mean KL infinite" in table


def test_no_encoding_within_the_limit_is_an_error_with_the_best_number(wide: Toy, softcache: Command) -> None:
    all_of = tried(wide, softcache)["encodings"]
    best = min(all_of, key=lambda trial: trial["kl_mean"]["4.0"])
    assert best["encoding"] == "dense float32"
    before = wide.recipe.read_bytes()
    said = softcache(*wide.arguments("encoding", then=["--max-kl", "1e-30", "--write"]))
    assert said.code == 1
    paragraph = said.err[said.err.rindex("softcache: ") :]
    for mention in ("1e-30", "dense float32", f"{best['kl_mean']['4.0']:.2g}", "--max-kl"):
        assert mention in paragraph
    assert "chosen" not in said.out
    assert wide.recipe.read_bytes() == before


def test_what_is_written_is_what_the_cache_has(wide: Toy, softcache: Command) -> None:
    wide.recipe.chmod(0o640)
    said = softcache(*wide.arguments("encoding", then=["--write", "--max-kl", "1e-4"]))
    assert said.code == 0, said.err
    *_, last = said.out.splitlines()
    assert last == f'{wide.recipe}: targets.dtype = "log-uint8" (was "float16")'
    assert wide.recipe.read_text() == WIDE.replace('dtype = "float16"          #', 'dtype = "log-uint8"          #')
    assert stat.S_IMODE(wide.recipe.stat().st_mode) == 0o640
    wide.run("student")
    manifest = read_manifest(wide.cache())
    assert line_of(said.out, "chosen").startswith(encoding_name(manifest.encoding))
    assert manifest.encoding == {"name": "dense", "dtype": "log-uint8"}


def test_a_second_write_changes_nothing(wide: Toy, softcache: Command) -> None:
    arguments = wide.arguments("encoding", then=["--write"])
    softcache(*arguments)
    before = wide.recipe.stat()
    said = softcache(*arguments)
    assert said.out.splitlines()[-1] == f"{wide.recipe}: has dense log-uint8 already; nothing was written"
    assert wide.recipe.stat().st_mtime_ns == before.st_mtime_ns
    assert wide.recipe.stat().st_ino == before.st_ino
    assert sorted(path.name for path in wide.folder.glob(".*")) == []


def test_a_sparse_choice_lists_the_students_temperature_and_keeps_every_comment(wide: Toy, softcache: Command) -> None:
    recipe = WIDE.replace("coefficient = 0.9", "coefficient = 0.9\ntemperature = 2.0\nmax_kl = 1.0  # anything")
    wide.recipe.write_text(recipe)
    found = tried(wide, softcache)
    assert found["temperature"] == 2.0
    said = softcache(*wide.arguments("encoding", then=["--write", "--json"]))
    assert json.loads(said.out) == found
    k, bits = found["choice"]["k"], found["choice"]["value_bits"]
    new = f'encoding = "top-k"\nk = {k}\nvalue_bits = {bits}\ntemperatures = [2.0]\n# halves\n'
    assert wide.recipe.read_text() == recipe.replace('dtype = "float16"          # halves\n', new)
    assert 'targets.dtype = "float16" removed' in said.err.splitlines()[-1]
    assert wide.run("student")[-1] == "student seed 1"
    assert read_manifest(wide.cache()).encoding == found["choice"]
    again = softcache(*wide.arguments("encoding", then=["--write"]))
    assert again.out.splitlines()[-1].endswith("already; nothing was written")


def test_a_dense_choice_takes_the_sparse_fields_away(wide: Toy, softcache: Command) -> None:
    sparse = 'encoding = "top-k"   # few\nk = 30\nvalue_bits = 8\ntemperatures = [1.0]\n'
    wide.recipe.write_text(WIDE.replace('dtype = "float16"          # halves\n', sparse))
    said = softcache(*wide.arguments("encoding", then=["--write"]))
    assert said.code == 0, said.err
    assert line_of(said.out, "the recipe's").startswith("top-k k=30 value_bits=8 ")
    assert "top-k lists the temperatures 1, 4\n" in said.out
    assert wide.recipe.read_text() == WIDE.replace(
        'dtype = "float16"          # halves\n', 'encoding = "dense"   # few\ndtype = "log-uint8"\n'
    )


def test_a_recipe_that_keeps_more_classes_than_there_are_is_mended(wide: Toy, softcache: Command) -> None:
    wide.recipe.write_text(WIDE.replace('dtype = "float16"', 'encoding = "top-k"'))
    said = softcache(*wide.arguments("encoding", then=["--write"]))
    assert said.code == 0, said.err
    now = encoding_name({"name": "top-k", "k": 64, "value_bits": 16, "temperatures": [4.0]})
    assert f"the recipe has {now}, which needs more than 40 classes" in said.out
    assert read_recipe(wide.recipe).targets.encoding_parameters() == {"name": "dense", "dtype": "log-uint8"}


def test_a_sample_is_random_but_always_the_same(wide: Toy, softcache: Command) -> None:
    some, again = tried(wide, softcache, "--samples", "10"), tried(wide, softcache, "--samples", "10")
    every = tried(wide, softcache, "--samples", "100000")
    assert some == again
    assert (some["samples"], every["samples"]) == (10, some["distinct_samples"])
    assert every == tried(wide, softcache)
    assert some["encodings"] != every["encodings"]


@pytest.mark.parametrize(
    ("options", "settings", "mentions"),
    [
        (["--write"], ["targets.temperature=2.0"], ("targets.temperature=2.0", "what the file does not say")),
        (["--write"], ["targets={}"], ("targets={}",)),
        (["--write"], ["student.distillation.temperature=2.0"], ("student.distillation.temperature",)),
        ([], ["targets.use=abc"], ("targets.use = 'abc'", "sealed")),
        (["--max-kl", "0"], [], ("--max-kl 0", "above 0")),
        (["--max-kl", "nan"], [], ("--max-kl nan",)),
    ],
)
def test_what_cannot_end_well_is_refused(
    wide: Toy, softcache: Command, options: list[str], settings: list[str], mentions: tuple[str, ...]
) -> None:
    said = softcache(*wide.arguments("encoding", then=options, settings=settings))
    assert_one_paragraph(said, 1, *mentions)
    assert said.out == ""
    assert wide.recipe.read_text() == WIDE


def test_nothing_is_written_that_the_recipes_student_would_refuse(wide: Toy, softcache: Command) -> None:
    recipe = WIDE.replace("coefficient = 0.9", "coefficient = 0.9\nmax_kl = 1e-5")
    wide.recipe.write_text(recipe)
    said = softcache(*wide.arguments("encoding", then=["--write", "--max-kl", "1e-3"]))
    assert said.code == 1
    for mention in ("log-uint8", "accepts 1e-05", "student.distillation.max_kl"):
        assert mention in said.err[said.err.rindex("softcache: ") :]
    assert wide.recipe.read_text() == recipe


@pytest.fixture
def guarded(wide: Toy) -> Iterator[Path]:
    """The recipe in a folder that anybody may read and this process, for now, may not write."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = Path(shutil.copy(wide.recipe, folder))
        path.chmod(0o644)
        folder.chmod(0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        yield path
        os.seteuid(user)
        folder.chmod(0o755)


def test_a_recipe_that_may_not_be_written_is_refused_before_the_teacher_runs(guarded: Path, softcache: Command) -> None:
    said = softcache("encoding", str(guarded), "--write")
    assert_one_paragraph(said, 1, str(guarded), "may not be written", "Copy it")
    assert said.err.count("\n") == 1
    assert guarded.read_text() == WIDE


def test_a_mistake_in_the_file_is_found_before_the_teacher_runs(wide: Toy, softcache: Command) -> None:
    wide.recipe.write_text(WIDE.replace("outputs =", "output ="))
    said = softcache(*wide.arguments("encoding", then=["--write"], settings=['teacher.outputs={path="wide.npy"}']))
    assert_one_paragraph(said, 1, "teacher.output", str(wide.recipe))
