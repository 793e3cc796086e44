"""Verifying a cache from end to end: every byte against its manifest, and what stock readers make of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset import rows_sha256
from pipeline.errors import CorruptCacheError
from pipeline.targets.arrays import ArraySpec
from pipeline.targets.reader import TargetCache


def verify(folder: Path) -> dict[str, Any]:
    """Check every byte of a sealed cache, its list of rows, and that stock zarr or h5py reads the same values.

    Returns what was checked. Raises VerificationError naming the first object or field that differs.
    """
    cache = TargetCache(folder)
    cache.store.check_all()
    found = rows_sha256(cache.sample_digests(), cache.views())
    if found != cache.manifest.rows_sha256:
        raise CorruptCacheError(f"{folder}: rows_sha256 is {cache.manifest.rows_sha256}, but its rows give {found}.")
    STOCK_READERS[cache.manifest.layout](cache)
    objects = cache.manifest.block_table.entries
    return {"key": cache.key, "objects": objects, "rows": len(cache), "checked": "sha256 of every object"}


def _check_zarr(cache: TargetCache) -> None:
    import zarr

    group = zarr.open_group(cache.folder / "targets.zarr", mode="r")
    for spec in cache.manifest.specs():
        array: Any = group[spec.name]
        _check_array(cache, spec, array)


def _check_hdf5(cache: TargetCache) -> None:
    import h5py

    with h5py.File(cache.folder / "targets.h5", "r") as file:
        for spec in cache.manifest.specs():
            _check_array(cache, spec, file[spec.name])


STOCK_READERS: dict[str, Callable[[TargetCache], None]] = {"zarr": _check_zarr, "hdf5": _check_hdf5}


def _check_array(cache: TargetCache, spec: ArraySpec, seen: Any) -> None:
    """The metadata could describe the same files otherwise than the manifest does; then readers would disagree."""
    if (tuple(seen.shape), np.dtype(seen.dtype)) != (spec.shape, spec.numpy_dtype):
        raise CorruptCacheError(
            f"{cache.folder}: a stock reader takes {spec.name} for {tuple(seen.shape)} {seen.dtype}, the manifest says "
            f"{spec.shape} {spec.dtype}."
        )
    for chunk in range(spec.chunks):
        rows = spec.rows_of_chunk(chunk)
        ours: NDArray[np.generic] = cache.store.chunk(spec, chunk)[: len(rows)]
        if np.asarray(seen[rows.start : rows.stop]).tobytes() != ours.tobytes():
            raise CorruptCacheError(f"{cache.folder}: a stock reader sees other values in {spec.chunk_name(chunk)}.")
