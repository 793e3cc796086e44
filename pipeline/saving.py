"""What the cache saves: a student's epoch from the cache against one with the teacher in its loop, both timed."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
from torch import nn

from pipeline.batches import Preprocess
from pipeline.devices import device_of
from pipeline.errors import VerificationError
from pipeline.experiment import Experiment, NotYet
from pipeline.fitting import WEIGHTS_FILE, load_fitted
from pipeline.records import Record
from pipeline.student_data import CachedSoftTargets, LearningSet, learning_set
from pipeline.student_targets import cache_of
from pipeline.targets.production import TeacherForward
from pipeline.teacher_pass import forward_of

TIMED_STEPS = 20


def saving(experiment: Experiment, student_key: str) -> dict[str, Any] | str:
    """What caching saved in each epoch of one student, timed now on real batches; a reason where it cannot be."""
    recipe = experiment.recipe
    teacher, cache = teacher_network(experiment), cache_of(experiment, "training")
    if teacher is None or cache is None:
        return f"not measured: {'teacher' if teacher is None else 'cache'} absent"
    student = experiment.records.read("student", student_key)
    assert student is not None, "evaluate needs the student's record"
    learn = learning_set(experiment.datasets("student")["training"], recipe.student.classes)
    try:
        targets = CachedSoftTargets(cache, learn, student.values["temperature"], recipe.student.classes)
    except VerificationError as problem:
        return f"not measured: {problem}"
    preprocess = Preprocess(recipe.teacher_data.normalise, learn.dataset.sample_shape)
    forward = forward_of(teacher, learn.dataset, preprocess, recipe.targets.precision, device_of(recipe.device))
    batch_size = min(recipe.student.training.batch_size, len(learn))
    epochs = student.values["steps"] * batch_size / len(learn)
    resumed = cache.manifest.provenance.get("rows_resumed")
    return _timed(
        forward,
        targets,
        learn,
        batch_size=batch_size,
        student_epoch_seconds=student.values["training_seconds"] / epochs,
        cache_seconds=None if resumed else cache.manifest.provenance.get("seconds"),
    )


def teacher_record(experiment: Experiment) -> Record | None:
    """The record of the teacher that made the caches, or None where only a cache knows of it."""
    try:
        record = experiment.teacher_record()
    except NotYet:
        return None
    return record if record.values["digest"] == experiment.row_made_from()["teacher"]["digest"] else None


def teacher_network(experiment: Experiment) -> nn.Module | None:
    """The teacher with its weights, or None where these are gone."""
    record = teacher_record(experiment)
    folder = experiment.records.folder_of("teacher", record.key) if record is not None else None
    if folder is None or not (folder / WEIGHTS_FILE).is_file():
        return None
    samples = learning_set(experiment.datasets("teacher")["training"])
    return load_fitted(experiment.recipe.teacher, samples, folder)


def _timed(
    teacher: TeacherForward,
    read_targets: CachedSoftTargets,
    learn: LearningSet,
    *,
    batch_size: int,
    student_epoch_seconds: float,
    cache_seconds: float | None,
) -> dict[str, Any]:
    """Seconds per epoch of the student from the cache and with the teacher in its loop, both timed on real batches.

    `teacher` and `read_targets` are timed on the same batches, alternating; the median of each is scaled to an epoch.
    `cache_seconds`, what making the cache took, gives the break-even epoch (None where it is not known).
    """
    generator = np.random.default_rng(0)
    teacher_seconds, cache_read_seconds = [], []
    for _ in range(TIMED_STEPS):
        positions = generator.integers(0, len(learn), size=min(batch_size, len(learn)))
        started = time.perf_counter()
        teacher(learn.indices[positions])
        between = time.perf_counter()
        read_targets(positions)
        teacher_seconds.append(between - started)
        cache_read_seconds.append(time.perf_counter() - between)
    steps = len(learn) / min(batch_size, len(learn))
    reading = statistics.median(cache_read_seconds) * steps
    online = student_epoch_seconds - reading + statistics.median(teacher_seconds) * steps
    saved = online - student_epoch_seconds
    return {
        "cached_epoch_seconds": student_epoch_seconds,
        "online_epoch_seconds": online,
        "online_over_cached": online / student_epoch_seconds,
        "cache_seconds": cache_seconds,
        "break_even_epochs": cache_seconds / saved if cache_seconds is not None and saved > 0 else None,
    }
