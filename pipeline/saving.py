"""What the cache saves: a student's epoch from the cache against one with the teacher in its loop, both really run."""

from __future__ import annotations

import statistics
from typing import Any

from pipeline.errors import OutputsError, TeacherAbsentError, VerificationError
from pipeline.experiment import Experiment, NotYet
from pipeline.fitting import WEIGHTS_FILE
from pipeline.records import Record
from pipeline.step_timing import step_seconds, steps_of_epoch, targets_in_loop
from pipeline.student_data import CachedSoftTargets, learning_set
from pipeline.student_targets import cache_of
from pipeline.teachers.identity import IDENTITIES
from pipeline.teachers.opening import open_teacher

TIMED_STEPS = 20
ROUNDS = 4  # the first is a warm-up


def saving(experiment: Experiment) -> dict[str, Any] | str:
    """What caching saves in each epoch of a student, timed now; a reason where it cannot be.

    The student is trained for a few steps from the cache and with the teacher computing the same soft targets in its
    loop, in alternation; the median step of each is scaled to an epoch. The break-even epoch says when making the cache
    had paid for itself; it is unknown (None) for a cache that was made in several runs, or took rows from others.
    """
    student = experiment.recipe.student
    why_not, cache = why_no_teacher(experiment), cache_of(experiment, "training")
    if why_not is not None or cache is None:
        return f"not measured: {why_not or 'cache absent'}"
    learn = learning_set(experiment.datasets("student")["training"], student.classes)
    temperature = student.distillation.temperature or cache.temperature
    try:
        cached = CachedSoftTargets(cache, learn, temperature, student.classes)
    except VerificationError as problem:
        return f"not measured: {problem}"
    teacher, taught = open_teacher(experiment, "training"), experiment.row_made_from()["class_names"]
    ways = {"cached": cached.for_loss, "online": targets_in_loop(teacher, learn, taught, temperature)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, targets in ways.items():
            seconds[name].append(step_seconds(experiment, learn, targets, temperature, TIMED_STEPS))
    steps = steps_of_epoch(experiment, len(learn))
    epoch = {name: statistics.median(measured[1:]) * steps for name, measured in seconds.items()}
    saved, spent = epoch["online"] - epoch["cached"], cache.manifest.provenance.get("seconds")
    made = cache.manifest.provenance
    in_one_run = not made.get("rows_resumed") and not made.get("rows_taken")
    return {
        "timed_steps": TIMED_STEPS,
        "rounds": ROUNDS - 1,
        "cached_epoch_seconds": epoch["cached"],
        "online_epoch_seconds": epoch["online"],
        "online_over_cached": epoch["online"] / epoch["cached"],
        "cache_seconds": spent if in_one_run else None,
        "break_even_epochs": spent / saved if in_one_run and spent and saved > 0 else None,
    }


def teacher_record(experiment: Experiment) -> Record | None:
    """The record of the teacher that made the caches, or None where only a cache knows of it."""
    try:
        record = experiment.teacher_record()
    except (NotYet, TeacherAbsentError, OutputsError):
        return None
    return record if record.values["digest"] == experiment.row_made_from()["teacher"]["digest"] else None


def why_no_teacher(experiment: Experiment) -> str | None:
    """Why the teacher that made the caches cannot be run here, or None when it can."""
    record, teacher = teacher_record(experiment), experiment.recipe.teacher
    if teacher.form == "outputs":
        return "the teacher is imported outputs"
    if record is None:
        return "teacher absent"
    try:
        if teacher.form == "trained":
            folder = experiment.records.folder_of("teacher", record.key)
            return None if (folder / WEIGHTS_FILE).is_file() else "teacher absent"
        IDENTITIES[teacher.form](experiment)  # a pinned teacher has a record though what it is imported from is gone
    except TeacherAbsentError:
        return "teacher absent"
    return None
