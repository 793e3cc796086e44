"""What the pipeline makes of a dataset: rows, fingerprints, label budgets, class columns."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from data.arrays import ArrayDataset
from data.digests import array_digests
from pipeline.dataset import (
    Dataset,
    class_columns,
    fingerprint,
    labels_in,
    refuse_malformed,
    rows_of,
    within_budget,
)
from pipeline.errors import UserError

CLASSES = ("a", "b", "c")


def dataset_of(values: Sequence[int], labels: Sequence[int], classes: tuple[str, ...] = CLASSES) -> ArrayDataset:
    samples = np.array(values, dtype=np.int64).reshape(-1, 1)
    return ArrayDataset(samples, np.array(labels, dtype=np.int64), classes, "training", "made up")


def test_equal_samples_share_a_row_in_order_of_first_appearance() -> None:
    dataset = dataset_of([9, 5, 9, 7, 5, 9], [0, 1, 0, 2, 1, 0])
    rows = rows_of(dataset)
    assert len(rows) == 3
    assert rows.first_index.tolist() == [0, 1, 3]
    assert rows.labels.tolist() == [0, 1, 2]
    assert rows.views.tolist() == [0, 0, 0]
    np.testing.assert_array_equal(rows.digests, array_digests(np.array([[9], [5], [7]])))


@pytest.mark.parametrize(
    ("labels", "expected"), [([1, 1], 1), ([0, 1], -1), ([-1, 1], -1), ([1, -1], -1), ([-1, -1], -1)]
)
def test_a_row_has_no_label_where_equal_samples_disagree(labels: list[int], expected: int) -> None:
    rows = rows_of(dataset_of([4, 8, 4], [labels[0], 2, labels[1]]))
    assert rows.labels.tolist() == [expected, 2]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 2)), min_size=1, max_size=12))
def test_rows_are_the_distinct_samples_of_any_dataset(samples: list[tuple[int, int]]) -> None:
    values, labels = [value for value, _ in samples], [label for _, label in samples]
    rows = rows_of(dataset_of(values, labels))
    distinct = list(dict.fromkeys(values))
    assert [values[first] for first in rows.first_index] == distinct
    for value, first, label in zip(distinct, rows.first_index, rows.labels, strict=True):
        given_labels = {label for other, label in samples if other == value}
        assert first == values.index(value)
        assert label == (given_labels.pop() if len(given_labels) == 1 else -1)


def test_digests_that_end_in_zero_bytes_are_told_apart() -> None:
    @dataclass
    class Zeros:
        digests: NDArray[np.uint8]
        class_names = CLASSES
        split = "training"
        sample_shape = (1,)

        def __len__(self) -> int:
            return len(self.digests)

        def sample(self, index: int) -> NDArray[np.generic]:
            return np.zeros(1)

        def samples(self, indices: NDArray[np.int64]) -> NDArray[np.generic]:
            return np.zeros((len(indices), 1))

        def label(self, index: int) -> int | None:
            return None

        def labels(self) -> NDArray[np.int64]:
            return np.full(len(self), -1)

        def sample_digests(self) -> NDArray[np.uint8]:
            return self.digests

    digests = np.zeros((3, 16), np.uint8)
    digests[1, 0], digests[2, 15] = 1, 1
    assert len(rows_of(Zeros(digests))) == 3


def test_the_hash_of_rows_is_sha256_over_digest_and_little_endian_view_of_each() -> None:
    rows = rows_of(dataset_of([3, 1, 3], [0, 0, 0]))
    content = b"".join(digest.tobytes() + b"\0\0\0\0" for digest in array_digests(np.array([[3], [1]])))
    assert rows.sha256 == hashlib.sha256(content).hexdigest()


def test_labels_are_mapped_to_other_class_names_by_name() -> None:
    dataset = dataset_of([1, 2, 3, 4], [0, 1, 2, -1])
    assert labels_in(dataset, ("c", "a")).tolist() == [1, -1, 0, -1]
    assert labels_in(dataset, CLASSES).tolist() == [0, 1, 2, -1]
    assert rows_of(dataset, ("c", "a")).labels.tolist() == [1, -1, 0, -1]


BASE = dataset_of([1, 2, 3, 1], [0, 1, 2, 0])


def test_the_fingerprint_is_a_function_of_content_alone() -> None:
    again = ArrayDataset(
        BASE.values.astype(">i8"), BASE.given_labels.copy(), BASE.class_names, BASE.split, "another place"
    )
    assert fingerprint(again) == fingerprint(BASE)
    assert fingerprint(BASE)["samples"] == 4
    assert fingerprint(BASE)["sample_shape"] == [1]
    assert fingerprint(BASE)["class_names"] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("changed", "fields"),
    [
        (dataset_of([1, 2, 4, 1], [0, 1, 2, 0]), {"digests_sha256", "rows_sha256"}),
        (dataset_of([1, 2, 3, 1], [0, 1, 1, 0]), {"labels_sha256"}),
        (dataset_of([1, 2, 3, 1], [0, 1, -1, 0]), {"labelled", "labels_sha256"}),
        (dataset_of([2, 1, 3, 1], [1, 0, 2, 0]), {"digests_sha256", "labels_sha256", "rows_sha256"}),
        (dataset_of([1, 2, 1, 3], [0, 1, 0, 2]), {"digests_sha256", "labels_sha256"}),
        (dataset_of([1, 2, 3], [0, 1, 2]), {"samples", "labelled", "digests_sha256", "labels_sha256"}),
        (dataset_of([1, 2, 3, 1], [0, 1, 2, 0], ("a", "b", "d")), {"class_names"}),
    ],
)
def test_the_fingerprint_changes_exactly_with_content_labels_order_and_classes(
    changed: ArrayDataset, fields: set[str]
) -> None:
    before, after = fingerprint(BASE), fingerprint(changed)
    assert {name for name in before if before[name] != after[name]} == fields


def budget(labels: Sequence[int], labelled: int, seed: int = 0) -> NDArray[np.int64]:
    return within_budget(np.array(labels), array_digests(np.arange(len(labels)).reshape(-1, 1)), labelled, seed)


UNEVEN = [0] * 40 + [1] * 10 + [2] * 3 + [-1] * 7


@given(st.integers(0, 53), st.integers(0, 2**31 - 1))
def test_exactly_as_many_labels_are_kept_as_evenly_as_the_classes_allow(labelled: int, seed: int) -> None:
    kept = budget(UNEVEN, labelled, seed)
    assert ((kept == np.array(UNEVEN)) | (kept == -1)).all()
    counts = [int((kept == label).sum()) for label in range(3)]
    assert sum(counts) == labelled
    for count, size in zip(counts, (40, 10, 3), strict=True):
        assert count == size or count >= max(counts) - 1


def test_which_labels_are_kept_never_changes_for_a_seed() -> None:
    assert np.flatnonzero(budget(UNEVEN, 6) >= 0).tolist() == [15, 34, 47, 48, 51, 52]


@given(st.integers(0, 2**31 - 1))
def test_the_order_of_the_samples_does_not_matter(order_seed: int) -> None:
    values, labels = np.arange(60) // 2, np.arange(60) % 7 % 3  # pairs of equal samples, some with two labels
    digests = array_digests(values.reshape(-1, 1))
    order = np.random.default_rng(order_seed).permutation(60)

    def kept(order: NDArray[np.int64]) -> list[tuple[int, int]]:
        budgeted = within_budget(labels[order], digests[order], 20, seed=1)
        return sorted((int(values[order][i]), int(budgeted[i])) for i in np.flatnonzero(budgeted >= 0))

    assert kept(order) == kept(np.arange(60))


def test_a_larger_budget_keeps_the_labels_of_a_smaller_one() -> None:
    for smaller in range(53):
        known = budget(UNEVEN, smaller) >= 0
        assert (budget(UNEVEN, smaller + 1)[known] >= 0).all()


def test_another_seed_keeps_other_labels() -> None:
    assert not np.array_equal(budget(UNEVEN, 6, seed=0), budget(UNEVEN, 6, seed=1))


def test_a_budget_of_none_of_the_labels_keeps_none() -> None:
    assert (budget(UNEVEN, 0) == -1).all()


def test_a_budget_above_the_labels_there_are_is_refused_with_both_numbers() -> None:
    with pytest.raises(UserError, match=r"student\.labelled = 54, but the training split has 53 labelled samples"):
        budget(UNEVEN, 54)


def test_class_columns_are_the_places_of_names() -> None:
    assert class_columns(("c", "a"), CLASSES, "the cache").tolist() == [2, 0]
    assert class_columns(CLASSES, CLASSES, "the cache").tolist() == [0, 1, 2]


def test_a_class_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(UserError, match="the cache has no class 'd'; its classes are a, b, c"):
        class_columns(("a", "d", "e"), CLASSES, "the cache")


def test_a_dataset_with_all_its_parts_is_accepted() -> None:
    assert isinstance(BASE, Dataset)
    refuse_malformed(BASE, "[data], training split")


def test_something_that_is_no_dataset_is_refused_by_the_parts_it_lacks() -> None:
    with pytest.raises(
        UserError, match=r"^the test split is a ndarray, which is no dataset: it has no class_names, split"
    ):
        refuse_malformed(np.zeros((3, 2)), "the test split")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 1, 2]), r"labels\(\) is of shape \(3,\) and dtype int64, but shape \(4,\) and int64 are needed"),
        (np.array([0.0, 1, 2, 0]), r"labels\(\) is of shape \(4,\) and dtype float64"),
        (np.array([0, 1, 3, 0]), "sample 2 has label 3; 0 to 2 are allowed, and -1 for none"),
        (np.array([0, -2, 1, 0]), "sample 1 has label -2; 0 to 2 are allowed, and -1 for none"),
    ],
)
def test_a_dataset_with_wrong_labels_is_refused_by_sample_and_value(labels: NDArray[np.int64], message: str) -> None:
    with pytest.raises(UserError, match=f"^the test split: {message}"):
        refuse_malformed(replace(BASE, given_labels=labels), "the test split")


@pytest.mark.parametrize("names", [("a",), ("a", "a", "b"), (0, 1, 2)], ids=["one", "repeated", "numbers"])
def test_a_dataset_whose_class_names_are_not_different_texts_is_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"class_names is .*two or more different texts are needed"):
        refuse_malformed(replace(BASE, class_names=names, given_labels=np.zeros(len(BASE), np.int64)), "the test split")
