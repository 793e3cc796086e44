"""Students learn from every encoding as from the live teacher, at any temperature that it serves, and are refused at others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.batches import Preprocess
from pipeline.fitting import build_for
from pipeline.losses import distillation_loss
from pipeline.student_data import learning_set
from pipeline.student_targets import open_for_student
from pipeline.targets.reader import TargetCache
from pipeline.targets.sparse import SparseTargets
from tests.stages.conftest import Command
from tests.stages.live import live_soft_targets
from tests.stages.test_mistakes import assert_one_paragraph
from tests.stages.test_reruns import STUDENTS
from tests.stages.toy import Toy

TOP_2 = ["targets.encoding=top-k", "targets.k=2", "targets.dtype=none"]
LISTED = [*TOP_2, "targets.temperatures=[1.0, 2.0]"]


def at(temperature: float) -> str:
    return f"student.distillation.temperature={temperature}"


def losses(toy: Toy, temperature: float, settings: list[str], live: Tensor) -> list[tuple[float, float]]:
    """The loss of some batches from the cache, and with soft targets `live` (N, C) in its place."""
    experiment = toy.experiment(*settings, at(temperature))
    student = experiment.recipe.student
    learn = learning_set(experiment.datasets("student")["training"])
    targets = open_for_student(experiment, learn)
    model = build_for(student, learn, seed=3).eval().requires_grad_(False)
    preprocess = Preprocess(experiment.recipe.data.normalise, learn.dataset.sample_shape)
    found = []
    for step in range(8):
        positions = np.random.default_rng(step).choice(len(learn), size=32, replace=False)
        logits = model(preprocess(learn.dataset.samples(learn.indices[positions])))
        labels = torch.from_numpy(learn.labels[positions])

        def loss(soft_targets: Tensor | SparseTargets, logits: Tensor = logits, labels: Tensor = labels) -> float:
            value = distillation_loss(
                logits, labels, soft_targets, coefficient=0.9, temperature=temperature, form="convex"
            )
            return float(value)

        found.append((loss(targets.soft_targets.for_loss(positions)), loss(live[torch.from_numpy(positions)])))
    return found


def live_at(toy: Toy, temperature: float, settings: list[str]) -> Tensor:
    samples = learning_set(toy.experiment(*settings).datasets("student")["training"])
    return live_soft_targets(toy, samples, temperature, *settings)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0, 8.0])
def test_one_log_uint16_cache_gives_the_live_teachers_loss_at_any_temperature(
    finished: Toy, temperature: float
) -> None:
    settings = ["targets.dtype=log-uint16"]
    assert "teacher-targets training" in finished.run("teacher-targets", *settings)
    assert finished.run("student", *settings, at(temperature)) == STUDENTS, "no teacher runs for another temperature"
    for cached, live in losses(finished, temperature, settings, live_at(finished, temperature, settings)):
        assert abs(cached - live) <= 1e-3 * max(1.0, live)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_a_top_k_cache_gives_the_loss_of_the_live_teacher_with_its_tail_spread_evenly(
    finished: Toy, temperature: float
) -> None:
    finished.run("teacher-targets", *LISTED)
    assert finished.run("student", *LISTED, at(temperature)) == STUDENTS
    live = live_at(finished, temperature, LISTED)  # of three classes, the tail is one: spread evenly, it is exact
    for cached, exact in losses(finished, temperature, LISTED, live):
        assert abs(cached - exact) <= 1e-4 * max(1.0, exact)
    experiment = finished.experiment(*LISTED, at(temperature))
    served = open_for_student(experiment, learning_set(experiment.datasets("student")["training"]))
    assert isinstance(served.soft_targets.for_loss(np.arange(3)), SparseTargets)


def test_a_top_k_cache_at_an_unlisted_temperature_is_refused_with_the_remedy(finished: Toy, softcache: Command) -> None:
    finished.run("teacher-targets", *LISTED)
    said = softcache(*finished.arguments("student", settings=[*LISTED, at(8.0)]))
    assert_one_paragraph(
        said, 1, "student.distillation.temperature = 8", "lists, 1, 2, 4", "targets.temperatures = [8]"
    )
    key = finished.cache("training", *LISTED).name
    said = softcache(*finished.arguments("student", settings=[f"targets.use={key}", at(8.0)]))
    assert_one_paragraph(
        said,
        3,
        "temperature 8 is not listed",
        "1, 2, 4 alone",
        "add 8 to targets.temperatures",
        "teacher-targets again",
    )


def test_a_top_k_cache_is_evaluated_and_reported(finished: Toy, softcache: Command) -> None:
    assert finished.run("report", *LISTED)[-1] == "report"
    said = softcache(*finished.arguments("evaluate", "--json", settings=LISTED))
    metrics: dict[str, Any] = json.loads(said.out)
    assert metrics["teacher"]["accuracy"] > 0.5
    shown = softcache(
        "caches", "show", finished.cache("training", *LISTED).name[:12], "--workspace", str(finished.folder)
    )
    assert "top-k k=2 temperatures=1,2,4 value_bits=16" in shown.out
    listed = softcache("caches", "list", "--workspace", str(finished.folder))
    assert "top-k k=2 temperatures=1,2,4 value_bits=16" in listed.out


def test_more_classes_than_the_teacher_has_are_refused_before_it_runs(fresh: Toy, softcache: Command) -> None:
    fresh.run("teacher")
    said = softcache(*fresh.arguments("teacher-targets", settings=["targets.encoding=top-k", "targets.k=3"]))
    assert_one_paragraph(said, 1, "targets.k = 3", "has 3 classes")
    assert not (fresh.folder / "caches").exists()


@pytest.mark.parametrize("compression", ["zstd", "blosc-lz4"])
def test_compression_changes_no_key_and_nothing_that_is_learnt(fresh: Toy, compression: str) -> None:
    settings = [f"targets.compression={compression}", "targets.rows_per_block=40"]
    fresh.run("student", *settings)
    cache = TargetCache(fresh.cache("training", *settings))
    assert cache.manifest.compression == compression
    assert fresh.run("student") == [], "neither the cache nor a student has another key without compression"


def test_repacking_changes_the_compression_and_back(finished: Toy, softcache: Command) -> None:
    def repack(*words: str) -> Any:
        return softcache("caches", "repack", finished.cache().name[:12], *words, "--workspace", str(finished.folder))

    before = TargetCache(finished.cache()).soft_targets(np.arange(100))
    assert "now zarr, compression zstd" in repack("--compression", "zstd").out
    assert torch.equal(TargetCache(finished.cache()).soft_targets(np.arange(100)), before)
    assert "already zarr, compression zstd" in repack("--compression", "zstd").out
    assert_one_paragraph(repack("--layout", "hdf5"), 1, "hdf5 has no compression 'zstd'", "--compression none")
    assert "now hdf5, compression none" in repack("--layout", "hdf5", "--compression", "none").out
    assert torch.equal(TargetCache(finished.cache()).soft_targets(np.arange(100)), before)
    assert_one_paragraph(repack(), 1, "--layout, --compression")


@pytest.mark.parametrize("order", ["window", "sequential"])
def test_another_order_is_another_student_from_the_same_cache(finished: Toy, order: str) -> None:
    assert finished.run("student", f"student.order={order}") == STUDENTS
    assert finished.run("student", f"student.order={order}") == []
    assert finished.run("student", "student.order=global") == [], "global is the default, and as before in no key"


def test_a_cache_that_version_1_sealed_serves_the_recipe_that_made_it(finished: Toy) -> None:
    """The keys of dense caches are those of before: their parameters did not change."""
    made_from = finished.experiment().row_made_from()
    assert made_from["encoding"] == {"name": "dense", "dtype": "float16"}
    assert Path(finished.cache()).name == finished.experiment().cache_keys()["training"]
