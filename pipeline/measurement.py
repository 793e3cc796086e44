"""Measuring one model on the test split: metrics, calibration before and after scaling, results by class, size.

Shape legend: N test samples, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pipeline.batches import inputs_in_order
from pipeline.calibration import fitted_temperature, reliability_over_seeds
from pipeline.class_results import class_accuracy, confusion
from pipeline.evaluation import (
    accuracy,
    agreement,
    calibration_error,
    cross_entropy,
    divergence_from_teacher,
    latency_seconds,
)
from pipeline.held_out import HeldOut
from pipeline.models import parameter_count


@dataclass(frozen=True)
class Answers:
    """The logits (N, C) that one model gives on the test split and on the validation split."""

    test: Tensor
    validation: Tensor


def measure_teacher(split: HeldOut, validation: HeldOut) -> dict[str, Any]:
    """The teacher's metrics from its cached soft targets; its calibration where the caches certify T = 1."""
    probabilities = split.teacher_probabilities()
    if probabilities is None:
        return {"accuracy": None, "calibration_error": None}
    predicted = probabilities.argmax(dim=1)
    measured: dict[str, Any] = {"accuracy": accuracy(predicted, split.labels), "calibration_error": None}
    details = classes_of([predicted], split)
    on_test, on_validation = split.teacher_logits(), validation.teacher_logits()
    if on_test is not None:
        measured["calibration_error"] = calibration_error(
            on_test.softmax(dim=1), split.labels, split.settings.calibration_bins
        )
        measured["cross_entropy"] = cross_entropy(on_test, split.labels)
        temperatures: list[float | None] = [None]
        if on_validation is not None:
            measured |= measure_scaled(Answers(on_test, on_validation), split, validation)
            temperatures = [measured["fitted_temperature"]]
        details["reliability"] = reliability_over_seeds(
            [on_test], split.labels, temperatures, split.settings.calibration_bins
        )
    return {**_without_nan(measured), **details}


def measure_student(logits: Tensor, split: HeldOut) -> dict[str, Any]:
    """A student's or baseline's metrics on the test split, from its logits (N, C)."""
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


def measure_scaled(answers: Answers, split: HeldOut, validation: HeldOut) -> dict[str, Any]:
    """Calibration after temperature scaling: T is fitted on validation, the rest is measured on the test split."""
    fitted = fitted_temperature(answers.validation, validation.labels)
    if fitted is None:
        return {"fitted_temperature": None, "calibration_error_scaled": None, "cross_entropy_scaled": None}
    scaled = answers.test.double() / fitted
    bins = split.settings.calibration_bins
    measured = {
        "fitted_temperature": fitted,
        "calibration_error_scaled": calibration_error(scaled.softmax(dim=1), split.labels, bins),
        "cross_entropy_scaled": cross_entropy(scaled, split.labels),
    }
    return _without_nan(measured)


def details_of(answers: Sequence[Answers], temperatures: Sequence[float | None], split: HeldOut) -> dict[str, Any]:
    """What tables and plots show of all seeds of one model: reliability, accuracy of each class, confusion."""
    logits = [one.test for one in answers]
    return {
        **classes_of([one.argmax(dim=1) for one in logits], split),
        "reliability": reliability_over_seeds(logits, split.labels, temperatures, split.settings.calibration_bins),
    }


def classes_of(predictions: Sequence[Tensor], split: HeldOut) -> dict[str, Any]:
    """Accuracy of each class and confusion, from the predicted classes (N,) of each seed."""
    classes = len(split.samples.class_names)
    return {
        "class_accuracy": class_accuracy(predictions, split.labels, classes),
        "confusion": confusion(predictions, split.labels, classes),
    }


def size_and_latency(model: nn.Module, split: HeldOut) -> dict[str, Any]:
    """Parameters, bytes of weights, and median seconds of a forward pass of one sample."""
    one = next(inputs_in_order(split.samples.dataset, split.samples.indices[:1], split.preprocess, 1))
    return {
        "parameters": parameter_count(model),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()),
        "latency_seconds": latency_seconds(model.to(split.device), one, split.device),
    }


def _without_nan(measured: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: what could not be measured (no labels, a label of probability 0) is null."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in measured.items()
    }
