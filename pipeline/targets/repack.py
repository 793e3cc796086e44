"""Repacking: the same sealed rows in another layout or compression, without the teacher and under the same key."""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

import numpy as np

from pipeline.canonical import short
from pipeline.dataset import Rows
from pipeline.durable import sync_folder
from pipeline.errors import StorageError, UserError
from pipeline.locks import locked
from pipeline.progress import Bar, no_bar
from pipeline.targets.layouts import LAYOUTS
from pipeline.targets.reader import TargetCache
from pipeline.targets.writer import CachePlan, CacheWriter

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def repack(folder: Path, layout: str | None = None, bar: Bar = no_bar, *, compression: str | None = None) -> bool:
    """Replace the store of a sealed cache by one of another layout or compression; false when it is like that already.

    Every checksum is verified first; the rows, the certificate and the key stay. The new cache is written beside and
    exchanged with the old one in one step, so a kill leaves one of them, whole. None leaves what it is. Raises UserError for a
    compression that the layout does not have, VerificationError for a damaged cache, LockedError, and StorageError without
    space or on a file system that cannot exchange two folders.
    """
    with locked(folder.parent / ".locks" / folder.name, f"cache {short(folder.name)}"):
        cache = TargetCache(folder)
        now = (cache.manifest.layout, cache.manifest.compression)
        wanted = (layout or now[0], compression or now[1])
        if wanted[1] not in LAYOUTS[wanted[0]].compressions:
            raise UserError(
                f"layout {wanted[0]} has no compression {wanted[1]!r}; add --compression none, or stay with zarr."
            )
        if wanted == now:
            return False
        with bar(f"verifying {short(folder.name)}", cache.store.data_bytes, "bytes") as advance:
            cache.store.check_all(advance)
        beside = folder.parent / f".repacking-{folder.name}"
        if beside.exists():
            shutil.rmtree(beside)  # of a repacking that was killed
        _write(cache, beside, *wanted, bar)
        _exchange(beside, folder)
        sync_folder(folder.parent)
        shutil.rmtree(beside)
    return True


def _write(cache: TargetCache, folder: Path, layout: str, compression: str, bar: Bar) -> None:
    manifest, specs = cache.manifest, cache.manifest.encoding_arrays()
    fields = manifest.model_dump(mode="json")
    rows = Rows(np.arange(len(cache)), cache.sample_digests(), cache.views(), cache.labels())
    plan = CachePlan(
        row_key=manifest.row_key,
        row_made_from=manifest.row_made_from,
        rows=rows,
        split=manifest.split,
        layout=layout,
        rows_per_block=specs[0].rows_per_chunk,
        class_names=manifest.class_names,
        teacher=fields["teacher"],
        resumable={},
        compression=compression,
        positions=manifest.positions(),
    )
    writer = CacheWriter(folder, plan)
    block_bytes = sum(spec.chunk_bytes for spec in specs)
    try:
        with bar(f"writing as {layout}, compression {compression}", writer.blocks * block_bytes, "bytes") as advance:
            for block in range(writer.blocks):
                held = len(writer.rows_of_block(block))
                writer.commit(block, [cache.store.chunk(spec, block)[:held] for spec in specs], {})
                advance(block_bytes)
        writer.seal(
            {**fields["provenance"], "repacked_from": f"{manifest.layout}, {manifest.compression}"},
            fields["certificate"],
        )
    finally:
        writer.close()


def _exchange(one: Path, other: Path) -> None:
    """Exchange two folders atomically (renameat2 with RENAME_EXCHANGE)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise StorageError(
            f"{one} cannot be exchanged with {other} on this file system ({reason}); nothing was changed."
        )
