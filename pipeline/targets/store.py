"""The bytes of a sealed cache: every object in its place with its size, and no chunk handed out unchecked."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.canonical import short
from pipeline.errors import CorruptCacheError, UntrustedCacheError
from pipeline.sorting import Indices
from pipeline.targets.arrays import ArraySpec, index_arrays
from pipeline.targets.block_table import BLOCK_TABLE_FILE, ENTRY, Checksums, crc32c_of, read_block_table
from pipeline.targets.compression import COMPRESSIONS
from pipeline.targets.layouts import Extent
from pipeline.targets.manifest import Manifest
from pipeline.targets.mapped_rows import MappedRows, can_map
from pipeline.targets.objects import ObjectTable, checksums_in
from pipeline.targets.pooled_rows import PooledRows

if TYPE_CHECKING:
    from torch import Tensor

MOST_MAPPED_FILES = 256  # a usual limit is 1024 open files for a process
POOL_BYTES = 128_000_000  # of decoded blocks: several windows of a loader
LARGEST_NPY_HEADER_BYTES = 4096


@dataclass(frozen=True)
class StoredChunk:
    """One chunk as it is stored: its number in the block table, its place and its checksums."""

    number: int
    extent: Extent
    checksums: Checksums


class CheckedStore:
    """The objects of one cache, opened read-only.

    Opening checks the block table, the store's metadata, and that every object is there with its size; a chunk's crc32c
    is checked before its first use in this process. Raises CorruptCacheError or UntrustedCacheError naming the object.
    Uncompressed blocks are memory-mapped; of compressed ones, up to `pool_bytes` are kept decoded. Blocks of an `incomplete`
    Zarr store are looked at by `check_block` alone: the caller uses none that it has not let pass.
    """

    def __init__(self, folder: Path, manifest: Manifest, pool_bytes: int = POOL_BYTES, *, incomplete: bool = False):
        self.folder = folder
        self.manifest = manifest
        self._pool_bytes = pool_bytes
        self._unseen = {spec.name for spec in manifest.encoding_arrays()} if incomplete else set()
        self._plain_folders: set[str] = set()
        self._table = ObjectTable(manifest, self._read_table(), folder)
        self._layout, self._specs = self._table.layout, self._table.specs
        self._extents, self._first_of = self._table.extents, self._table.first_of
        self._check_presence_and_sizes()
        self._check_metadata()
        self._unchecked = np.ones(len(self._extents), dtype=np.bool_)
        self._all_checked: set[str] = set()
        self._mapped: OrderedDict[str, NDArray[np.uint8]] = OrderedDict()
        self._memories: dict[str, MappedRows | PooledRows] = {}
        self._opened_by = os.getpid()
        self._opening = threading.Lock()

    def whole(self, name: str) -> NDArray[np.generic]:
        """All rows of an index array, without padding; read-only, since it may be the mapped chunk itself."""
        spec = next(spec for spec in self._specs if spec.name == name)
        parts = [self.chunk(spec, chunk)[: len(spec.rows_of_chunk(chunk))] for chunk in range(spec.chunks)]
        found = parts[0] if len(parts) == 1 else np.concatenate(parts)
        found.flags.writeable = False
        return found

    def chunk(self, spec: ArraySpec, chunk: int) -> NDArray[np.generic]:
        """A whole chunk, checked before its first use: memory-mapped, or decoded where it is compressed."""
        extent = self._extents[self._first_of[spec.name] + chunk]
        if spec.compression == "none":
            data = self._file(extent.file)[extent.offset : extent.offset + extent.data_bytes]
            self._check_before_use(spec, chunk, data)
        else:
            data = np.empty(spec.chunk_bytes, dtype=np.uint8)
            self._read_into(spec, chunk, data)
        return data.view(spec.numpy_dtype).reshape(spec.chunk_shape)

    def gather(self, spec: ArraySpec, rows: Indices, out: Tensor) -> None:
        """Copy rows (B,) of a block array to `out` (B, words of a row; see word_of); blocks are checked before first use.

        The rows must exist. Any number of threads may call it, each with an `out` of its own.
        """
        memory = self._memory_of(spec)
        if isinstance(memory, MappedRows):
            self._check_blocks(spec, rows, memory)
        memory.gather(rows, out)

    def _memory_of(self, spec: ArraySpec) -> MappedRows | PooledRows:
        self._begin_anew_after_a_fork()
        memory = self._memories.get(spec.name)
        if memory is None:
            with self._opening:
                memory = self._memories.get(spec.name) or self._open_memory(spec)
                self._memories[spec.name] = memory
        return memory

    def _begin_anew_after_a_fork(self) -> None:
        """In a forked process the threads of a pool are gone, and another thread may have held a lock for ever."""
        if self._opened_by != os.getpid():
            self._memories, self._opening, self._opened_by = {}, threading.Lock(), os.getpid()

    def _open_memory(self, spec: ArraySpec) -> MappedRows | PooledRows:
        first = self._first_of[spec.name]
        extents = self._extents[first : first + spec.chunks]
        if can_map(spec, extents):
            # The process may have no mappings or addresses left (vm.max_map_count, ulimit -v); a pool gives the same rows.
            with suppress(OSError):
                return MappedRows(self.folder, spec, extents)
        row_bytes = sum(one.row_bytes for one in self.manifest.encoding_arrays())
        share = self._pool_bytes * spec.row_bytes // row_bytes
        return PooledRows(spec, lambda block, target: self._read_into(spec, block, target), share)

    def _check_blocks(self, spec: ArraySpec, rows: Indices, memory: MappedRows) -> None:
        """Check those blocks of these rows that were not used yet, where they are mapped: that also makes them resident."""
        if spec.name in self._all_checked:  # after the first epoch, a batch should cost nothing more
            return
        first = self._first_of[spec.name]
        unchecked = self._unchecked[first : first + spec.chunks]
        blocks = rows // spec.rows_per_chunk
        for block in np.unique(blocks[unchecked[blocks]]).tolist():
            self._check_before_use(spec, block, memory.block(block))
        if not unchecked.any():
            self._all_checked.add(spec.name)

    def _check_before_use(self, spec: ArraySpec, chunk: int, data: NDArray[np.uint8]) -> None:
        number = self._first_of[spec.name] + chunk
        if self._unchecked[number]:
            self._check_crc32c(number, self._extents[number], data)
            self._unchecked[number] = False

    def _read_into(self, spec: ArraySpec, chunk: int, target: NDArray[np.uint8]) -> None:
        """Read a chunk, check it before its first use, and decode it into `target`, which has the chunk's bytes."""
        extent = self._extents[self._first_of[spec.name] + chunk]
        stored = self._file(extent.file)[extent.offset : extent.offset + extent.data_bytes]
        self._check_before_use(spec, chunk, stored)
        try:
            COMPRESSIONS[spec.compression].decode_into(stored, target)
        except ValueError as problem:
            raise UntrustedCacheError(f"{self.folder}: {extent.name} cannot be decoded: {problem}.") from None

    def _file(self, name: str) -> NDArray[np.uint8]:
        """A whole file, memory-mapped; the least recently used maps are let go, since each holds a file descriptor."""
        self._begin_anew_after_a_fork()
        with self._opening:
            return self._mapped_file(name)

    def _mapped_file(self, name: str) -> NDArray[np.uint8]:
        if name not in self._mapped:
            # Private, since torch wants writable memory; the file itself never changes.
            # As a plain array: each slice of a np.memmap runs a method in Python.
            self._mapped[name] = np.memmap(self.folder / name, dtype=np.uint8, mode="c").view(np.ndarray)
            if len(self._mapped) > MOST_MAPPED_FILES:
                self._mapped.popitem(last=False)
        self._mapped.move_to_end(name)
        return self._mapped[name]

    @property
    def data_bytes(self) -> int:
        """Bytes of all chunks as they are stored."""
        return sum(extent.data_bytes for extent in self._extents)

    def check_all(self, tick: Callable[[int], None] = lambda data_bytes: None) -> None:
        """Check every chunk's crc32c and sha256. Raises CorruptCacheError naming the first that differs.

        `tick` is called with the bytes of each checked chunk.
        """
        for number, extent in enumerate(self._extents):
            self._check_sha256(number, extent)
            tick(extent.data_bytes)

    def check_index(self) -> None:
        """Check crc32c and sha256 of the arrays that say which row is of which sample. Raises CorruptCacheError."""
        for number in range(sum(spec.chunks for spec in self._specs[: len(index_arrays(1))])):
            self._check_sha256(number, self._extents[number])

    def check_block(self, block: int) -> None:
        """Check crc32c and sha256 of all that is stored of one block.

        Raises CorruptCacheError naming the object, or UntrustedCacheError for a link.
        """
        for stored in self.stored_block(block):
            if self._unseen and self._layout.name == "zarr":
                self._check_size(stored.extent.name, stored.extent.file, stored.checksums.size)
            self._check_sha256(stored.number, stored.extent)

    def stored_block(self, block: int) -> tuple[StoredChunk, ...]:
        """Where each array of a block is stored, with the checksums that were sealed."""
        found = []
        for spec in self.manifest.encoding_arrays():
            number = self._first_of[spec.name] + block
            found.append(StoredChunk(number, self._extents[number], checksums_in(self._table.chunks[number])))
        return tuple(found)

    def _read_table(self) -> NDArray[np.void]:
        path = self.folder / BLOCK_TABLE_FILE
        entries = self.manifest.block_table.entries
        size = self._size_of_file(BLOCK_TABLE_FILE)
        if not 0 <= size - entries * ENTRY.itemsize <= LARGEST_NPY_HEADER_BYTES:
            raise CorruptCacheError(self._differs(BLOCK_TABLE_FILE, "entries", str(entries), f"{size} bytes"))
        content = path.read_bytes()
        found, expected = hashlib.sha256(content).hexdigest(), self.manifest.block_table.sha256
        if found != expected:
            raise CorruptCacheError(self._differs(BLOCK_TABLE_FILE, "sha256", expected, found))
        return read_block_table(content, entries)

    def _check_presence_and_sizes(self) -> None:
        if self._layout.name == "hdf5":
            self._check_size(self._layout.store, self._layout.store, self._table.store_bytes)
            return
        for name, size in zip(self._table.metadata_names, self._table.metadata["size"].tolist(), strict=True):
            self._check_size(name, f"{self._layout.store}/{name}", size)
        sizes = iter(self._table.chunks["size"].tolist())
        for spec in self._specs:
            first = self._first_of[spec.name]
            for extent, size in zip(self._extents[first : first + spec.chunks], sizes, strict=False):
                if spec.name not in self._unseen:
                    self._check_size(extent.name, extent.file, size)

    def _check_size(self, name: str, file: str, expected: int) -> None:
        found = self._size_of_file(file)
        if found != expected:
            raise CorruptCacheError(self._differs(name, "size", f"{expected} bytes", f"{found} bytes"))

    def _size_of_file(self, file: str) -> int:
        try:
            self._check_folder(os.path.dirname(file))  # noqa: PTH120 - a Path for each of a million chunks takes seconds
            status = os.lstat(f"{self.folder}/{file}")
        except OSError as problem:
            raise CorruptCacheError(f"{self.folder}: object {file} is missing ({problem.strerror}).") from None
        if not stat.S_ISREG(status.st_mode):
            raise UntrustedCacheError(f"{self.folder / file} is a symbolic link or no plain file; a cache holds none.")
        return status.st_size

    def _check_folder(self, relative: str) -> None:
        """Refuse a link on the way to an object; each folder is looked at once."""
        if relative in self._plain_folders:
            return
        for part in (Path(relative), *Path(relative).parents):
            if part != Path() and stat.S_ISLNK(os.lstat(self.folder / part).st_mode):
                raise UntrustedCacheError(f"{self.folder / part} is a symbolic link; a cache holds none.")
        self._plain_folders.add(relative)

    def _check_metadata(self) -> None:
        for name, entry in zip(self._table.metadata_names, self._table.metadata, strict=True):
            found, expected = self._layout.metadata_checksums(self.folder, name, self._extents), checksums_in(entry)
            if found.sha256 != expected.sha256:
                raise CorruptCacheError(self._differs(name, "sha256", expected.sha256, found.sha256))

    def _check_sha256(self, number: int, extent: Extent) -> None:
        sealed = checksums_in(self._table.chunks[number])
        with (self.folder / extent.file).open("rb") as file:
            file.seek(extent.offset)
            stored = file.read(sealed.size)
        self._check_crc32c(number, extent, memoryview(stored)[: extent.data_bytes])
        found = hashlib.sha256(stored).hexdigest()
        if found != sealed.sha256:
            raise CorruptCacheError(self._differs(extent.name, "sha256", sealed.sha256, found))

    def _check_crc32c(self, number: int, extent: Extent, data: memoryview | NDArray[np.generic]) -> None:
        expected, found = int(self._table.chunks[number]["crc32c"]), crc32c_of(data)
        if found != expected:
            raise CorruptCacheError(self._differs(extent.name, "crc32c", f"{expected:08x}", f"{found:08x}"))

    def _differs(self, name: str, field: str, expected: str, found: str) -> str:
        return (
            f"cache {short(self.manifest.key)}: object {name} has {field} {found}, but {expected} was sealed. "
            f"Nothing of it was used. Restore it, or delete {self.folder} and run teacher-targets again."
        )
