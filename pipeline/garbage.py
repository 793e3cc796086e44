"""Caches that nothing uses any more: which they are and why the others stay, what removing them frees, and removing them."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.canonical import short
from pipeline.durable import make_folder, sync_folder
from pipeline.errors import UserError
from pipeline.experiment import Workspace
from pipeline.locks import locked
from pipeline.records import RECORD_FILE
from pipeline.targets.shelf import Shelf

PINS = ".pins"
LEFTOVERS = (".removing-", ".repacking-", ".plan-")  # what commands that were killed leave beside the caches
UNFINISHED_FILE = "unfinished.json"
KEY = re.compile(r"[0-9a-f]{64}")

Inodes = frozenset[tuple[int, int]]


@dataclass(frozen=True)
class Judged:
    """One cache: why it stays (nothing: it may go), its bytes, and its files that other names have as well."""

    folder: Path
    stays: tuple[str, ...]
    bytes: int
    shared: Inodes
    sealed: bool = True

    @property
    def key(self) -> str:
        return self.folder.name


@dataclass(frozen=True)
class Sweep:
    """What a removal would take and leave; `frees` are the bytes that no cache that stays shares."""

    goes: tuple[Judged, ...]
    stays: tuple[Judged, ...]
    leftovers: tuple[Path, ...]
    frees: int


def sweep_of(workspace: Workspace, *, unfinished: bool = False) -> Sweep:
    """What may go: sealed caches that no run and no pin uses and that share no block with one that stays.

    A run uses the caches that its record names; that teacher-targets made one counts while it is the latest of its recipe and
    split. A cache that is being made uses its donors. With `unfinished`, interrupted caches go as well.
    """
    shelf = Shelf(workspace.caches)
    users = _users(workspace, unfinished)
    judged = [_judged(folder, users.get(folder.name, ())) for folder in shelf.folders()]
    judged += [_unfinished(folder, unfinished) for folder in _begun(workspace.caches)]
    judged = _kept_for_sharing(judged)
    goes = tuple(one for one in judged if not one.stays)
    leftovers = tuple(path for name in LEFTOVERS for path in sorted(workspace.caches.glob(f"{name}*")))
    frees = _freed_bytes([*(one.folder for one in goes), *leftovers])
    return Sweep(goes, tuple(one for one in judged if one.stays), leftovers, frees)


def refuse_while_a_run_works(workspace: Workspace) -> None:
    """Raises LockedError naming the process while any stage runs here: it may read a cache that no record names yet."""
    for path in sorted((workspace.runs / ".locks").glob("*")):
        with locked(path, f"run {path.name[:40]}"):
            pass


def remove(workspace: Workspace, sweep: Sweep, tick: Callable[[int], None] = lambda caches: None) -> None:
    """Remove what may go. Each cache disappears in one step; a kill leaves a folder that the next removal takes.

    Raises LockedError for a cache that another process works on.
    """
    for one in sweep.goes:
        with locked(workspace.caches / ".locks" / one.key, f"cache {short(one.key)}"):
            going = workspace.caches / f".removing-{one.key}"
            one.folder.rename(going)
            sync_folder(workspace.caches)
            shutil.rmtree(going)
        tick(1)
    for path in sweep.leftovers:
        key = path.name.rpartition("-")[2]
        with locked(workspace.caches / ".locks" / key, f"cache {short(key)}"):
            shutil.rmtree(path, ignore_errors=True)


def pin(workspace: Workspace, key: str, note: str) -> None:
    """Keep a cache whatever the runs say; `note` says why, for people."""
    make_folder(workspace.caches / PINS)
    (workspace.caches / PINS / key).write_text(note + "\n")


def unpin(workspace: Workspace, key: str) -> None:
    """Let a cache go when no run uses it. Raises UserError when it is not pinned."""
    try:
        (workspace.caches / PINS / key).unlink()
    except FileNotFoundError:
        known = ", ".join(short(name) for name in pins(workspace)) or "none"
        raise UserError(f"cache {short(key)} is not pinned; pinned are: {known}.") from None


def pins(workspace: Workspace) -> dict[str, str]:
    """The note of every pin, by the cache's key."""
    return {path.name: path.read_text().strip() for path in sorted((workspace.caches / PINS).glob("*"))}


def _users(workspace: Workspace, unfinished: bool) -> dict[str, list[str]]:
    """Why each cache is used, by its key; `unfinished` caches that go use none."""
    found: dict[str, list[str]] = {}
    for key, note in pins(workspace).items():
        found.setdefault(key, []).append(f"pinned: {note}" if note else "pinned")
    for folder in [] if unfinished else _begun(workspace.caches):
        for donor in _donors_of(folder):
            found.setdefault(donor, []).append(f"gives rows to {short(folder.name)}, which is unfinished")
    for record in _live_records(workspace.runs):
        name = " ".join(str(record.get(part, "")) for part in ("stage", "label")).strip()
        made = (
            record.get("stage") == "teacher-targets"
        )  # which names its donors as well, but does not need them any more
        named = record.get("key") if made else [record.get("made_from"), record.get("values")]
        for key in set(KEY.findall(json.dumps(named))):
            found.setdefault(key, []).append(f"{name} of {record.get('recipe')}")
    return found


def _live_records(runs: Path) -> Iterable[Mapping[str, Any]]:
    """Every record, but of teacher-targets only the latest of each recipe and split."""
    latest: dict[tuple[Any, Any], tuple[int, Mapping[str, Any]]] = {}
    for path in sorted(runs.glob(f"*/*/{RECORD_FILE}")):
        with suppress(OSError, ValueError):
            record = json.loads(path.read_bytes())
            if not isinstance(record, dict):
                continue
            if record.get("stage") != "teacher-targets":
                yield record
                continue
            made, place = path.stat().st_mtime_ns, (record.get("recipe"), record.get("label"))
            if place not in latest or made > latest[place][0]:
                latest[place] = (made, record)
    yield from (record for _, record in latest.values())


def _judged(folder: Path, uses: Sequence[str]) -> Judged:
    shown = tuple(uses[:2]) + ((f"{len(uses) - 2} more",) if len(uses) > 2 else ())
    total, shared = _files_of(folder)
    return Judged(folder, shown, total, shared)


def _unfinished(folder: Path, may_go: bool) -> Judged:
    total, shared = _files_of(folder)
    return Judged(folder, () if may_go else ("unfinished; --unfinished removes it",), total, shared, sealed=False)


def _kept_for_sharing(judged: Sequence[Judged]) -> list[Judged]:
    """The same, with those kept that share blocks with one that stays: removing them would free hardly anything."""
    kept: list[Judged] = []
    for one in judged:
        partners = [
            (len(one.shared & other.shared), other) for other in judged if other.stays and one.sealed and not one.stays
        ]
        blocks, other = max(partners, key=lambda pair: pair[0], default=(0, one))
        kept.append(replace(one, stays=(f"shares {blocks:,} blocks with {short(other.key)}",)) if blocks else one)
    return kept


def _files_of(folder: Path) -> tuple[int, Inodes]:
    """Bytes of a cache, and which of its files have other names as well."""
    found = [path.stat() for path in folder.rglob("*") if path.is_file()]
    shared = frozenset((status.st_dev, status.st_ino) for status in found if status.st_nlink > 1)
    return sum(status.st_size for status in found), shared


def _freed_bytes(folders: Sequence[Path]) -> int:
    """Bytes of the files all of whose names lie in these folders."""
    names: Counter[tuple[int, int]] = Counter()
    known: dict[tuple[int, int], tuple[int, int]] = {}
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        status = path.stat()
        inode = (status.st_dev, status.st_ino)
        names[inode] += 1
        known[inode] = (status.st_nlink, status.st_size)
    return sum(size for inode, (links, size) in known.items() if names[inode] == links)


def _begun(caches: Path) -> list[Path]:
    found = (path.parent for path in caches.glob(f"[!.]*/{UNFINISHED_FILE}"))
    return sorted(folder for folder in found if not (folder / "manifest.json").exists())


def _donors_of(folder: Path) -> list[str]:
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        return [str(donor["key"]) for donor in json.loads((folder / UNFINISHED_FILE).read_bytes()).get("donors", [])]
    return []
