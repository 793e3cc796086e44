"""A split that no model learns from: its samples, labels, and the teacher's cached answers on it.

Shape legend: N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.batches import Preprocess, inputs_in_order
from pipeline.devices import device_of
from pipeline.evaluation import logits_of
from pipeline.experiment import Experiment
from pipeline.recipe import Evaluation
from pipeline.student_data import CachedSoftTargets, LearningSet, learning_set
from pipeline.student_targets import cache_of
from pipeline.targets.certificate import error_at
from pipeline.targets.reader import TargetCache


@dataclass(frozen=True)
class HeldOut:
    """A split that no model learns from, and the teacher's cached answers on it (None where no cache has them).

    `soft_targets` are at `temperature`; `stored_soft_targets` at the T that they are stored at, `stored_temperature`, where
    the cache certifies a finite error at T = 1: then the teacher's logits follow from them.
    """

    samples: LearningSet
    preprocess: Preprocess
    soft_targets: CachedSoftTargets | None
    stored_soft_targets: CachedSoftTargets | None
    temperature: float
    stored_temperature: float
    settings: Evaluation
    device: torch.device

    @property
    def labels(self) -> Tensor:
        return torch.from_numpy(self.samples.labels)

    def logits_of(self, model: nn.Module) -> Tensor:
        """A model's logits (N, C)."""
        inputs = inputs_in_order(self.samples.dataset, self.samples.indices, self.preprocess, self.settings.batch_size)
        return logits_of(model.to(self.device), inputs, self.device)

    def teacher_probabilities(self) -> Tensor | None:
        """Cached soft targets (N, C) of all samples at `temperature`."""
        return None if self.soft_targets is None else self.soft_targets(np.arange(len(self.samples)))

    def teacher_logits(self) -> Tensor | None:
        """The teacher's logits (N, C), but for a constant in each row: T log(softmax(z / T)), at the T of the cache.

        At T = 1 itself the small probabilities of a sure teacher would vanish in float32. -inf is a probability of 0.
        """
        if self.stored_soft_targets is None:
            return None
        return self.stored_soft_targets(np.arange(len(self.samples))).double().log() * self.stored_temperature


def held_out(experiment: Experiment, name: str) -> HeldOut:
    """The test or validation split of an experiment. Raises VerificationError when its cache is damaged."""
    recipe, classes = experiment.recipe, experiment.recipe.student.classes
    samples = learning_set(experiment.datasets("student")[name], classes)
    cache = cache_of(experiment, name)
    if cache is not None and name != "test" and (cache.find(samples.sample_digests()) < 0).any():
        cache = None  # a cache that the recipe names may lack samples of other splits
    at = _soft_targets_at(cache, samples, classes)
    temperature = recipe.student_temperature or (cache.temperature if cache else recipe.targets.temperature)
    return HeldOut(
        samples,
        Preprocess(recipe.data.normalise, samples.dataset.sample_shape),
        at(temperature),
        at(cache.temperature) if cache is not None and at(1.0) is not None else None,
        temperature,
        cache.temperature if cache is not None else temperature,
        recipe.evaluation,
        device_of(recipe.device),
    )


def _soft_targets_at(
    cache: TargetCache | None, samples: LearningSet, classes: Sequence[str] | None
) -> Callable[[float], CachedSoftTargets | None]:
    """Soft targets of the samples at a temperature, or None where no cache certifies a finite error there."""

    def at(temperature: float) -> CachedSoftTargets | None:
        error = None if cache is None else error_at(cache.manifest.certificate, temperature)
        if cache is None or error is None or error["kl_mean"] is None:
            return None
        return CachedSoftTargets(cache, samples, temperature, classes)

    return at
