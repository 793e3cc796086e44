"""The commands themselves: what they print where, what they write, and what their help says."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer

from pipeline.experiment import SPLITS
from pipeline.weights import load_weights
from stages import cli
from tests.stages.conftest import Command
from tests.stages.toy import Toy, toy_arrays, write_npz


def rows_of(path: Path) -> tuple[list[str], list[list[str]]]:
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    return header, rows


def test_predict_writes_one_row_of_probabilities_for_each_test_sample(finished: Toy, softcache: Command) -> None:
    output = finished.folder / "out.csv"
    accuracies = json.loads(finished.output("evaluate", name="metrics.json").read_text())["student"]["accuracy"][
        "values"
    ]
    dataset = finished.experiment().datasets("student")["test"]
    for seed in (0, 1):
        said = softcache(*finished.arguments("predict", then=["test"]), "-o", str(output), "--seed", str(seed))
        assert said.code == 0
        assert said.out == f"{len(dataset)} predictions by the student of seed {seed} -> {output}\n"
        header, rows = rows_of(output)
        assert header == ["index", "class", "probability", "p(ant)", "p(bee)", "p(cat)"]
        assert [int(row[0]) for row in rows] == list(range(len(dataset)))
        probabilities = np.array([[float(cell) for cell in row[3:]] for row in rows])
        np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=2e-6)
        best = probabilities.argmax(axis=1)
        assert [row[1] for row in rows] == [dataset.class_names[one] for one in best]
        assert [row[2] for row in rows] == [row[3 + one] for row, one in zip(rows, best, strict=True)]
        assert float((best == dataset.labels()).mean()) == accuracies[seed]


def test_predict_takes_new_samples_and_the_best_student_on_validation(finished: Toy, softcache: Command) -> None:
    source, output = finished.folder / "new.npz", finished.folder / "out.csv"
    write_npz(source, {"x": toy_arrays(samples=11, first=200)["x"]})
    said = softcache(*finished.arguments("predict", then=[str(source)]), "-o", str(output))
    scores = [record.values["validation"]["score"] for record in finished.records("student")]
    assert f"11 predictions by the student of seed {scores.index(max(scores))} -> " in said.out
    assert len(rows_of(output)[1]) == 11


def test_predict_trains_the_student_that_it_needs(fresh: Toy, softcache: Command) -> None:
    output = fresh.folder / "out.csv"
    said = softcache(*fresh.arguments("predict", then=["test"]), "-o", str(output))
    assert said.code == 0
    assert output.exists()
    assert fresh.run("student") == []


def test_results_go_to_stdout_and_progress_to_stderr(fresh: Toy, softcache: Command) -> None:
    said = softcache(*fresh.arguments("student"))
    assert [line.split(":")[0] for line in said.out.splitlines()] == [
        "teacher",
        "teacher-targets training",
        "teacher-targets validation",
        "teacher-targets test",
        "student seed 0",
        "student seed 1",
    ]
    begun = [line for line in said.err.splitlines() if "running, because " in line]
    assert [line.split(", because ")[0] for line in begun] == [
        f"{line.split(':')[0]}: running" for line in said.out.splitlines()
    ]
    forecasts = [line for line in said.err.splitlines() if line not in begun]
    assert [line.split(":")[0] for line in forecasts] == [f"teacher-targets {split}" for split in SPLITS]
    again = softcache(*fresh.arguments("student"))
    assert (again.out, again.err) == ("", "student: up to date; nothing ran\n")


def test_the_result_lines_name_device_precision_and_file(fresh: Toy, softcache: Command) -> None:
    said = softcache(*fresh.arguments("student", settings=["device=cpu"]))
    lines = dict(line.split(": ", 1) for line in said.out.splitlines())
    assert re.search(r"cpu with 1 thread, float32", lines["teacher-targets test"])
    assert Path(lines["student seed 1"].split(" -> ")[1]).is_file()


def test_evaluate_prints_only_json_when_it_is_asked_to(fresh: Toy, softcache: Command) -> None:
    said = softcache(*fresh.arguments("evaluate"), "--json")
    assert said.code == 0
    assert json.loads(said.out) == json.loads(fresh.output("evaluate", name="metrics.json").read_text())
    again = softcache(*fresh.arguments("evaluate"), "--json")
    assert again.out == said.out
    assert again.err == "evaluate: up to date; nothing ran\n"


def test_evaluate_prints_a_table_of_the_three_models(finished: Toy, softcache: Command) -> None:
    lines = softcache(*finished.arguments("evaluate")).out.splitlines()
    assert lines[0].split() == ["test", "split", "of", "toy", "teacher", "student", "label-only"]
    assert lines[1].startswith("accuracy, %")
    assert any(line.startswith("distillation ") and "2 seeds, paired" in line for line in lines)


def test_status_says_as_json_what_would_run_and_why_and_runs_nothing(finished: Toy, softcache: Command) -> None:
    before = sorted(finished.folder.glob("runs/*/*"))
    arguments = finished.arguments("status", "--json", settings=["student.distillation.coefficient=0.5"])
    found = {entry["stage"]: entry for entry in json.loads(softcache(*arguments).out)}
    assert {stage: entry["action"] for stage, entry in found.items()} == {
        "teacher": "up to date",
        "teacher-targets": "up to date",
        "student": "run",
        "baseline-search": "up to date",
        "baseline": "up to date",
        "evaluate": "run",
        "report": "run",
    }
    assert found["student"]["reason"] == "2 units: student.distillation.coefficient 0.9 -> 0.5"
    assert found["student"]["would_run_first"] == []
    assert found["evaluate"]["would_run_first"] == ["student"]
    assert [unit["label"] for unit in found["student"]["units"]] == ["seed 0", "seed 1"]
    assert sorted(finished.folder.glob("runs/*/*")) == before


def test_status_says_to_people_what_would_run_and_why(finished: Toy, softcache: Command) -> None:
    lines = softcache(*finished.arguments("status", settings=["targets.temperature=2.0"])).out.splitlines()
    assert len(lines) == 7 + len(SPLITS)
    assert re.match(r"teacher +up to date +result [0-9a-f]{12}$", lines[0])
    assert re.match(r"teacher-targets +would run +3 units: targets.temperature 4.0 -> 2.0$", lines[1])
    for split, line in zip(SPLITS, lines[2:], strict=False):
        assert re.match(rf" +{split}: (\d+) rows: \1 new; about [0-9.]+ m?s$", line)
    assert re.search(r"targets.temperature 4.0 -> 2.0.* \(first: teacher-targets\)$", lines[5])


def test_status_of_a_fresh_workspace_trains_nothing(fresh: Toy, softcache: Command) -> None:
    found = json.loads(softcache(*fresh.arguments("status", "--json")).out)
    assert [entry["action"] for entry in found] == ["run"] * 7
    assert found[2]["would_run_first"] == ["teacher", "teacher-targets"]
    assert not list(fresh.folder.glob("runs/*/*/model.safetensors"))


def test_caches_are_listed_with_their_rows(finished: Toy, softcache: Command) -> None:
    place = ("--workspace", str(finished.folder))
    listed = json.loads(softcache("caches", "list", "--json", *place).out)
    sizes = {split: len(data) for split, data in finished.experiment().datasets("student").items()}
    assert {cache["split"]: cache["rows"] for cache in listed} == sizes
    assert {cache["recipe"] for cache in listed} == {"toy"}
    assert {(cache["classes"], cache["temperature"], cache["encoding"]) for cache in listed} == {
        (3, 4.0, "dense float16")
    }
    header, *lines = softcache("caches", "list", *place).out.splitlines()
    assert header.split()[:4] == ["key", "recipe", "split", "rows"]
    assert [line.split()[0] for line in lines] == [cache["key"][:12] for cache in listed]


def test_a_cache_is_shown_by_key_by_its_start_and_by_folder(finished: Toy, softcache: Command) -> None:
    cache = finished.cache()
    place = ("--workspace", str(finished.folder))
    shown = [softcache("caches", "show", name, *place).out for name in (cache.name, cache.name[:8], str(cache))]
    assert shown[0] == shown[1] == shown[2]
    for mention in ("ant, bee, cat", finished.records("teacher")[0].values["digest"], "T = 4", "KL(exact || decoded)"):
        assert mention in shown[0]
    manifest = json.loads(softcache("caches", "show", cache.name, "--json", *place).out)
    assert manifest == json.loads((cache / "manifest.json").read_text())


def test_verified_caches_are_named_whole(finished: Toy, softcache: Command) -> None:
    place = ("--workspace", str(finished.folder))
    everything = json.loads(softcache("caches", "verify", "--json", *place).out)
    assert sorted(cache["key"] for cache in everything) == sorted(
        path.name for path in finished.folder.glob("caches/[!.]*")
    )
    said = softcache("caches", "verify", finished.cache().name, *place)
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(f"{finished.cache().name[:12]}: ")
    assert said.out.endswith("whole\n")


def test_a_workspace_without_caches_says_so(tmp_path: Path, softcache: Command) -> None:
    assert softcache("caches", "list", "--workspace", str(tmp_path)).out.startswith("no caches here")
    assert softcache("caches", "verify", "--workspace", str(tmp_path)).out.startswith("no caches here")
    assert json.loads(softcache("caches", "list", "--json", "--workspace", str(tmp_path)).out) == []


def test_caches_verify_names_every_cache_that_is_not_whole(finished: Toy, softcache: Command) -> None:
    lost, damaged = finished.cache("validation"), finished.cache("test")
    (lost / "manifest.json").unlink()
    block = damaged / "targets.zarr" / "soft_targets" / "c.0.0"
    block.write_bytes(b"\xff" + block.read_bytes()[1:])
    said = softcache("caches", "verify", "--workspace", str(finished.folder))
    assert said.code == 3
    assert f"{lost / 'manifest.json'} is missing" in said.err
    assert f"cache {damaged.name[:12]}: object soft_targets/c.0.0" in said.err


def test_recipe_explain_lists_every_field_with_its_default_and_meaning(softcache: Command) -> None:
    lines = softcache("recipe", "explain").out.splitlines()
    for line in (
        "[student.distillation]  The loss: (1 - λ) CE + λ T² KL (convex; Hinton et al. 2015), or CE + λ T² KL (additive).",
        "  student.distillation.coefficient: float, default 0.9",
        '  targets.layout: "zarr" | "hdf5", default "zarr"',
        "  name: str, required",
        "  student.labelled: int, default none",
    ):
        assert line in lines
    fields = [place for place, line in enumerate(lines) if re.match(r"  [a-z]", line)]
    assert len(fields) > 50
    assert all(re.match(r"      \S.{8,}", lines[place + 1]) for place in fields), "each has a meaning"


def commands(command: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Every (sub)command with its words; typer's own classes moved between its versions, hence Any."""
    inner = getattr(command, "commands", {})
    return [(path, command), *(found for name, sub in inner.items() for found in commands(sub, (*path, name)))]


COMMANDS = commands(typer.main.get_command(cli.app))


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[" ".join(path) or "softcache" for path, _ in COMMANDS])
def test_every_help_exits_0_and_gives_every_parameter_a_meaning(
    softcache: Command, path: tuple[str, ...], command: Any
) -> None:
    said = softcache(*path, "--help")
    assert (said.code, said.err) == (0, "")
    assert command.help
    for parameter in command.params:
        if parameter.name == "help":
            continue
        meaning = getattr(parameter, "help", None)
        assert meaning, f"{parameter.name} has no help"
        assert " ".join(meaning.split())[:40] in " ".join(said.out.split())


def test_every_command_of_the_design_is_there() -> None:
    names = {" ".join(path) for path, _ in COMMANDS}
    stages = {"teacher", "teacher-targets", "student", "baseline", "evaluate", "report", "predict", "status", "convert"}
    assert stages | {"caches list", "caches show", "caches verify", "recipe explain"} <= names


def test_a_pickled_state_dict_is_converted_to_the_same_tensors(tmp_path: Path, softcache: Command) -> None:
    state = torch.nn.Linear(3, 2).state_dict()
    torch.save(state, tmp_path / "model.pt")
    target = tmp_path / "model.safetensors"
    said = softcache("convert", str(tmp_path / "model.pt"), str(target))
    assert (said.code, said.out) == (0, f"2 tensors -> {target}\n")
    converted = load_weights(target)
    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[name], state[name]) for name in state)
