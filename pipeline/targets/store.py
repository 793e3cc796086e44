"""The bytes of a sealed cache: every object in its place with its size, and no chunk handed out unchecked."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.canonical import short
from pipeline.errors import CorruptCacheError, UntrustedCacheError
from pipeline.targets.arrays import ArraySpec
from pipeline.targets.block_table import BLOCK_TABLE_FILE, ENTRY, crc32c_of, read_block_table
from pipeline.targets.layouts import Extent, extents_of
from pipeline.targets.manifest import Manifest

MOST_MAPPED_FILES = 256  # a usual limit is 1024 open files for a process
LARGEST_NPY_HEADER_BYTES = 4096
LARGEST_METADATA_BYTES = 64_000_000


class CheckedStore:
    """The objects of one cache, opened read-only and memory-mapped.

    Opening checks the block table, the store's metadata, and that every object is there with its size; a chunk's crc32c
    is checked before its first use in this process. Raises CorruptCacheError or UntrustedCacheError naming the object.
    """

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder = folder
        self.manifest = manifest
        self._layout = manifest.store_layout()
        self._specs = manifest.specs()
        self._metadata_names = self._layout.metadata_names(self._specs)
        table = self._read_table()
        self._metadata_table = table[: len(self._metadata_names)]
        self._chunk_table = table[len(self._metadata_names) :]
        self._extents = extents_of(self._layout, self._specs, self._chunk_table["offset"].tolist())
        self._check_presence_and_sizes()
        self._check_metadata()
        self._checked: set[int] = set()
        self._mapped: OrderedDict[str, NDArray[np.uint8]] = OrderedDict()
        self._first_of: dict[str, int] = {}
        for number, extent in enumerate(self._extents):
            self._first_of.setdefault(extent.name.partition("/")[0], number)

    def whole(self, name: str) -> NDArray[np.generic]:
        """All rows of an index array, without padding; read-only, since it may be the mapped chunk itself."""
        spec = next(spec for spec in self._specs if spec.name == name)
        parts = [self.chunk(spec, chunk)[: len(spec.rows_of_chunk(chunk))] for chunk in range(spec.chunks)]
        found = parts[0] if len(parts) == 1 else np.concatenate(parts)
        found.flags.writeable = False
        return found

    def chunk(self, spec: ArraySpec, chunk: int) -> NDArray[np.generic]:
        """A chunk, memory-mapped, checked before its first use."""
        number = self._first_of[spec.name] + chunk
        extent = self._extents[number]
        data = self._file(extent.file)[extent.offset : extent.offset + extent.data_bytes]
        if number not in self._checked:
            self._check_crc32c(number, extent, data)
            self._checked.add(number)
        return data.view(spec.numpy_dtype).reshape(spec.chunk_shape)

    def _file(self, name: str) -> NDArray[np.uint8]:
        """A whole file, memory-mapped; the least recently used maps are let go, since each holds a file descriptor."""
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
        """Bytes of all chunks."""
        return sum(extent.data_bytes for extent in self._extents)

    def check_all(self, tick: Callable[[int], None] = lambda data_bytes: None) -> None:
        """Check every chunk's crc32c and sha256. Raises CorruptCacheError naming the first that differs.

        `tick` is called with the bytes of each checked chunk.
        """
        for number, extent in enumerate(self._extents):
            self._check_sha256(number, extent)
            tick(extent.data_bytes)

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
            self._check_ranges()
            return
        trailer = self._layout.trailer_bytes
        for name, entry in zip(self._metadata_names, self._metadata_table, strict=True):
            if (
                int(entry["size"]) > LARGEST_METADATA_BYTES
            ):  # it is read whole, and a sparse file costs its sender nothing
                raise UntrustedCacheError(
                    f"{self.folder}: {name} has {int(entry['size'])} bytes; at most {LARGEST_METADATA_BYTES}."
                )
            self._check_size(name, f"{self._layout.store}/{name}", int(entry["size"]))
        for number, extent in enumerate(self._extents):
            stated = int(self._chunk_table[number]["size"])
            if stated != extent.data_bytes + trailer or extent.offset != 0:
                raise UntrustedCacheError(
                    self._differs(extent.name, "size", str(extent.data_bytes + trailer), str(stated))
                )
            self._check_size(extent.name, extent.file, stated)

    def _check_ranges(self) -> None:
        """HDF5: chunks lie within the file and do not overlap, and all other bytes are as many as stated."""
        outside = int(self._metadata_table[0]["size"])
        if outside > LARGEST_METADATA_BYTES:
            raise UntrustedCacheError(
                f"{self.folder}: {outside} bytes lie outside all chunks; at most {LARGEST_METADATA_BYTES}."
            )
        expected_bytes = outside + sum(extent.data_bytes for extent in self._extents)
        self._check_size(self._layout.store, self._layout.store, expected_bytes)
        position = 0
        for number in np.argsort([extent.offset for extent in self._extents], kind="stable"):
            extent = self._extents[number]
            stated = int(self._chunk_table[number]["size"])
            if stated != extent.data_bytes or extent.offset < position:
                raise UntrustedCacheError(f"{self.folder}: {extent.name} overlaps another chunk or has a wrong size.")
            position = extent.offset + extent.data_bytes
        if position > expected_bytes:
            raise UntrustedCacheError(f"{self.folder}: a chunk lies beyond the end of {self._layout.store}.")

    def _check_size(self, name: str, file: str, expected: int) -> None:
        found = self._size_of_file(file)
        if found != expected:
            raise CorruptCacheError(self._differs(name, "size", f"{expected} bytes", f"{found} bytes"))

    def _size_of_file(self, file: str) -> int:
        try:
            for part in Path(file).parents:
                if stat.S_ISLNK(os.lstat(self.folder / part).st_mode) and part != Path():
                    raise UntrustedCacheError(f"{self.folder / part} is a symbolic link; a cache holds none.")
            status = os.lstat(self.folder / file)
        except OSError as problem:
            raise CorruptCacheError(f"{self.folder}: object {file} is missing ({problem.strerror}).") from None
        if not stat.S_ISREG(status.st_mode):
            raise UntrustedCacheError(f"{self.folder / file} is a symbolic link or no plain file; a cache holds none.")
        return status.st_size

    def _check_metadata(self) -> None:
        for name, entry in zip(self._metadata_names, self._metadata_table, strict=True):
            found = self._layout.metadata_checksums(self.folder, name, self._extents)
            if found.sha256 != _hex(entry):
                raise CorruptCacheError(self._differs(name, "sha256", _hex(entry), found.sha256))

    def _check_sha256(self, number: int, extent: Extent) -> None:
        entry = self._chunk_table[number]
        with (self.folder / extent.file).open("rb") as file:
            file.seek(extent.offset)
            stored = file.read(int(entry["size"]))
        self._check_crc32c(number, extent, memoryview(stored)[: extent.data_bytes])
        expected, found = _hex(entry), hashlib.sha256(stored).hexdigest()
        if found != expected:
            raise CorruptCacheError(self._differs(extent.name, "sha256", expected, found))

    def _check_crc32c(self, number: int, extent: Extent, data: memoryview | NDArray[np.generic]) -> None:
        expected, found = int(self._chunk_table[number]["crc32c"]), crc32c_of(data)
        if found != expected:
            raise CorruptCacheError(self._differs(extent.name, "crc32c", f"{expected:08x}", f"{found:08x}"))

    def _differs(self, name: str, field: str, expected: str, found: str) -> str:
        return (
            f"cache {short(self.manifest.key)}: object {name} has {field} {found}, but {expected} was sealed. "
            f"Nothing of it was used. Restore it, or delete {self.folder} and run teacher-targets again."
        )


def _hex(entry: np.void) -> str:
    return bytes(entry["sha256"]).hex()
