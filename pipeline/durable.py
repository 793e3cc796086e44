"""Files that appear whole or not at all, and survive a power cut once they have appeared."""

from __future__ import annotations

import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable (fsync of the directory)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write every byte of `data` at `offset`; a single pwrite may write less than it was given."""
    view = memoryview(data).cast("B")
    while len(view):
        written = os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset += written


def write_durably(path: Path, *parts: bytes | memoryview) -> None:
    """Replace `path` by the concatenation of `parts`: written beside, fsynced, renamed, folder fsynced.

    The bytes go to a name beginning with ".unfinished-", which readers and stock zarr ignore.
    """
    beside = path.with_name(f".unfinished-{path.name}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        offset = 0
        for part in parts:
            write_all(descriptor, part, offset)
            offset += memoryview(part).nbytes
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    beside.replace(path)
    sync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Create `folder` and its parents durably."""
    missing = [folder, *folder.parents]
    created = [path for path in missing if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(created):
        sync_folder(path.parent)
