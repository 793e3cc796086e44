"""Reliability bins and temperature scaling, against values computed by hand and by scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torch import Tensor

from pipeline.calibration import (
    HIGHEST_TEMPERATURE,
    LOWEST_TEMPERATURE,
    binned,
    error_of_bins,
    fitted_temperature,
    reliability,
    reliability_over_seeds,
)


def drawn(samples: int, classes: int, sharpness: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits, and labels drawn from softmax(logits / sharpness)."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(torch.softmax(logits / sharpness, dim=1), 1, generator=generator).ravel()
    return logits, labels


def test_the_bins_of_a_hand_computed_example() -> None:
    # Width 0.25. (0.5, 0.75]: confidences 0.6 and 0.75, one right; (0.75, 1]: 0.8 and 1.0, both right. -1 is no label.
    first_class = [0.6, 0.25, 0.8, 1.0, 0.9]
    probabilities = torch.tensor([[first, 1 - first] for first in first_class], dtype=torch.float64)
    bins = reliability(binned(probabilities, torch.tensor([0, 0, 0, 0, -1]), 4))
    assert [(one["from"], one["to"], one["samples"]) for one in bins] == [
        (0.0, 0.25, 0),
        (0.25, 0.5, 0),
        (0.5, 0.75, 2),
        (0.75, 1.0, 2),
    ]
    assert [one["accuracy"] for one in bins] == [None, None, 0.5, 1.0]
    assert bins[0]["confidence"] is None
    assert bins[2]["confidence"] == pytest.approx(0.675, abs=1e-15)
    assert bins[3]["confidence"] == pytest.approx(0.9, abs=1e-15)


def test_a_probability_of_zero_hinders_the_fit_only_where_it_is_the_labels() -> None:
    logits, labels = drawn(500, 4, 2.0)
    without = torch.cat([logits, torch.full((500, 1), -math.inf, dtype=torch.float64)], dim=1)
    fitted = fitted_temperature(logits, labels)
    assert fitted is not None
    assert fitted_temperature(without, labels) == pytest.approx(fitted, rel=1e-9)
    labels[7] = 4
    assert fitted_temperature(without, labels) is None


@given(st.lists(st.floats(0.5, 1.0), max_size=40), st.integers(1, 30))
def test_every_labelled_sample_is_in_one_bin_that_holds_its_confidence(confidences: list[float], bins: int) -> None:
    probabilities = torch.tensor([[one, 1 - one] for one in confidences], dtype=torch.float64).reshape(-1, 2)
    found = reliability(binned(probabilities, torch.zeros(len(confidences), dtype=torch.int64), bins))
    assert sum(one["samples"] for one in found) == len(confidences)
    for one in found:
        if one["samples"]:
            assert one["from"] - 1e-9 <= one["confidence"] <= one["to"] + 1e-9


def test_the_error_of_no_samples_is_nan() -> None:
    assert math.isnan(error_of_bins(torch.zeros(15, 3)))


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 2.5])
@pytest.mark.parametrize("classes", [2, 10])
def test_the_fitted_temperature_is_the_one_that_scipy_finds(sharpness: float, classes: int) -> None:
    logits, labels = drawn(500, classes, sharpness)

    def loss(log_temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits / math.exp(log_temperature), labels))

    expected = math.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9}).x)
    assert fitted_temperature(logits, labels) == pytest.approx(expected, rel=1e-5)


def test_the_fitted_temperature_of_two_logits_by_hand() -> None:
    # Logits (a, 0), of which 3 of 4 labels are 0: the likelihood is highest where softmax gives 3/4, so a / T = log 3.
    logits = torch.tensor([[2.0, 0.0]]).repeat(4, 1)
    assert fitted_temperature(logits, torch.tensor([0, 0, 0, 1])) == pytest.approx(2 / math.log(3), rel=1e-9)


def test_samples_without_a_label_do_not_count() -> None:
    logits, labels = drawn(300, 5, 1.7)
    more = torch.cat([logits, 9 * torch.ones(50, 5)])
    padded = torch.cat([labels, torch.full((50,), -1)])
    assert fitted_temperature(more, padded) == fitted_temperature(logits, labels)
    assert fitted_temperature(logits, torch.full((300,), -1)) is None


def test_a_model_without_errors_takes_the_lowest_temperature_and_one_that_is_always_wrong_the_highest() -> None:
    logits = torch.tensor([[5.0, 0.0, 0.0], [0.0, 5.0, 0.0]])
    assert fitted_temperature(logits, torch.tensor([0, 1])) == LOWEST_TEMPERATURE
    assert fitted_temperature(logits, torch.tensor([1, 0])) == HIGHEST_TEMPERATURE


@given(st.integers(0, 1000), st.floats(0.3, 4.0), st.floats(0.25, 4.0))
def test_scaling_the_logits_scales_the_fitted_temperature(seed: int, sharpness: float, factor: float) -> None:
    logits, labels = drawn(60, 3, sharpness, seed)
    once, again = fitted_temperature(logits, labels), fitted_temperature(factor * logits, labels)
    assert once is not None
    assert again is not None
    inside = all(LOWEST_TEMPERATURE * 1.01 < one < HIGHEST_TEMPERATURE * 0.99 for one in (once, again))
    assert not inside or again == pytest.approx(factor * once, rel=1e-6)


def test_a_constant_added_to_the_logits_of_a_sample_changes_nothing() -> None:
    logits, labels = drawn(200, 4, 1.3)
    shifted = logits + torch.from_numpy(np.linspace(-50, 50, 200))[:, None]
    assert fitted_temperature(shifted, labels) == pytest.approx(fitted_temperature(logits, labels), rel=1e-9)


def test_bins_of_all_seeds_are_added_up_and_there_are_none_after_scaling_without_a_temperature() -> None:
    logits, labels = drawn(100, 3, 1.0)
    one = reliability_over_seeds([logits], labels, [2.0], 5)
    two = reliability_over_seeds([logits, logits], labels, [2.0, 2.0], 5)
    for when in ("before", "after"):
        assert [2 * each["samples"] for each in one[when]] == [each["samples"] for each in two[when]]
        assert [each["accuracy"] for each in one[when]] == [each["accuracy"] for each in two[when]]
    assert reliability_over_seeds([logits, logits], labels, [2.0, None], 5).keys() == {"before"}
