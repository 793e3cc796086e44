"""Threads that decode and resize images; the order of the results never depends on how many there are."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNKS_PER_WORKER = 2  # several, so that one slow image does not keep all others waiting


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """A pool of threads, started when it is first needed. Pillow holds no lock while it decodes."""

    def __init__(self, count: int | None = None):
        """`count` threads; by default one for each core."""
        self.count = count or usable_cores()
        self._pool: ThreadPoolExecutor | None = None

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """`function` of every item, in their order. The error of the first item that has one is raised."""
        if self.count == 1 or len(items) == 1:
            return [function(item) for item in items]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.count, thread_name_prefix="images")
        size = -(-len(items) // (self.count * CHUNKS_PER_WORKER)) or 1
        chunks = [items[start : start + size] for start in range(0, len(items), size)]
        futures = [self._pool.submit(lambda chunk: [function(item) for item in chunk], chunk) for chunk in chunks]
        try:
            return [result for future in futures for result in future.result()]
        finally:
            for future in futures:  # after an error or Ctrl-C: what has not begun never does
                future.cancel()


class Memory:
    """How many bytes may be kept in memory, shared by all that keep something."""

    def __init__(self, megabytes: int):
        self._left = megabytes * 10**6
        self._lock = Lock()

    def take(self, size: int) -> bool:
        """Whether `size` bytes more may be kept; then they count as taken."""
        with self._lock:
            fits = size <= self._left
            self._left -= size if fits else 0
        return fits

    def give_back(self, size: int) -> None:
        """Count `size` bytes as free again."""
        with self._lock:
            self._left += size
