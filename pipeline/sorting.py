"""Sorting many rows by content or by random words, with little memory beside the result.

numpy's argsort of 64-bit words needs 20 bytes a row beside them, and of 16-byte digests 40. Here the words are produced
again for each bucket of their leading bits instead of being held, and only one bucket is sorted at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.signedinteger[Any]]
Words = tuple[NDArray[np.uint64], ...]  # most significant first
Digests = NDArray[np.uint8]

ROWS_AT_ONCE = 2**16
BUCKETS = 64  # a bucket's temporaries are then less than a byte for each row of the whole; all passes take 0.4 µs a row


def index_dtype(largest: int) -> np.dtype[np.signedinteger[Any]]:
    """The smaller of int32 and int64 that holds indices up to `largest`."""
    return np.dtype(np.int32) if largest < 2**31 else np.dtype(np.int64)


def all_indices(rows: int) -> Indices:
    """0 .. rows - 1 (rows,), in 4 bytes each where that is enough."""
    return np.arange(rows, dtype=index_dtype(rows))


def pieces(rows: int, at_once: int = ROWS_AT_ONCE) -> Iterator[slice]:
    """The whole of `rows`, a piece at a time."""
    for start in range(0, rows, at_once):
        yield slice(start, min(start + at_once, rows))


def sorted_order(rows: int, words: Callable[[], Iterator[Words]]) -> Indices:
    """The stable order (rows,) that sorts rows by their words.

    `words()` goes through all rows anew each time it is called, a piece at a time: for each piece its words, arrays (n,)
    of uint64, most significant first. They should be spread evenly, as digests and random words are; if they are not, the
    order is right all the same, but more memory is used.
    """
    order = np.empty(rows, dtype=index_dtype(rows))
    buckets = BUCKETS if rows > ROWS_AT_ONCE else 1
    filled = 0
    for bucket in range(buckets if rows else 0):
        found, held = _of_bucket(words(), bucket, buckets, order.dtype)
        order[filled : filled + len(found)] = found[np.lexsort(held[::-1])]
        filled += len(found)
    return order


def _of_bucket(
    words: Iterator[Words], bucket: int, buckets: int, dtype: np.dtype[np.signedinteger[Any]]
) -> tuple[Indices, Words]:
    """The rows whose leading bits give this bucket, ascending, and their words."""
    shift = np.uint64(64 - (buckets - 1).bit_length())
    found: list[Indices] = []
    held: list[Words] = []
    start = 0
    for piece in words:
        inside = np.flatnonzero(piece[0] >> shift == bucket) if buckets > 1 else np.arange(len(piece[0]))
        found.append((inside + start).astype(dtype))
        held.append(tuple(word[inside] for word in piece))
        start += len(piece[0])
    return np.concatenate(found), tuple(np.concatenate(parts) for parts in zip(*held, strict=True))


def words_of_digests(digests: Digests) -> Words:
    """Digests (n, 16) as two words each that sort as their bytes do."""
    pairs = np.ascontiguousarray(digests).view(">u8").astype(np.uint64)
    return pairs[:, 0], pairs[:, 1]


def order_of_digests(digests: Digests) -> Indices:
    """The stable order (N,) that sorts digests (N, 16) by their bytes."""
    return sorted_order(len(digests), lambda: (words_of_digests(digests[piece]) for piece in pieces(len(digests))))


def first_not_less(sorted_digests: Callable[[Indices], Digests], count: int, wanted: Digests) -> Indices:
    """For each wanted digest (n, 16), the first of `count` ascending places whose digest is not less; `count` if none is.

    `sorted_digests` gives the digests (n, 16) at places (n,): the sorted list itself need not exist.
    """
    high_wanted, low_wanted = words_of_digests(wanted)
    below = np.zeros(len(wanted), dtype=index_dtype(count))
    above = np.full(len(wanted), count, dtype=below.dtype)
    for _ in range(count.bit_length()):
        middle = below + (above - below) // 2
        high, low = words_of_digests(sorted_digests(np.minimum(middle, count - 1)))
        is_less = (middle < above) & ((high < high_wanted) | ((high == high_wanted) & (low < low_wanted)))
        below, above = np.where(is_less, middle + 1, below), np.where(is_less, above, middle)
    return below
