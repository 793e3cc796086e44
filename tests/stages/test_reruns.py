"""What a change reruns, and that `status` says so beforehand: exactly the stages whose results it may change."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import MismatchError
from pipeline.file_memory import sha256_of_file
from pipeline.records import Records
from pipeline.weights import load_weights, save_weights
from tests.stages.conftest import Command
from tests.stages.toy import Toy, toy_arrays, write_npz

STUDENTS = ["student seed 0", "student seed 1"]
CACHES = ["teacher-targets training", "teacher-targets validation", "teacher-targets test"]
BASELINES = ["baseline-search", "baseline seed 0", "baseline seed 1"]


def assert_foretold(toy: Toy, stage: str, settings: Sequence[str], runs: Sequence[str], reason: str = "") -> None:
    """`status` names the stages that run and the reason beforehand; they run; then nothing is left to run."""
    before = toy.status(stage, *settings)
    foretold = [*before["would_run_first"], *([stage] if before["action"] == "run" else [])]
    assert foretold == list(dict.fromkeys(name.split()[0] for name in runs))
    assert reason in before["reason"]
    assert toy.run(stage, *settings) == list(runs)
    assert toy.status(stage, *settings)["action"] == "up to date"
    assert toy.run(stage, *settings) == []


def test_a_fresh_workspace_runs_the_stages_that_a_student_needs_and_no_others(fresh: Toy) -> None:
    assert_foretold(fresh, "student", [], ["teacher", *CACHES, *STUDENTS], "after teacher")


def test_evaluate_after_student_runs_only_the_baseline_and_the_comparison(fresh: Toy) -> None:
    fresh.run("student")
    assert_foretold(fresh, "evaluate", [], [*BASELINES, "evaluate"], "no result yet")


def test_the_baseline_needs_neither_teacher_nor_cache(fresh: Toy) -> None:
    assert_foretold(fresh, "baseline", [], BASELINES, "no result yet")
    assert not (fresh.folder / "caches").exists()


def test_touching_every_file_runs_nothing(finished: Toy) -> None:
    for path in finished.folder.rglob("*"):
        os.utime(path, (1, 1))
    assert_foretold(finished, "evaluate", [], [])


def test_rewriting_every_file_with_the_same_bytes_runs_nothing(finished: Toy) -> None:
    for path in [path for path in finished.folder.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    assert_foretold(finished, "evaluate", [], [])


def test_a_comment_and_another_order_of_the_recipe_run_nothing(finished: Toy) -> None:
    tables = finished.recipe.read_text().split("\n\n")
    commented = [f"# written another way\n{table}  # said here" for table in [tables[0], *reversed(tables[1:])]]
    finished.recipe.write_text("\n\n".join(commented))
    assert_foretold(finished, "evaluate", [], [])


def test_the_name_of_the_recipe_runs_nothing(finished: Toy) -> None:
    assert_foretold(finished, "evaluate", ["name=other"], [])


@pytest.mark.parametrize(
    "setting",
    [
        "targets.layout=hdf5",
        "targets.rows_per_block=7",
        "targets.batch_size=3",
        "targets.certify=[4.0]",
        "device=cpu",
        "teacher.training.checkpoint_seconds=0.0",
        "student.training.checkpoint_seconds=0.0",
    ],
)
def test_a_setting_that_changes_no_result_runs_nothing(finished: Toy, setting: str) -> None:
    assert_foretold(finished, "evaluate", [setting], [])


def test_another_data_folder_with_the_same_content_runs_nothing(finished: Toy) -> None:
    (finished.folder / "elsewhere").mkdir()
    (finished.folder / "toy.npz").rename(finished.folder / "elsewhere" / "moved.npz")
    assert_foretold(finished, "evaluate", ["data.path=elsewhere/moved.npz"], [])


def test_the_coefficient_reruns_student_and_evaluate_only(finished: Toy) -> None:
    change = ["student.distillation.coefficient=0.5"]
    assert_foretold(
        finished, "evaluate", change, [*STUDENTS, "evaluate"], "student.distillation.coefficient 0.9 -> 0.5"
    )


def test_the_students_temperature_within_the_certificate_reruns_the_student_only(finished: Toy) -> None:
    change = ["student.distillation.temperature=2.0"]
    assert_foretold(finished, "student", change, STUDENTS, "student.distillation.temperature 4.0 -> 2.0")


def test_the_students_own_temperature_equal_to_the_caches_runs_nothing(finished: Toy) -> None:
    assert_foretold(finished, "evaluate", ["student.distillation.temperature=4.0"], [])


def test_the_caches_temperature_reruns_teacher_targets_and_student_but_not_the_teacher(finished: Toy) -> None:
    change = ["targets.temperature=2.0"]
    assert finished.status("teacher-targets", *change)["reason"] == "3 units: targets.temperature 4.0 -> 2.0"
    assert_foretold(finished, "student", change, [*CACHES, *STUDENTS], "targets.temperature 4.0 -> 2.0")


def test_the_caches_dtype_reruns_teacher_targets_and_student_but_not_the_teacher(finished: Toy) -> None:
    change = ["targets.dtype=float32"]
    assert finished.status("teacher-targets", *change)["reason"] == "3 units: targets.encoding.dtype float16 -> float32"
    assert_foretold(finished, "student", change, [*CACHES, *STUDENTS], "targets.encoding.dtype float16 -> float32")


def test_the_teachers_seed_reruns_teacher_targets_and_student_but_no_baseline(finished: Toy) -> None:
    change = ["teacher.seed=1"]
    assert finished.status("teacher", *change)["reason"] == "teacher.seed 0 -> 1"
    assert_foretold(finished, "evaluate", change, ["teacher", *CACHES, *STUDENTS, "evaluate"], "after teacher")


def test_the_students_width_reruns_student_and_baseline_but_no_target(finished: Toy) -> None:
    change = ["student.options.hidden=[5]"]
    runs = [*STUDENTS, *BASELINES, "evaluate"]
    assert_foretold(finished, "evaluate", change, runs, "student.options.hidden [4] -> [5]")


def test_a_seed_more_trains_only_that_seed(finished: Toy) -> None:
    change = ["student.seeds=[0, 1, 2]"]
    runs = ["student seed 2", "baseline seed 2", "evaluate"]
    assert_foretold(finished, "evaluate", change, runs, "seeds [0, 1] -> [0, 1, 2]")


def test_a_seed_fewer_reruns_the_comparison_alone(finished: Toy) -> None:
    assert_foretold(finished, "evaluate", ["student.seeds=[0]"], ["evaluate"], "seeds [0, 1] -> [0]")


def test_going_back_to_an_earlier_setting_runs_nothing(finished: Toy) -> None:
    finished.run("evaluate", "student.distillation.coefficient=0.5")
    finished.run("student", "targets.temperature=2.0")
    assert_foretold(finished, "evaluate", [], [])
    assert_foretold(finished, "evaluate", ["student.distillation.coefficient=0.5"], [])


@pytest.mark.parametrize(
    ("stage", "deleted", "runs"),
    [
        ("teacher", "runs/teacher/*/model.safetensors", ["teacher"]),
        ("teacher-targets", "caches/[!.]*", CACHES),
        ("student", "runs/student/*/model.safetensors", STUDENTS),
        ("baseline", "runs/baseline/*/model.safetensors", BASELINES[1:]),
        ("evaluate", "runs/evaluate/*/metrics.json", ["evaluate"]),
    ],
)
def test_the_requested_stages_missing_output_reruns_that_stage_only(
    finished: Toy, stage: str, deleted: str, runs: list[str]
) -> None:
    for path in list(finished.folder.glob(deleted)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert_foretold(finished, stage, [], runs, "missing")


def test_one_missing_output_reruns_its_unit_only(finished: Toy) -> None:
    finished.output("student", seed=1).unlink()
    assert_foretold(finished, "student", [], ["student seed 1"], "output model.safetensors is missing")
    shutil.rmtree(finished.cache("test"))
    assert_foretold(finished, "teacher-targets", [], ["teacher-targets test"], "its output is missing")


def test_a_changed_output_reruns_its_unit_only(finished: Toy) -> None:
    model = finished.output("student", seed=1)
    model.write_bytes(model.read_bytes()[:-1] + b"?")
    assert_foretold(finished, "student", [], ["student seed 1"], "output model.safetensors was changed")


@pytest.mark.parametrize("deleted", ["runs/teacher/*/model.safetensors", "caches/*/manifest.json"])
def test_a_missing_output_that_nothing_needs_runs_nothing(finished: Toy, deleted: str) -> None:
    for path in finished.folder.glob(deleted):
        path.unlink()
    assert_foretold(finished, "evaluate", [], [])


def test_a_teacher_deleted_after_the_seal_is_not_trained_for_another_coefficient(finished: Toy) -> None:
    shutil.rmtree(finished.folder / "runs" / "teacher")
    change = ["student.distillation.coefficient=0.5"]
    assert_foretold(
        finished, "evaluate", change, [*STUDENTS, "evaluate"], "student.distillation.coefficient 0.9 -> 0.5"
    )


def test_a_missing_cache_and_teacher_are_made_again_for_the_student_that_needs_them(finished: Toy) -> None:
    shutil.rmtree(finished.folder / "caches")
    finished.output("teacher").unlink()
    change = ["student.distillation.coefficient=0.5"]
    assert_foretold(finished, "student", change, ["teacher", *CACHES, *STUDENTS], "coefficient 0.9 -> 0.5")


@pytest.mark.parametrize("layout", ["zarr", "hdf5"])
def test_a_machine_with_the_caches_alone_trains_the_same_students_without_a_teacher(fresh: Toy, layout: str) -> None:
    settings = [f"targets.layout={layout}"]
    fresh.run("student", *settings)
    here = [fresh.output("student", seed).read_bytes() for seed in (0, 1)]
    elsewhere = Toy(fresh.folder.with_name("elsewhere"))
    shutil.copytree(fresh.folder / "caches", elsewhere.folder / "caches")
    for name in ("toy.toml", "toy.npz"):
        shutil.copy(fresh.folder / name, elsewhere.folder / name)
    assert_foretold(elsewhere, "student", settings, STUDENTS, "no result yet")
    assert [elsewhere.output("student", seed).read_bytes() for seed in (0, 1)] == here
    assert not (elsewhere.folder / "runs" / "teacher").exists()


def test_deleting_all_runs_trains_no_teacher_while_the_caches_are_there(finished: Toy) -> None:
    shutil.rmtree(finished.folder / "runs")
    assert_foretold(finished, "evaluate", [], [*STUDENTS, *BASELINES, "evaluate"], "no result yet")


def test_a_changed_dataset_says_so_and_trains_the_teacher_of_the_same_data_again(finished: Toy) -> None:
    write_npz(finished.folder / "toy.npz", toy_arrays(samples=240))
    before = finished.status("teacher")
    assert re.search(r"teacher\.data\.training\.samples 1\d\d -> 1\d\d", before["reason"]), before["reason"]
    runs = ["teacher", *CACHES, *STUDENTS, *BASELINES, "evaluate"]
    assert_foretold(finished, "evaluate", [], runs, "after teacher")


def test_a_pinned_teacher_is_never_trained_again(finished: Toy) -> None:
    digest = finished.records("teacher")[0].values["digest"]
    pinned = [f"teacher.digest={digest}", "teacher.seed=5"]
    assert_foretold(finished, "evaluate", pinned, [])
    finished.output("teacher").unlink()
    assert_foretold(finished, "student", [*pinned, "student.distillation.coefficient=0.5"], STUDENTS)


def test_a_pinned_teacher_serves_a_grown_dataset(finished: Toy) -> None:
    digest = finished.records("teacher")[0].values["digest"]
    write_npz(finished.folder / "toy.npz", toy_arrays(samples=240))
    assert_foretold(finished, "student", [f"teacher.digest={digest}"], [*CACHES, *STUDENTS])


def test_a_pinned_teacher_never_runs_on_samples_of_another_shape(finished: Toy) -> None:
    digest = finished.records("teacher")[0].values["digest"]
    arrays = toy_arrays()
    write_npz(finished.folder / "toy.npz", {**arrays, "x": np.tile(arrays["x"], 2)})
    with pytest.raises(MismatchError, match=r"takes samples of shape \[6\], but those of \[data\] have \[12\]"):
        finished.run("student", f"teacher.digest={digest}")


def test_a_comparison_is_made_anew_for_a_cache_with_another_certificate_but_not_for_one_that_is_gone(
    finished: Toy,
) -> None:
    test = finished.cache("test")
    shutil.rmtree(test)
    assert finished.run("evaluate") == []
    finished.run("teacher-targets", "targets.certify=[2.0]")
    assert "certificate" in finished.status("evaluate")["reason"]
    assert finished.run("evaluate") == ["evaluate"]


def test_status_says_how_to_keep_the_teacher_when_the_data_grew(finished: Toy) -> None:
    digest = finished.records("teacher")[0].values["digest"]
    write_npz(finished.folder / "toy.npz", toy_arrays(samples=240))
    assert finished.status("teacher")["reason"].endswith(f"--set teacher.digest={digest})")
    assert "teacher.digest" not in finished.status("teacher", f"teacher.digest={digest}")["reason"]


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("data.normalise={ mean = [1.0], std = [1.0] }", "teacher.normalise.mean [0.0] -> [1.0]"),
        ("teacher.options={ hidden = [17] }", "teacher.options.hidden [16] -> [17]"),
    ],
)
def test_a_pinned_teacher_is_refused_inputs_and_networks_that_it_was_not_trained_with(
    finished: Toy, softcache: Command, setting: str, named: str
) -> None:
    digest = finished.records("teacher")[0].values["digest"]
    said = softcache(*finished.arguments("student", settings=[f"teacher.digest={digest}", setting]))
    assert said.code == 3
    assert digest in said.err
    assert named in said.err


def test_a_pinned_teacher_that_is_nowhere_is_an_error_that_names_it(finished: Toy, softcache: Command) -> None:
    settings = [f"teacher.digest={'0' * 64}"]
    said = softcache(*finished.arguments("student", settings=settings))
    assert said.code == 1
    assert "0" * 64 in said.err
    assert "no teacher of runs/ and no cache of caches/ has it" in said.err


def test_a_pinned_teacher_without_weights_is_not_replaced_by_another(finished: Toy, softcache: Command) -> None:
    digest = finished.records("teacher")[0].values["digest"]
    finished.output("teacher").unlink()
    settings = [f"teacher.digest={digest}", "targets.temperature=2.0"]
    said = softcache(*finished.arguments("student", settings=settings))
    assert said.code == 1
    assert digest in said.err
    assert "Put them there, or remove the pin" in said.err


def test_a_recipe_that_names_its_cache_runs_no_teacher_whatever_the_recipe_says_of_it(finished: Toy) -> None:
    cache = finished.cache()
    students = [record.key for record in finished.records("student")]
    shutil.rmtree(finished.folder / "runs" / "teacher")
    for name in (cache.name, cache.name[:10], f"caches/{cache.name}", str(cache)):
        settings = [f"targets.use={name}", "teacher.seed=9", "targets.temperature=1.0"]
        assert_foretold(finished, "student", settings, [])
        assert [record.key for record in finished.records("student", *settings)] == students
    settings = [f"targets.use={cache.name}", "teacher.seed=9", "student.distillation.coefficient=0.5"]
    assert_foretold(finished, "evaluate", settings, [*STUDENTS, "evaluate"], "coefficient 0.9 -> 0.5")


def test_the_cache_that_a_recipe_names_may_lie_outside_the_workspace(finished: Toy, tmp_path: Path) -> None:
    shared = tmp_path / "a team's caches" / "digits"
    shutil.copytree(finished.cache(), shared)
    shutil.rmtree(finished.folder / "caches")
    shutil.rmtree(finished.folder / "runs")
    assert_foretold(finished, "student", [f"targets.use={shared}"], STUDENTS, "no result yet")


def test_changed_source_is_warned_of_and_reruns_nothing(finished: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        path = finished.output("student", seed, name="result.json")
        record = json.loads(path.read_text())
        record["provenance"]["sources_sha256"] = "0" * 64
        path.write_text(json.dumps(record))
    capsys.readouterr()
    assert finished.run("student") == []
    [warning] = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: the source of stage student changed since result ")
    assert "the result is used as it is" in warning


def test_unchanged_source_is_not_warned_of(finished: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert finished.run("evaluate") == []
    assert capsys.readouterr().err == ""


def test_a_users_changed_model_is_warned_of_until_its_version_is_raised(
    fresh: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    module = fresh.folder / "users_student.py"
    source = "from torch import nn\n\n\ndef build(shape, classes):\n    return nn.Linear(6, classes)\n"
    module.write_text(source)
    settings = ["student.model=users_student:build", "student.options={}", "student.seeds=[0]"]
    fresh.run("student", *settings)
    capsys.readouterr()
    module.write_text(f"# a remark\n{source}")
    assert fresh.run("student", *settings) == []
    assert capsys.readouterr().err == ""
    module.write_text(f"{source}\n\nANOTHER = 1\n")
    assert fresh.run("student", *settings) == []
    assert "warning: the source of stage student changed" in capsys.readouterr().err
    assert_foretold(fresh, "student", [*settings, "student.version=2"], ["student seed 0"], "student.version 1 -> 2")


def test_a_damaged_record_counts_as_none(finished: Toy) -> None:
    finished.output("student", name="result.json").write_text("{")
    assert_foretold(finished, "student", [], ["student seed 0"])


def test_a_damaged_memory_of_files_costs_time_and_nothing_else(finished: Toy) -> None:
    for path in (finished.folder / "runs" / ".memory").iterdir():
        path.write_bytes(b"\x00 no json")
    assert_foretold(finished, "evaluate", [], [])


def test_a_deleted_memory_of_files_runs_nothing(finished: Toy) -> None:
    shutil.rmtree(finished.folder / "runs" / ".memory")
    assert_foretold(finished, "evaluate", [], [])


def test_a_comparison_is_made_again_when_a_student_of_the_same_key_has_other_weights(finished: Toy) -> None:
    """Another device gives other last bits under the same key."""
    record = finished.records("student")[0]
    weights = finished.output("student")
    state = {name: 2 * tensor for name, tensor in load_weights(weights).items()}
    save_weights(weights, state)
    runs = finished.folder / "runs"
    Records(runs).write(replace(record, outputs={weights.name: sha256_of_file(weights)}))
    assert_foretold(finished, "evaluate", [], ["evaluate"], "the weights of a student or baseline changed")


def test_a_student_without_any_label_is_compared_without_a_baseline(fresh: Toy, softcache: Command) -> None:
    settings = ["student.labelled=0", "student.distillation.coefficient=1.0"]
    said = softcache(*fresh.arguments("evaluate", settings=settings))
    assert said.code == 0, said.err
    assert "gain of distillation: not measured" in said.out
    assert not (fresh.folder / "runs" / "baseline").exists()
    said = softcache(*fresh.arguments("baseline", settings=settings))
    assert said.code == 0
    assert "baseline: this recipe has none" in said.err


def test_a_default_option_written_out_runs_nothing(finished: Toy) -> None:
    assert_foretold(finished, "evaluate", ["student.options={ hidden = [4], dropout = 0.0 }"], [])


def test_planning_reads_each_record_once(fresh: Toy) -> None:
    seeds = "student.seeds=[0, 1, 2, 3, 4, 5, 6, 7]"
    fresh.run("student", seeds)
    opened: list[str] = []
    runner = fresh.runner(seeds, "student.distillation.coefficient=0.5")

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event == "open" and str(arguments[0]).endswith("result.json"):
            opened.append(str(arguments[0]))

    watching = True
    sys.addaudithook(audit)  # cannot be taken away again, so it is told to sleep
    runner.plan("student")
    runner.plan("student")
    watching = False
    assert len(opened) == len(set(opened)) > 0


def test_a_repacked_cache_serves_the_same_students_and_no_teacher_runs(finished: Toy, softcache: Command) -> None:
    place = ("--workspace", str(finished.folder))
    said = softcache("caches", "repack", finished.cache().name[:10], "--layout", "hdf5", *place)
    assert said.out == f"{finished.cache().name[:12]}: now hdf5, compression none -> {finished.cache()}\n"
    assert (finished.cache() / "targets.h5").is_file()
    finished.output("teacher").unlink()
    assert_foretold(finished, "evaluate", [], [])
    assert_foretold(finished, "student", ["student.distillation.coefficient=0.5"], STUDENTS)
    assert softcache("caches", "verify", *place).code == 0
