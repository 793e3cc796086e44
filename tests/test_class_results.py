"""Accuracy of each class and confusions, against a loop over the samples."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.class_results import MOST_PAIRS, class_accuracy, confusion, samples_of_classes

LABELS = torch.tensor([0, 0, 1, 1, 1, 3, -1])
SEEDS = [torch.tensor([0, 1, 1, 1, 0, 3, 2]), torch.tensor([0, 0, 1, 0, 0, 2, 3])]


def test_the_accuracy_of_each_class_is_the_mean_over_seeds_and_missing_without_samples() -> None:
    found = class_accuracy(SEEDS, LABELS, 4)
    assert [one["mean"] for one in found] == [0.75, 0.5, None, 0.5]
    spread = 0.5**0.5 / 2  # of 1/2 and 1
    assert found[0]["sd"] == spread
    assert found[2]["sd"] is None
    assert [one["sd"] for one in class_accuracy(SEEDS[:1], LABELS, 4)] == [None] * 4
    assert samples_of_classes(LABELS, 4) == [2, 3, 0, 1]


def test_confusions_count_all_seeds_and_leave_out_samples_without_a_label() -> None:
    found = confusion(SEEDS, LABELS, 4)
    assert found["matrix"] == [[3, 1, 0, 0], [3, 3, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]]
    assert found["pairs"] == [[1, 0, 3], [0, 1, 1], [3, 2, 1]]
    assert (found["errors"], found["samples"]) == (5, 12)


@given(st.data(), st.integers(2, 60))
def test_confusions_of_many_classes_are_those_of_a_loop_and_bounded(data: st.DataObject, classes: int) -> None:
    pairs = data.draw(st.lists(st.tuples(st.integers(-1, classes - 1), st.integers(0, classes - 1)), max_size=120))
    labels, predicted = (torch.tensor([pair[side] for pair in pairs], dtype=torch.int64) for side in (0, 1))
    found = confusion([predicted], labels, classes)
    wrong: dict[tuple[int, int], int] = {}
    for label, guess in pairs:
        if label not in (-1, guess):
            wrong[label, guess] = wrong.get((label, guess), 0) + 1
    expected = sorted(([*pair, times] for pair, times in wrong.items()), key=lambda one: (-one[2], one[:2]))
    assert found["pairs"] == expected[:MOST_PAIRS]
    assert found["errors"] == sum(wrong.values())
    assert (found["matrix"] is None) == (classes > 20)
    if found["matrix"] is not None:
        assert sum(map(sum, found["matrix"])) == found["samples"] == sum(label >= 0 for label, _ in pairs)
