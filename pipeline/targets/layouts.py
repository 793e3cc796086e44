"""Layouts: where in which file each object of a cache lies, for Zarr v3 and for HDF5.

Both put an uncompressed chunk into one contiguous range of one file, so that one writer and one reader serve both in
terms of (file, offset, length).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import google_crc32c
import numpy as np

from pipeline.durable import share_durably, sync_file, sync_folder, write_all, write_durably
from pipeline.targets.arrays import ArraySpec
from pipeline.targets.block_table import Checksums, Hashing, checksums_of, crc32c_of
from pipeline.targets.compression import COMPRESSIONS


@dataclass(frozen=True)
class Extent:
    """Where the data of one chunk lies: `data_bytes` at `offset` of `file` (relative to the cache's folder).

    The data are as they are stored, compressed or not, without a codec's trailer.
    """

    name: str
    file: str
    offset: int
    data_bytes: int


class Layout(Protocol):
    """How a store looks on disk. `trailer_bytes` follow the data of each chunk (a codec's checksum).

    `compressions` are the names of those that its blocks may have.
    """

    name: str
    store: str
    trailer_bytes: int
    compressions: tuple[str, ...]

    def create(self, folder: Path, arrays: Sequence[ArraySpec], attributes: dict[str, Any]) -> None:
        """Write the store's metadata and reserve its chunks, durably."""
        ...

    def offsets(self, folder: Path, arrays: Sequence[ArraySpec]) -> list[int]:
        """Byte offset of every chunk in its file, array by array."""
        ...

    def file_of(self, chunk_name: str) -> str:
        """The file that holds a chunk, relative to the cache's folder."""
        ...

    def write(self, folder: Path, extent: Extent, data: bytes | memoryview) -> Checksums:
        """Write one chunk's data, compressed or not, durably."""
        ...

    def adopt(self, folder: Path, extent: Extent, source: Path, stored: Extent, stored_bytes: int) -> None:
        """Let one chunk be, byte for byte, the one that a cache in the folder `source` stores at `stored`, durably.

        The caches share its space where the layout keeps it in a file of its own and the file system has links.
        """
        ...

    def metadata_names(self, arrays: Sequence[ArraySpec]) -> list[str]:
        """Names of the objects that are not chunks, in the order of the block table."""
        ...

    def metadata_checksums(self, folder: Path, name: str, chunks: Sequence[Extent]) -> Checksums:
        """Checksums of one such object as it is on disk. Raises OSError."""
        ...


class ZarrLayout:
    """Zarr v3: one file for each chunk, its little-endian bytes, raw or compressed, then their crc32c (4 bytes)."""

    name = "zarr"
    store = "targets.zarr"
    trailer_bytes = 4
    compressions: tuple[str, ...] = tuple(COMPRESSIONS)

    def create(self, folder: Path, arrays: Sequence[ArraySpec], attributes: dict[str, Any]) -> None:
        import zarr
        from zarr.codecs import BytesCodec, Crc32cCodec

        group = zarr.create_group(folder / self.store, zarr_format=3, attributes=attributes)
        for spec in arrays:
            compressors = COMPRESSIONS[spec.compression].zarr_codecs(spec.numpy_dtype.itemsize)
            group.create_array(
                spec.name,
                shape=spec.shape,
                chunks=spec.chunk_shape,
                dtype=spec.dtype,
                serializer=BytesCodec(endian="little"),
                filters=None,
                compressors=[*compressors, Crc32cCodec()],
                fill_value=spec.fill_value,
                chunk_key_encoding={"name": "default", "separator": "."},  # all chunks of an array in one folder
                dimension_names=spec.dimensions,
                config={"write_empty_chunks": True},
            )
        for parent, _, files in os.walk(folder / self.store):
            for file in files:
                sync_file(Path(parent, file))
            sync_folder(Path(parent))

    def offsets(self, folder: Path, arrays: Sequence[ArraySpec]) -> list[int]:
        return [0] * sum(spec.chunks for spec in arrays)

    def file_of(self, chunk_name: str) -> str:
        return f"{self.store}/{chunk_name}"

    def write(self, folder: Path, extent: Extent, data: bytes | memoryview) -> Checksums:
        crc32c = crc32c_of(data)
        trailer = crc32c.to_bytes(4, "little")
        hashing = Hashing(data, trailer)
        write_durably(folder / extent.file, data, trailer)
        return hashing.checksums(crc32c)

    def adopt(self, folder: Path, extent: Extent, source: Path, stored: Extent, stored_bytes: int) -> None:
        share_durably(source / stored.file, folder / extent.file)

    def metadata_names(self, arrays: Sequence[ArraySpec]) -> list[str]:
        return ["zarr.json", *(f"{spec.name}/zarr.json" for spec in arrays)]

    def metadata_checksums(self, folder: Path, name: str, chunks: Sequence[Extent]) -> Checksums:
        return checksums_of((folder / self.store / name).read_bytes())


class Hdf5Layout:
    """HDF5: the file is laid out once, without filters, and closed; chunks are then written at their offsets.

    No HDF5 library writes to the file after that, so a kill cannot harm its metadata.
    """

    name = "hdf5"
    store = "targets.h5"
    trailer_bytes = 0
    compressions: tuple[str, ...] = (
        "none",
    )  # h5py reads no zstd or blosc without plugins, and places must be known before sizes are

    def create(self, folder: Path, arrays: Sequence[ArraySpec], attributes: dict[str, Any]) -> None:
        import h5py

        path = folder / self.store
        with h5py.File(path, "w", libver=("v110", "v110"), alignment_threshold=4096, alignment_interval=65536) as file:
            for name, value in attributes.items():
                file.attrs[name] = value
            for spec in arrays:
                properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
                properties.set_chunk(spec.chunk_shape)
                properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
                properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
                properties.set_obj_track_times(False)  # the same content gives the same bytes
                dtype = h5py.h5t.py_create(spec.numpy_dtype)
                h5py.h5d.create(file.id, spec.name.encode(), dtype, h5py.h5s.create_simple(spec.shape), properties)
        sync_file(path)
        sync_folder(folder)

    def offsets(self, folder: Path, arrays: Sequence[ArraySpec]) -> list[int]:
        import h5py

        found: list[int] = []
        with h5py.File(folder / self.store, "r") as file:
            for spec in arrays:
                by_chunk = np.full(spec.chunks, -1, dtype=np.int64)

                def remember(info: Any, by_chunk: Any = by_chunk, spec: ArraySpec = spec) -> None:
                    by_chunk[info.chunk_offset[0] // spec.rows_per_chunk] = info.byte_offset

                file[spec.name].id.chunk_iter(remember)
                found += by_chunk.tolist()
        return found

    def file_of(self, chunk_name: str) -> str:
        return self.store

    def write(self, folder: Path, extent: Extent, data: bytes | memoryview) -> Checksums:
        hashing = Hashing(data)
        descriptor = os.open(folder / extent.file, os.O_WRONLY)
        try:
            write_all(descriptor, data, extent.offset)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return hashing.checksums(crc32c_of(data))

    def adopt(self, folder: Path, extent: Extent, source: Path, stored: Extent, stored_bytes: int) -> None:
        with (source / stored.file).open("rb") as file:
            file.seek(stored.offset)
            self.write(folder, extent, file.read(stored_bytes))

    def metadata_names(self, arrays: Sequence[ArraySpec]) -> list[str]:
        return ["outside"]

    def metadata_checksums(self, folder: Path, name: str, chunks: Sequence[Extent]) -> Checksums:
        """Of all bytes of the file that belong to no chunk, in their order."""
        path = folder / self.store
        total, crc, sha256 = 0, 0, hashlib.sha256()
        with path.open("rb") as file:
            for start, end in gaps(chunks, path.stat().st_size):
                file.seek(start)
                while start < end:
                    piece = file.read(min(end - start, 1 << 22))
                    if not piece:
                        raise OSError(f"{path} is shorter than its chunks")
                    crc = google_crc32c.extend(crc, piece)
                    sha256.update(piece)
                    total += len(piece)
                    start += len(piece)
        return Checksums(total, crc, sha256.hexdigest())


LAYOUTS: dict[str, Layout] = {"zarr": ZarrLayout(), "hdf5": Hdf5Layout()}


def extents_of(
    layout: Layout, arrays: Sequence[ArraySpec], offsets: Sequence[int], data_bytes: Sequence[int] | None = None
) -> list[Extent]:
    """The extent of every chunk, array by array; `offsets` has one number for each.

    `data_bytes` are the stored sizes; without them, those of uncompressed chunks.
    """
    chunks = [(spec.chunk_name(chunk), spec.chunk_bytes) for spec in arrays for chunk in range(spec.chunks)]
    stored = [size for _, size in chunks] if data_bytes is None else data_bytes
    return [
        Extent(name, layout.file_of(name), offset, size)
        for (name, _), offset, size in zip(chunks, offsets, stored, strict=True)
    ]


def gaps(chunks: Sequence[Extent], file_bytes: int) -> list[tuple[int, int]]:
    """The ranges (start, end) of a file that no chunk covers."""
    gaps, position = [], 0
    for chunk in sorted(chunks, key=lambda extent: extent.offset):
        if chunk.offset > position:
            gaps.append((position, chunk.offset))
        position = max(position, chunk.offset + chunk.data_bytes)
    if position < file_bytes:
        gaps.append((position, file_bytes))
    return gaps
