"""Metrics against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

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

CPU = torch.device("cpu")


def test_accuracy_counts_labelled_samples_only() -> None:
    predicted, labels = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([0, 2, 2, -1, -1])
    assert accuracy(predicted, labels) == pytest.approx(2 / 3, abs=1e-15)


def test_accuracy_and_cross_entropy_and_calibration_are_nan_without_labels() -> None:
    nothing = torch.tensor([-1, -1])
    assert math.isnan(accuracy(torch.tensor([0, 1]), nothing))
    assert math.isnan(cross_entropy(torch.zeros(2, 3), nothing))
    assert math.isnan(calibration_error(torch.full((2, 3), 1 / 3), nothing, 15))


def test_cross_entropy_is_the_mean_over_labelled_samples_in_nats() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0], [5.0, -5.0]])
    labels = torch.tensor([0, 1, -1])
    assert cross_entropy(logits, labels) == pytest.approx((math.log(2) + math.log(4)) / 2, abs=1e-7)


def test_agreement_is_the_fraction_of_equal_predictions() -> None:
    assert agreement(torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 0, 0])) == 0.5


def test_the_divergence_from_the_teacher_is_the_mean_kl_at_the_temperature() -> None:
    logits = 2.0 * torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])  # at T = 2: (1/2, 1/2) and (3/4, 1/4)
    teacher = torch.tensor([[1.0, 0.0], [0.75, 0.25]])
    assert divergence_from_teacher(logits, teacher, 2.0) == pytest.approx(math.log(2) / 2, abs=1e-7)


def test_the_calibration_error_of_a_hand_computed_example() -> None:
    # Five bins of width 0.2. (0.4, 0.6]: confidences 0.55 and 0.6, one right; (0.6, 0.8]: 0.75, right; (0.8, 1]: 0.9,
    # 0.95 and 1.0, two right. The last sample has no label.
    first_class = [0.55, 0.4, 0.75, 0.9, 0.05, 1.0, 0.7]
    probabilities = torch.tensor([[first, 1 - first] for first in first_class], dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 0, 1, 1, -1])
    gaps = [abs(1 - (0.55 + 0.6)), abs(1 - 0.75), abs(2 - (0.9 + 0.95 + 1.0))]
    assert calibration_error(probabilities, labels, 5) == pytest.approx(sum(gaps) / 6, abs=1e-12)


def test_one_bin_gives_the_gap_between_mean_confidence_and_accuracy() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 0])
    assert calibration_error(probabilities, labels, 1) == pytest.approx((0.9 + 0.8 + 0.6) / 3 - 2 / 3, abs=1e-12)


def test_a_certain_and_right_model_has_no_calibration_error() -> None:
    assert calibration_error(torch.eye(3), torch.tensor([0, 1, 2]), 15) == 0.0


def test_mean_and_deviation_are_the_sample_statistics() -> None:
    mean, deviation = mean_and_deviation([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3, abs=1e-15)
    assert deviation == pytest.approx(math.sqrt(7 / 3), abs=1e-15)


def test_a_single_value_has_no_deviation() -> None:
    assert mean_and_deviation([0.25]) == (0.25, None)


class Counting(nn.Module):
    """Counts its calls, and tells whether it was in eval mode and without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.seen: list[tuple[bool, bool]] = []

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append((self.training, torch.is_grad_enabled()))
        return inputs.to(torch.float16)


def test_logits_come_in_the_order_of_the_inputs_in_float32_in_eval_mode_without_gradients() -> None:
    model, inputs = Counting(), torch.arange(10.0).reshape(5, 2)
    logits = logits_of(model, [inputs[:2], inputs[2:4], inputs[4:]], CPU)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, inputs)
    assert model.seen == [(False, False)] * 3


def test_latency_is_the_median_of_as_many_passes_as_asked_after_five_to_warm_up() -> None:
    model = Counting()
    assert latency_seconds(model, torch.zeros(1, 2), CPU, repeats=4) > 0
    assert model.calls == 9
