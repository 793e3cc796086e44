"""What the target caches say: their size and certificate, how sure the teacher is, and where it contradicts labels.

Shape legend: N samples, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.dataset import NO_LABEL
from pipeline.experiment import SPLITS, Experiment
from pipeline.student_data import ROWS_AT_ONCE, CachedSoftTargets, LearningSet, learning_set
from pipeline.student_targets import cache_of
from pipeline.targets.certificate import error_at
from pipeline.targets.reader import TargetCache

ENTROPY_BINS = 24
MOST_SAMPLES = 100_000  # of each split; more would only take longer
MOST_CONTRADICTIONS = 24


def cache_contents(experiment: Experiment) -> dict[str, Any]:
    """The caches of all splits for metrics.json, and what they say about the data; splits without a cache are left out.

    Raises VerificationError when one of them is damaged.
    """
    classes = experiment.recipe.student.classes
    caches = {split: cache for split in SPLITS if (cache := cache_of(experiment, split)) is not None}
    entropies: dict[str, Any] = {}
    contradictions: list[dict[str, Any]] = []
    for split, cache in caches.items():
        samples = _with_a_row(learning_set(experiment.datasets("student")[split], classes), cache)
        sharp = _sharpest(caches.values(), cache.temperature)
        entropies[split], found = soft_target_statistics(cache, samples, classes, sharp)
        contradictions += [{"split": split, **one} for one in found]
    contradictions.sort(key=lambda one: one["label_probability"])
    facts = {split: facts_of(cache) for split, cache in caches.items()}
    return {"caches": facts, "entropy": entropies, "contradictions": contradictions[:MOST_CONTRADICTIONS]}


def facts_of(cache: TargetCache) -> dict[str, Any]:
    """Size, encoding and certificate of one cache, and how it was made."""
    manifest, size = cache.manifest, bytes_on_disk(cache.folder)
    return {
        "key": manifest.key,
        "row_key": manifest.row_key,
        "rows": manifest.rows,
        "bytes": size,
        "bytes_per_row": size / manifest.rows,
        "store_bytes": bytes_on_disk(cache.folder / manifest.store_layout().store),
        "layout": manifest.layout,
        "encoding": manifest.encoding,
        "temperature": manifest.temperature,
        "teacher_digest": manifest.teacher["digest"],
        "teacher_key": manifest.teacher["key"],
        "teacher_recipe": manifest.teacher["recipe"],
        "certificate": manifest.certificate,
        "provenance": manifest.provenance,
    }


def bytes_on_disk(place: Path) -> int:
    """The size of a file, or those of all files of a folder, added up."""
    return sum(path.stat().st_size for path in (place, *place.rglob("*")) if path.is_file())


def soft_target_statistics(
    cache: TargetCache, samples: LearningSet, classes: Sequence[str] | None, sharp: float
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The entropies of a split's soft targets at the cache's T, and the labels that the teacher contradicts most.

    Probabilities of contradictions are at the temperature `sharp`. At most 100 000 samples are looked at, evenly spaced;
    those whose soft targets have no mass in `classes` are left out. Raises MismatchError or JoinError when the cache does
    not have these classes or samples, and CorruptCacheError when a block is damaged.
    """
    softened_at = CachedSoftTargets(cache, samples, cache.temperature, classes)
    sharp_at = CachedSoftTargets(cache, samples, sharp, classes)
    positions = np.arange(0, len(samples), -(-len(samples) // MOST_SAMPLES) or 1)
    entropies, found, labelled, contradicted = [torch.empty(0, dtype=torch.float64)], [], 0, 0
    for start in range(0, len(positions), ROWS_AT_ONCE):
        some = positions[start : start + ROWS_AT_ONCE]
        softened = softened_at(some)
        entropies.append(entropy(softened[torch.isfinite(softened).all(dim=1)]))
        probabilities, labels = sharp_at(some), torch.from_numpy(samples.labels[some])
        count, worst = contradictions(probabilities, labels)
        labelled += int(comparable(probabilities, labels).sum())
        contradicted += count
        for place, contradiction in worst:
            index = int(samples.indices[some[place]])
            found.append({"index": index, "temperature": sharp, **contradiction})
    most = sorted(found, key=lambda one: one["label_probability"])[:MOST_CONTRADICTIONS]
    histogram = entropy_histogram(torch.cat(entropies), len(samples.class_names))
    counts = {"labelled": labelled, "contradicted": contradicted}
    return {"temperature": cache.temperature, **counts, **histogram}, most


def entropy(probabilities_NC: Tensor) -> Tensor:
    """Float64 entropies (N,) in nats."""
    terms_NC: Tensor = torch.special.entr(probabilities_NC.double())
    return terms_NC.sum(dim=1)


def entropy_histogram(entropies_N: Tensor, classes: int) -> dict[str, Any]:
    """Counts of entropies in bins of equal width from 0 to log(classes) nats, with their mean and quartiles."""
    counts = torch.histc(entropies_N, bins=ENTROPY_BINS, min=0.0, max=math.log(classes))
    nothing = len(entropies_N) == 0
    quartiles = None if nothing else np.quantile(entropies_N.numpy(), [0.25, 0.5, 0.75]).tolist()
    return {
        "samples": len(entropies_N),
        "highest": math.log(classes),
        "counts": counts.long().tolist(),
        "mean": None if nothing else float(entropies_N.mean()),
        "quartiles": quartiles,
    }


def comparable(probabilities_NC: Tensor, labels_N: Tensor) -> Tensor:
    """Which samples (N,) have both a label and soft targets in the student's classes."""
    return (labels_N != NO_LABEL) & torch.isfinite(probabilities_NC).all(dim=1)


def contradictions(probabilities_NC: Tensor, labels_N: Tensor) -> tuple[int, list[tuple[int, dict[str, Any]]]]:
    """How many samples have a label that is not the teacher's class, and the 24 whose label has the least probability.

    Each with its place (0 to N - 1), its label, the teacher's class and the probabilities of both; the worst first.
    """
    rows_N = torch.arange(len(labels_N))
    best_N, predicted_N = probabilities_NC.max(dim=1)
    of_label_N = probabilities_NC[rows_N, labels_N.clamp_min(0)]
    wrong_N = torch.nonzero(comparable(probabilities_NC, labels_N) & (predicted_N != labels_N)).ravel()
    order = torch.argsort(of_label_N[wrong_N], stable=True)[:MOST_CONTRADICTIONS]
    return len(wrong_N), [
        (
            place,
            {
                "label": int(labels_N[place]),
                "predicted": int(predicted_N[place]),
                "probability": float(best_N[place]),
                "label_probability": float(of_label_N[place]),
            },
        )
        for place in wrong_N[order].tolist()
    ]


def _sharpest(caches: Iterable[TargetCache], stored: float) -> float:
    """T = 1 where all caches certify a finite error there, so that their samples can be ranked together; else `stored`."""
    errors = [error_at(cache.manifest.certificate, 1.0) for cache in caches]
    return 1.0 if all(error is not None and error["kl_mean"] is not None for error in errors) else stored


def _with_a_row(samples: LearningSet, cache: TargetCache) -> LearningSet:
    """Only the samples that the cache holds: student.missing = "skip" leaves out the others."""
    return samples.at(np.flatnonzero(cache.find(samples.sample_digests()) >= 0))
