"""softcache plan: its rows and bytes are those of the caches that are then made, and what it measured is kept."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.cache_contents import bytes_on_disk
from pipeline.canonical import digest_of
from pipeline.targets.layouts import LAYOUTS
from pipeline.targets.manifest import read_manifest
from stages.chain import open_experiment, runner_of
from stages.plan import make_plan
from tests.stages.conftest import Command
from tests.stages.imports import ESTIMATOR, OUTPUTS, PROGRAM, WEIGHTS, toy_with, with_teacher
from tests.stages.test_mistakes import assert_one_paragraph
from tests.stages.toy import ENVIRONMENT, RECIPE, Toy, new_toy, toy_arrays, write_npz

SPLITS = ["training", "validation", "test"]
QUICK = ["teacher.training.steps=60", "teacher.training.validate_every=30"]
COUNTED = """\
import numpy as np


def load(folder):
    with open(folder / "calls", "a") as calls:
        calls.write("x")
    return dict(np.load(folder / "toy.npz"))


load.version = 1
load.files = ["toy.npz"]
"""


def planned(toy: Toy, softcache: Command, *options: str, settings: Sequence[str] = ()) -> dict[str, Any]:
    """What `plan --json` prints."""
    said = softcache(*toy.arguments("plan", then=["--json", *options], settings=settings))
    assert said.code == 0, said.err
    found: dict[str, Any] = json.loads(said.out)
    return found


def own_bytes(plan: dict[str, Any]) -> dict[str, int]:
    """The bytes of each split in the recipe's own encoding."""
    [own] = [one for one in plan["encodings"] if one["recipe"]]
    assert own["total_bytes"] == sum(own["bytes"].values())
    found: dict[str, int] = own["bytes"]
    return found


def bytes_of_store(cache: Path) -> int:
    return bytes_on_disk(cache / LAYOUTS[read_manifest(cache).layout].store)


@pytest.fixture(scope="module")
def _planned(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    toy = new_toy(tmp_path_factory.mktemp("planned"))
    make_plan(str(toy.recipe), [], toy.folder, toy.folder)
    return toy


@pytest.fixture
def kept(_planned: Toy, tmp_path: Path) -> Toy:
    """A workspace in which a plan was made, and nothing else ran."""
    return Toy(shutil.copytree(_planned.folder, tmp_path / "kept"))


@pytest.mark.parametrize("layout", ["zarr", "hdf5"])
def test_rows_and_bytes_of_the_digits_are_those_of_the_caches_that_are_then_made(layout: str, tmp_path: Path) -> None:
    settings = [*QUICK, f"targets.layout={layout}", "targets.rows_per_block=100"]
    plan = make_plan("digits", settings, tmp_path, None)
    experiment = open_experiment("digits", settings, tmp_path, None)
    runner_of(experiment, report=lambda line: None).run("teacher-targets")
    assert list(plan.splits) == SPLITS
    for split, rows in plan.splits.items():
        cache = experiment.cache_folder(split)
        assert cache is not None
        assert (rows.rows, rows.new) == (read_manifest(cache).rows, read_manifest(cache).rows)
        assert plan.record.values["encodings"][0]["bytes"][split] == bytes_of_store(cache)


@pytest.mark.parametrize("layout", ["zarr", "hdf5"])
def test_the_bytes_of_every_encoding_are_those_of_its_caches(layout: str, tmp_path: Path, softcache: Command) -> None:
    toy = new_toy(tmp_path, with_teacher('outputs = { path = "wide.npy" }').replace('dtype = "float16"', "k = 8"))
    toy.recipe.write_text(toy.recipe.read_text().replace("k = 8", 'encoding = "top-k"\nk = 8'))
    names, labels = np.array([f"class {number}" for number in range(40)]), np.arange(200) % 40
    write_npz(toy.folder / "toy.npz", {**toy_arrays(), "y": labels, "class_names": names})
    logits = np.random.default_rng(0).normal(scale=2.0, size=(200, 40))
    np.save(toy.folder / "wide.npy", logits.astype(np.float32))
    plan = planned(toy, softcache, settings=[f"targets.layout={layout}"])
    assert len(plan["encodings"]) == 5
    for one in plan["encodings"]:
        parameters = one["parameters"]
        settings = [f"targets.layout={layout}"]
        if parameters["name"] == "dense":
            settings += ["targets.encoding=none", "targets.k=none", f"targets.dtype={parameters['dtype']}"]
        toy.run("teacher-targets", *settings)
        assert one["exact"]
        assert one["bytes"] == {split: bytes_of_store(toy.cache(split, *settings)) for split in SPLITS}


def test_compressed_bytes_are_at_most_what_is_said_and_about_what_is_estimated(
    tmp_path: Path, softcache: Command
) -> None:
    toy = toy_with(tmp_path, OUTPUTS)
    settings = ["targets.compression=zstd", "targets.rows_per_block=4096"]
    plan = planned(toy, softcache, settings=settings)
    assert not any(one["exact"] for one in plan["encodings"])
    toy.run("teacher-targets", *settings)
    for split, most in own_bytes(plan).items():
        stored = bytes_of_store(toy.cache(split, *settings))
        assert stored <= most
        assert plan["encodings"][0]["estimated_bytes"][split] == pytest.approx(stored, rel=0.1)
    said = softcache(*toy.arguments("plan", settings=settings))
    assert "bytes at most" in said.out
    assert "an estimate" in said.out


def test_a_plan_trains_no_teacher_and_leaves_nothing_but_its_record(kept: Toy) -> None:
    assert list((kept.folder / "caches").iterdir()) == []
    assert sorted(path.name for path in (kept.folder / "runs").iterdir()) == [".locks", ".memory", "plan"]
    [folder] = (kept.folder / "runs" / "plan").iterdir()
    assert [path.name for path in folder.iterdir()] == ["result.json"]


def test_a_second_plan_says_the_same_and_neither_imports_torch_nor_opens_a_store(kept: Toy) -> None:
    code = (
        "import sys; from stages import cli\n"
        f"sys.argv = {['softcache', *kept.arguments('plan', then=['--json'])]!r}\n"
        "try: cli.main()\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'sklearn', 'zarr', 'h5py'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    *printed, imported = ran.stdout.splitlines()
    assert imported == "[]"
    assert ran.stderr == ""
    [record] = list(kept.experiment().records.of_stage("plan"))
    plan = json.loads("\n".join(printed))
    assert plan["measured"] == {**record.provenance, "teacher": "untrained", "kept": True}
    assert plan["teacher"]["row_seconds"] == record.values["speed"]["row_seconds"]
    assert [(one["rows"], one["new"]) for one in plan["rows"].values()] == [(117, 117), (39, 39), (44, 44)]


def test_again_measures_anew_and_another_setting_is_another_plan(kept: Toy, softcache: Command) -> None:
    first, again = planned(kept, softcache), planned(kept, softcache, "--again")
    assert (first["measured"]["kept"], again["measured"]["kept"]) == (True, False)
    assert first["key"] == again["key"]
    assert own_bytes(first) == own_bytes(again)
    assert again["teacher"]["row_seconds"] != first["teacher"]["row_seconds"]
    other = planned(kept, softcache, settings=["targets.batch_size=64"])
    assert other["key"] != first["key"]
    assert not other["measured"]["kept"]


def test_the_plan_holds_when_the_teacher_is_trained_and_says_what_is_known_then(kept: Toy, softcache: Command) -> None:
    before = planned(kept, softcache)
    assert before["row_key"] is None
    assert before["teacher"]["seconds"]["1"] > 0
    kept.run("teacher-targets")
    after = planned(kept, softcache, "--per-hour", "3")
    assert after["measured"] == before["measured"]
    assert after["row_key"] == digest_of(kept.experiment().row_made_from())
    for split, rows in after["rows"].items():
        assert rows == {**before["rows"][split], "known": {kept.cache(split).name: rows["rows"]}, "new": 0}
    assert after["teacher"]["seconds"] == {"1": 0, "8": 0, "64": 0}
    assert after["teacher"]["price"] == {"1": 0, "8": 0, "64": 0}
    assert "No row is new: the teacher is not run." in softcache(*kept.arguments("plan")).out
    assert (after["student"] is None) == (before["student"] is None)
    shutil.rmtree(kept.cache("test"))
    assert [rows["new"] for rows in planned(kept, softcache)["rows"].values()] == [0, 0, 44]


def test_rows_that_another_cache_holds_are_known(fixed_teacher: Toy, softcache: Command) -> None:
    held = {split: fixed_teacher.cache(split).name for split in SPLITS}
    write_npz(fixed_teacher.folder / "more.npz", toy_arrays(260))
    settings = ['data.path="more.npz"']
    plan = planned(fixed_teacher, softcache, settings=settings)
    for split, rows in plan["rows"].items():
        earlier = len(fixed_teacher.experiment().datasets("student")[split])
        assert rows["known"] == {held[split]: earlier}
        assert rows["new"] == rows["rows"] - earlier
    new = [rows["new"] for rows in plan["rows"].values()]
    assert sum(new) == 60
    speed = plan["teacher"]
    expected = speed["startup_seconds"] + 2 * speed["cache_seconds"] + 60 * speed["row_seconds"]
    assert speed["seconds"]["1"] == pytest.approx(expected)


def test_the_price_is_that_of_all_devices(kept: Toy, softcache: Command) -> None:
    plan = planned(kept, softcache, "--per-hour", "36000")
    for devices in (1, 8, 64):
        seconds = plan["teacher"]["seconds"][str(devices)]
        assert plan["teacher"]["price"][str(devices)] == pytest.approx(10 * devices * seconds, abs=0.01)
    said = softcache(*kept.arguments("plan", then=["--per-hour", "36000"])).out
    assert f"{plan['teacher']['price']['8']:,.2f}" in said
    assert "at 36000 per device-hour" in said
    assert planned(kept, softcache)["teacher"]["per_hour"] is None
    assert "price" not in softcache(*kept.arguments("plan")).out


@pytest.mark.parametrize("given", ["-1", "nan", "inf", "dear"])
def test_what_is_no_price_is_a_mistake_of_usage(kept: Toy, softcache: Command, given: str) -> None:
    said = softcache(*kept.arguments("plan", then=["--per-hour", given]))
    assert said.code == 2
    assert "--per-hour" in said.err
    assert said.out == ""


@pytest.mark.parametrize("recipe", [WEIGHTS, PROGRAM, ESTIMATOR], ids=["weights", "program", "estimator"])
def test_an_imported_teacher_is_timed_as_it_is(recipe: str, tmp_path: Path, softcache: Command) -> None:
    toy = toy_with(tmp_path, recipe)
    plan = planned(toy, softcache)
    assert plan["measured"]["teacher"] == "itself"
    assert plan["row_key"] is not None
    assert plan["student"]["online_epoch_seconds"] > 0


def test_a_file_of_outputs_is_timed_as_an_import_and_has_no_loop_to_compare(tmp_path: Path, softcache: Command) -> None:
    toy = toy_with(tmp_path, OUTPUTS)
    plan = planned(toy, softcache)
    assert plan["measured"]["teacher"] == "outputs"
    assert list(plan["teacher"]["seconds"]) == ["1"]
    assert plan["student"]["online_epoch_seconds"] is plan["student"]["break_even_epochs"] is None
    said = softcache(*toy.arguments("plan")).out
    assert "The teacher is a file of outputs" in said
    assert "8 devices" not in said
    toy.run("teacher-targets")
    assert own_bytes(plan) == {split: bytes_of_store(toy.cache(split)) for split in SPLITS}


def test_a_pinned_program_that_is_gone_is_not_timed_but_its_student_is(tmp_path: Path, softcache: Command) -> None:
    toy = toy_with(tmp_path, PROGRAM)
    toy.run("teacher-targets")
    digest = read_manifest(toy.cache()).teacher["digest"]
    (toy.folder / "toy.pt2").unlink()
    plan = planned(toy, softcache, settings=[f"teacher.digest={digest}"])
    assert plan["measured"]["teacher"] == "noise"
    assert plan["teacher"] is None
    assert plan["student"]["cached_epoch_seconds"] > 0
    assert [rows["new"] for rows in plan["rows"].values()] == [0, 0, 0]
    said = softcache(*toy.arguments("plan", settings=[f"teacher.digest={digest}"])).out
    assert "The teacher was absent" in said


def test_a_recipe_that_names_its_cache_has_nothing_to_plan(finished: Toy, softcache: Command) -> None:
    said = softcache(*finished.arguments("plan", settings=[f"targets.use={finished.cache().name}"]))
    assert_one_paragraph(said, 1, "targets.use", "targets.use=none")


def test_more_kept_classes_than_there_are_is_refused_before_the_teacher_is_trained(
    fresh: Toy, softcache: Command
) -> None:
    settings = ["targets.dtype=none", "targets.encoding=top-k", "targets.k=3"]
    said = softcache(*fresh.arguments("plan", settings=settings))
    assert_one_paragraph(said, 1, "targets.k = 3", "3 classes")
    assert not (fresh.folder / "runs").exists()


def test_an_interrupted_plan_leaves_nothing(tmp_path: Path, softcache: Command) -> None:
    toy = toy_with(tmp_path, with_teacher('estimator = "users_stopped:load"'))
    stopped = (
        (toy.folder / "users_estimator.py")
        .read_text()
        .replace(
            "        distances =",
            "        if len(features) < 117:\n            raise KeyboardInterrupt\n        distances =",
        )
    )
    (toy.folder / "users_stopped.py").write_text(stopped)
    said = softcache(*toy.arguments("plan", settings=["targets.batch_size=100"]))
    assert said.code == 130
    assert "nothing is kept" in said.err
    assert list((toy.folder / "caches").iterdir()) == []
    assert not (toy.folder / "runs" / "plan").exists()


def test_what_a_killed_plan_left_is_removed_by_the_next(kept: Toy, softcache: Command) -> None:
    left = kept.folder / "caches" / f".plan-{planned(kept, softcache)['key'][:12]}"
    (left / "warm" / "half").mkdir(parents=True)
    planned(kept, softcache, "--again")
    assert list((kept.folder / "caches").iterdir()) == []


def test_the_data_are_loaded_once_for_all_plans(tmp_path: Path, softcache: Command) -> None:
    recipe = RECIPE.replace('kind = "npz"\npath = "toy.npz"', 'kind = "function"\nfunction = "users_data:load"')
    toy = new_toy(tmp_path, recipe)
    (toy.folder / "users_data.py").write_text(COUNTED)
    calls = toy.folder / "calls"
    first = planned(toy, softcache)
    assert len(calls.read_text()) == 1
    toy.run("teacher")
    loaded = len(calls.read_text())
    second = planned(toy, softcache)
    assert len(calls.read_text()) == loaded
    assert first["rows"] == second["rows"]
    assert second["row_key"] is not None


def test_a_student_of_some_classes_is_timed_on_their_samples(kept: Toy, softcache: Command) -> None:
    plan = planned(kept, softcache, settings=["student.classes=['cat', 'ant']"])
    labels = kept.experiment().datasets("student")["training"].labels()
    assert plan["student"]["samples"] == int((labels != 1).sum())
    assert plan["student"]["steps"] == plan["student"]["samples"] / 32
