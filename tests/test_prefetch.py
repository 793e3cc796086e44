"""Preparing ahead: the same results as without, errors where they belong, and no thread left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from data.arrays import ArrayDataset
from pipeline.lanes import lane_to, one_tensor
from pipeline.prefetch import ReadAhead, prefetched, read_ahead, sent_ahead


class Slow(ArrayDataset):
    """A dataset that asks for two batches ahead."""

    batches_ahead = 2


def dataset_of(count: int, kind: type[ArrayDataset] = Slow) -> ArrayDataset:
    return kind(np.arange(count)[:, None] ** 2, np.full(count, -1), ("a", "b"), "training", "made up")


@given(st.integers(0, 9), st.integers(0, 4), st.integers(0, 9))
def test_results_are_those_of_the_function_from_any_start(stop: int, ahead: int, start: int) -> None:
    with prefetched(lambda number: number**2, ahead, stop) as squared:
        assert [squared(number) for number in range(start, stop)] == [number**2 for number in range(start, stop)]


def test_each_number_is_made_once_and_none_beyond_the_last() -> None:
    made: list[int] = []

    def make(number: int) -> int:
        made.append(number)
        return number

    with prefetched(make, 3, 8) as made_ahead:
        for number in range(2, 8):
            assert made_ahead(number) == number
    assert made == [2, 3, 4, 5, 6, 7]


def failing_at(number: int) -> Callable[[int], int]:
    def make(asked: int) -> int:
        if asked == number:
            raise LookupError(f"at {asked}")
        return asked

    return make


def test_an_error_is_raised_when_its_own_number_is_asked_for() -> None:
    with pytest.raises(LookupError, match="at 4"), prefetched(failing_at(4), 3, 9) as made:  # noqa: PT012
        assert [made(number) for number in range(4)] == [0, 1, 2, 3]
        made(4)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_what_has_not_begun_never_does_after_an_interruption() -> None:
    begun: list[int] = []
    release = threading.Event()

    def make(number: int) -> int:
        begun.append(number)
        if number > 0:
            release.wait(10)
        return number

    with pytest.raises(KeyboardInterrupt), prefetched(make, 5, 100) as made:  # noqa: PT012
        made(0)
        threading.Timer(0.05, release.set).start()
        raise KeyboardInterrupt
    assert begun in ([0], [0, 1])
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


rows = st.integers(1, 40)


@given(rows, rows, rows, st.data())
def test_reading_ahead_gives_the_samples_asked_for_whatever_is_asked(
    count: int, batch: int, rows_per_block: int, data: st.DataObject
) -> None:
    dataset = dataset_of(count)
    order = np.array(sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1))))
    ahead = ReadAhead(dataset, order)
    blocks = [order[start : start + rows_per_block] for start in range(0, len(order), rows_per_block)]
    missing = data.draw(st.lists(st.sampled_from(range(len(blocks))), unique=True))
    for block in sorted(missing):
        for start in range(0, len(blocks[block]), batch):
            indices: NDArray[np.int64] = blocks[block][start : start + batch]
            np.testing.assert_array_equal(ahead.samples(indices), dataset.samples(indices))


def test_samples_in_memory_are_not_read_ahead() -> None:
    quick = dataset_of(5, ArrayDataset)
    assert read_ahead(quick, np.arange(5)) is quick
    assert isinstance(read_ahead(dataset_of(5), np.arange(5)), ReadAhead)


@given(st.integers(0, 40), st.integers(1, 4), st.integers(0, 9))
def test_two_threads_together_give_the_same_and_make_each_number_once(stop: int, ahead: int, start: int) -> None:
    made: list[int] = []

    def make(number: int) -> int:
        made.append(number)
        return number**2

    with prefetched(make, ahead, stop, together=True) as squared:
        assert [squared(number) for number in range(start, stop)] == [number**2 for number in range(start, stop)]
    assert sorted(made) == list(range(start, stop))


def test_together_the_caller_makes_what_the_other_thread_has_not_begun() -> None:
    begun, makers = threading.Event(), dict[int, str]()

    def make(number: int) -> int:
        makers[number] = threading.current_thread().name
        if number == 1:
            begun.wait(10)  # the other thread is busy with 1 until the caller, asked for 1, has made 2
        if number == 2:
            begun.set()
        return number

    with prefetched(make, 2, 3, together=True) as made:
        assert [made(0), made(1), made(2)] == [0, 1, 2]
    assert makers[0] == makers[2] == threading.main_thread().name
    assert makers[1].startswith("prefetch")


def test_together_an_error_is_raised_when_its_own_number_is_asked_for() -> None:
    with prefetched(failing_at(3), 3, 9, together=True) as made:
        assert [made(number) for number in range(3)] == [0, 1, 2]
        with pytest.raises(LookupError, match="at 3"):
            made(3)


@given(st.integers(0, 9), st.integers(0, 3), st.integers(0, 9))
def test_what_is_sent_ahead_arrives_as_it_was_made(stop: int, ahead: int, start: int) -> None:
    def make(number: int) -> torch.Tensor:
        return torch.full((2,), number)

    lane = lane_to(torch.device("cpu"))
    with sent_ahead(make, one_tensor, lane, ahead, stop) as arrived:
        assert [arrived(number).tolist() for number in range(start, stop)] == [[n, n] for n in range(start, stop)]
