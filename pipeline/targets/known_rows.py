"""Rows that sealed caches of the same row_key hold already: which rows of a new cache they are, and copying them.

Shape legend: R rows of the new cache, n some of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.canonical import short
from pipeline.errors import CorruptCacheError, VerificationError
from pipeline.progress import Advance, Bar, no_bar
from pipeline.sorting import Indices, index_dtype
from pipeline.targets.arrays import ArraySpec
from pipeline.targets.donors import donors_of
from pipeline.targets.join import Join

if TYPE_CHECKING:
    from pipeline.dataset import Rows
    from pipeline.targets.reader import TargetCache
    from pipeline.targets.shelf import Shelf
    from pipeline.targets.writer import CachePlan

NEW = -1
BLOCKS_CHECKED_AT_ONCE = 4  # each takes a block's bytes of memory meanwhile

Say = Callable[[str], None]


@dataclass(frozen=True)
class Donor:
    """A sealed cache that rows are taken from: its number of rows and its certificate; `damaged` blocks give none."""

    key: str
    rows: int
    certificate: dict[str, Any]
    damaged: tuple[int, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The same as a JSON object, which an unfinished cache keeps."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Donor:
        """What `as_json` gave. Raises KeyError or TypeError for anything else."""
        return cls(**{**fields, "damaged": tuple(fields["damaged"])})


class KnownRows:
    """Which row of which donor each row of a new cache is.

    `donor_of_row` (R,) are places in `donors`, NEW for those that only the teacher can give; `place` (R,) are rows of that
    donor. `caches` are the donors opened, None for one that is gone: no row is taken from it any more.
    """

    def __init__(
        self,
        donors: Sequence[Donor],
        caches: Sequence[TargetCache | None],
        donor_of_row: NDArray[np.int16],
        place: Indices,
    ):
        self.donors = tuple(donors)
        self._caches = tuple(caches)
        self._donor_of_row, self._place = donor_of_row, place

    @classmethod
    def none(cls, rows: int) -> KnownRows:
        """Of `rows` rows, every one is new; that takes no memory."""
        return cls((), (), np.broadcast_to(np.int16(NEW), rows), np.broadcast_to(np.int32(0), rows))

    @property
    def new(self) -> int:
        """How many rows the teacher must run on."""
        return int((self._donor_of_row == NEW).sum())

    def new_rows(self, rows: range) -> NDArray[np.int64]:
        """Those of the given rows, ascending, that the teacher must run on."""
        return np.flatnonzero(self._donor_of_row[rows.start : rows.stop] == NEW) + rows.start

    def taken(self, rows: range | None = None) -> dict[str, int]:
        """How many of these rows (default: of all) each donor gives, by its key; those that give none are left out."""
        of_row = self._donor_of_row if rows is None else self._donor_of_row[rows.start : rows.stop]
        counts = np.bincount(of_row[of_row != NEW], minlength=len(self.donors)).tolist()
        return {donor.key: count for donor, count in zip(self.donors, counts, strict=True) if count}

    def whole_block(self, rows: range, specs: Sequence[ArraySpec], layout: str) -> tuple[TargetCache, int] | None:
        """The donor's block that holds just these rows, stored alike to the last byte; None when there is none.

        `rows` are those of one block of the new cache, `specs` its block arrays and `layout` how it lies on disk.
        """
        of_row, place = self._donor_of_row[rows.start : rows.stop], self._place[rows.start : rows.stop]
        cache = self._caches[of_row[0]] if of_row[0] != NEW else None
        if cache is None or (of_row != of_row[0]).any() or cache.manifest.layout != layout:
            return None
        theirs, block = cache.manifest.encoding_arrays(), int(place[0]) // specs[0].rows_per_chunk
        if [stored_alike(spec) for spec in theirs] != [stored_alike(spec) for spec in specs]:
            return None
        held = theirs[0].rows_of_chunk(block)
        if len(held) != len(rows) or not np.array_equal(place, np.arange(held.start, held.stop)):
            return None
        return cache, block

    def fill(self, rows: range, values: Sequence[NDArray[np.generic]]) -> None:
        """Copy what is known of the given rows into `values`, an array (n, ...) for each array of the encoding.

        Raises CorruptCacheError when a donor changed since it was checked.
        """
        of_row, place = self._donor_of_row[rows.start : rows.stop], self._place[rows.start : rows.stop]
        for number in np.unique(of_row[of_row != NEW]).tolist():
            cache, theirs = self._caches[number], np.flatnonzero(of_row == number)
            assert cache is not None, "no row is taken from a donor that is gone"
            try:
                found = cache.stored(place[theirs])
            except (CorruptCacheError, OSError) as problem:
                raise donor_changed(cache, problem) from None
            for target, stored in zip(values, found, strict=True):
                target[theirs] = stored.numpy()


def donor_changed(donor: TargetCache, problem: Exception) -> CorruptCacheError:
    """The error for a donor that was whole when it was checked."""
    return CorruptCacheError(
        f"cache {short(donor.key)} was removed, repacked or damaged while rows were taken from it ({problem}). Run the same "
        "command again; it goes on with what is there."
    )


def stored_alike(spec: ArraySpec) -> tuple[object, ...]:
    """What two arrays must have in common for their chunks of equal rows to be equal bytes."""
    return spec.name, spec.dtype, spec.chunk_shape, spec.compression


def known_rows(
    shelf: Shelf,
    plan: CachePlan,
    *,
    begun: Sequence[Donor] | None = None,
    wanted: NDArray[np.bool_] | None = None,
    bar: Bar = no_bar,
    say: Say = lambda text: None,
) -> KnownRows:
    """What sealed caches of the plan's row_key hold of its rows, every block checked by sha256 before it counts.

    Of several donors the one with more rows is asked first. `begun` are the donors of an interrupted run, which are
    then the only ones and keep their order. Only blocks that rows of the mask `wanted` (R,) lie in are checked (default: all).
    What cannot be used is said: a donor that cannot be opened, or its damaged blocks, whose rows other donors or the
    teacher give.
    """
    folders = [shelf.folder_of(donor.key) for donor in begun] if begun is not None else _donors_of(shelf, plan)
    if not folders:
        return KnownRows.none(len(plan.rows))
    search = Search(plan.rows)
    for number, folder in enumerate(folders):
        if search.complete and begun is None:
            break
        earlier = begun[number] if begun is not None else None
        cache = _opened(folder, say)
        if cache is None or (earlier is not None and cache.key != earlier.key):
            if earlier is not None:
                search.add(earlier, None)
            continue
        found = search.found_in(cache)
        donor = earlier or Donor(cache.key, len(cache), cache.manifest.certificate)
        search.add(_checked(donor, cache, found, wanted, bar, say), cache, found)
    return search.result()


def unchecked_rows(donors: Sequence[Path], rows: Rows) -> KnownRows:
    """What `known_rows` finds in these donors if all their blocks are whole, which is not checked."""
    search = Search(rows)
    for folder in donors:
        if search.complete:
            break
        cache = _opened(folder, lambda text: None)
        if cache is not None:
            search.add(Donor(cache.key, len(cache), cache.manifest.certificate), cache, search.found_in(cache))
    return search.result()


class Search:
    """The rows of a new cache while donors are looked through, one after another."""

    def __init__(self, rows: Rows):
        self._rows = rows
        self._donors: list[Donor] = []
        self._caches: list[TargetCache | None] = []
        self._donor_of_row = np.full(len(rows), NEW, np.int16)
        self._place: Indices = np.zeros(len(rows), index_dtype(0))

    @property
    def complete(self) -> bool:
        """Whether every row is known."""
        return bool((self._donor_of_row != NEW).all())

    def found_in(self, cache: TargetCache) -> tuple[Indices, Indices]:
        """The rows (n,) that are still new but held by a cache, ascending, and which of its rows (n,) they are."""
        unknown = np.flatnonzero(self._donor_of_row == NEW)
        everything = len(unknown) == len(self._rows)
        digests = self._rows.digests if everything else self._rows.digests[unknown]
        place = _rows_in(cache, digests, self._rows.views[unknown])
        held = place >= 0
        return unknown[held], place[held]

    def add(self, donor: Donor, cache: TargetCache | None, found: tuple[Indices, Indices] | None = None) -> None:
        """Take what was found in a donor, but for its damaged blocks."""
        if found is not None and cache is not None:
            rows, place = found
            if donor.damaged:
                whole = ~np.isin(place // cache.manifest.encoding_arrays()[0].rows_per_chunk, donor.damaged)
                rows, place = rows[whole], place[whole]
            self._place = self._place.astype(np.promote_types(self._place.dtype, place.dtype), copy=False)
            self._donor_of_row[rows], self._place[rows] = len(self._donors), place
        self._donors.append(donor)
        self._caches.append(cache)

    def result(self) -> KnownRows:
        """What was found."""
        return KnownRows(self._donors, self._caches, self._donor_of_row, self._place)


def _donors_of(shelf: Shelf, plan: CachePlan) -> list[Path]:
    needed = [plan.temperature] if plan.wanted_at is None else [plan.temperature, plan.wanted_at]
    inner = [spec.shape[1:] for spec in plan.block_arrays()]
    return [
        folder
        for folder, manifest in donors_of(shelf, plan.row_key, plan.key, needed)
        if [spec.shape[1:] for spec in manifest.encoding_arrays()] == inner
    ]


def _opened(folder: Path, say: Say) -> TargetCache | None:
    """A donor with its index checked by sha256, some of its blocks perhaps missing; None for no such, which is said."""
    from pipeline.targets.reader import TargetCache

    try:
        cache = TargetCache(folder, incomplete=True)
        cache.store.check_index()
    except VerificationError as problem:
        say(f"no row is taken from {folder}: {problem}")
        return None
    return cache


def _rows_in(cache: TargetCache, digests: NDArray[np.uint8], views: NDArray[np.int32]) -> Indices:
    """The row (n,) of a cache with each digest (n, 16) and view (n,), -1 where it has none."""
    known, known_views = cache.sample_digests(), cache.views()
    if not views.any():
        return Join().rows(known, known_views, digests)
    found = np.full(len(digests), NEW, index_dtype(len(known)))
    for view in np.unique(views):
        alike = np.flatnonzero(views == view)
        found[alike] = Join().rows(known, known_views - view, digests[alike])
    return found


def _checked(
    donor: Donor,
    cache: TargetCache,
    found: tuple[Indices, Indices],
    wanted: NDArray[np.bool_] | None,
    bar: Bar,
    say: Say,
) -> Donor:
    """The donor with the blocks that failed their sha256 beside those that are known to be damaged."""
    rows, place = found
    specs = cache.manifest.encoding_arrays()
    needed = np.unique((place if wanted is None else place[wanted[rows]]) // specs[0].rows_per_chunk)
    needed = needed[~np.isin(needed, donor.damaged)]
    block_bytes = sum(spec.chunk_bytes for spec in specs)
    problems: dict[int, str] = {}
    with bar(f"checking what {short(donor.key)} holds", len(needed) * block_bytes, "bytes") as advance:
        _check_blocks(cache, needed.tolist(), block_bytes, problems, advance)
    if problems:
        first = problems[min(problems)]
        held = int(np.isin(place // specs[0].rows_per_chunk, list(problems)).sum())
        say(
            f"{len(problems)} of {len(needed)} blocks that cache {short(donor.key)} was to give are damaged, so {held:,} rows "
            f"are not taken from it. The first: {first}"
        )
    return replace(donor, damaged=tuple(sorted({*donor.damaged, *problems})))


def _check_blocks(
    cache: TargetCache, blocks: Sequence[int], block_bytes: int, problems: dict[int, str], advance: Advance
) -> None:
    def check(block: int) -> None:
        try:
            cache.store.check_block(block)
        except (VerificationError, OSError) as problem:
            problems[block] = str(problem)

    with ThreadPoolExecutor(min(BLOCKS_CHECKED_AT_ONCE, os.cpu_count() or 1), thread_name_prefix="check") as pool:
        for _ in pool.map(check, blocks):
            advance(block_bytes)
