"""A student's soft targets: the cache that serves its samples, checked against the recipe, and joined by content."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.canonical import digest_of, short
from pipeline.errors import CorruptCacheError, JoinError, MismatchError
from pipeline.experiment import Experiment
from pipeline.student_data import CachedSoftTargets, LearningSet
from pipeline.targets.certificate import error_at
from pipeline.targets.reader import TargetCache


@dataclass(frozen=True)
class StudentTargets:
    """The samples that have a row, their soft targets, the temperature of the loss, and the cache behind them."""

    learn: LearningSet
    soft_targets: CachedSoftTargets
    temperature: float
    cache: TargetCache

    @property
    def mean_kl(self) -> float | None:
        """The cache's certified mean KL at the temperature of the loss; None where it is infinite or not certified."""
        error = error_at(self.cache.manifest.certificate, self.temperature)
        return None if error is None else error["kl_mean"]


def open_for_student(experiment: Experiment, learn: LearningSet) -> StudentTargets:
    """Open the cache of the training split read-only and join `learn` to it.

    Raises VerificationError when the cache is damaged or is not what the recipe asks for: its teacher, classes,
    temperature, error or samples.
    """
    student, say = experiment.recipe.student, experiment.say
    cache = open_cache(experiment, "training")
    temperature = student.distillation.temperature or cache.temperature
    if student.distillation.coefficient != 0.0:
        cache.check_temperature(temperature, student.distillation.max_kl)
    if student.missing == "skip":
        known = np.flatnonzero(cache.find(learn.sample_digests()) >= 0)
        if len(known) == 0:
            raise JoinError(f"none of the {len(learn)} training samples has a row in cache {short(cache.key)}.")
        if len(known) < len(learn):
            say(
                f"student: {len(learn) - len(known)} of {len(learn)} samples have no row in {short(cache.key)}; skipped"
            )
        learn = learn.at(known)
    if student.classes is not None and learn.class_names != cache.class_names:
        names = ", ".join(learn.class_names)
        say(f"student: the cache's {len(cache.class_names)} classes are mapped by name to {names}")
    soft_targets = CachedSoftTargets(cache, learn, temperature, student.classes)
    if len(learn.class_names) < len(cache.class_names):
        least, mean = soft_targets.kept_mass()
        say(f"student: renormalised over these; they have {100 * mean:.1f} % of the mass, {100 * least:.2g} % at least")
    return StudentTargets(learn, soft_targets, temperature, cache)


def open_cache(experiment: Experiment, split: str) -> TargetCache:
    """The cache that serves a split. Raises CorruptCacheError when it went away since the plan was made."""
    cache = cache_of(experiment, split)
    if cache is None:
        raise CorruptCacheError(f"the cache of the {split} split went away; run teacher-targets again.")
    return cache


def cache_of(experiment: Experiment, split: str) -> TargetCache | None:
    """The cache that serves a split, or None where there is none.

    Raises MismatchError when its rows are made otherwise than the recipe says: then it lies in another cache's folder.
    """
    folder = experiment.cache_folder(split)
    if folder is None:
        return None
    cache, row_key = experiment.shelf.open(folder), digest_of(experiment.row_made_from())
    if cache.manifest.row_key != row_key:
        raise MismatchError(
            f"{folder} holds cache {short(cache.key)} with row_key {cache.manifest.row_key}, but the recipe asks for row_key "
            f"{row_key}: it was copied to another cache's folder. Rename the folder to {cache.key}, or delete it."
        )
    return cache
