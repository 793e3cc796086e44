"""The orders in which rows are served: pure functions of (seed, epoch), the same on every machine and version."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.sorting import Indices, Words, all_indices, index_dtype, sorted_order
from pipeline.targets.arrays import ArraySpec


def epoch_order(rows: int, seed: int, epoch: int) -> Indices:
    """A permutation (rows,) of 0 .. rows - 1, as int32 where that is enough.

    Rows are sorted by a counter-based random word each: Philox's raw output is fixed by its definition (Salmon et al.
    2011), while numpy may change how its `permutation` consumes it.
    """
    key = np.array([seed, epoch], dtype=np.uint64)

    def words(rows: slice) -> NDArray[np.uint64]:
        block, skipped = divmod(rows.start, 4)  # Philox makes four words from each value of its counter
        drawn: NDArray[np.uint64] = np.random.Philox(counter=block, key=key).random_raw(
            skipped + rows.stop - rows.start
        )
        return drawn[skipped:]

    def words_of_few(rows: Indices) -> Words:
        return (np.concatenate([words(slice(row, row + 1)) for row in rows.tolist()]),)

    return sorted_order(rows, words, words_of_few)


# Philox counters whose third word is not 0 are used by no other order of the same (seed, epoch).
BLOCKS_OF_WINDOWS, ROWS_OF_WINDOW = 1, 2

WINDOW_BYTES = 16_000_000  # of stored rows: what the last cache of a processor holds


@dataclass(frozen=True)
class Windows:
    """How the order "window" cuts rows: blocks of so many rows, so many blocks in a window."""

    rows_per_block: int = 4096
    blocks: int = 8


def windows_of(arrays: Sequence[ArraySpec]) -> Windows:
    """Windows of a cache's own blocks, as many as hold 16 MB; `arrays` are those of its encoding."""
    block_bytes = sum(spec.chunk_bytes for spec in arrays)
    return Windows(arrays[0].rows_per_chunk, max(1, WINDOW_BYTES // block_bytes))


class RowOrder(Protocol):
    """The order of one epoch."""

    def between(self, start: int, stop: int) -> Indices:
        """The rows at these places of the epoch's order."""
        ...


class GlobalOrder:
    """A permutation of all rows, in 4 bytes a row."""

    def __init__(self, rows: int, seed: int, epoch: int, windows: Windows):
        self._order = epoch_order(rows, seed, epoch)

    def between(self, start: int, stop: int) -> Indices:
        return self._order[start:stop]


class SequentialOrder:
    """Rows as they are stored."""

    def __init__(self, rows: int, seed: int, epoch: int, windows: Windows):
        self._rows = rows

    def between(self, start: int, stop: int) -> Indices:
        return np.arange(start, min(stop, self._rows), dtype=index_dtype(self._rows))


class WindowOrder:
    """A permutation of the blocks, then one of the rows within each window of so many blocks that follow each other in it.

    Only the blocks of a window, and of the next where a batch crosses to it, are read at a time.
    """

    def __init__(self, rows: int, seed: int, epoch: int, windows: Windows):
        self._rows, self._seed, self._epoch, self._windows = rows, seed, epoch, windows
        blocks = -(-rows // windows.rows_per_block)
        self._blocks = np.argsort(_words(blocks, seed, epoch, BLOCKS_OF_WINDOWS, 0), kind="stable")
        held = np.minimum(windows.rows_per_block, rows - self._blocks * windows.rows_per_block)
        firsts = np.concatenate([[0], np.cumsum(held)])
        self._starts = np.append(firsts[: -1 : windows.blocks], rows)  # of each window, and the end
        self._kept: tuple[int, Indices] = (-1, all_indices(0))

    def between(self, start: int, stop: int) -> Indices:
        stop = min(stop, self._rows)
        first, last = np.searchsorted(self._starts, [start, max(start, stop - 1)], side="right") - 1
        parts = [self._part(window, start, stop) for window in range(int(first), int(last) + 1)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _part(self, window: int, start: int, stop: int) -> Indices:
        """The rows of one window at the places from `start` to `stop` that are in it."""
        at = int(self._starts[window])
        return self._rows_of(window)[max(0, start - at) : max(0, stop - at)]

    def _rows_of(self, window: int) -> Indices:
        kept = self._kept  # read once: another thread may replace it
        if kept[0] != window:
            kept = self._kept = (window, self._permuted(window))
        return kept[1]

    def _permuted(self, window: int) -> Indices:
        per_block, dtype = self._windows.rows_per_block, index_dtype(self._rows)
        blocks = self._blocks[window * self._windows.blocks : (window + 1) * self._windows.blocks]
        rows = (blocks[:, None] * per_block + np.arange(per_block)).ravel()
        rows = rows[rows < self._rows]  # the last block may hold fewer
        return rows[np.argsort(_words(len(rows), self._seed, self._epoch, ROWS_OF_WINDOW, window))].astype(dtype)


ORDERS: dict[str, Callable[[int, int, int, Windows], RowOrder]] = {
    "global": GlobalOrder,
    "window": WindowOrder,
    "sequential": SequentialOrder,
}


def _words(count: int, seed: int, epoch: int, domain: int, number: int) -> NDArray[np.uint64]:
    """Random words, fixed for ever by Philox's definition."""
    key = np.array([seed, epoch], dtype=np.uint64)
    counter = np.array([0, 0, domain, number], dtype=np.uint64)
    return np.random.Philox(counter=counter, key=key).random_raw(count)


class BatchOrder:
    """The rows of each step: epochs one after another, each in one of ORDERS, cut into batches of equal size.

    A batch at the end of an epoch takes its remaining places from the next one, so every batch is full and every row
    comes exactly once in each epoch. `rows_of_step` is a pure function of the step; only one epoch's order is kept, in
    4 bytes a row, so steps are best asked for as they come.
    """

    def __init__(self, rows: int, batch_size: int, seed: int, order: str = "global"):
        self.rows = rows
        self.batch_size = min(batch_size, rows)
        self._seed, self._of_epoch = seed, ORDERS[order]
        self._kept: tuple[int, RowOrder] | None = None

    def steps_for(self, epochs: int) -> int:
        """The number of steps that serve every row `epochs` times."""
        return -(-epochs * self.rows // self.batch_size)

    def rows_of_step(self, step: int) -> NDArray[np.int64]:
        """The rows (batch_size,) of one step."""
        first = step * self.batch_size
        epoch, start = divmod(first, self.rows)
        # A copy, since the order may go now.
        rows = self._order(epoch).between(start, min(start + self.batch_size, self.rows)).astype(np.int64)
        if len(rows) < self.batch_size:
            rows = np.concatenate([rows, self._order(epoch + 1).between(0, self.batch_size - len(rows))])
        return rows

    def _order(self, epoch: int) -> RowOrder:
        if self._kept is None or self._kept[0] != epoch:
            self._kept = None  # before the next is made: two need not be held
            self._kept = (epoch, self._of_epoch(self.rows, self._seed, epoch, Windows()))
        return self._kept[1]
