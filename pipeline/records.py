"""Records: the small result.json that a finished unit of a stage leaves, which outlives its outputs.

`runs/<stage>/<key>/` holds the outputs and, written last, the record. Results are kept for each key, so going back to an
earlier setting finds the earlier result.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.durable import write_durably

RECORD_FILE = "result.json"


@dataclass(frozen=True)
class Record:
    """What a unit was made from and what came of it.

    `outputs` maps file names in the unit's folder to their sha256, `values` are what later stages and people want to
    know, `provenance` is what happened but is in no key (times, versions, device, commit).
    """

    stage: str
    label: str
    key: str
    recipe: str
    made_from: dict[str, Any]
    outputs: dict[str, str]
    values: dict[str, Any]
    provenance: dict[str, Any]


class Records:
    """All records of a workspace. A record is parsed once, and again when its file changed."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._parsed: dict[Path, tuple[tuple[int, int, int], Record | None]] = {}

    def folder_of(self, stage: str, key: str) -> Path:
        """Where a unit keeps its record and its outputs."""
        return self.folder / stage / key

    def read(self, stage: str, key: str) -> Record | None:
        """The record of a finished unit, or None; a damaged record counts as none."""
        return self._read(self.folder_of(stage, key) / RECORD_FILE)

    def write(self, record: Record) -> None:
        """Write a record durably; the unit is then finished."""
        content = json.dumps(asdict(record), indent=1, sort_keys=True).encode()
        write_durably(self.folder_of(record.stage, record.key) / RECORD_FILE, content)

    def of_stage(self, stage: str) -> Iterator[Record]:
        """All records of a stage, the latest first."""
        found = [(path.stat().st_mtime_ns, path) for path in self.folder.glob(f"{stage}/*/{RECORD_FILE}")]
        for _, path in sorted(found, reverse=True):
            record = self._read(path)
            if record is not None:
                yield record

    def _read(self, path: Path) -> Record | None:
        try:
            status = path.stat()
        except OSError:
            return None
        identity = (status.st_mtime_ns, status.st_size, status.st_ino)
        if path not in self._parsed or self._parsed[path][0] != identity:
            self._parsed[path] = (identity, _parsed(path))
        return self._parsed[path][1]


def _parsed(path: Path) -> Record | None:
    try:
        return Record(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def difference(earlier: dict[str, Any], now: dict[str, Any], at_most: int = 2) -> str:
    """The settings in which two `made_from` differ, for people: "student.distillation.coefficient 0.9 -> 0.5"."""
    before, after = dict(flat_settings(earlier)), dict(flat_settings(now))
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    # A changed setting explains the digests that changed with it, so settings come first.
    changed.sort(key=lambda name: "sha256" in name or "digest" in name or name.endswith("key"))
    shown = [_change(name, before.get(name), after.get(name)) for name in changed[:at_most]]
    return ", ".join(shown) + (f" and {len(changed) - at_most} more" if len(changed) > at_most else "")


def shown_name(name: str) -> str:
    """A setting's name for people, where a key has a part that no recipe names."""
    return "baseline.search_seeds (their seeds)" if name == "baseline.seeds" else name


def _change(name: str, before: Any, after: Any) -> str:
    if any(isinstance(value, str) and len(value) >= 32 for value in (before, after)):
        return f"{name.removesuffix('_sha256')} changed"
    return f"{shown_name(name)} {'none' if before is None else before} -> {'none' if after is None else after}"


def flat_settings(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every setting of a `made_from`."""
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield from flat_settings(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", inner
