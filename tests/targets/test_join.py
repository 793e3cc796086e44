"""Joining by digest finds what a dictionary finds, whatever the digests are."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.sorting import Digests
from pipeline.targets.join import Join, RowIndex

LARGE = 150_000  # more than is looked through at once
FEW_BYTES = st.lists(st.lists(st.integers(0, 1), min_size=16, max_size=16), max_size=30)
ONE_OF_FEW = st.lists(st.sampled_from([[value] * 16 for value in range(6)]), max_size=30)
MANY_OR_FEW = FEW_BYTES | ONE_OF_FEW


def digests_of(rows: list[list[int]]) -> Digests:
    return np.array(rows, dtype=np.uint8).reshape(-1, 16)


def random_digests(rows: int, seed: int) -> Digests:
    return np.random.default_rng(seed).integers(0, 256, (rows, 16), dtype=np.uint8)


def no_views(known: Digests) -> NDArray[np.int32]:
    return np.zeros(len(known), dtype=np.int32)


def by_dictionary(known: Digests, views: NDArray[np.int32], wanted: Digests) -> list[int]:
    first: dict[bytes, int] = {}
    for row, (digest, view) in enumerate(zip(known, views, strict=True)):
        if view == 0:
            first.setdefault(digest.tobytes(), row)
    return [first.get(digest.tobytes(), -1) for digest in wanted]


@given(MANY_OR_FEW, MANY_OR_FEW, st.data())
def test_the_first_row_of_view_0_with_the_digest_is_found(
    rows: list[list[int]], others: list[list[int]], data: st.DataObject
) -> None:
    known = digests_of(rows)
    wanted = digests_of(data.draw(st.permutations(rows + others)))
    views = np.array(data.draw(st.lists(st.integers(0, 1), min_size=len(rows), max_size=len(rows))), dtype=np.int32)
    expected = by_dictionary(known, views, wanted)
    assert RowIndex(known, views).rows(known, wanted).tolist() == expected
    if not np.array_equal(known[: len(wanted)], wanted):  # else each finds its own row, which is another promise
        assert Join().rows(known, views, wanted).tolist() == expected


def shared(digests: Digests, first: int, last: int) -> Digests:
    """The same but for bytes `first` to `last - 1`, in which all are alike."""
    changed = digests.copy()
    changed[:, first:last] = 7
    return changed


def counted(dtype: str, byte: int) -> Digests:
    """Digests (LARGE, 16) that count up in the bytes from `byte` on, and are 0 elsewhere."""
    number = np.arange(LARGE).astype(dtype).view(np.uint8).reshape(LARGE, -1)
    digests = np.zeros((LARGE, 16), dtype=np.uint8)
    digests[:, byte : byte + number.shape[1]] = number
    return digests


def meeting_in_every_slot() -> Digests:
    """Digests (LARGE, 16) whose four 32-bit words are all small: most share their slot in every table."""
    return np.tile(counted("<u4", 0)[:, :4], 4)


@pytest.mark.parametrize(
    "known",
    [
        pytest.param(random_digests(LARGE, 0), id="random"),
        pytest.param(shared(random_digests(LARGE, 1), 0, 8), id="first half shared"),
        pytest.param(shared(random_digests(LARGE, 2), 0, 12), id="all but the last 4 bytes shared"),
        pytest.param(shared(random_digests(LARGE, 3), 4, 16), id="all but the first 4 bytes shared"),
        pytest.param(random_digests(1000, 4)[np.random.default_rng(4).integers(0, 1000, LARGE)], id="duplicates"),
        pytest.param(shared(random_digests(LARGE, 5), 0, 16), id="all the same"),
        pytest.param(counted("<u4", 0), id="counted in the first bytes"),
        pytest.param(counted(">u4", 12), id="counted in the last bytes"),
        pytest.param(meeting_in_every_slot(), id="meeting in every slot"),
    ],
)
def test_many_digests_are_found_however_they_were_chosen(known: Digests) -> None:
    generator = np.random.default_rng(0)
    views = generator.integers(0, 2, LARGE, dtype=np.int32)
    wanted = np.concatenate([known, random_digests(5000, 9)])[generator.permutation(LARGE + 5000)]
    found = Join().rows(known, views, wanted)
    assert found.dtype == np.int32
    assert found.tolist() == by_dictionary(known, views, wanted)


@pytest.mark.parametrize("known_rows", [0, 1, 1000])
@pytest.mark.parametrize("wanted_rows", [0, 1, 1000])
def test_nothing_is_found_where_nothing_is_known(known_rows: int, wanted_rows: int) -> None:
    known, wanted = random_digests(known_rows, 0), random_digests(wanted_rows, 1)
    assert Join().rows(known, no_views(known), wanted).tolist() == [-1] * wanted_rows
    assert Join().rows(known, no_views(known) + 1, known).tolist() == [-1] * known_rows


def test_rows_that_repeat_a_digest_find_themselves_in_a_dataset_in_the_order_of_the_cache() -> None:
    known = random_digests(1000, 0)[np.arange(LARGE) % 1000]
    assert Join().rows(known, no_views(known), known[:100_000]).tolist() == list(range(100_000))


def test_a_sample_more_or_less_in_front_is_no_obstacle() -> None:
    known = random_digests(LARGE, 0)
    assert Join().rows(known, no_views(known), known[1:]).tolist() == list(range(1, LARGE))
    later = np.concatenate([random_digests(1, 1), known])
    assert Join().rows(known, no_views(known), later).tolist() == [-1, *range(LARGE)]


def test_digests_may_lie_in_memory_as_they_like() -> None:
    known = random_digests(3000, 0)
    at_odd_bytes = np.frombuffer(b"x" + known.tobytes(), dtype=np.uint8, offset=1).reshape(-1, 16)
    backwards, by_column = known[::-1], np.asfortranarray(known)
    for digests in (at_odd_bytes, backwards, by_column):
        assert np.array_equal(digests[Join().rows(digests, no_views(digests), known[::3])], known[::3])
        assert np.array_equal(known[Join().rows(known, no_views(known), digests[1::3])], digests[1::3])


def test_samples_that_come_in_batches_find_what_they_find_together() -> None:
    known = random_digests(LARGE, 0)
    wanted = np.concatenate([known, random_digests(1000, 1)])[np.random.default_rng(2).permutation(LARGE + 1000)]
    join, views = Join(), no_views(known)
    together = Join().rows(known, views, wanted)
    for start, size in ((0, 100), (100, 5000), (0, LARGE), (7, 1)):  # the third is a whole dataset
        batch = slice(start, start + size)
        assert np.array_equal(join.rows(known, views, wanted[batch]), together[batch])


def test_joining_takes_few_bytes_a_row_and_keeps_the_answer_alone() -> None:
    rows = 1_000_000
    known = random_digests(rows, 0)
    wanted, views, join = known[np.random.default_rng(1).permutation(rows)], no_views(known), Join()
    # An index and the rows that it is made of; nothing but one piece for a dataset in the order of the cache.
    for asked, most in ((wanted, 10 * rows + 2_000_000), (known, 1_500_000)):
        tracemalloc.start()
        found = join.rows(known, views, asked)
        held, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert np.array_equal(known[found[:1000]], asked[:1000])
        assert held < 4 * rows + 100_000
        assert peak < 4 * rows + most
