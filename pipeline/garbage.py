"""Caches that nothing uses any more: which they are and why the others stay, what removing them frees, and removing them."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.cache_users import Users, begun_caches, pinned, pins, users_of_caches
from pipeline.canonical import short
from pipeline.durable import sync_folder
from pipeline.errors import VerificationError
from pipeline.experiment import Workspace
from pipeline.locks import locked
from pipeline.targets.manifest import read_manifest
from pipeline.targets.shelf import Shelf

REMOVING = ".removing-"
LEFTOVERS = (REMOVING, ".repacking-", ".plan-")  # what commands that were killed leave beside the caches

Inodes = frozenset[tuple[int, int]]


@dataclass(frozen=True)
class Judged:
    """One cache: why it stays (nothing: it may go), its bytes, and its files that other names have as well."""

    folder: Path
    key: str
    stays: tuple[str, ...]
    bytes: int
    shared: Inodes
    sealed: bool = True

    @property
    def name(self) -> str:
        """What people see: the start of the key, or the name that somebody gave the folder."""
        return short(self.folder.name)


@dataclass(frozen=True)
class Sweep:
    """What a removal would take and leave; `frees` are the bytes that no cache that stays shares."""

    goes: tuple[Judged, ...]
    stays: tuple[Judged, ...]
    leftovers: tuple[Path, ...]
    frees: int


def sweep_of(workspace: Workspace, *, unfinished: bool = False) -> Sweep:
    """What may go: sealed caches that no run and no pin uses and that share no block with one that stays.

    A run uses the caches that its record names, and every held-out cache of the soft targets that its student learnt from;
    that teacher-targets made one counts while it is the latest of its recipe and split. A cache that is being made uses its
    donors. One whose manifest cannot be read stays. With `unfinished`, interrupted caches without a pin go as well. Raises
    UserError for a record that cannot be read.
    """
    users, kept = users_of_caches(workspace, unfinished=unfinished), pins(workspace)
    judged = [_sealed(folder, users) for folder in Shelf(workspace.caches).folders()]
    judged += [_unfinished(folder, unfinished, kept) for folder in begun_caches(workspace.caches)]
    judged = _kept_for_sharing(judged)
    goes = tuple(one for one in judged if not one.stays)
    leftovers = tuple(path for name in LEFTOVERS for path in sorted(workspace.caches.glob(f"{name}*")))
    return Sweep(goes, tuple(one for one in judged if one.stays), leftovers, _freed_by(goes, leftovers))


def in_both(agreed: Sweep, now: Sweep) -> Sweep:
    """What was agreed to remove and may still go: what came into use since the question stays."""
    asked = {(one.folder, one.key) for one in agreed.goes}
    goes = tuple(one for one in now.goes if (one.folder, one.key) in asked)
    leftovers = tuple(path for path in now.leftovers if path in agreed.leftovers)
    return Sweep(goes, now.stays, leftovers, _freed_by(goes, leftovers))


def refuse_while_a_run_works(workspace: Workspace) -> None:
    """Raises LockedError naming the process while any stage runs here: it may read a cache that no record names yet."""
    for path in sorted((workspace.runs / ".locks").glob("*")):
        with locked(path, f"run {path.name[:40]}"):
            pass


def remove(workspace: Workspace, sweep: Sweep, tick: Callable[[int], None] = lambda caches: None) -> None:
    """Remove what may go. Each cache disappears in one step; a kill leaves a folder that the next removal takes.

    Raises LockedError as soon as a run works in the workspace, and for a cache that another process works on; what was removed
    before it is gone.
    """
    for one in sweep.goes:
        with _held(workspace, {one.folder.name, one.key}):
            refuse_while_a_run_works(workspace)
            going = workspace.caches / f"{REMOVING}{one.folder.name}"
            if going.exists():
                shutil.rmtree(going)  # of a removal that was killed, before the cache was made anew
            one.folder.rename(going)
            sync_folder(workspace.caches)
            shutil.rmtree(going)
        tick(1)
    for path in sweep.leftovers:
        begin = next(begin for begin in LEFTOVERS if path.name.startswith(begin))
        with _held(workspace, {path.name.removeprefix(begin)}):
            refuse_while_a_run_works(workspace)
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _held(workspace: Workspace, names: set[str]) -> Iterator[None]:
    """The locks of a cache: by the name of its folder, as repack takes it, and by its key, as who makes it does."""
    with ExitStack() as locks:
        for name in sorted(names):
            locks.enter_context(locked(workspace.caches / ".locks" / name, f"cache {short(name)}"))
        yield


def _sealed(folder: Path, users: Users) -> Judged:
    key, uses = folder.name, ["a link; what it points to is not of this workspace"] if folder.is_symlink() else []
    try:
        manifest = read_manifest(folder)
        key, uses = manifest.key, uses + users.of(folder.name, manifest)
    except VerificationError as problem:
        uses.append(f"cannot be read: {problem}")
    shown = tuple(uses[:2]) + ((f"{len(uses) - 2} more",) if len(uses) > 2 else ())
    return Judged(folder, key, shown, *_files_of(folder))


def _unfinished(folder: Path, may_go: bool, kept: dict[str, str]) -> Judged:
    stays = [] if may_go else ["unfinished; --unfinished removes it"]
    stays += [pinned(kept[folder.name])] if folder.name in kept else []
    return Judged(folder, folder.name, tuple(stays), *_files_of(folder), sealed=False)


def _kept_for_sharing(judged: Sequence[Judged]) -> list[Judged]:
    """The same, with those kept that share blocks with one that stays: removing them would free hardly anything.

    One that is kept for sharing keeps others in turn.
    """
    while True:
        kept = [_kept_beside(one, judged) for one in judged]
        if kept == judged:
            return kept
        judged = kept


def _kept_beside(one: Judged, judged: Sequence[Judged]) -> Judged:
    if one.stays or not one.sealed:
        return one
    partners = [(len(one.shared & other.shared), other) for other in judged if other.stays]
    blocks, other = max(partners, key=lambda pair: pair[0], default=(0, one))
    if not blocks:
        return one
    return replace(one, stays=(f"shares {blocks:,} block{'' if blocks == 1 else 's'} with {other.name}",))


def _files_of(folder: Path) -> tuple[int, Inodes]:
    """Bytes of a cache, and which of its files have other names as well."""
    found = [path.stat() for path in folder.rglob("*") if path.is_file()]
    shared = frozenset((status.st_dev, status.st_ino) for status in found if status.st_nlink > 1)
    return sum(status.st_size for status in found), shared


def _freed_by(goes: Sequence[Judged], leftovers: Sequence[Path]) -> int:
    """Bytes of the files all of whose names lie in what is removed."""
    names: Counter[tuple[int, int]] = Counter()
    known: dict[tuple[int, int], tuple[int, int]] = {}
    folders = [*(one.folder for one in goes), *leftovers]
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        status = path.stat()
        inode = (status.st_dev, status.st_ino)
        names[inode] += 1
        known[inode] = (status.st_nlink, status.st_size)
    return sum(size for inode, (links, size) in known.items() if names[inode] == links)
