"""A teacher that was made elsewhere takes the place of a trained one: weights, a program, an estimator, outputs."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.weights import load_weights, save_weights
from tests.stages.conftest import Command
from tests.stages.imports import (
    ESTIMATOR,
    OUTPUTS,
    PROGRAM,
    WEIGHTS,
    cached,
    centres,
    logits_of,
    network,
    of_split,
    toy_with,
    with_teacher,
)
from tests.stages.test_live_teacher import HEAVY, modules_after
from tests.stages.test_mistakes import assert_one_paragraph
from tests.stages.test_reruns import STUDENTS
from tests.stages.toy import Toy, toy_arrays, write_npz
from tests.teachers.source import write_torchscript

FORMS = {"weights": WEIGHTS, "program": PROGRAM, "estimator": ESTIMATOR, "outputs": OUTPUTS}
FILE = {"weights": "toy.safetensors", "program": "toy.pt2", "estimator": "centres.npy", "outputs": "toy.npy"}
SAID = {
    "weights": "imported weights toy.safetensors",
    "program": "imported program toy.pt2",
    "estimator": "estimator users_estimator:load",
    "outputs": "imported outputs toy.npy",
}
CACHES = ["teacher-targets training", "teacher-targets validation", "teacher-targets test"]


def soft_targets(form: str, temperature: float) -> np.ndarray:
    """What the teacher of a form says of all toy samples (200, 3)."""
    logits = torch.from_numpy(logits_of(network())).double()
    if form == "estimator":
        samples = toy_arrays()["x"].astype(float)
        logits = -torch.from_numpy(((samples[:, None] - centres()) ** 2).sum(axis=2))
    return torch.softmax(logits / temperature, dim=1).numpy()


@pytest.fixture(scope="module")
def _imported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Toy]:
    """A workspace of each form, in which the students were trained and evaluated."""
    made, path = {}, list(sys.path)
    for form, recipe in FORMS.items():
        made[form] = toy_with(tmp_path_factory.mktemp(form), recipe)
        made[form].run("evaluate")
    sys.path[:] = path
    sys.modules.pop("users_estimator", None)
    return made


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def imported(form: str, _imported: dict[str, Toy], tmp_path: Path) -> Toy:
    return Toy(shutil.copytree(_imported[form].folder, tmp_path / "imported"))


def test_the_caches_hold_what_the_source_says(form: str, imported: Toy) -> None:
    for split in ("training", "validation", "test"):
        for temperature in (2.0, 4.0):
            wanted = of_split(imported, split, soft_targets(form, temperature))
            np.testing.assert_allclose(cached(imported, split, temperature), wanted, atol=1e-3)


def test_nothing_is_trained_for_it_and_a_second_run_imports_no_heavy_library(form: str, imported: Toy) -> None:
    assert not (imported.folder / "runs" / "teacher").exists()
    assert imported.run("student") == []
    imported_modules = modules_after(imported)
    assert imported_modules & {*HEAVY, "pyarrow"} == set()
    assert "users_estimator" not in imported_modules


def test_teacher_and_status_say_that_there_is_nothing_to_train(form: str, imported: Toy, softcache: Command) -> None:
    digest = imported.experiment().teacher_record().values["digest"]
    said = softcache(*imported.arguments("teacher"))
    assert (said.code, said.out) == (0, "")
    assert said.err == f"teacher: nothing to train: {SAID[form]} (digest {digest[:12]}); nothing ran\n"
    entry = imported.status("teacher")
    assert (entry["action"], entry["units"]) == ("up to date", [])
    assert entry["reason"] == f"nothing to train: {SAID[form]} (digest {digest[:12]})"


def test_the_manifest_says_how_it_was_imported(form: str, imported: Toy, softcache: Command) -> None:
    manifest = json.loads((imported.cache() / "manifest.json").read_text())
    assert manifest["provenance"]["teacher_form"] == form
    assert manifest["teacher"]["made_from"]["teacher"]["form"] == form
    assert manifest["row_made_from"]["teacher"].get("form") == (None if form == "weights" else form)
    shown = softcache("caches", "show", imported.cache().name, "--workspace", str(imported.folder)).out
    assert f"imported as  {form}: " in shown


def test_evaluate_measures_what_can_be_measured(form: str, imported: Toy) -> None:
    metrics = json.loads(imported.output("evaluate", name="metrics.json").read_text())
    assert metrics["teacher"]["accuracy"] > 0.8
    if form in ("weights", "program"):
        assert metrics["teacher"]["parameters"] == 6 * 16 + 16 + 16 * 3 + 3
        assert metrics["teacher"]["latency_seconds"] > 0
    else:
        assert metrics["teacher"]["parameters"] is None
        expected = "the teacher is an estimator" if form == "estimator" else "the teacher is imported outputs"
        assert metrics["teacher"]["size_not_measured"] == expected
    if form == "outputs":
        assert metrics["saving"] == "not measured: the teacher is imported outputs"
    else:
        assert metrics["saving"]["online_epoch_seconds"] > 0


def test_another_teacher_makes_other_caches_and_going_back_finds_the_first(form: str, imported: Toy) -> None:
    path = imported.folder / FILE[form]
    before = path.read_bytes()
    if form == "program":
        path.write_bytes(before + b"\0")  # digested as a file
        assert imported.status("teacher-targets")["action"] == "run"
    else:
        if form == "weights":
            state = load_weights(path)
            save_weights(path, {name: 0.5 * tensor for name, tensor in state.items()})
        else:
            np.save(path, 0.5 * np.load(path))
        assert imported.run("student") == [*CACHES, *STUDENTS]
    path.write_bytes(before)
    assert imported.run("student") == []


def test_a_touched_or_moved_source_runs_nothing(form: str, imported: Toy, tmp_path: Path) -> None:
    (imported.folder / FILE[form]).touch()
    assert imported.run("student") == []
    moved = Toy(imported.folder.rename(tmp_path / "moved"))
    assert moved.run("student") == []


def test_a_pin_uses_the_caches_where_the_source_is_gone(form: str, imported: Toy, softcache: Command) -> None:
    digest = imported.experiment().teacher_record().values["digest"]
    (imported.folder / FILE[form]).unlink()
    said = softcache(*imported.arguments("student"))
    assert_one_paragraph(said, 1, FILE[form], "no such file", "teacher.digest", digest)
    settings = [f"teacher.digest={digest}", "student.distillation.coefficient=0.5"]
    assert imported.run("student", *settings) == STUDENTS
    assert imported.run("evaluate", *settings)[-1] == "evaluate"
    metrics = json.loads(imported.output("evaluate", 0, *settings, name="metrics.json").read_text())
    absent = "the teacher is imported outputs" if form == "outputs" else "teacher absent"
    assert metrics["saving"] == f"not measured: {absent}"


def test_a_pin_of_another_teacher_is_refused_with_both_digests(form: str, imported: Toy, softcache: Command) -> None:
    digest = imported.experiment().teacher_record().values["digest"]
    said = softcache(*imported.arguments("student", settings=[f"teacher.digest={'0' * 64}"]))
    assert_one_paragraph(said, 3, "0" * 64, digest, SAID[form])


def test_a_source_that_is_nowhere_is_named(form: str, tmp_path: Path, softcache: Command) -> None:
    toy = toy_with(tmp_path / "toy", FORMS[form])
    (toy.folder / FILE[form]).unlink()
    for stage in ("teacher", "student", "status"):
        said = softcache(*toy.arguments(stage))
        assert_one_paragraph(said, 1, FILE[form], "no such file", "no cache here was made by such a teacher")


def test_imported_weights_find_the_caches_of_the_same_teacher_trained_here(finished: Toy) -> None:
    shutil.copy(finished.output("teacher"), finished.folder / "toy.safetensors")
    finished.recipe.write_text(WEIGHTS)
    assert finished.run("student") == []
    assert finished.run("student", "targets.dtype=float32") == [*CACHES, *STUDENTS]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_half_precision_are_imported_as_what_they_are(tmp_path: Path, dtype: torch.dtype) -> None:
    toy = toy_with(tmp_path / "toy", WEIGHTS)
    before = cached_after_import(toy)
    state = load_weights(toy.folder / "toy.safetensors")
    save_weights(toy.folder / "toy.safetensors", {name: tensor.to(dtype) for name, tensor in state.items()})
    assert toy.status("teacher-targets")["action"] == "run"
    np.testing.assert_allclose(cached_after_import(toy), before, atol=2e-2)


def cached_after_import(toy: Toy) -> np.ndarray:
    toy.run("teacher-targets")
    return cached(toy, "test")


def test_an_imported_teacher_may_have_other_classes_in_another_order(tmp_path: Path, softcache: Command) -> None:
    toy = toy_with(tmp_path / "toy", OUTPUTS)
    logits = np.load(toy.folder / "toy.npy")
    np.save(toy.folder / "toy.npy", np.concatenate([np.full((200, 1), -9.0), logits[:, ::-1]], axis=1))
    named = 'teacher.class_names=["dog", "cat", "bee", "ant"]'
    said = softcache(*toy.arguments("student", settings=[named]))
    assert_one_paragraph(said, 3, "teacher.class_names", "dog, cat, bee, ant", "ant, bee, cat", "student.classes")
    settings = [named, 'student.classes=["ant", "bee", "cat"]']
    assert toy.run("student", *settings) == [*CACHES, *STUDENTS]
    found = cached(toy, "test", 4.0, *settings)[:, [3, 2, 1]]
    wanted = of_split(toy, "test", soft_targets("outputs", 4.0))
    np.testing.assert_allclose(found / found.sum(axis=1, keepdims=True), wanted, atol=1e-3)
    said = softcache(*toy.arguments("student", settings=['teacher.class_names=["dog", "cat", "bee", "cow"]']))
    assert_one_paragraph(said, 3, "The teacher knows no 'ant'")


def test_a_teacher_may_have_a_normalisation_of_its_own(tmp_path: Path) -> None:
    toy = toy_with(tmp_path / "toy", WEIGHTS + '[teacher.data]\nkind = "npz"\npath = "toy.npz"\n')
    toy.run("teacher-targets", "data.normalise={ mean = [3.0], std = [2.0] }")
    settings = ["data.normalise={ mean = [3.0], std = [2.0] }"]
    wanted = of_split(toy, "test", soft_targets("weights", 4.0))
    np.testing.assert_allclose(cached(toy, "test", 4.0, *settings), wanted, atol=1e-3)


def test_the_students_normalisation_does_not_change_imported_outputs(tmp_path: Path) -> None:
    toy = toy_with(tmp_path / "toy", OUTPUTS)
    toy.run("teacher-targets")
    assert toy.run("teacher-targets", "data.normalise={ mean = [3.0], std = [2.0] }") == []
    assert toy.experiment().row_made_from()["preprocessing"] == "imported"


def test_what_an_imported_network_sees_is_in_its_key(tmp_path: Path) -> None:
    toy = toy_with(tmp_path / "toy", WEIGHTS)
    before, after = (toy.experiment(*s) for s in ([], ["data.normalise={ mean = [3.0], std = [2.0] }"]))
    assert before.row_made_from()["teacher"] == after.row_made_from()["teacher"]
    assert before.row_made_from()["preprocessing"] != after.row_made_from()["preprocessing"]
    assert before.teacher_record().key != after.teacher_record().key


def module(toy: Toy, source: str) -> None:
    (toy.folder / "users_estimator.py").write_text(source + "\n\nload.version = 1\nload.files = []\n")


MISTAKES = [
    (
        WEIGHTS,
        {"teacher.options": "{ hidden = [8] }"},
        ("toy.safetensors", "does not fit", "1.bias", "(16,)", "(8,)"),
    ),
    (WEIGHTS, {"teacher.weights": "none"}, ("no training, weights, estimator or outputs given", "exactly one of")),
    (WEIGHTS, {"teacher.seed": "3"}, ("weights has no use for seed = 3",)),
    (WEIGHTS, {"teacher.weights": "toy.npz"}, ("toy.npz", "pickle", "softcache convert")),
    (PROGRAM, {"teacher.trusted": "false"}, ("toy.pt2", "can run any code", "trusted = true")),
    (PROGRAM, {"teacher.model": "mlp"}, ("holds its own network; leave model out",)),
    (PROGRAM, {"teacher.weights": "toy.pt"}, ("needs model", "TorchScript", ".pt2")),
    (ESTIMATOR, {"targets.precision": "bfloat16"}, ("targets.precision = 'bfloat16' has no meaning", "estimator")),
    (ESTIMATOR, {"teacher.estimator": "users_none:load"}, ("there is no module 'users_none'",)),
    (ESTIMATOR, {"teacher.estimator": "users_estimator"}, ("'package.module:function' is needed",)),
    (ESTIMATOR, {"teacher.estimator": "users_estimator:other"}, ("version = None", "other.version = 1")),
    (ESTIMATOR, {"teacher.outputs.path": "toy.npy"}, ("estimator and outputs given", "exactly one of")),
    (OUTPUTS, {"teacher.outputs.temperature": "3.0"}, ("count as temperature 1", "temperature = 3", "probabilities")),
    (OUTPUTS, {"teacher.outputs.temperature": "0.0"}, ("teacher.outputs.temperature", "greater than 0")),
    (OUTPUTS, {"teacher.outputs.values": "scores"}, ("teacher.outputs.values", "'log-probabilities'")),
]


@pytest.mark.parametrize(
    ("recipe", "changed", "mentions"), MISTAKES, ids=[" ".join(m[1]) + " " + m[2][0] for m in MISTAKES]
)
def test_a_mistake_in_the_recipe_is_told_in_one_paragraph(
    tmp_path: Path, softcache: Command, recipe: str, changed: dict[str, str], mentions: tuple[str, ...]
) -> None:
    toy = toy_with(tmp_path / "toy", recipe)
    said = softcache(*toy.arguments("student", settings=[f"{key}={value}" for key, value in changed.items()]))
    assert_one_paragraph(said, 1, *mentions)
    assert list((toy.folder / "caches").glob("*/manifest.json")) == []


@pytest.mark.parametrize(
    ("source", "mentions"),
    [
        ("def load(folder):\n    return 3\n", ("returned a int without predict_proba and classes_",)),
        ("import nowhere_at_all\n\n\ndef load(folder):\n    return 3\n", ("cannot be imported", "nowhere_at_all")),
        ("def load(folder):\n    return 1 / 0\n", ("ZeroDivisionError", "users_estimator.py")),
    ],
)
def test_an_estimator_function_that_fails_is_named(
    tmp_path: Path, softcache: Command, source: str, mentions: tuple[str, ...]
) -> None:
    toy = toy_with(tmp_path / "toy", ESTIMATOR)
    module(toy, source)
    assert_one_paragraph(softcache(*toy.arguments("student")), 1, *mentions)


def test_torchscript_weights_are_refused_before_anything_is_opened(tmp_path: Path, softcache: Command) -> None:
    toy = toy_with(tmp_path / "toy", WEIGHTS)
    write_torchscript(toy.folder / "toy.safetensors", network(), torch.zeros(2, 6))
    for stage in ("teacher", "student"):
        assert_one_paragraph(softcache(*toy.arguments(stage)), 1, "toy.safetensors is TorchScript, which is refused")


def test_a_trained_teacher_has_no_use_for_what_is_of_an_imported_one(fresh: Toy, softcache: Command) -> None:
    said = softcache(*fresh.arguments("student", settings=['teacher.class_names=["ant", "bee"]']))
    assert_one_paragraph(said, 1, "training has no use for class_names")
    write_npz(fresh.folder / "toy.npz", toy_arrays())
    fresh.recipe.write_text(with_teacher('model = "mlp"'))
    assert_one_paragraph(softcache(*fresh.arguments("student")), 1, "no training, weights, estimator or outputs given")
