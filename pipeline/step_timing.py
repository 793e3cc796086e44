"""Timing a student: steps of the real training loop, from a cache or with the teacher in the loop, and a validation."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batches import Preprocess, SoftTargets
from pipeline.dataset import NO_LABEL, class_columns
from pipeline.devices import device_of
from pipeline.experiment import Experiment
from pipeline.fitting import Fit, build_for, fit, validation_score
from pipeline.progress import no_bar
from pipeline.student_data import LearningSet
from pipeline.targets.production import TeacherForward


def step_seconds(
    experiment: Experiment, learn: LearningSet, soft_targets: SoftTargets, temperature: float, steps: int
) -> float:
    """Seconds of one step of the recipe's student, the mean of `steps` that are run now; nothing is validated or kept."""
    recipe, student = experiment.recipe, experiment.recipe.student
    training = student.training.model_copy(update={"checkpoint_seconds": float("inf"), "validate_every": steps})
    settings = Fit(student, training, recipe.data.normalise, 0, recipe.device, steps)
    unlabelled = replace(learn.at(np.arange(1)), labels=np.array([NO_LABEL]))  # nothing to validate on
    with tempfile.TemporaryDirectory() as folder:
        trained = fit(
            settings,
            learn,
            unlabelled,
            Path(folder),
            no_bar,
            distillation=student.distillation,
            temperature=temperature,
            soft_targets=soft_targets,
        )
    return trained.seconds / steps


def targets_in_loop(
    teacher: TeacherForward, learn: LearningSet, taught: Sequence[str], temperature: float
) -> SoftTargets:
    """Soft targets as a loop without a cache would compute them: the teacher, of these classes, run on each batch."""
    columns = torch.from_numpy(class_columns(learn.class_names, taught, "the teacher"))

    def live(positions: NDArray[np.int64]) -> Tensor:
        logits = teacher(learn.indices[positions].astype(np.int64, copy=False))
        return torch.softmax(logits.float()[:, columns.to(logits.device)] / temperature, dim=1)

    return live


def steps_of_epoch(experiment: Experiment, samples: int) -> float:
    """Steps of one pass over so many samples, the last perhaps a part of one."""
    return samples / min(experiment.recipe.student.training.batch_size, samples)


def validation_seconds(experiment: Experiment, samples: LearningSet, at_most: int) -> float:
    """Seconds of one validation of the recipe's student: of `at_most` samples, evenly spaced, scaled to all of them."""
    recipe, device = experiment.recipe, device_of(experiment.recipe.device)
    some = samples.at(np.arange(0, len(samples), -(-len(samples) // at_most) or 1))
    model = build_for(recipe.student, some).to(device)
    preprocess = Preprocess(recipe.data.normalise, some.dataset.sample_shape)
    taken = []
    for _ in range(2):  # the first is a warm-up
        started = time.perf_counter()
        validation_score(model, some, preprocess, device)
        taken.append(time.perf_counter() - started)
    return taken[-1] * len(samples) / max(1, len(some))
