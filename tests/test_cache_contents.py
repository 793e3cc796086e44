"""What caches say about the data: entropies, and the labels that the teacher contradicts most."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.cache_contents import MOST_CONTRADICTIONS, comparable, contradictions, entropy, entropy_histogram


def test_entropies_run_from_0_to_the_logarithm_of_the_number_of_classes() -> None:
    probabilities = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.25] * 4, [0.5, 0.5, 0.0, 0.0]])
    assert entropy(probabilities).tolist() == pytest.approx([0.0, math.log(4), math.log(2)], abs=1e-12)


def test_the_histogram_holds_every_sample_the_most_and_the_least_certain_too() -> None:
    found = entropy_histogram(torch.tensor([0.0, math.log(4), math.log(2)], dtype=torch.float64), 4)
    assert (sum(found["counts"]), found["counts"][0], found["counts"][-1]) == (3, 1, 1)
    assert found["mean"] == pytest.approx(math.log(8) / 3)
    assert found["quartiles"][1] == pytest.approx(math.log(2))
    nothing = entropy_histogram(torch.empty(0, dtype=torch.float64), 4)
    assert (nothing["samples"], nothing["mean"], nothing["quartiles"]) == (0, None, None)


def test_contradictions_are_the_labels_with_the_least_probability_first() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.3, 0.7], [0.8, 0.2], [0.99, 0.01], [0.6, 0.4]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, -1, 1])
    count, worst = contradictions(probabilities, labels)
    assert count == 3
    assert [place for place, _ in worst] == [2, 1, 4]
    assert worst[0][1] == {"label": 1, "predicted": 0, "probability": 0.8, "label_probability": 0.2}


def test_a_sample_without_any_mass_in_the_students_classes_contradicts_nothing() -> None:
    nothing = torch.full((1, 2), torch.nan, dtype=torch.float64)
    assert contradictions(nothing, torch.tensor([1])) == (0, [])


def test_only_samples_with_a_label_and_soft_targets_can_be_contradicted() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [torch.nan, torch.nan]], dtype=torch.float64)
    assert comparable(probabilities, torch.tensor([1, -1, 0])).tolist() == [True, False, False]


def test_at_most_24_contradictions_are_kept_and_all_are_counted() -> None:
    first = torch.linspace(0.51, 0.99, 100, dtype=torch.float64)
    count, worst = contradictions(torch.stack([first, 1 - first], dim=1), torch.ones(100, dtype=torch.int64))
    assert (count, len(worst)) == (100, MOST_CONTRADICTIONS)
    assert [place for place, _ in worst] == list(range(99, 99 - MOST_CONTRADICTIONS, -1))
