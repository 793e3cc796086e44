"""Joining samples to the rows of a cache: which row has the digest of a sample.

Shape legend: R rows of the cache, N samples of a dataset, n samples or rows that are looked at together.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.sorting import Digests, Indices, first_not_less, index_dtype, order_of_digests, pieces

SLOTS_PER_ROW = 1.25  # of ten million rows: 1 takes 0.1 s more and 1 byte a row less, 1.5 the contrary
WORDS_OF_A_DIGEST = 4  # of 32 bits
ROWS_AT_ONCE = 2**14  # each takes about 100 bytes meanwhile
NONE = -1


class Join:
    """Finds the rows of one cache by digests. Of the rows it holds an index, and only while more samples may follow.

    Digests and views are arguments, as they may be mapped files, or copies that need not stay in memory.
    """

    def __init__(self) -> None:
        self._index: RowIndex | None = None

    def rows(self, known: Digests, views: NDArray[np.int32], wanted: Digests) -> Indices:
        """The row (N,) of view 0 of each wanted digest (N, 16), -1 where there is none, as int32 where that is enough.

        `known` (R, 16) and `views` (R,) are those of the cache, the same in every call. Of rows with equal digests the
        first is found; only in a piece of a dataset that is as in the cache, row for row, each sample finds its own.
        """
        index = self._index
        found = np.empty(len(wanted), dtype=index_dtype(len(known)))
        for piece in pieces(len(wanted)):
            # A dataset in the order of the cache, or the beginning of one, needs no index.
            if np.array_equal(known[piece], wanted[piece]) and not views[piece].any():
                found[piece] = np.arange(piece.start, piece.stop)
                continue
            index = index or RowIndex(known, views)
            found[piece] = index.rows(known, wanted[piece])
        # After a few samples others may follow soon. After many, 7 bytes a row are dearer than the 0.06 µs to make it anew.
        self._index = index if len(wanted) < len(known) // 16 else None
        return found


class RowIndex:
    """Where the digests of the rows of view 0 are: tables of row numbers, 7 bytes a row in all, without the digests.

    A digest's slot in the first table is a scaling of its first 32 bits: random digests need no mixing. The lowest row
    with a slot holds it, and settles all rows of its digest. The others go into the next table, a third as large, by
    the next 32 bits. What the last table leaves, a hundredth of random digests, is sorted. Digests chosen so that they
    meet in one slot are nearly all sorted: finding them takes as long as searching a sorted list, and no longer.
    """

    def __init__(self, known: Digests, views: NDArray[np.int32]) -> None:
        """Of the `known` digests (R, 16), those whose view (R,) is 0. Meanwhile 4 bytes a row are held beside it."""
        dtype = index_dtype(len(known))
        left = [
            (np.flatnonzero(views[piece] == 0) + piece.start).astype(dtype)
            for piece in pieces(len(known), ROWS_AT_ONCE)
        ]
        self._tables: list[Indices] = []
        while len(self._tables) < WORDS_OF_A_DIGEST and any(map(len, left)):
            word, slots = len(self._tables), int(SLOTS_PER_ROW * sum(map(len, left))) + 1
            table = np.full(slots, NONE, dtype=dtype)
            for rows in reversed(left):
                table[_slots(_taken(known, rows), word, slots)[::-1]] = rows[::-1]  # the last to be written stays
            for number, rows in enumerate(left):
                digests = _taken(known, rows)
                holders = np.take(table, _slots(digests, word, slots))
                left[number] = rows[~_equal(_taken(known, holders), digests)]
            self._tables.append(table)
        rest = np.concatenate([np.empty(0, dtype), *left])
        self._rest = rest[order_of_digests(_taken(known, rest))]

    def rows(self, known: Digests, wanted: Digests) -> Indices:
        """The first row (n,) of each wanted digest (n, 16), or -1. `known` (R, 16) is what the index was made of."""
        found = np.empty(len(wanted), dtype=self._rest.dtype)
        for piece in pieces(len(wanted), ROWS_AT_ONCE):
            found[piece] = self._rows_of_few(known, np.ascontiguousarray(wanted[piece]))
        return found

    def _rows_of_few(self, known: Digests, digests: Digests) -> Indices:
        found = np.full(len(digests), NONE, dtype=self._rest.dtype)
        asked = np.arange(len(digests))
        for word, table in enumerate(self._tables):
            holders = np.take(table, _slots(digests, word, len(table)))
            held = holders != NONE
            is_it = held & _equal(_taken(known, holders), digests)
            found[asked[is_it]] = holders[is_it]
            others = np.flatnonzero(held & ~is_it)  # no digest of a free slot is known
            asked, digests = asked[others], _taken(digests, others)
        found[asked] = self._in_rest(known, digests)
        return found

    def _in_rest(self, known: Digests, wanted: Digests) -> Indices:
        """The same for rows that no table has, by bisection."""
        if len(self._rest) == 0 or len(wanted) == 0:
            return np.full(len(wanted), NONE, dtype=self._rest.dtype)
        place = first_not_less(lambda places: _taken(known, self._rest[places]), len(self._rest), wanted)
        candidates = self._rest[np.minimum(place, len(self._rest) - 1)]
        return np.where(_equal(_taken(known, candidates), wanted), candidates, NONE).astype(self._rest.dtype)


def _slots(digests: Digests, word: int, slots: int) -> NDArray[np.intp]:
    """The slot (n,), 0 .. slots - 1, of each digest (n, 16) by one of its four 32-bit words."""
    return (digests.view(np.uint32)[:, word].astype(np.uint64) * np.uint64(slots) >> np.uint64(32)).astype(np.intp)


def _taken(digests: Digests, rows: Indices) -> Digests:
    return np.take(digests, rows, axis=0)  # a sixth of the time that digests[rows] takes


def _equal(digests: Digests, others: Digests) -> NDArray[np.bool_]:
    """Whether each digest (n, 16) is the other (n, 16); ten times as fast as comparing bytes."""
    ours, theirs = digests.view(np.uint64), others.view(np.uint64)
    equal: NDArray[np.bool_] = (ours[:, 0] == theirs[:, 0]) & (ours[:, 1] == theirs[:, 1])
    return equal
