"""Comparing teacher, students and baselines on the test split.

Shape legend: N test samples, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.batches import Preprocess, inputs_in_order
from pipeline.devices import device_of
from pipeline.evaluation import (
    accuracy,
    agreement,
    calibration_error,
    cross_entropy,
    divergence_from_teacher,
    latency_seconds,
    logits_of,
    mean_and_deviation,
)
from pipeline.experiment import Experiment
from pipeline.fitting import load_fitted
from pipeline.models import parameter_count
from pipeline.recipe import Evaluation
from pipeline.saving import saving, teacher_record, why_no_teacher
from pipeline.student_data import CachedSoftTargets, LearningSet, learning_set
from pipeline.student_targets import cache_of
from pipeline.targets.certificate import error_at
from pipeline.targets.reader import TargetCache
from pipeline.teachers.opening import network_of


def compare(experiment: Experiment, students: Sequence[Path], baselines: Sequence[Path]) -> dict[str, Any]:
    """All of metrics.json: models are given by the folders of their weights, in the order of their seeds.

    Raises VerificationError when the cache of the test split is damaged.
    """
    recipe = experiment.recipe
    cache = cache_of(experiment, "test")
    samples = learning_set(experiment.datasets("student")["test"], recipe.student.classes)
    at = _soft_targets_at(cache, samples, recipe.student.classes)
    temperature = recipe.student_temperature or (cache.temperature if cache else recipe.targets.temperature)
    split = HeldOut(
        samples,
        Preprocess(recipe.data.normalise, samples.dataset.sample_shape),
        at(temperature),
        temperature,
        recipe.evaluation,
        device_of(recipe.device),
    )

    def column(folders: Sequence[Path]) -> dict[str, Any]:
        if not folders:
            return {}
        networks = [load_fitted(recipe.student, samples, folder) for folder in folders]
        measured = over_seeds([measure_student(network, split) for network in networks])
        return {**measured, **size_and_latency(networks[0], split)}

    metrics: dict[str, Any] = {
        "recipe": recipe.name,
        "temperature": temperature,
        "test_samples": len(samples),
        "seeds": list(recipe.student.seeds),
        "teacher": {**measure_teacher(split, at(1.0)), **_teacher_size(experiment, split)},
        "student": column(students),
        "baseline": column(baselines),
        "saving": saving(experiment),
    }
    gains = _paired(metrics["student"], metrics["baseline"])
    mean, deviation = mean_and_deviation(gains) if gains else (math.nan, None)
    return {**metrics, "gain_points": {"mean": mean if gains else None, "sd": deviation, "n": len(gains)}}


@dataclass(frozen=True)
class HeldOut:
    """The test split and the teacher's cached answers on it (None when no cache has them)."""

    samples: LearningSet
    preprocess: Preprocess
    soft_targets: CachedSoftTargets | None
    temperature: float
    settings: Evaluation
    device: torch.device

    @property
    def labels(self) -> Tensor:
        return torch.from_numpy(self.samples.labels)

    def teacher_probabilities(self) -> Tensor | None:
        """Cached soft targets (N, C) of all test samples at `temperature`."""
        return None if self.soft_targets is None else self.soft_targets(np.arange(len(self.samples)))


def measure_teacher(split: HeldOut, at_one: CachedSoftTargets | None) -> dict[str, Any]:
    """The teacher's metrics from its cached soft targets; `at_one` gives them at T = 1, where the cache certifies that."""
    probabilities = split.teacher_probabilities()
    if probabilities is None:
        return {"accuracy": None, "calibration_error": None}
    measured: dict[str, Any] = {
        "accuracy": accuracy(probabilities.argmax(dim=1), split.labels),
        "calibration_error": None,
    }
    if at_one is not None:
        calibrated = at_one(np.arange(len(split.samples)))
        measured["calibration_error"] = calibration_error(calibrated, split.labels, split.settings.calibration_bins)
    return _without_nan(measured)


def measure_student(model: nn.Module, split: HeldOut) -> dict[str, Any]:
    """A student's or baseline's metrics on the test split, its size and its latency."""
    inputs = inputs_in_order(split.samples.dataset, split.samples.indices, split.preprocess, split.settings.batch_size)
    logits = logits_of(model.to(split.device), inputs, split.device)
    measured: dict[str, Any] = {
        "accuracy": accuracy(logits.argmax(dim=1), split.labels),
        "cross_entropy": cross_entropy(logits, split.labels),
        "calibration_error": calibration_error(logits.softmax(dim=1), split.labels, split.settings.calibration_bins),
    }
    teacher = split.teacher_probabilities()
    if teacher is not None:
        measured["agreement"] = agreement(logits.argmax(dim=1), teacher.argmax(dim=1))
        measured["kl"] = divergence_from_teacher(logits, teacher, split.temperature)
    return _without_nan(measured)


def size_and_latency(model: nn.Module, split: HeldOut) -> dict[str, Any]:
    """Parameters, bytes of weights, and median seconds of a forward pass of one sample."""
    one = next(inputs_in_order(split.samples.dataset, split.samples.indices[:1], split.preprocess, 1))
    return {
        "parameters": parameter_count(model),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()),
        "latency_seconds": latency_seconds(model.to(split.device), one, split.device),
    }


def over_seeds(measured: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation of each metric over seeds, with the values themselves."""
    summary: dict[str, Any] = {}
    for name in measured[0]:
        values = [seed[name] for seed in measured]
        if any(value is None for value in values):
            continue
        mean, deviation = mean_and_deviation(values)
        summary[name] = {"mean": mean, "sd": deviation, "values": values}
    return summary


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


def _teacher_size(experiment: Experiment, split: HeldOut) -> dict[str, Any]:
    why_not = why_no_teacher(experiment)
    network = network_of(experiment) if why_not is None else None
    if network is not None:
        return size_and_latency(network, split)
    record = teacher_record(experiment)
    return {
        "parameters": record.values.get("parameters") if record else None,
        "size_not_measured": why_not or "the teacher is an estimator",
    }


def _paired(student: dict[str, Any], baseline: dict[str, Any]) -> list[float]:
    """Points of accuracy that each seed's student is ahead of the same seed's baseline."""
    if "accuracy" not in student or "accuracy" not in baseline:
        return []
    pairs = zip(student["accuracy"]["values"], baseline["accuracy"]["values"], strict=True)
    return [100 * (distilled - plain) for distilled, plain in pairs]


def _without_nan(measured: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: what could not be measured (no labels) is null."""
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in measured.items()}
