"""Splits: which side a sample falls on is decided by its content and the seed alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from data.arrays import ArrayDataset
from data.digests import array_digests
from data.errors import DatasetError
from data.splits import SPLITS, among, split_by_content, uniform_of

N = 2000


def dataset_of(values: NDArray[np.generic]) -> ArrayDataset:
    return ArrayDataset(values, np.arange(len(values), dtype=np.int64) % 2, ("even", "odd"), "all", "made up")


def numbered(count: int) -> NDArray[np.int64]:
    return np.arange(count).reshape(-1, 1)


def split_of_each(dataset: ArrayDataset, seed: int = 0) -> dict[str, str]:
    """The split of each sample, by its digest."""
    parts = split_by_content(dataset, validation=0.2, test=0.3, seed=seed)
    return {digest.tobytes().hex(): split for split, part in parts.items() for digest in part.sample_digests()}


def test_the_splits_of_fixed_content_never_change() -> None:
    parts = split_by_content(dataset_of(numbered(12)), validation=0.25, test=0.25, seed=7)
    assert {split: part.values.ravel().tolist() for split, part in parts.items()} == {
        "training": [3, 5, 7, 8, 11],
        "validation": [1, 4, 6],
        "test": [0, 2, 9, 10],
    }


@given(st.integers(0, 2**31 - 1))
def test_reordering_a_dataset_moves_no_sample(order_seed: int) -> None:
    values = numbered(100)
    shuffled = np.random.default_rng(order_seed).permutation(values)
    assert split_of_each(dataset_of(shuffled)) == split_of_each(dataset_of(values))


def test_adding_samples_to_a_dataset_moves_none_of_the_old_ones() -> None:
    before, after = split_of_each(dataset_of(numbered(200))), split_of_each(dataset_of(numbered(500)))
    assert {digest: after[digest] for digest in before} == before


def test_every_sample_is_in_exactly_one_split_and_keeps_its_label_and_order() -> None:
    whole = dataset_of(numbered(N))
    parts = split_by_content(whole, validation=0.2, test=0.3, seed=0)
    assert tuple(parts) == SPLITS
    assert sorted(np.concatenate([part.values.ravel() for part in parts.values()]).tolist()) == list(range(N))
    for split, part in parts.items():
        assert part.split == split
        assert (np.diff(part.values.ravel()) > 0).all()
        np.testing.assert_array_equal(part.labels(), part.values.ravel() % 2)


@given(st.integers(0, 2**31 - 1))
def test_equal_samples_never_fall_on_two_sides(seed: int) -> None:
    repeated = np.repeat(numbered(60), 3, axis=0)
    parts = split_by_content(dataset_of(repeated), validation=0.3, test=0.3, seed=seed)
    sides = [set(part.values.ravel().tolist()) for part in parts.values()]
    assert sum(len(side) for side in sides) == 60
    assert sum(len(part) for part in parts.values()) == 180


def test_another_seed_gives_another_split() -> None:
    whole = dataset_of(numbered(100))
    assert split_of_each(whole, seed=0) != split_of_each(whole, seed=1)


@pytest.mark.parametrize(("validation", "test"), [(0.2, 0.2), (0.1, 0.5), (0.45, 0.45)])
def test_the_fractions_are_met_within_four_standard_deviations(validation: float, test: float) -> None:
    parts = split_by_content(dataset_of(numbered(N)), validation=validation, test=test, seed=3)
    for split, fraction in (("validation", validation), ("test", test), ("training", 1 - validation - test)):
        assert abs(len(parts[split]) - N * fraction) < 4 * (N * fraction * (1 - fraction)) ** 0.5


def test_a_fraction_of_zero_leaves_that_split_out() -> None:
    parts = split_by_content(dataset_of(numbered(50)), validation=0.5, test=0.0, seed=0)
    assert list(parts) == ["training", "validation"]
    assert len(parts["training"]) + len(parts["validation"]) == 50


def test_a_dataset_too_small_for_a_split_is_refused_by_name() -> None:
    with pytest.raises(DatasetError, match=r"made up: 1 samples leave the \w+ split empty"):
        split_by_content(dataset_of(numbered(1)), validation=0.2, test=0.2, seed=0)


def test_uniform_numbers_are_in_the_unit_interval_and_depend_on_digest_purpose_and_seed() -> None:
    digests = array_digests(numbered(N))
    uniform = uniform_of(digests, "split", 0)
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 4 * (1 / 12 / N) ** 0.5
    assert (uniform != uniform_of(digests, "split", 1)).all()
    assert (uniform != uniform_of(digests, "other", 0)).all()
    np.testing.assert_array_equal(uniform_of(digests[::-1], "split", 0), uniform[::-1])


def test_a_split_knows_the_places_of_its_samples_in_the_source() -> None:
    whole = dataset_of(numbered(60))
    splits = split_by_content(whole, validation=0.3, test=0.2, seed=3)
    for split in splits.values():
        assert split.part == "all"
        np.testing.assert_array_equal(whole.values[split.positions], split.values)
    np.testing.assert_array_equal(
        np.sort(np.concatenate([split.positions for split in splits.values()])), np.arange(60)
    )


@given(st.lists(st.integers(0, 20)), st.lists(st.integers(0, 20)), st.booleans())
def test_digests_among_others_are_those_that_a_set_holds(ours: list[int], others: list[int], far_apart: bool) -> None:
    """`far_apart`: digests of content; else some that share their first eight bytes."""

    def digests(numbers: list[int]) -> NDArray[np.uint8]:
        small = np.zeros((len(numbers), 16), np.uint8)
        small[:, 15] = numbers
        return array_digests(np.array(numbers, np.int64).reshape(-1, 1)) if far_apart else small

    expected = [number in set(others) for number in ours]
    assert among(digests(ours), digests(others)).tolist() == expected


def test_the_uniform_numbers_of_fixed_content_never_change() -> None:
    found = uniform_of(array_digests(numbered(3)), "split", 7)
    assert found.tolist() == [0.2806070091596896, 0.19251801135252866, 0.3720301991716747]
