"""Metrics of classifiers, as pure functions of logits, probabilities and labels.

Shape legend: N samples, C classes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from pipeline.calibration import binned, error_of_bins
from pipeline.dataset import NO_LABEL
from pipeline.losses import soft_target_divergence


@torch.inference_mode()
def logits_of(model: nn.Module, inputs: Iterable[Tensor], device: torch.device) -> Tensor:
    """Float32 logits (N, C) on the CPU, in eval mode, of batches of inputs in their order."""
    model.eval()
    return torch.cat([model(batch.to(device)).float().cpu() for batch in inputs])


def accuracy(predicted_N: Tensor, labels_N: Tensor) -> float:
    """Fraction of labelled samples whose predicted class is the label; NaN without labels."""
    known = labels_N != NO_LABEL
    return float((predicted_N[known] == labels_N[known]).double().mean())


def cross_entropy(logits_NC: Tensor, labels_N: Tensor) -> float:
    """Mean negative log-likelihood of the labels in nats; NaN without labels."""
    known = labels_N != NO_LABEL
    return float(nn.functional.cross_entropy(logits_NC[known].double(), labels_N[known]))


def agreement(predicted_N: Tensor, teacher_predicted_N: Tensor) -> float:
    """Fraction of samples on which student and teacher predict the same class."""
    return float((predicted_N == teacher_predicted_N).double().mean())


def divergence_from_teacher(logits_NC: Tensor, soft_targets_NC: Tensor, temperature: float) -> float:
    """Mean KL(teacher || student) in nats at `temperature`."""
    return float(soft_target_divergence(logits_NC.double(), soft_targets_NC.double(), temperature).mean())


def calibration_error(probabilities_NC: Tensor, labels_N: Tensor, bins: int) -> float:
    """Expected calibration error with bins of equal width (Guo et al. 2017, equation 5); NaN without labels."""
    return error_of_bins(binned(probabilities_NC, labels_N, bins))


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and sample standard deviation (None for a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


@torch.inference_mode()
def latency_seconds(model: nn.Module, one_input: Tensor, device: torch.device, repeats: int = 50) -> float:
    """Median seconds of a forward pass of one sample, after 5 passes to warm up."""
    model.eval()
    one_input = one_input.to(device)
    taken = []
    for repeat in range(repeats + 5):
        started = time.perf_counter()
        model(one_input)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if repeat >= 5:
            taken.append(time.perf_counter() - started)
    return statistics.median(taken)
