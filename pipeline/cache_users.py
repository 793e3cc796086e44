"""What uses the caches of a workspace: pins, records of runs, interrupted trainings, and caches that are being made."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.canonical import digest_of, short
from pipeline.durable import make_folder
from pipeline.errors import UserError
from pipeline.experiment import Workspace
from pipeline.keys import cache_key
from pipeline.records import RECORD_FILE, Record
from pipeline.targets.manifest import Manifest

PINS = ".pins"
UNFINISHED_FILE = "unfinished.json"
CHECKPOINTS = "checkpoint*.safetensors"  # of a training that was not finished
TRAININGS = ("student", "baseline", "baseline-search")  # whose recipes need caches, in this stage or in evaluate
KEY = re.compile(r"[0-9a-f]{64}")

Named = dict[str, list[str]]


@dataclass(frozen=True)
class Users:
    """Why caches are used: by a key or the name of a folder, by the row_key of held-out rows, or whichever they are."""

    of_key: Named
    of_held_out_rows: Named
    of_all: list[str]

    def of(self, name: str, manifest: Manifest) -> list[str]:
        """Why the sealed cache in a folder of this name is used, each reason once."""
        found = [*self.of_key.get(manifest.key, ()), *self.of_key.get(name, ())]
        if manifest.split != "training":
            found += self.of_held_out_rows.get(manifest.row_key, ())
        return list(dict.fromkeys([*found, *self.of_all]))


def users_of_caches(workspace: Workspace, *, unfinished: bool) -> Users:
    """Everything that uses a cache of the workspace.

    With `unfinished`, interrupted caches that no pin keeps go, and use no donors any more. Raises UserError for a record that
    cannot be read: what it uses is not known.
    """
    of_key: Named = {}
    of_held_out_rows: Named = {}
    kept = pins(workspace)
    for key, note in kept.items():
        _add(of_key, [key], pinned(note))
    for folder in begun_caches(workspace.caches):
        if not unfinished or folder.name in kept:
            _add(of_key, _donors_of(folder), f"gives rows to {short(folder.name)}, which is unfinished")
    for record in sorted(_live_records(workspace.runs), key=lambda record: (record.stage, record.label)):
        name = f"{record.stage} {record.label}".strip() + f" of {record.recipe}"
        _add(of_key, _caches_of(record), name)
        row_key = None if record.stage == "teacher-targets" else _row_key_of(record)
        _add(of_held_out_rows, [row_key] if row_key else [], name)
    return Users(of_key, of_held_out_rows, _interrupted_trainings(workspace.runs))


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
    """The note of every pin, by the name of the cache's folder, which is its key unless it was renamed."""
    return {path.name: path.read_text().strip() for path in sorted((workspace.caches / PINS).glob("*"))}


def pinned(note: str) -> str:
    """Why a pinned cache stays."""
    return f"pinned: {note}" if note else "pinned"


def begun_caches(caches: Path) -> list[Path]:
    """The folders of caches that were begun and are not sealed."""
    found = (path.parent for path in caches.glob(f"[!.]*/{UNFINISHED_FILE}"))
    return sorted(folder for folder in found if not (folder / "manifest.json").exists())


def _add(found: Named, keys: Sequence[str], reason: str) -> None:
    for key in keys:
        found.setdefault(key, []).append(reason)


def _live_records(runs: Path) -> Iterator[Record]:
    """Every record, but of teacher-targets only the latest of each recipe and split."""
    latest: dict[tuple[str, str], tuple[tuple[float, int], Record]] = {}
    for path in sorted(runs.glob(f"[!.]*/*/{RECORD_FILE}")):
        record = _read(path)
        if record.stage != "teacher-targets":
            yield record
            continue
        time, place = _time_of(record, path), (record.recipe, record.label)
        if place not in latest or time > latest[place][0]:
            latest[place] = (time, record)
    yield from (record for _, record in latest.values())


def _read(path: Path) -> Record:
    try:
        record = Record(**json.loads(path.read_bytes()))
        if not isinstance(record.made_from, dict):
            raise TypeError("its made_from is no table")
        return record
    except (OSError, ValueError, TypeError) as problem:
        raise UserError(
            f"{path} cannot be read ({problem}), so it is not known which caches its run uses; nothing was removed. Restore "
            f"it, or delete {path.parent} if the run is not needed any more."
        ) from None


def _time_of(record: Record, path: Path) -> tuple[float, int]:
    """When a record was made: as it says itself, since a copied file is younger; of one second the file's time decides."""
    changed = path.stat().st_mtime_ns
    with suppress(ValueError, TypeError, KeyError):
        return datetime.fromisoformat(record.provenance["started"]).timestamp(), changed
    return changed / 1e9, changed


def _caches_of(record: Record) -> list[str]:
    """The keys of caches that a record names, or would find: some are only hashes of what it was made from."""
    if record.stage == "teacher-targets":  # it names its donors as well, but does not need them any more
        return [record.key]
    named = KEY.findall(json.dumps([record.made_from, record.values]))
    row_key, made_from = _row_key_of(record), record.made_from
    if row_key is not None:
        data = _table(made_from, "data")
        splits = (_table(data, "training"), _table(data, "validation"), _table(made_from, "test"))
        named += [cache_key(row_key, str(split["rows_sha256"])) for split in splits if "rows_sha256" in split]
    return list(dict.fromkeys(named))


def _row_key_of(record: Record) -> str | None:
    """The row_key of the soft targets that a student, and what compares it, follow from."""
    targets = _table(record.made_from, "targets")
    return digest_of(targets) if targets else None


def _table(table: dict[str, Any], name: str) -> dict[str, Any]:
    found = table.get(name)
    return found if isinstance(found, dict) else {}


def _interrupted_trainings(runs: Path) -> list[str]:
    """Why caches stay that a training needs which left a checkpoint but no record: which they are is not known."""
    folders = [folder for stage in TRAININGS for folder in sorted(runs.glob(f"{stage}/*"))]
    return [
        f"a training in runs/{folder.parent.name}/{short(folder.name)} was interrupted"
        for folder in folders
        if not (folder / RECORD_FILE).exists() and any(folder.rglob(CHECKPOINTS))
    ]


def _donors_of(folder: Path) -> list[str]:
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        return [str(donor["key"]) for donor in json.loads((folder / UNFINISHED_FILE).read_bytes()).get("donors", [])]
    return []
