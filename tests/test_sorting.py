"""Sorting in buckets gives the order that numpy's sort in one piece gives, whatever the words are."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.sorting import Words, first_not_less, index_dtype, order_of_digests, pieces, sorted_order
from pipeline.targets.order import BatchOrder, epoch_order

LARGE = 150_000  # more than one bucket, and pieces of unequal size
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


@pytest.mark.parametrize("value", [0, 2**63, 2**64 - 1])
def test_words_that_all_fall_into_one_bucket_keep_their_order(value: int) -> None:
    def words() -> Iterator[Words]:
        for piece in pieces(LARGE):
            yield (np.full(piece.stop - piece.start, value, dtype=np.uint64),)

    assert np.array_equal(sorted_order(LARGE, words), np.arange(LARGE))


@given(FEW_BYTES, FEW_BYTES)
def test_the_first_place_not_less_is_found_as_bisect_finds_it(rows: list[list[int]], wanted: list[list[int]]) -> None:
    held = sorted(digest.tobytes() for digest in digests_of(rows))
    ascending = np.frombuffer(b"".join(held), np.uint8).reshape(-1, 16)
    if not held:
        return
    found = first_not_less(lambda places: ascending[places], len(held), digests_of(wanted))
    asked = [digest.tobytes() for digest in digests_of(wanted)]
    assert found.tolist() == [sum(digest < one for digest in held) for one in asked]


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (0, 1), (2**31 - 1, 999)])
def test_the_order_of_a_large_epoch_is_the_stable_sort_of_philoxs_words(seed: int, epoch: int) -> None:
    words = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(LARGE)
    assert np.array_equal(epoch_order(LARGE, seed, epoch), np.argsort(words, kind="stable"))


def test_an_order_takes_few_bytes_a_row_and_two_epochs_are_not_held_at_once() -> None:
    rows = 400_000
    order = BatchOrder(rows, 300, seed=3)
    tracemalloc.start()
    try:
        for step in (0, rows // 300):  # the second batch crosses into the next epoch
            order.rows_of_step(step)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 * rows + 2_000_000  # 4 for the order, less than 1 for one bucket of 64, and a piece of words


@pytest.mark.parametrize(("largest", "dtype"), [(2**31 - 1, np.int32), (2**31, np.int64)])
def test_indices_are_as_small_as_they_may_be(largest: int, dtype: type) -> None:
    assert index_dtype(largest) == dtype
