"""Verifying a cache from end to end: every byte against its manifest, and what stock readers make of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.canonical import short
from pipeline.dataset import rows_sha256
from pipeline.errors import CorruptCacheError, UntrustedCacheError, VerificationError
from pipeline.progress import Advance, Bar, no_bar
from pipeline.sorting import pieces
from pipeline.targets.arrays import ArraySpec
from pipeline.targets.compression import COMPRESSIONS
from pipeline.targets.reader import TargetCache


def verify(folder: Path, bar: Bar = no_bar) -> dict[str, Any]:
    """Check every byte of a sealed cache, its list of rows, and that stock zarr or h5py reads the same values.

    `bar` shows the bytes that were read: all of them twice, then the soft targets.
    Returns what was checked. Raises VerificationError naming the first object or field that differs.
    """
    cache = TargetCache(folder)
    read_again = sum(spec.chunks * spec.chunk_bytes for spec in cache.manifest.encoding_arrays())
    with bar(f"verifying {short(cache.key)}", 2 * cache.store.data_bytes + read_again, "bytes") as advance:
        cache.store.check_all(advance)
        found = rows_sha256(cache.sample_digests(), cache.views())
        if found != cache.manifest.rows_sha256:
            raise CorruptCacheError(
                f"{folder}: rows_sha256 is {cache.manifest.rows_sha256}, but its rows give {found}."
            )
        STOCK_READERS[cache.manifest.layout](cache, advance)
        _check_distributions(cache, advance)
    objects = cache.manifest.block_table.entries
    return {"key": cache.key, "objects": objects, "rows": len(cache), "checked": "sha256 of every object"}


def _check_distributions(cache: TargetCache, advance: Advance) -> None:
    import torch

    manifest, specs = cache.manifest, cache.manifest.encoding_arrays()
    encoding, positions = manifest.store_encoding(), manifest.positions()
    for block in range(specs[0].chunks):
        rows = specs[0].rows_of_chunk(block)
        stored = (torch.from_numpy(cache.store.chunk(spec, block)[: len(rows)]) for spec in specs)
        flat = tuple(array.flatten(0, len(positions.sizes)) for array in stored)
        wrong = encoding.first_wrong_position(flat, len(manifest.class_names))
        if wrong is not None:
            row = rows.start + wrong // positions.count
            raise CorruptCacheError(f"{cache.folder}: row {row} of {specs[0].name} is no distribution.")
        advance(sum(spec.chunk_bytes for spec in specs))


def _check_zarr(cache: TargetCache, advance: Advance) -> None:
    import zarr

    for spec in cache.manifest.specs():
        with _stock_reader(cache, spec):
            array: Any = zarr.open_group(cache.folder / "targets.zarr", mode="r")[spec.name]
            # Before a chunk is decoded: a compressor would let a small file become any number of bytes.
            codecs = [codec["name"] for codec in array.metadata.to_dict()["codecs"]]
            sealed = [codec.to_dict()["name"] for codec in COMPRESSIONS[spec.compression].zarr_codecs(1)]
            _check_described(cache, spec, tuple(array.chunks), codecs == ["bytes", *sealed, "crc32c"])
            _check_array(cache, spec, array, advance)


def _check_hdf5(cache: TargetCache, advance: Advance) -> None:
    import h5py

    for spec in cache.manifest.specs():
        with _stock_reader(cache, spec), h5py.File(cache.folder / "targets.h5", "r") as file:
            if not isinstance(file.get(spec.name, getlink=True), h5py.HardLink):
                raise UntrustedCacheError(f"{cache.folder}: {spec.name} is a link, which could lead to another file.")
            dataset = file[spec.name]
            properties = dataset.id.get_create_plist()
            is_plain = properties.get_nfilters() == 0 and properties.get_layout() == h5py.h5d.CHUNKED
            _check_described(cache, spec, dataset.chunks, is_plain)
            _check_array(cache, spec, dataset, advance)


@contextmanager
def _stock_reader(cache: TargetCache, spec: ArraySpec) -> Iterator[None]:
    try:
        yield
    except VerificationError:
        raise
    except Exception as problem:  # a library that meets metadata it cannot read raises anything
        raise CorruptCacheError(
            f"{cache.folder}: a stock {cache.manifest.layout} reader cannot read {spec.name}: {problem}."
        ) from None


def _check_described(cache: TargetCache, spec: ArraySpec, chunks: tuple[int, ...] | None, is_sealed: bool) -> None:
    if chunks != spec.chunk_shape or not is_sealed:
        raise UntrustedCacheError(
            f"{cache.folder}: the store describes {spec.name} in chunks of {chunks}"
            f"{'' if is_sealed else ' with another filter or codec'}; chunks of {spec.chunk_shape}, compression "
            f"{spec.compression}, are sealed."
        )


STOCK_READERS: dict[str, Callable[[TargetCache, Advance], None]] = {"zarr": _check_zarr, "hdf5": _check_hdf5}


def _check_array(cache: TargetCache, spec: ArraySpec, seen: Any, advance: Advance) -> None:
    """The metadata could describe the same files otherwise than the manifest does; then readers would disagree."""
    if (tuple(seen.shape), np.dtype(seen.dtype)) != (spec.shape, spec.numpy_dtype):
        raise CorruptCacheError(
            f"{cache.folder}: a stock reader takes {spec.name} for {tuple(seen.shape)} {seen.dtype}, the manifest says "
            f"{spec.shape} {spec.dtype}."
        )
    for chunk in range(spec.chunks):
        rows = spec.rows_of_chunk(chunk)
        ours: NDArray[np.generic] = cache.store.chunk(spec, chunk)[: len(rows)]
        if not _equal_bytes(np.asarray(seen[rows.start : rows.stop]), ours):
            raise CorruptCacheError(f"{cache.folder}: a stock reader sees other values in {spec.chunk_name(chunk)}.")
        advance(spec.chunk_bytes)


def _equal_bytes(one: NDArray[np.generic], other: NDArray[np.generic]) -> bool:
    """Whether two arrays of one shape and type hold the same bits, NaN included, without a copy of either."""
    first, second = (np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (one, other))
    return len(first) == len(second) and all(
        first[piece].tobytes() == second[piece].tobytes() for piece in pieces(len(first), 2**20)
    )
