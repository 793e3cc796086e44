"""Comparing teacher, students and baselines on the test split, and what caching saved against a teacher in the loop.

Shape legend: N test samples, C classes.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.batches import Preprocess, inputs_in_order
from pipeline.devices import device_of
from pipeline.errors import VerificationError
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
from pipeline.fitting import WEIGHTS_FILE, load_fitted
from pipeline.models import parameter_count
from pipeline.recipe import Evaluation
from pipeline.records import Record
from pipeline.student_data import CachedSoftTargets, LearningSet, learning_set
from pipeline.targets.certificate import error_at
from pipeline.targets.reader import TargetCache
from pipeline.teacher_pass import forward_of

TIMED_STEPS = 20


def compare(experiment: Experiment, students: Sequence[Path], baselines: Sequence[Path]) -> dict[str, Any]:
    """All of metrics.json: models are given by the folders of their weights, in the order of their seeds.

    Raises VerificationError when the cache of the test split is damaged.
    """
    recipe = experiment.recipe
    cache = _cache_of(experiment, "test")
    samples = learning_set(experiment.datasets("student")["test"], recipe.student.classes)
    at = _soft_targets_at(cache, samples, recipe.student.classes)
    temperature = recipe.student_temperature or (cache.temperature if cache else recipe.targets.temperature)
    split = TestSplit(
        samples,
        Preprocess(recipe.data.normalise, samples.dataset.sample_shape),
        at(temperature),
        temperature,
        recipe.evaluation,
        device_of(recipe.device),
    )

    def column(folders: Sequence[Path]) -> dict[str, Any]:
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
        "saving": _saving(experiment, split),
    }
    gains = _paired(metrics["student"], metrics["baseline"])
    mean, deviation = mean_and_deviation(gains) if gains else (math.nan, None)
    return {**metrics, "gain_points": {"mean": mean if gains else None, "sd": deviation, "n": len(gains)}}


@dataclass(frozen=True)
class TestSplit:
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


def measure_teacher(split: TestSplit, at_one: CachedSoftTargets | None) -> dict[str, Any]:
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


def measure_student(model: nn.Module, split: TestSplit) -> dict[str, Any]:
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


def size_and_latency(model: nn.Module, split: TestSplit) -> dict[str, Any]:
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


def _cache_of(experiment: Experiment, split: str) -> TargetCache | None:
    folder = experiment.cache_folder(split)
    return None if folder is None else TargetCache(folder)


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


def _teacher_record(experiment: Experiment) -> Record | None:
    """The teacher's record, or None where only a cache names the teacher."""
    return None if experiment.recipe.targets.use is not None else experiment.teacher_record()


def _teacher_network(experiment: Experiment) -> nn.Module | None:
    record = _teacher_record(experiment)
    folder = experiment.records.folder_of("teacher", record.key) if record is not None else None
    if folder is None or not (folder / WEIGHTS_FILE).is_file():
        return None
    samples = learning_set(experiment.datasets("teacher")["training"])
    return load_fitted(experiment.recipe.teacher, samples, folder)


def _teacher_size(experiment: Experiment, split: TestSplit) -> dict[str, Any]:
    network = _teacher_network(experiment)
    if network is not None:
        return size_and_latency(network, split)
    record = _teacher_record(experiment)
    return {"parameters": record.values.get("parameters") if record else None}


def _saving(experiment: Experiment, split: TestSplit) -> dict[str, Any] | str:
    """What caching saved in each student epoch, timed now on real batches; a reason where it cannot be."""
    recipe = experiment.recipe
    teacher, cache = _teacher_network(experiment), _cache_of(experiment, "training")
    if teacher is None or cache is None:
        return f"not measured: {'teacher' if teacher is None else 'cache'} absent"
    student = next(record for record in experiment.records.of_stage("student") if record.recipe == recipe.name)
    learn = learning_set(experiment.datasets("student")["training"], recipe.student.classes)
    try:
        targets = CachedSoftTargets(cache, learn, student.values["temperature"], recipe.student.classes)
    except VerificationError as problem:
        return f"not measured: {problem}"
    preprocess = Preprocess(recipe.teacher_data.normalise, learn.dataset.sample_shape)
    forward = forward_of(teacher, learn.dataset, preprocess, recipe.targets.precision, split.device)
    batch_size = min(recipe.student.training.batch_size, len(learn))
    epochs = student.values["steps"] * batch_size / len(learn)
    resumed = cache.manifest.provenance.get("rows_resumed")
    return saving_of_cache(
        forward,
        targets,
        learn,
        batch_size=batch_size,
        student_epoch_seconds=student.values["training_seconds"] / epochs,
        cache_seconds=None if resumed else cache.manifest.provenance.get("seconds"),
    )


def _paired(student: dict[str, Any], baseline: dict[str, Any]) -> list[float]:
    """Points of accuracy that each seed's student is ahead of the same seed's baseline."""
    if "accuracy" not in student or "accuracy" not in baseline:
        return []
    pairs = zip(student["accuracy"]["values"], baseline["accuracy"]["values"], strict=True)
    return [100 * (distilled - plain) for distilled, plain in pairs]


def saving_of_cache(
    teacher: Callable[[np.ndarray[Any, np.dtype[np.int64]]], Tensor],
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


def table_of(metrics: dict[str, Any]) -> str:
    """The comparison as text for a terminal."""
    teacher, student, baseline = metrics["teacher"], metrics["student"], metrics["baseline"]
    lines = [f"{'test split of ' + metrics['recipe']:28} {'teacher':>16} {'student':>16} {'label-only':>16}"]

    def row(title: str, name: str, form: Callable[[float], str]) -> None:
        cells = [_cell(column.get(name), form) for column in (teacher, student, baseline)]
        lines.append(f"{title:28} " + " ".join(f"{cell:>16}" for cell in cells))

    row("accuracy, %", "accuracy", lambda value: f"{100 * value:.2f}")
    row("agreement with teacher, %", "agreement", lambda value: f"{100 * value:.2f}")
    row(f"KL from teacher (T = {metrics['temperature']:g})", "kl", lambda value: f"{value:.4f}")
    row("cross-entropy, nats", "cross_entropy", lambda value: f"{value:.4f}")
    row("calibration error", "calibration_error", lambda value: f"{value:.4f}")
    row("parameters", "parameters", lambda value: f"{value:,.0f}")
    row("weights, kB", "bytes", lambda value: f"{value / 1000:.1f}")
    row("latency of one sample, ms", "latency_seconds", lambda value: f"{1000 * value:.3f}")
    gain = metrics["gain_points"]
    spread = "" if gain["sd"] is None else f" ± {gain['sd']:.2f}"
    lines.append(
        f"distillation gains {gain['mean']:+.2f}{spread} points of accuracy over labels only ({gain['n']} seeds, paired)."
    )
    return "\n".join([*lines, _saving_line(metrics["saving"])])


def _saving_line(saving: dict[str, Any] | str) -> str:
    if isinstance(saving, str):
        return f"time saved by the cache: {saving}."
    break_even = saving["break_even_epochs"]
    when = "" if break_even is None else f"; the cache has paid for itself after {break_even:.1f} epochs"
    return (
        f"a student epoch takes {saving['cached_epoch_seconds']:.3f} s from the cache, {saving['online_epoch_seconds']:.3f} s "
        f"with the teacher in the loop ({saving['online_over_cached']:.1f} times){when}."
    )


def _cell(value: Any, form: Callable[[float], str]) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        spread = "" if value["sd"] is None else f" ± {form(value['sd'])}"
        return form(value["mean"]) + spread
    return form(value)


def _without_nan(measured: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: what could not be measured (no labels) is null."""
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in measured.items()}
