"""Results by class: accuracy of each class, and which classes are taken for which.

Shape legend: N samples, C classes.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.dataset import NO_LABEL

MOST_CLASSES_OF_A_MATRIX = 20
MOST_PAIRS = 30


def samples_of_classes(labels_N: Tensor, classes: int) -> list[int]:
    """How many samples carry each label."""
    counts: list[int] = torch.bincount(labels_N[labels_N != NO_LABEL], minlength=classes).tolist()
    return counts


def class_accuracy(predictions: Sequence[Tensor], labels_N: Tensor, classes: int) -> list[dict[str, float | None]]:
    """For each class, mean and standard deviation over seeds of its accuracy; None for a class without samples.

    `predictions` holds the predicted classes (N,) of each seed.
    """
    samples_C = torch.bincount(labels_N[labels_N != NO_LABEL], minlength=classes).double()
    by_seed = [
        (torch.bincount(labels_N[predicted_N == labels_N], minlength=classes) / samples_C).tolist()
        for predicted_N in predictions
    ]
    found: list[dict[str, float | None]] = []
    for values, samples in zip(zip(*by_seed, strict=True), samples_C.tolist(), strict=True):
        spread = statistics.stdev(values) if samples and len(values) > 1 else None
        found.append({"mean": statistics.fmean(values) if samples else None, "sd": spread})
    return found


def confusion(predictions: Sequence[Tensor], labels_N: Tensor, classes: int) -> dict[str, Any]:
    """How often samples of one class are predicted as another, over all seeds together.

    "matrix" (C, C) counts by label and prediction, for at most 20 classes (else None); "pairs" are the most frequent
    confusions [label, predicted, count], at most 30, the most frequent first; "errors" counts all of them.
    """
    known = labels_N != NO_LABEL
    codes = torch.cat([labels_N[known] * classes + predicted_N[known] for predicted_N in predictions])
    values, counts = torch.unique(codes, return_counts=True)
    cells = [
        (code // classes, code % classes, count) for code, count in zip(values.tolist(), counts.tolist(), strict=True)
    ]
    wrong = [cell for cell in cells if cell[0] != cell[1]]
    pairs = sorted(wrong, key=lambda cell: (-cell[2], cell[:2]))[:MOST_PAIRS]
    matrix: list[list[int]] | None = None
    if classes <= MOST_CLASSES_OF_A_MATRIX:
        matrix = [[0] * classes for _ in range(classes)]
        for label, predicted, count in cells:
            matrix[label][predicted] = count
    return {
        "matrix": matrix,
        "pairs": [list(pair) for pair in pairs],
        "errors": sum(cell[2] for cell in wrong),
        "samples": sum(cell[2] for cell in cells),
    }
