"""Writing one target cache: the index first, then its blocks in any order, then the seal.

The order of what becomes durable is the whole point: a block's bytes, then its journal line; all blocks, then the block
table; the block table, then the manifest. A process killed anywhere leaves a cache that a later run finishes, with the
same bytes that an uninterrupted run would have written.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.canonical import canonical_json
from pipeline.dataset import Rows
from pipeline.durable import make_folder, sync_folder, write_durably
from pipeline.errors import CorruptCacheError, StorageError
from pipeline.keys import cache_key
from pipeline.targets.arrays import ONE_POSITION, ArraySpec, Positions, block_arrays, index_arrays
from pipeline.targets.block_table import BLOCK_TABLE_FILE, Checksums, block_table_bytes, checksums_of, crc32c_of
from pipeline.targets.certificate import Inherited, Sums, certificate_of
from pipeline.targets.compression import COMPRESSIONS
from pipeline.targets.encodings import Encoding, encoding_of
from pipeline.targets.journal import JOURNAL_FILE, CommittedBlock, Journal
from pipeline.targets.known_rows import Donor, KnownRows, donor_changed
from pipeline.targets.layouts import LAYOUTS, Extent, extents_of
from pipeline.targets.manifest import FORMAT, FORMAT_VERSION, MANIFEST_FILE, sealed

if TYPE_CHECKING:
    from pipeline.targets.reader import TargetCache

UNFINISHED_FILE = "unfinished.json"
SETTINGS_OF_STORE = ("layout", "rows_per_block", "compression")  # fields of a plan that are in no key


@dataclass(frozen=True)
class CachePlan:
    """Everything that is known of a cache before its teacher runs.

    `row_made_from` is what one row follows from (see `pipeline.keys.row_made_from`); `resumable` are the settings that a
    resumed run must reuse to give the same bytes: batch size, precision, threads. `wanted_at` is the temperature that the
    recipe's students will ask for, where the cache is for students. `positions` are the axes between rows and classes.
    """

    row_key: str
    row_made_from: dict[str, Any]
    rows: Rows
    split: str
    layout: str
    rows_per_block: int
    class_names: tuple[str, ...]
    teacher: dict[str, Any]
    resumable: dict[str, Any]
    wanted_at: float | None = None
    compression: str = "none"
    positions: Positions = ONE_POSITION

    @property
    def key(self) -> str:
        return cache_key(self.row_key, self.rows.sha256)

    @property
    def temperature(self) -> float:
        return float(self.row_made_from["temperature"])

    @property
    def encoding(self) -> Encoding:
        return encoding_of(self.row_made_from["encoding"])

    def arrays(self) -> tuple[ArraySpec, ...]:
        """All arrays of the store, the index arrays first."""
        return (*index_arrays(len(self.rows)), *self.block_arrays())

    def block_arrays(self) -> tuple[ArraySpec, ...]:
        """The arrays of the encoding, which are cut into blocks."""
        columns = self.encoding.columns(len(self.class_names))
        return block_arrays(columns, len(self.rows), self.positions, self.rows_per_block, self.compression)


def settings_to_resume(folder: Path, plan: CachePlan) -> dict[str, Any] | None:
    """What an interrupted run of this cache was started with, its donors included, or None when there is nothing to resume.

    Raises CorruptCacheError when there is something, but not how it was begun: committed blocks are never thrown away.
    """
    try:
        content = (folder / UNFINISHED_FILE).read_bytes()
    except FileNotFoundError:
        if (folder / BLOCK_TABLE_FILE).exists():
            raise CorruptCacheError(
                f"{folder} was sealed but has lost its {MANIFEST_FILE}. Restore it, or delete the folder to make it anew."
            ) from None
        return None
    try:
        # Format version 1 had no compression, and before version 3 no rows were taken from other caches.
        started: dict[str, Any] = {"compression": "none", "donors": [], **json.loads(content)}
        started["donors"] = [Donor.from_json(donor) for donor in started["donors"]]
    except (ValueError, TypeError, KeyError):
        started = {}
    if started.get("key") != plan.key or not {*SETTINGS_OF_STORE, *plan.resumable} <= started.keys():
        raise CorruptCacheError(
            f"{folder / UNFINISHED_FILE} is damaged, or of another version: the interrupted run cannot be gone on with. "
            "Delete the folder to begin anew."
        )
    return started


def as_begun(plan: CachePlan, begun: dict[str, Any]) -> CachePlan:
    """The plan with the settings that `settings_to_resume` found."""
    of_store: dict[str, Any] = {name: begun[name] for name in SETTINGS_OF_STORE}
    return replace(plan, **of_store, resumable={name: begun[name] for name in plan.resumable})


class CacheWriter:
    """One unfinished cache on disk. The caller holds the cache's lock and uses it from one thread at a time."""

    def __init__(self, folder: Path, plan: CachePlan, known: KnownRows | None = None):
        """Create the cache, or open what an interrupted run left; raises StorageError when it will not fit.

        `known` are the rows of other caches that a new cache takes, whose blocks need no space where they are shared.
        """
        self.folder = folder
        self.plan = plan
        self.layout = LAYOUTS[plan.layout]
        self.arrays = plan.arrays()
        self.block_arrays = self.arrays[len(index_arrays(1)) :]
        self._index_arrays = self.arrays[: len(index_arrays(1))]
        begun = settings_to_resume(folder, plan)
        if begun is None:
            self.donors = () if known is None else known.donors
            self._create(known)
        else:
            self.donors = tuple(begun["donors"])
        self._extents = extents_of(self.layout, self.arrays, self.layout.offsets(folder, self.arrays))
        self._index_checksums = self._write_index()
        self._journal = Journal(folder)
        self._drop_damaged_blocks()

    @property
    def blocks(self) -> int:
        return self.block_arrays[0].chunks

    def missing_blocks(self) -> list[int]:
        """The blocks in no journal, ascending."""
        return [block for block in range(self.blocks) if block not in self._journal.committed]

    def committed_sums(self) -> dict[int, dict[str, Sums]]:
        """What was measured of each committed block."""
        return {block: committed.certificate for block, committed in self._journal.committed.items()}

    @property
    def rows_per_block(self) -> int:
        return self.block_arrays[0].rows_per_chunk

    def rows_of_block(self, block: int) -> range:
        """The rows that a block holds."""
        return self.block_arrays[0].rows_of_chunk(block)

    def commit(
        self,
        block: int,
        values: Sequence[NDArray[np.generic]],
        certificate: dict[str, Sums],
        inherited: dict[str, int] | None = None,
    ) -> None:
        """Write one block durably: `values` has an array (rows of the block, ...) for each array of the encoding.

        `inherited` says how many of these rows are from which donor; `certificate` has the sums of the others.
        """
        written = []
        for spec, array in zip(self.block_arrays, values, strict=True):
            data = COMPRESSIONS[spec.compression].encode(padded_chunk(spec, array), spec.numpy_dtype.itemsize)
            written.append(self.layout.write(self.folder, self._extent(spec, block), data))
        self._journal.append(CommittedBlock(block, tuple(written), certificate, inherited or {}))

    def adopt(self, block: int, donor: TargetCache, donor_block: int) -> None:
        """Let one block be the same bytes as a donor's block, which was checked by sha256 and is stored alike.

        Raises CorruptCacheError when the donor went away since.
        """
        stored = donor.store.stored_block(donor_block)
        for spec, chunk in zip(self.block_arrays, stored, strict=True):
            try:
                self.layout.adopt(
                    self.folder, self._extent(spec, block), donor.folder, chunk.extent, chunk.checksums.size
                )
            except FileNotFoundError as problem:
                raise donor_changed(donor, problem) from None
        checksums = tuple(chunk.checksums for chunk in stored)
        self._journal.append(CommittedBlock(block, checksums, {}, {donor.key: len(self.rows_of_block(block))}))

    def is_committed(self, block: int) -> bool:
        """Whether a block is in the journal."""
        return block in self._journal.committed

    def seal(self, provenance: dict[str, Any], certificate: dict[str, Any] | None = None) -> None:
        """Write the block table, then the manifest; nothing changes afterwards.

        The certificate is folded from the blocks' sums and those of donors, unless all rows were copied with the one they have.
        """
        blocks = [self._journal.committed[block] for block in range(self.blocks)]
        table = block_table_bytes(self._entries(blocks))
        write_durably(self.folder / BLOCK_TABLE_FILE, table)
        plan = self.plan
        manifest = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "key": plan.key,
            "row_key": plan.row_key,
            "row_made_from": plan.row_made_from,
            "rows_sha256": plan.rows.sha256,
            "split": plan.split,
            "rows": len(plan.rows),
            "layout": plan.layout,
            "arrays": [_array_fields(spec) for spec in self.arrays],
            "encoding": plan.row_made_from["encoding"],
            "temperature": plan.temperature,
            "class_names": list(plan.class_names),
            "certificate": certificate
            or certificate_of(
                (block.certificate for block in blocks), len(plan.rows), plan.positions.count, self._inherited()
            ),
            "teacher": plan.teacher,
            "block_table": {
                "entries": len(self._extents) + len(self.layout.metadata_names(self.arrays)),
                "sha256": checksums_of(table).sha256,
            },
            "provenance": provenance,
        }
        write_durably(self.folder / MANIFEST_FILE, sealed(manifest))
        remove_leftovers(self.folder)

    def close(self) -> None:
        """Let go of the journal; a cache that is not sealed stays unfinished, with everything committed."""
        self._journal.close()

    def taken(self) -> dict[str, int]:
        """How many rows of the committed blocks are from which other cache."""
        taken: Counter[str] = Counter()
        for block in self._journal.committed.values():
            taken.update(block.inherited)
        return {donor.key: taken[donor.key] for donor in self.donors if taken[donor.key]}

    def _inherited(self) -> list[Inherited]:
        taken = self.taken()
        donors = (donor for donor in self.donors if donor.key in taken)
        return [Inherited(donor.key, taken[donor.key], donor.rows, donor.certificate) for donor in donors]

    def _create(self, known: KnownRows | None) -> None:
        if self.folder.exists():
            shutil.rmtree(self.folder)  # what a run left that was killed before its first commit
        needed = sum(spec.chunks * (spec.chunk_bytes + self.layout.trailer_bytes) for spec in self.arrays)
        refuse_without_space(self.folder, needed - (self._shared_bytes(known) if known is not None else 0))
        make_folder(self.folder)
        attributes = {"temperature": self.plan.temperature, "class_names": list(self.plan.class_names)}
        self.layout.create(self.folder, self.arrays, attributes)
        plan = self.plan
        started = {"key": plan.key, **{name: getattr(plan, name) for name in SETTINGS_OF_STORE}}
        started["donors"] = [donor.as_json() for donor in self.donors]
        write_durably(self.folder / UNFINISHED_FILE, canonical_json({**started, **self.plan.resumable}))

    def _shared_bytes(self, known: KnownRows) -> int:
        """How many bytes will be shared with blocks of other caches in the same file system."""
        if self.layout.name == "hdf5":
            return 0
        found = 0
        for block in range(self.blocks):
            whole = known.whole_block(self.rows_of_block(block), self.block_arrays, self.layout.name)
            if whole is not None and _in_one_file_system(self.folder, whole[0].folder):
                found += sum(spec.chunk_bytes + self.layout.trailer_bytes for spec in self.block_arrays)
        return found

    def _write_index(self) -> list[Checksums]:
        """Write the index arrays; also when resuming, since labels may have changed: they are in no key."""
        chunks = zip(self._extents, self._index_chunks(), strict=False)
        return [self.layout.write(self.folder, extent, data) for extent, data in chunks]

    def _index_chunks(self) -> Iterator[memoryview]:
        rows = self.plan.rows
        index: list[NDArray[Any]] = [rows.digests, rows.views, rows.labels]
        for spec, values in zip(self._index_arrays, index, strict=True):
            for chunk in range(spec.chunks):
                held = spec.rows_of_chunk(chunk)
                yield padded_chunk(spec, values[held.start : held.stop])

    def _extent(self, spec: ArraySpec, chunk: int) -> Extent:
        earlier = self.arrays[: self.arrays.index(spec)]
        return self._extents[sum(array.chunks for array in earlier) + chunk]

    def _drop_damaged_blocks(self) -> None:
        for block in list(self._journal.committed):
            objects = self._journal.committed[block].objects
            for spec, expected in zip(self.block_arrays, objects, strict=True):
                if self._crc32c_on_disk(self._extent(spec, block), expected.size) != expected.crc32c:
                    self._journal.forget(block)

    def _crc32c_on_disk(self, extent: Extent, size: int) -> int | None:
        try:
            with (self.folder / extent.file).open("rb") as file:
                file.seek(extent.offset)
                stored = file.read(size)
        except OSError:
            return None
        data_bytes = size - self.layout.trailer_bytes
        crc32c = crc32c_of(memoryview(stored)[:data_bytes])
        trailer = crc32c.to_bytes(4, "little")[: self.layout.trailer_bytes]
        return crc32c if stored[data_bytes:] == trailer else None

    def _entries(self, blocks: Sequence[CommittedBlock]) -> list[tuple[Checksums, int]]:
        entries = [
            (self.layout.metadata_checksums(self.folder, name, self._extents), 0)
            for name in self.layout.metadata_names(self.arrays)
        ]
        checksums = list(self._index_checksums)
        for place in range(len(self.block_arrays)):
            checksums += [block.objects[place] for block in blocks]
        offsets = [extent.offset for extent in self._extents]
        return entries + list(zip(checksums, offsets, strict=True))


def padded_chunk(spec: ArraySpec, values: NDArray[np.generic]) -> memoryview:
    """The bytes of one whole chunk: little-endian, C order, `values` (R, ...) then the fill value to full size."""
    if values.shape == spec.chunk_shape and values.dtype == spec.numpy_dtype and values.flags.c_contiguous:
        return values.data.cast("B")
    chunk = np.full(spec.chunk_shape, spec.fill_value, dtype=spec.numpy_dtype)
    chunk[: len(values)] = values
    return chunk.data.cast("B")


def remove_leftovers(folder: Path) -> None:
    """Remove what only an unfinished cache needs; a sealed one may still hold it after a kill."""
    for leftover in folder.rglob(".unfinished-*"):
        leftover.unlink()
    for name in (JOURNAL_FILE, UNFINISHED_FILE):  # UNFINISHED_FILE last: while it is there, a later run tidies up
        (folder / name).unlink(missing_ok=True)
    sync_folder(folder)


def refuse_without_space(folder: Path, needed_bytes: int) -> None:
    """Raises StorageError with both numbers when the file system of `folder` has less free than is needed."""
    status = os.statvfs(_existing(folder))
    free = status.f_bavail * status.f_frsize
    if free < needed_bytes:
        raise StorageError(
            f"{folder} needs {needed_bytes:,} bytes, but only {free:,} are free there. Nothing was written; "
            "free some space, or use float16 or another folder (--workspace)."
        )


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _in_one_file_system(folder: Path, other: Path) -> bool:
    return _existing(folder).stat().st_dev == other.stat().st_dev


def _array_fields(spec: ArraySpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "dtype": spec.dtype,
        "shape": list(spec.shape),
        "rows_per_chunk": spec.rows_per_chunk,
        "dimensions": list(spec.dimensions),
        "compression": spec.compression,
    }
