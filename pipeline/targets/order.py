"""The order in which rows are served: a pure function of (seed, epoch), the same on every machine and version."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.sorting import Indices, Words, pieces, sorted_order


def epoch_order(rows: int, seed: int, epoch: int) -> Indices:
    """A permutation (rows,) of 0 .. rows - 1, as int32 where that is enough.

    Rows are sorted by a counter-based random word each: Philox's raw output is fixed by its definition (Salmon et al.
    2011), while numpy may change how its `permutation` consumes it.
    """

    def words() -> Iterator[Words]:
        generator = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64))
        for piece in pieces(rows):
            yield (generator.random_raw(piece.stop - piece.start),)

    return sorted_order(rows, words)


class BatchOrder:
    """The rows of each step: epochs one after another, cut into batches of equal size.

    A batch at the end of an epoch takes its remaining places from the next one, so every batch is full and every row
    comes exactly once in each epoch. `rows_of_step` is a pure function of the step; only one epoch's order is kept, in
    4 bytes a row, so steps are best asked for as they come.
    """

    def __init__(self, rows: int, batch_size: int, seed: int):
        self.rows = rows
        self.batch_size = min(batch_size, rows)
        self._seed = seed
        self._kept: tuple[int, Indices] | None = None

    def steps_for(self, epochs: int) -> int:
        """The number of steps that serve every row `epochs` times."""
        return -(-epochs * self.rows // self.batch_size)

    def rows_of_step(self, step: int) -> NDArray[np.int64]:
        """The rows (batch_size,) of one step."""
        first = step * self.batch_size
        epoch, start = divmod(first, self.rows)
        rows = self._order(epoch)[start : start + self.batch_size].astype(np.int64)  # a copy: the order may go now
        if len(rows) < self.batch_size:
            rows = np.concatenate([rows, self._order(epoch + 1)[: self.batch_size - len(rows)]])
        return rows

    def _order(self, epoch: int) -> Indices:
        if self._kept is None or self._kept[0] != epoch:
            self._kept = None  # before the next is made: two need not be held
            self._kept = (epoch, epoch_order(self.rows, self._seed, epoch))
        return self._kept[1]
