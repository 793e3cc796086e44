"""Comparing teacher, students and baselines on the test split: all of metrics.json."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.batches import Preprocess
from pipeline.cache_contents import cache_contents
from pipeline.class_results import samples_of_classes
from pipeline.dataset import NO_LABEL
from pipeline.evaluation import mean_and_deviation
from pipeline.experiment import Experiment
from pipeline.fitting import load_fitted
from pipeline.held_out import HeldOut, held_out
from pipeline.measurement import (
    Answers,
    details_of,
    measure_scaled,
    measure_student,
    measure_teacher,
    size_and_latency,
)
from pipeline.records import Record
from pipeline.saving import saving, teacher_record, why_no_teacher
from pipeline.student_targets import cache_of
from pipeline.teachers.opening import network_of


def compare(
    experiment: Experiment, students: Sequence[Path], baselines: Sequence[Path], units: Sequence[Record]
) -> dict[str, Any]:
    """All of metrics.json: models are given by the folders of their weights, in the order of their seeds.

    `units` are the records of everything that the comparison follows from.

    Raises VerificationError when the cache of the test split is damaged.
    """
    recipe = experiment.recipe
    split, validation = (held_out(experiment, name) for name in ("test", "validation"))

    def column(folders: Sequence[Path]) -> dict[str, Any]:
        if not folders:
            return {}
        networks = [load_fitted(recipe.student, split.samples, folder) for folder in folders]
        answers = [Answers(split.logits_of(network), validation.logits_of(network)) for network in networks]
        seeds = [{**measure_student(one.test, split), **measure_scaled(one, split, validation)} for one in answers]
        details = details_of(answers, [seed["fitted_temperature"] for seed in seeds], split)
        return {**over_seeds(seeds), **size_and_latency(networks[0], split), **details}

    metrics: dict[str, Any] = {
        "recipe": recipe.name,
        "temperature": split.temperature,
        "test_samples": len(split.samples),
        "seeds": list(recipe.student.seeds),
        "classes": {
            "names": list(split.samples.class_names),
            "test_samples": samples_of_classes(split.labels, len(split.samples.class_names)),
        },
        "labels": {**_labels(experiment), "validation": _labelled(validation), "test": _labelled(split)},
        "teacher_made_from": _teacher_made_from(experiment),
        "teacher": {**measure_teacher(split, validation), **_teacher_size(experiment, split)},
        "student": column(students),
        "baseline": column(baselines),
        "saving": saving(experiment),
        **cache_contents(experiment),
        "units": [{"stage": unit.stage, "label": unit.label, "key": unit.key} for unit in units],
        "seconds": _seconds(units),
    }
    gains = _paired(metrics["student"], metrics["baseline"])
    mean, deviation = mean_and_deviation(gains) if gains else (math.nan, None)
    return {**metrics, "gain_points": {"mean": mean if gains else None, "sd": deviation, "n": len(gains)}}


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


def _teacher_size(experiment: Experiment, split: HeldOut) -> dict[str, Any]:
    why_not = why_no_teacher(experiment)
    network = network_of(experiment) if why_not is None else None
    if network is not None:
        seen = experiment.datasets("transfer")["test"]
        preprocess = Preprocess(experiment.recipe.teacher_data.normalise, seen.sample_shape)
        as_taught = replace(split, samples=replace(split.samples, dataset=seen), preprocess=preprocess)
        return size_and_latency(network, as_taught)
    record = teacher_record(experiment)
    return {
        "parameters": record.values.get("parameters") if record else None,
        "size_not_measured": why_not or "the teacher is an estimator",
    }


def _labelled(split: HeldOut) -> int:
    return int((split.labels != NO_LABEL).sum())


def _teacher_made_from(experiment: Experiment) -> dict[str, Any]:
    """What the teacher that made the caches follows from, as a cache or its record has it."""
    cache = cache_of(experiment, "training") or cache_of(experiment, "test")
    return dict(cache.manifest.teacher["made_from"] if cache else experiment.teacher_record().made_from)


def _labels(experiment: Experiment) -> dict[str, int | None]:
    """How many training labels the student may use and the teacher learnt from, and how many there are."""
    training = experiment.fingerprints("student")["training"]
    wanted = experiment.recipe.student.labelled
    taught: Any = _teacher_made_from(experiment)
    for part in ("teacher", "data", "training", "labelled"):  # an imported teacher's may lack them
        taught = taught.get(part) if isinstance(taught, dict) else None
    return {
        "student": training["labelled"] if wanted is None else wanted,
        "training": training["labelled"],
        "training_samples": training["samples"],
        "teacher": taught,
    }


def _seconds(units: Sequence[Record]) -> dict[str, float]:
    """Seconds that each stage took, all its units together."""
    seconds: dict[str, float] = {}
    for unit in units:
        seconds[unit.stage] = seconds.get(unit.stage, 0.0) + unit.provenance.get("seconds", 0.0)
    return seconds


def _paired(student: dict[str, Any], baseline: dict[str, Any]) -> list[float]:
    """Points of accuracy that each seed's student is ahead of the same seed's baseline."""
    if "accuracy" not in student or "accuracy" not in baseline:
        return []
    pairs = zip(student["accuracy"]["values"], baseline["accuracy"]["values"], strict=True)
    return [100 * (distilled - plain) for distilled, plain in pairs]
