"""Sorting many rows by content or by random words, fast and with little memory beside the result.

numpy's argsort of 64-bit words takes 0.2 µs a row of ten million and 20 bytes beside them, of 16-byte digests 40 bytes.
But its stable argsort of 8 or 16 bits is a radix sort, of a few ns a row while that is in the processor's cache. So rows
are first laid out in buckets of their leading bits; each bucket is sorted by its next 32 bits, 16 at a time; and the few
rows that are still alike are sorted by all their bits. Rows that are all alike make this slower, never wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.signedinteger[Any]]
Words = tuple[NDArray[np.uint64], ...]  # most significant first
Digests = NDArray[np.uint8]
Leading = Callable[[slice], NDArray[np.uint64]]  # the first word (n,) of each row of a piece
Exact = Callable[[Indices], Words]  # all words of these rows (n,)
# Rows (n,) bucket after bucket, of each the 32 bits that follow those of its bucket (n,), how many in each bucket (K,).
Laid = tuple[Indices, NDArray[np.uint32], list[int]]

ROWS_AT_ONCE = 2**16
ROWS_SORTED_AT_ONCE = 2**15  # each takes 26 bytes meanwhile, all of them about what a processor's cache holds
MOST_BUCKET_BITS = 8  # a bucket's number is one byte
ROWS_IN_ONE_PART = 2**18
PARTS = 4  # of more rows: keys take 4 bytes a row of one part, 1 of the whole; a part takes 20 ns a row of the whole


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


def sorted_order(rows: int, leading: Leading, exact: Exact) -> Indices:
    """The stable order (rows,) that sorts rows by their words.

    `leading(piece)` gives the most significant word (n,) of each row of a piece, and is asked for every row up to five
    times. `exact(rows)` gives all words of the given rows (n,), and is asked for the rows whose first 33 to 40 bits are
    alike. If these are most of the rows, the order is right all the same, but takes more time and memory.
    """
    order = np.empty(rows, dtype=index_dtype(rows))
    bits = min(max(1, (rows // ROWS_SORTED_AT_ONCE).bit_length()), MOST_BUCKET_BITS)
    starts = _bucket_starts(rows, leading, bits)
    for buckets in _parts(rows, bits):
        bounds = starts[buckets.start : buckets.stop + 1].tolist()
        _sort_part(order, bounds, _by_bucket(rows, leading, bits, buckets), exact)
    return order


def _parts(rows: int, bits: int) -> list[range]:
    """The buckets that are sorted in one pass over all rows, for each pass."""
    parts = 1 if rows <= ROWS_IN_ONE_PART else PARTS
    return [range(part * 2**bits // parts, (part + 1) * 2**bits // parts) for part in range(parts)]


def _bucket_of(words: NDArray[np.uint64], bits: int) -> NDArray[np.uint8]:
    return (words >> np.uint64(64 - bits)).astype(np.uint8)


def _bucket_starts(rows: int, leading: Leading, bits: int) -> NDArray[np.int64]:
    """Where each bucket of the first `bits` bits starts in the order (2**bits + 1,), and where the last one ends."""
    starts = np.zeros(2**bits + 1, dtype=np.int64)
    for piece in pieces(rows, ROWS_SORTED_AT_ONCE):
        starts[1:] += np.bincount(_bucket_of(leading(piece), bits), minlength=2**bits)
    return np.cumsum(starts)


def _by_bucket(rows: int, leading: Leading, bits: int, buckets: range) -> Iterator[Laid]:
    """Of each piece the rows in these K buckets, bucket after bucket."""
    for piece in pieces(rows, ROWS_SORTED_AT_ONCE):
        words = leading(piece)
        bucket = _bucket_of(words, bits)
        counts = np.bincount(bucket, minlength=2**bits)
        before, inside = int(counts[: buckets.start].sum()), counts[buckets.start : buckets.stop]
        chosen = np.argsort(bucket, kind="stable")[before : before + int(inside.sum())]
        keys = (np.take(words, chosen) >> np.uint64(32 - bits)).astype(np.uint32)  # the bucket's bits fall off
        yield chosen + piece.start, keys, inside.tolist()


def _sort_part(order: Indices, bounds: list[int], laid: Iterator[Laid], exact: Exact) -> None:
    """Fill `order` (rows,) from bounds[0] to bounds[K] with the rows of K buckets; bucket k is from bounds[k] on."""
    part, bounds = order[bounds[0] : bounds[-1]], [bound - bounds[0] for bound in bounds]
    keys, free = np.empty(len(part), dtype=np.uint32), bounds[:-1]
    for rows, keys_of_rows, counts in laid:
        stop = 0
        for bucket, count in enumerate(counts):
            start, stop = stop, stop + count
            place = slice(free[bucket], free[bucket] + count)
            part[place], keys[place] = rows[start:stop], keys_of_rows[start:stop]
            free[bucket] = place.stop
    for first, last in pairwise(bounds):
        part[first:last] = _sorted_bucket(part[first:last], keys[first:last], exact)


def _sorted_bucket(rows: Indices, keys: NDArray[np.uint32], exact: Exact) -> Indices:
    """The ascending rows (n,) of a bucket in the order of their words; `keys` (n,) are the 32 bits after the bucket's."""
    by_low = np.argsort(keys.astype(np.uint16), kind="stable").astype(index_dtype(len(rows)))
    by_high = np.argsort(np.take((keys >> 16).astype(np.uint16), by_low), kind="stable")
    by_key = np.take(by_low, by_high)
    ordered, ordered_keys = np.take(rows, by_key), np.take(keys, by_key)
    alike = np.concatenate([[False], ordered_keys[1:] == ordered_keys[:-1], [False]])  # each to the one before it
    if alike.any():
        tied = np.flatnonzero(alike[1:] | alike[:-1])
        ordered[tied] = ordered[tied][np.lexsort(exact(ordered[tied])[::-1])]
    return ordered


def words_of_digests(digests: Digests) -> Words:
    """Digests (n, 16) as two words each that sort as their bytes do."""
    pairs = np.ascontiguousarray(digests).view(">u8").astype(np.uint64)
    return pairs[:, 0], pairs[:, 1]


def order_of_digests(digests: Digests) -> Indices:
    """The stable order (N,) that sorts digests (N, 16) by their bytes."""
    return sorted_order(
        len(digests),
        leading=lambda piece: words_of_digests(digests[piece])[0],
        exact=lambda rows: words_of_digests(np.take(digests, rows, axis=0)),
    )


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
