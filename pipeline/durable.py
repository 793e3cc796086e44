"""Files that appear whole or not at all, and survive a power cut once they have appeared."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

FICLONE = 0x40049409  # linux/fs.h


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable (fsync of the directory)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make the bytes of a file durable."""
    descriptor = os.open(path, os.O_RDONLY)
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


def share_durably(source: Path, target: Path) -> None:
    """Let `target` hold the bytes of `source`, which must never change again, and let both share their disk space.

    Reflinked where the file system can, else hard-linked, else copied; the name becomes durable as that of
    `write_durably` does. The name beside is another than there: writing to a hard link would change `source`.
    """
    beside = target.with_name(f".unfinished-link-{target.name}")
    beside.unlink(missing_ok=True)
    if not _reflinked(source, beside):
        try:
            beside.hardlink_to(source)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, beside)
    sync_file(beside)
    beside.replace(target)
    beside.unlink(missing_ok=True)  # renaming one of two links of a file to the other leaves both
    sync_folder(target.parent)


def _reflinked(source: Path, target: Path) -> bool:
    """Whether `target` was made a copy that shares the blocks of `source` until one is written to; nothing is left if not."""
    with source.open("rb") as origin, target.open("xb") as copy:
        try:
            fcntl.ioctl(copy, FICLONE, origin.fileno())
        except OSError:
            target.unlink()
            return False
    return True


def make_folder(folder: Path) -> None:
    """Create `folder` and its parents durably."""
    missing = [folder, *folder.parents]
    created = [path for path in missing if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(created):
        sync_folder(path.parent)
