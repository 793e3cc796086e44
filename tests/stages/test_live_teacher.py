"""A cache is as good as the live teacher, and takes its place: the loss is the same and the teacher is never met."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import Literal

import numpy as np
import pytest
import torch

from pipeline.batches import Preprocess
from pipeline.fitting import build_for
from pipeline.losses import distillation_loss
from pipeline.student_data import learning_set
from pipeline.student_targets import open_for_student
from tests.stages.live import live_soft_targets
from tests.stages.test_reruns import STUDENTS
from tests.stages.toy import ENVIRONMENT, RECIPE, Toy

TOLERANCE = {"float16": 1e-3, "float32": 1e-6}
# float16 is for T of 2 and more; at its stored T = 4 and below, where the certificate is finite.
CASES = [("float32", T) for T in (1.0, 2.0, 4.0, 8.0)] + [("float16", T) for T in (2.0, 4.0)]


@pytest.mark.parametrize("form", ["convex", "additive"])
@pytest.mark.parametrize(("dtype", "temperature"), CASES)
def test_loss_from_cache_equals_loss_with_live_teacher(
    finished: Toy, dtype: str, temperature: float, form: Literal["convex", "additive"]
) -> None:
    settings = [f"targets.dtype={dtype}", f"student.distillation.temperature={temperature}"]
    finished.run("teacher-targets", *settings)
    experiment = finished.experiment(*settings)
    student = experiment.recipe.student
    learn = learning_set(experiment.datasets("student")["training"]).within_budget(student.labelled, student.label_seed)
    targets = open_for_student(experiment, learn)
    live = live_soft_targets(finished, learn, temperature, *settings)
    model = build_for(student, learn, seed=3).eval().requires_grad_(False)
    preprocess = Preprocess(experiment.recipe.data.normalise, learn.dataset.sample_shape)
    generator = np.random.default_rng(0)
    for _ in range(8):
        positions = generator.choice(len(learn), size=32, replace=False)
        logits = model(preprocess(learn.dataset.samples(learn.indices[positions])))
        labels = torch.from_numpy(learn.labels[positions])
        from_cache, with_teacher = (
            float(distillation_loss(logits, labels, soft, coefficient=0.9, temperature=temperature, form=form))
            for soft in (targets.soft_targets(positions), live[torch.from_numpy(positions)])
        )
        assert abs(from_cache - with_teacher) <= TOLERANCE[dtype] * max(1.0, with_teacher)


USERS_TEACHER = """\
from torch import nn


def build(sample_shape, class_count, width):
    return nn.Sequential(nn.Flatten(), nn.Linear(6, width), nn.ReLU(), nn.Linear(width, class_count))
"""

SETTINGS = ["teacher.model=users_teacher:build", "teacher.options={ width = 12 }", "student.seeds=[0]"]

MODULES_AT_EXIT = """\
import json, sys
from stages.cli import main
try:
    main()
finally:
    print(json.dumps(sorted(sys.modules)))
"""


def modules_after(toy: Toy, *settings: str) -> set[str]:
    """The modules that a process has imported when `softcache student` has succeeded."""
    ended = subprocess.run(
        [sys.executable, "-c", MODULES_AT_EXIT, *toy.arguments("student", settings=settings)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        cwd=toy.folder,
        check=True,
    )
    return set(json.loads(ended.stdout.splitlines()[-1]))


def test_student_stage_never_builds_the_teacher(fresh: Toy) -> None:
    module = fresh.folder / "users_teacher.py"
    module.write_text(USERS_TEACHER)
    fresh.run("teacher-targets", *SETTINGS)
    imported = modules_after(fresh, *SETTINGS)
    assert "torch" in imported
    assert "users_teacher" not in imported


def test_the_student_is_trained_where_the_teachers_folder_and_module_are_gone(
    fresh: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = fresh.folder / "users_teacher.py"
    module.write_text(USERS_TEACHER)
    fresh.run("teacher-targets", *SETTINGS)
    module.unlink()
    monkeypatch.delitem(sys.modules, "users_teacher")
    shutil.rmtree(fresh.folder / "__pycache__", ignore_errors=True)
    shutil.rmtree(fresh.folder / "runs" / "teacher")
    assert fresh.run("student", *SETTINGS) == STUDENTS[:1]
    assert fresh.run("student", *SETTINGS, "student.distillation.coefficient=0.5") == STUDENTS[:1]
    assert "users_teacher" not in modules_after(fresh, *SETTINGS, "student.distillation.coefficient=0.25")


def test_evaluate_says_that_the_teacher_is_absent_instead_of_running_it(finished: Toy) -> None:
    shutil.rmtree(finished.folder / "runs" / "teacher")
    settings = ["student.distillation.coefficient=0.5"]
    finished.run("evaluate", *settings)
    metrics = json.loads(finished.output("evaluate", 0, *settings, name="metrics.json").read_text())
    assert metrics["saving"] == "not measured: teacher absent"
    assert metrics["teacher"]["accuracy"] > 0.5


# What a run with nothing to do must not import: most of these cost more than all the rest of it.
HEAVY = {"torch", "sklearn", "zarr", "h5py", "safetensors"}


def test_a_second_student_run_runs_no_stage_and_imports_no_heavy_library(finished: Toy) -> None:
    assert finished.run("student") == []
    assert modules_after(finished) & HEAVY == set()


def test_the_default_recipes_second_student_run_imports_no_heavy_library(fresh: Toy) -> None:
    fresh.recipe.write_text(RECIPE.replace('kind = "npz"\npath = "toy.npz"', 'kind = "digits"'))
    fresh.run("student")
    assert modules_after(fresh) & {*HEAVY, "numpy"} == set()


def test_another_splits_cache_is_never_asked_for_the_students_rows(finished: Toy) -> None:
    for split in ("validation", "test"):
        shutil.rmtree(finished.cache(split))
    assert finished.run("student", "student.distillation.coefficient=0.5") == STUDENTS
