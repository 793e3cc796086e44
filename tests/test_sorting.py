"""Sorting in buckets gives the order that numpy's sort in one piece gives, whatever the words are."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.sorting import Indices, Words, first_not_less, index_dtype, order_of_digests, sorted_order
from pipeline.targets.order import BatchOrder, epoch_order

LARGE = 300_000  # more than one part and bucket, and pieces of unequal size
FEW_BYTES = st.lists(st.lists(st.integers(0, 2), min_size=16, max_size=16), max_size=40)


def digests_of(rows: list[list[int]]) -> NDArray[np.uint8]:
    return np.array(rows, dtype=np.uint8).reshape(-1, 16)


def random_digests(rows: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (rows, 16), dtype=np.uint8)


def by_bytes(digests: NDArray[np.uint8]) -> list[int]:
    return sorted(range(len(digests)), key=lambda row: digests[row].tobytes())  # Python's sort is stable


@given(FEW_BYTES)
def test_digests_are_sorted_by_their_bytes_and_equal_ones_by_place(rows: list[list[int]]) -> None:
    assert order_of_digests(digests_of(rows)).tolist() == by_bytes(digests_of(rows))


@pytest.mark.parametrize("seed", [0, 1])
def test_many_digests_with_repetitions_are_sorted_as_well(seed: int) -> None:
    digests = random_digests(LARGE, seed)
    digests[LARGE // 2 :] = digests[np.random.default_rng(seed).integers(0, LARGE // 2, LARGE - LARGE // 2)]
    order = order_of_digests(digests)
    assert order.dtype == np.int32
    assert order.tolist() == by_bytes(digests)


def sorted_by(*words: NDArray[np.uint64]) -> Indices:
    def all_words(rows: Indices) -> Words:
        return tuple(word[rows] for word in words)

    return sorted_order(len(words[0]), lambda piece: words[0][piece], all_words)


@pytest.mark.parametrize("value", [0, 2**63, 2**64 - 1])
def test_words_that_all_fall_into_one_bucket_keep_their_order(value: int) -> None:
    assert np.array_equal(sorted_by(np.full(LARGE, value, dtype=np.uint64)), np.arange(LARGE))


@pytest.mark.parametrize("rows", [0, 1, 2, 1000, LARGE])
@pytest.mark.parametrize("shift", [0, 10, 30, 50, 60])
def test_words_of_which_few_bits_differ_are_sorted_as_well(rows: int, shift: int) -> None:
    high = np.random.default_rng(shift).integers(0, 16, rows, dtype=np.uint64) << np.uint64(shift)
    low = np.random.default_rng(rows).integers(0, 5, rows, dtype=np.uint64)
    assert np.array_equal(sorted_by(high, low), np.lexsort((low, high)))
    assert np.array_equal(sorted_by(high | low), np.argsort(high | low, kind="stable"))


@given(FEW_BYTES, FEW_BYTES)
def test_the_first_place_not_less_is_found_as_bisect_finds_it(rows: list[list[int]], wanted: list[list[int]]) -> None:
    held = sorted(digest.tobytes() for digest in digests_of(rows))
    ascending = np.frombuffer(b"".join(held), np.uint8).reshape(-1, 16)
    if not held:
        return
    found = first_not_less(lambda places: ascending[places], len(held), digests_of(wanted))
    asked = [digest.tobytes() for digest in digests_of(wanted)]
    assert found.tolist() == [sum(digest < one for digest in held) for one in asked]


def philox(rows: int, seed: int, epoch: int) -> NDArray[np.uint64]:
    words: NDArray[np.uint64] = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(rows)
    return words


@pytest.mark.parametrize("rows", [1, 2, 2**16 - 1, 2**16, 2**16 + 1, 2**17, 2**18 - 1, 2**18, 2**18 + 1, 600_000])
@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (0, 1), (2**31 - 1, 999)])
def test_the_order_of_an_epoch_is_the_stable_sort_of_philoxs_words(rows: int, seed: int, epoch: int) -> None:
    order = epoch_order(rows, seed, epoch)
    assert order.dtype == np.int32
    assert np.array_equal(order, np.argsort(philox(rows, seed, epoch), kind="stable"))


def test_words_of_an_epoch_that_begin_alike_are_told_apart_by_their_last_bits() -> None:
    words = philox(600_000, 3, 0)
    assert len(np.unique(words >> np.uint64(27))) < len(words)  # of a bucket's 5 bits and 32 more, two are alike
    assert np.array_equal(epoch_order(600_000, 3, 0), np.argsort(words, kind="stable"))


@pytest.mark.parametrize("rows", [400_000, 1_500_000])
def test_an_order_takes_few_bytes_a_row_and_two_epochs_are_not_held_at_once(rows: int) -> None:
    order = BatchOrder(rows, 300, seed=3)
    tracemalloc.start()
    try:
        for step in (0, rows // 300):  # the second batch crosses into the next epoch
            order.rows_of_step(step)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 * rows + 1_500_000  # 4 for the order, 1 for the keys of one part of 4, and a bucket or a piece


@pytest.mark.parametrize("rows", [100_000, 2**18])
def test_an_order_of_few_rows_takes_less_than_20_bytes_a_row_beside_it(rows: int) -> None:
    tracemalloc.start()
    try:
        epoch_order(rows, 3, 4)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 24 * rows


@pytest.mark.parametrize(("largest", "dtype"), [(2**31 - 1, np.int32), (2**31, np.int64)])
def test_indices_are_as_small_as_they_may_be(largest: int, dtype: type) -> None:
    assert index_dtype(largest) == dtype
