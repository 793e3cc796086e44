"""Reading a sealed target cache: open it, join a dataset to it by content, gather soft targets of any rows.

Shape legend: R rows of the cache, N samples of a dataset, B rows of a batch, C classes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.canonical import short
from pipeline.errors import CorruptCacheError, JoinError, MismatchError, UntrustedCacheError
from pipeline.targets.arrays import ArraySpec
from pipeline.targets.block_table import BLOCK_TABLE_FILE, ENTRY, crc32c_of, read_block_table
from pipeline.targets.certificate import error_at
from pipeline.targets.layouts import Extent, extents_of
from pipeline.targets.manifest import Manifest, read_manifest

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_NPY_HEADER_BYTES = 4096


class TargetCache:
    """One sealed cache, opened read-only. Nothing is decoded before it was checked.

    Opening checks the manifest, the block table, the store's metadata, and that every object is there with its size.
    A block's crc32c is checked before its first use. Blocks are memory-mapped: a process that forks or pickles should
    open the cache anew in each worker.
    """

    def __init__(self, folder: str | Path):
        """Open the cache in `folder`. Raises VerificationError, naming the object at fault."""
        self.folder = Path(folder)
        self.manifest: Manifest = read_manifest(self.folder)
        self._layout = self.manifest.store_layout()
        self._encoding = self.manifest.store_encoding()
        self._specs = self.manifest.specs()
        self._metadata_names = self._layout.metadata_names(self._specs)
        self._table = self._read_table()
        offsets = self._table["offset"][len(self._metadata_names) :].tolist()
        self._extents = extents_of(self._layout, self._specs, offsets)
        self._extent_numbers = {extent.name: number for number, extent in enumerate(self._extents)}
        self._check_presence_and_sizes()
        self._check_metadata()
        self._mapped: dict[str, NDArray[np.generic]] = {}
        self._index: tuple[NDArray[np.void], NDArray[np.int64]] | None = None

    @classmethod
    def open(cls, folder: str | Path) -> TargetCache:
        """Open the cache in `folder` (see the class)."""
        return cls(folder)

    def __len__(self) -> int:
        return self.manifest.rows

    @property
    def key(self) -> str:
        return self.manifest.key

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.manifest.class_names

    @property
    def temperature(self) -> float:
        """T of the stored soft targets."""
        return self.manifest.temperature

    def sample_digests(self) -> NDArray[np.uint8]:
        """Digests (R, 16) of the rows' samples."""
        return self._whole("sample_digest").astype(np.uint8, copy=False)

    def views(self) -> NDArray[np.int32]:
        """Views (R,) of the rows; 0 is the sample itself."""
        return self._whole("view").astype(np.int32, copy=False)

    def labels(self) -> NDArray[np.int64]:
        """Labels (R,), -1 where there is none or equal samples disagree. Students take labels from their dataset."""
        return self._whole("label").astype(np.int64, copy=False)

    def find(self, digests: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The row (N,) of each sample digest (N, 16), -1 where the cache has none. Equal samples share a row."""
        if self._index is None:
            known = np.ascontiguousarray(self.sample_digests()).view("V16").ravel()
            order = np.argsort(known)
            self._index = (known[order], order)
        ordered, order = self._index
        wanted = np.ascontiguousarray(digests).view("V16").ravel()
        place = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
        return np.where(ordered[place] == wanted, order[place], -1).astype(np.int64)

    def join(self, digests: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The row (N,) of each sample digest (N, 16).

        Raises JoinError with the count and the first indices when samples have no row.
        """
        rows = self.find(digests)
        unknown = np.flatnonzero(rows < 0)
        if len(unknown):
            shown = ", ".join(str(index) for index in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
            raise JoinError(
                f"{len(unknown)} of {len(rows)} samples have no row in cache {short(self.key)} (samples {shown}): it was "
                'made for another dataset. Run teacher-targets for this one, or set student.missing = "skip".'
            )
        return rows

    def soft_targets(self, rows: NDArray[np.int64], temperature: float | None = None) -> Tensor:
        """Float32 probabilities (B, C) of the given rows (B,), each summing to 1, at `temperature` (default: the cache's).

        Raises CorruptCacheError when a block that is needed fails its checksum, MismatchError for a temperature that
        the certificate does not cover.
        """
        wanted = self.temperature if temperature is None else temperature
        if wanted != self.temperature:
            self.check_temperature(wanted)
        stored = tuple(self._gather(spec, rows) for spec in self.manifest.encoding_arrays())
        return self._encoding.decode(stored, self.temperature, wanted)

    def check_temperature(self, temperature: float, max_kl: float | None = None) -> None:
        """Raises MismatchError unless the certificate covers `temperature` with a mean KL of at most `max_kl`."""
        measured = error_at(self.manifest.certificate, temperature)
        if measured is None:
            known = ", ".join(self.manifest.certificate["temperatures"])
            raise MismatchError(
                f"temperature {temperature} is not certified by cache {short(self.key)}, which is for {known}. Use one of "
                f"these, or add it to targets.certify, delete {self.folder} and run teacher-targets again."
            )
        if max_kl is None:
            return
        mean = measured["kl_mean"]
        if mean is None or mean > max_kl:
            error = f"infinite in {measured['infinite_rows']} rows" if mean is None else f"{mean:.3g}"
            raise MismatchError(
                f"cache {short(self.key)} has mean KL(exact || decoded) {error} at temperature {temperature}; the recipe "
                f'allows max_kl = {max_kl:g}. Use targets.dtype = "float32", a temperature nearer to '
                f"{self.temperature}, or a larger student.distillation.max_kl."
            )

    def check_all(self, with_sha256: bool = False) -> None:
        """Check every object's crc32c, or its sha256. Raises CorruptCacheError naming the first that differs."""
        for number, extent in enumerate(self._extents):
            self._check_chunk(number, extent, with_sha256)

    def _gather(self, spec: ArraySpec, rows: NDArray[np.int64]) -> Tensor:
        import torch

        out = torch.empty((len(rows), *spec.shape[1:]), dtype=getattr(torch, spec.dtype))
        blocks = rows // spec.rows_per_chunk
        for block in np.unique(blocks):
            within = np.flatnonzero(blocks == block)
            chunk = torch.from_numpy(self._chunk(spec, int(block)))
            inside = torch.from_numpy(rows[within] - block * spec.rows_per_chunk)
            if len(within) == len(rows):
                return torch.index_select(chunk, 0, inside)
            out[torch.from_numpy(within)] = torch.index_select(chunk, 0, inside)
        return out

    def _whole(self, name: str) -> NDArray[np.generic]:
        spec = next(spec for spec in self._specs if spec.name == name)
        parts = [self._chunk(spec, chunk)[: len(spec.rows_of_chunk(chunk))] for chunk in range(spec.chunks)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _chunk(self, spec: ArraySpec, chunk: int) -> NDArray[np.generic]:
        """A chunk, memory-mapped, checked before its first use."""
        name = spec.chunk_name(chunk)
        if name not in self._mapped:
            number = self._extent_numbers[name]
            extent = self._extents[number]
            mapped: NDArray[np.generic] = np.memmap(
                self.folder / extent.file,
                dtype=spec.numpy_dtype,
                mode="c",  # private: torch wants writable memory, and the file must never change
                offset=extent.offset,
                shape=spec.chunk_shape,
            )
            expected = int(self._table["crc32c"][len(self._metadata_names) + number])
            found = crc32c_of(mapped.reshape(-1).view(np.uint8))
            if found != expected:
                raise CorruptCacheError(self._differs(name, "crc32c", f"{expected:08x}", f"{found:08x}"))
            self._mapped[name] = mapped
        return self._mapped[name]

    def _read_table(self) -> NDArray[np.void]:
        path = self.folder / BLOCK_TABLE_FILE
        entries = self.manifest.block_table.entries
        size = self._size_of_file(BLOCK_TABLE_FILE)
        if not 0 <= size - entries * ENTRY.itemsize <= LARGEST_NPY_HEADER_BYTES:
            raise CorruptCacheError(self._differs(BLOCK_TABLE_FILE, "entries", str(entries), f"{size} bytes"))
        content = path.read_bytes()
        found, expected = _sha256_of(content), self.manifest.block_table.sha256
        if found != expected:
            raise CorruptCacheError(self._differs(BLOCK_TABLE_FILE, "sha256", expected, found))
        return read_block_table(content, entries)

    def _check_presence_and_sizes(self) -> None:
        if self._layout.name == "hdf5":
            self._check_ranges()
            return
        trailer = self._layout.trailer_bytes
        for name in self._metadata_names:
            self._check_size(
                name, f"{self._layout.store}/{name}", int(self._table["size"][self._metadata_names.index(name)])
            )
        for number, extent in enumerate(self._extents):
            stated = int(self._table["size"][len(self._metadata_names) + number])
            if stated != extent.data_bytes + trailer or extent.offset != 0:
                raise UntrustedCacheError(
                    self._differs(extent.name, "size", str(extent.data_bytes + trailer), str(stated))
                )
            self._check_size(extent.name, extent.file, stated)

    def _check_ranges(self) -> None:
        """HDF5: chunks lie within the file and do not overlap, and all other bytes are as many as stated."""
        outside = int(self._table["size"][0])
        expected_bytes = outside + sum(extent.data_bytes for extent in self._extents)
        self._check_size(self._layout.store, self._layout.store, expected_bytes)
        position = 0
        for number in np.argsort([extent.offset for extent in self._extents], kind="stable"):
            extent = self._extents[number]
            stated = int(self._table["size"][1 + number])
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
        for number, name in enumerate(self._metadata_names):
            found = self._layout.metadata_checksums(self.folder, name, self._extents)
            expected = self._table[number]["sha256"].tobytes().hex()
            if found.sha256 != expected:
                raise CorruptCacheError(self._differs(name, "sha256", expected, found.sha256))

    def _check_chunk(self, number: int, extent: Extent, with_sha256: bool) -> None:
        entry = self._table[len(self._metadata_names) + number]
        with (self.folder / extent.file).open("rb") as file:
            file.seek(extent.offset)
            stored = file.read(int(entry["size"]))
        crc32c = crc32c_of(memoryview(stored)[: extent.data_bytes])
        if crc32c != int(entry["crc32c"]):
            raise CorruptCacheError(
                self._differs(extent.name, "crc32c", f"{int(entry['crc32c']):08x}", f"{crc32c:08x}")
            )
        if with_sha256 and (found := _sha256_of(stored)) != entry["sha256"].tobytes().hex():
            raise CorruptCacheError(self._differs(extent.name, "sha256", entry["sha256"].tobytes().hex(), found))

    def _differs(self, name: str, field: str, expected: str, found: str) -> str:
        return (
            f"cache {short(self.manifest.key)}: object {name} has {field} {found}, but {expected} was sealed. "
            f"Nothing of it was used. Restore it, or delete {self.folder} and run teacher-targets again."
        )


def _sha256_of(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


def verify(folder: Path) -> dict[str, Any]:
    """Check every byte of a sealed cache, and that stock readers see the arrays that its manifest lists.

    Returns what was checked. Raises VerificationError naming the first object or field that differs.
    """
    cache = TargetCache(folder)
    cache.check_all(with_sha256=True)
    rows_sha256 = _rows_sha256(cache)
    if rows_sha256 != cache.manifest.rows_sha256:
        raise CorruptCacheError(f"{folder}: rows_sha256 is {cache.manifest.rows_sha256}, its rows give {rows_sha256}.")
    _check_stock_reader(cache.folder, cache.manifest.layout, cache.manifest.specs())
    objects = cache.manifest.block_table.entries
    return {"key": cache.key, "objects": objects, "rows": len(cache), "checked": "sha256 of every object"}


def _rows_sha256(cache: TargetCache) -> str:
    from pipeline.dataset import rows_sha256

    return rows_sha256(cache.sample_digests(), cache.views())


def _check_stock_reader(folder: Path, layout: str, specs: Sequence[ArraySpec]) -> None:
    seen: dict[str, tuple[tuple[int, ...], str]]
    if layout == "zarr":
        import zarr

        group = zarr.open_group(folder / "targets.zarr", mode="r")
        seen = {name: (array.shape, str(array.dtype)) for name, array in group.arrays()}
    else:
        import h5py

        with h5py.File(folder / "targets.h5", "r") as file:
            seen = {name: (item.shape, str(item.dtype)) for name, item in file.items()}
    for spec in specs:
        if seen.get(spec.name) != (spec.shape, spec.dtype):
            raise CorruptCacheError(
                f"{folder}: stock {layout} reads {spec.name} as {seen.get(spec.name)}, the manifest says "
                f"{(spec.shape, spec.dtype)}."
            )
