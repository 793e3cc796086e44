"""A student's soft targets: the cache that serves its samples, checked against the recipe, and joined by content."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.canonical import short
from pipeline.errors import CorruptCacheError
from pipeline.experiment import Experiment
from pipeline.student_data import CachedSoftTargets, LearningSet
from pipeline.targets.reader import TargetCache


@dataclass(frozen=True)
class StudentTargets:
    """The samples that have a row, their soft targets, the temperature of the loss, and the cache behind them."""

    learn: LearningSet
    soft_targets: CachedSoftTargets
    temperature: float
    cache: TargetCache


def open_for_student(experiment: Experiment, learn: LearningSet) -> StudentTargets:
    """Open the cache of the training split read-only and join `learn` to it.

    Raises VerificationError when the cache is damaged or is not what the recipe asks for: its teacher, classes,
    temperature, error or samples.
    """
    student, say = experiment.recipe.student, experiment.say
    cache = open_cache(experiment, "training")
    if experiment.verify:
        cache.store.check_all()
    temperature = student.distillation.temperature or cache.temperature
    if student.distillation.coefficient != 0.0:
        cache.check_temperature(temperature, student.distillation.max_kl)
    if student.missing == "skip":
        known = np.flatnonzero(cache.find(learn.sample_digests()) >= 0)
        if len(known) < len(learn):
            say(
                f"student: {len(learn) - len(known)} of {len(learn)} samples have no row in {short(cache.key)}; skipped"
            )
        learn = learn.at(known)
    if student.classes is not None and learn.class_names != cache.class_names:
        say(
            f"student: the cache's {len(cache.class_names)} classes are mapped by name to {', '.join(learn.class_names)}"
        )
    return StudentTargets(learn, CachedSoftTargets(cache, learn, temperature, student.classes), temperature, cache)


def open_cache(experiment: Experiment, split: str) -> TargetCache:
    """The cache that serves a split. Raises CorruptCacheError when it went away since the plan was made."""
    folder = experiment.cache_folder(split)
    if folder is None:
        raise CorruptCacheError(f"the cache of the {split} split went away; run teacher-targets again.")
    return TargetCache(folder)
