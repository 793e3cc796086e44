"""Calibration: reliability bins, and the one temperature that makes a classifier's confidence fit its accuracy.

Shape legend: N samples, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.dataset import NO_LABEL

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0  # a model that errs nowhere on validation would take T = 0


def binned(probabilities_NC: Tensor, labels_N: Tensor, bins: int) -> Tensor:
    """Float64 (bins, 3): samples, sum of their confidence and number of hits in each bin of equal width.

    The bin of confidence p is the one with (b / bins) < p <= (b + 1) / bins; samples without a label are left out.
    """
    known = labels_N != NO_LABEL
    confidence_N, predicted_N = probabilities_NC[known].double().max(dim=1)
    bin_N = (confidence_N * bins).ceil().clamp(1, bins).long() - 1
    parts = torch.stack([torch.ones_like(confidence_N), confidence_N, (predicted_N == labels_N[known]).double()], dim=1)
    return torch.zeros(bins, 3, dtype=torch.float64).index_add(0, bin_N, parts)


def reliability(sums: Tensor) -> list[dict[str, Any]]:
    """One entry for each bin of `sums` (bins, 3): edges, samples, mean confidence and accuracy (None where empty)."""
    bins = len(sums)
    return [
        {
            "from": place / bins,
            "to": (place + 1) / bins,
            "samples": int(samples),
            "confidence": confidence / samples if samples else None,
            "accuracy": hits / samples if samples else None,
        }
        for place, (samples, confidence, hits) in enumerate(sums.tolist())
    ]


def error_of_bins(sums: Tensor) -> float:
    """Expected calibration error of binned samples (Guo et al. 2017, equation 5); NaN without samples."""
    samples = float(sums[:, 0].sum())
    return float((sums[:, 2] - sums[:, 1]).abs().sum()) / samples if samples else math.nan


def fitted_temperature(logits_NC: Tensor, labels_N: Tensor) -> float | None:
    """The T that minimises the mean negative log-likelihood of the labels by softmax(logits / T).

    None without labels, and where a label's logit is -inf: no T makes that likely.
    Temperature scaling (Guo et al. 2017, section 4.2). The likelihood is convex in 1 / T, so Newton's method, kept
    within a shrinking bracket, finds the one minimum. T stays within 0.05 and 20.
    """
    known = labels_N != NO_LABEL
    logits_NC = logits_NC[known].double()
    of_label_N = logits_NC.gather(1, labels_N[known][:, None])
    if len(logits_NC) == 0 or not bool(torch.isfinite(of_label_N).all()):
        return None
    logits_NC = logits_NC - of_label_N  # the label's logit becomes 0
    low, high = 1 / HIGHEST_TEMPERATURE, 1 / LOWEST_TEMPERATURE
    if _slope(logits_NC, low)[0] >= 0:
        return HIGHEST_TEMPERATURE
    if _slope(logits_NC, high)[0] <= 0:
        return LOWEST_TEMPERATURE
    inverse = 1.0
    for _ in range(100):
        slope, curvature = _slope(logits_NC, inverse)
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        newton = inverse - slope / curvature if curvature > 0 else low
        following = newton if low < newton < high else math.sqrt(low * high)
        if abs(following - inverse) <= 1e-10 * inverse:
            break
        inverse = following
    return 1 / inverse


def _slope(logits_NC: Tensor, inverse: float) -> tuple[float, float]:
    """First and second derivative, by 1 / T, of the mean negative log-likelihood; the label's logit is 0."""
    probabilities_NC = torch.softmax(logits_NC * inverse, dim=1)
    logits_NC = torch.where(probabilities_NC > 0, logits_NC, 0.0)  # 0 times -inf counts as 0
    mean_N = (probabilities_NC * logits_NC).sum(dim=1)
    square_N = (probabilities_NC * logits_NC.square()).sum(dim=1)
    return float(mean_N.mean()), float((square_N - mean_N.square()).mean())


def reliability_over_seeds(
    logits: Sequence[Tensor], labels_N: Tensor, temperatures: Sequence[float | None], bins: int
) -> dict[str, Any]:
    """Reliability bins of all seeds together, as they are ("before") and at their fitted temperatures ("after").

    `logits` holds (N, C) for each seed. "after" is missing where a temperature could not be fitted.
    """
    before = [binned(seed.softmax(dim=1), labels_N, bins) for seed in logits]
    found = {"before": reliability(torch.stack(before).sum(dim=0))}
    fitted = [temperature for temperature in temperatures if temperature is not None]
    if len(fitted) == len(logits):
        after = [
            binned((seed.double() / temperature).softmax(dim=1), labels_N, bins)
            for seed, temperature in zip(logits, fitted, strict=True)
        ]
        found["after"] = reliability(torch.stack(after).sum(dim=0))
    return found
