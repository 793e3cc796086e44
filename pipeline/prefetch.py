"""Preparing the next batches on another thread while a model works on this one. What is prepared never depends on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset import Dataset

if TYPE_CHECKING:
    from pipeline.lanes import Each, Lane

T = TypeVar("T")


def batches_ahead(dataset: object) -> int:
    """How many batches of a dataset are worth preparing ahead: it says so itself where its samples take long to make."""
    return int(getattr(dataset, "batches_ahead", 0))


@contextmanager
def prefetched(
    make: Callable[[int], T], ahead: int, stop: int, *, together: bool = False
) -> Iterator[Callable[[int], T]]:
    """`make` as a function of the same numbers, with the results of the next `ahead` numbers below `stop` begun already.

    An error of `make` is raised when its own number is asked for. On leaving, what has not begun never does. Where two threads
    may run `make` at once (`together`), the caller makes what the other has not begun, rather than wait for it.
    """
    if ahead == 0:
        yield make
        return
    coming: dict[int, Future[T]] = {}
    background = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")

    def made(number: int) -> T:
        mine = coming.pop(number, None)
        if mine is None and not together:
            mine = background.submit(make, number)
        for soon in range(number + 1, min(number + ahead + 1, stop)):
            if soon not in coming:
                coming[soon] = background.submit(make, soon)
        if mine is None or (together and mine.cancel()):
            return make(number)
        while together and not mine.done():
            later = next((soon for soon in sorted(coming) if coming[soon].cancel()), None)
            if later is None:
                break
            coming[later] = _finished(make, later)
        return mine.result()

    try:
        yield made
    finally:
        background.shutdown(wait=True, cancel_futures=True)


def _finished(make: Callable[[int], T], number: int) -> Future[T]:
    """A number made by this thread; its error waits for its turn, as that of the other thread does."""
    future: Future[T] = Future()
    try:
        future.set_result(make(number))
    except Exception as problem:
        future.set_exception(problem)
    return future


class Samples(Protocol):
    """What gives samples (B, *sample_shape) by their indices (B,): a Dataset, or a ReadAhead of one."""

    def samples(self, indices: NDArray[np.int64]) -> NDArray[np.generic]: ...


def read_ahead(dataset: Dataset, order: NDArray[np.int64]) -> Samples:
    """The samples of a dataset that are going to be asked for in this increasing order (R,), a batch at a time."""
    return ReadAhead(dataset, order) if batches_ahead(dataset) else dataset


class ReadAhead:
    """Samples of a dataset; while one batch is used, the one after it in `order` (R,) is made."""

    def __init__(self, dataset: Dataset, order: NDArray[np.int64]):
        self._made = MadeAhead(dataset.samples, order)

    def samples(self, indices: NDArray[np.int64]) -> NDArray[np.generic]:
        """The samples (B, *sample_shape) at `indices` (B,)."""
        return self._made(indices)[: len(indices)]


class MadeAhead(Generic[T]):
    """What `make` makes of indices (B,); of the next ones in increasing `order` (R,), on another thread.

    A wrong guess costs time only.
    """

    def __init__(self, make: Callable[[NDArray[np.int64]], T], order: NDArray[np.int64]):
        self._make, self._order = make, order
        self._background = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead")
        self._last = 0
        self._guess: NDArray[np.int64] = order[:0]
        self._coming: Future[T] | None = None

    def __call__(self, indices: NDArray[np.int64]) -> T:
        """What is made of these indices; more may follow, of those that were expected next."""
        count = len(indices)
        if self._coming is not None and np.array_equal(self._guess[:count], indices):
            found = self._coming.result()
        else:
            found = self._make(indices)
        size, self._last = max(self._last, count), count  # a last batch is often smaller than those around it
        after = int(np.searchsorted(self._order, indices[-1], side="right"))
        self._guess = self._order[after : after + size]
        self._coming = self._background.submit(self._make, self._guess) if len(self._guess) else None
        return found


@contextmanager
def sent_ahead(
    make: Callable[[int], T], each: Each[T], lane: Lane, ahead: int, stop: int
) -> Iterator[Callable[[int], T]]:
    """`make` as a function of the same numbers, with results on a lane's device, sent ahead where the lane says so."""
    with prefetched(lambda number: lane.send(make(number), each), max(ahead, lane.batches_ahead), stop) as sent:
        yield lambda number: sent(number).arrived()
