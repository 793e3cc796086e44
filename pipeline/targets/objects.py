"""The objects of a sealed cache as manifest and block table state them: names, places and checksums. Nothing is opened.

What a reader must not do is refused here, before it looks at a file or asks a remote for one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.canonical import short
from pipeline.errors import UntrustedCacheError
from pipeline.targets.arrays import ArraySpec, index_arrays
from pipeline.targets.block_table import Checksums
from pipeline.targets.compression import LARGEST_EXPANSION_BYTES
from pipeline.targets.layouts import extents_of, gaps
from pipeline.targets.manifest import Manifest

LARGEST_METADATA_BYTES = 64_000_000

Part = Literal["metadata", "index", "block"]


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object: its bytes are those of the `ranges` [start, stop) of `file` (relative to the cache's folder), in order.

    Of a Zarr store it is the whole file. `block` is the number of the block that a chunk of the encoding belongs to.
    """

    name: str
    file: str
    ranges: tuple[tuple[int, int], ...]
    checksums: Checksums
    part: Part
    block: int | None = None

    @property
    def size(self) -> int:
        """Bytes stored."""
        return self.checksums.size


class ObjectTable:
    """Manifest and block table together: where every object of the store lies, and what it must be."""

    def __init__(self, manifest: Manifest, table: NDArray[np.void], where: object):
        """`table` is the block table (see read_block_table), `where` names the cache in errors.

        Raises UntrustedCacheError for sizes or places that the manifest's arrays cannot have.
        """
        self._manifest, self._where = manifest, where
        self.layout, self.specs = manifest.store_layout(), manifest.specs()
        self.metadata_names = self.layout.metadata_names(self.specs)
        self.metadata = table[: len(self.metadata_names)]
        self.chunks = table[len(self.metadata_names) :]
        data_bytes = self.chunks["size"].astype(np.int64) - self.layout.trailer_bytes
        self.extents = extents_of(self.layout, self.specs, self.chunks["offset"].tolist(), data_bytes.tolist())
        firsts = accumulate((spec.chunks for spec in self.specs), initial=0)
        self.first_of = dict(zip((spec.name for spec in self.specs), firsts, strict=False))
        if self.layout.name == "hdf5":
            self._check_ranges()
        else:
            self._check_sizes()

    @property
    def store_bytes(self) -> int:
        """Bytes of all objects: for HDF5, of its file."""
        return int(self.metadata["size"].sum()) + int(self.chunks["size"].sum())

    def objects(self) -> Iterator[StoredObject]:
        """Every object, in the order of the block table."""
        for name, entry in zip(self.metadata_names, self.metadata, strict=True):
            yield self._metadata_object(name, entry)
        for spec in self.specs:
            for chunk in range(spec.chunks):
                yield self.chunk(spec, chunk)

    def chunk(self, spec: ArraySpec, chunk: int) -> StoredObject:
        """One chunk of an array."""
        number = self.first_of[spec.name] + chunk
        extent, checksums = self.extents[number], checksums_in(self.chunks[number])
        is_index = number < sum(spec.chunks for spec in self.specs[: len(index_arrays(1))])
        place = ((extent.offset, extent.offset + checksums.size),)
        return StoredObject(
            extent.name, extent.file, place, checksums, "index" if is_index else "block", None if is_index else chunk
        )

    def _metadata_object(self, name: str, entry: np.void) -> StoredObject:
        checksums = checksums_in(entry)
        if self.layout.name == "hdf5":
            return StoredObject(
                name, self.layout.store, tuple(gaps(self.extents, self.store_bytes)), checksums, "metadata"
            )
        return StoredObject(name, f"{self.layout.store}/{name}", ((0, checksums.size),), checksums, "metadata")

    def _check_sizes(self) -> None:
        trailer = self.layout.trailer_bytes
        for name, size in zip(self.metadata_names, self.metadata["size"].tolist(), strict=True):
            if size > LARGEST_METADATA_BYTES:  # it is read whole, and a sparse file costs its sender nothing
                raise UntrustedCacheError(f"{self._where}: {name} has {size} bytes; at most {LARGEST_METADATA_BYTES}.")
        for spec, extent, stated in zip(self._spec_of_chunks(), self.extents, self._stated_sizes(), strict=True):
            if extent.offset != 0 or not _may_hold(spec, stated - trailer):
                expected = f"{'at most ' if spec.compression != 'none' else ''}{_most_bytes(spec) + trailer}"
                raise UntrustedCacheError(
                    f"{self._where}: object {extent.name} of cache {short(self._manifest.key)} has size {stated}, "
                    f"but {expected} is what its array allows."
                )

    def _check_ranges(self) -> None:
        """HDF5: chunks do not overlap and lie within a file of all chunks and the bytes that are stated to be outside."""
        outside = int(self.metadata[0]["size"])
        if outside > LARGEST_METADATA_BYTES:
            raise UntrustedCacheError(
                f"{self._where}: {outside} bytes lie outside all chunks; at most {LARGEST_METADATA_BYTES}."
            )
        specs, sizes, position = self._spec_of_chunks(), self._stated_sizes(), 0
        for number in np.argsort([extent.offset for extent in self.extents], kind="stable").tolist():
            extent = self.extents[number]
            if not _may_hold(specs[number], sizes[number]) or extent.offset < position:
                raise UntrustedCacheError(f"{self._where}: {extent.name} overlaps another chunk or has a wrong size.")
            position = extent.offset + sizes[number]
        if position > self.store_bytes:
            raise UntrustedCacheError(f"{self._where}: a chunk lies beyond the end of {self.layout.store}.")

    def _spec_of_chunks(self) -> Sequence[ArraySpec]:
        return [spec for spec in self.specs for _ in range(spec.chunks)]

    def _stated_sizes(self) -> list[int]:
        sizes: list[int] = self.chunks["size"].tolist()
        return sizes


def checksums_in(entry: np.void) -> Checksums:
    """The checksums that an entry of the block table states."""
    return Checksums(int(entry["size"]), int(entry["crc32c"]), bytes(entry["sha256"]).hex())


def _most_bytes(spec: ArraySpec) -> int:
    """The largest stored size of a chunk's data."""
    return spec.chunk_bytes + (0 if spec.compression == "none" else LARGEST_EXPANSION_BYTES)


def _may_hold(spec: ArraySpec, data_bytes: int) -> bool:
    """Whether a chunk may have so many bytes stored."""
    return data_bytes == spec.chunk_bytes if spec.compression == "none" else 0 < data_bytes <= _most_bytes(spec)
