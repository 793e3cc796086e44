"""The journal of an unfinished cache: one line for each committed block, appended and fsynced after the block."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.canonical import canonical_json
from pipeline.durable import sync_folder, write_all
from pipeline.targets.block_table import Checksums
from pipeline.targets.certificate import Sums

JOURNAL_FILE = "journal-0.jsonl"


@dataclass(frozen=True)
class CommittedBlock:
    """A block that is durably on disk: its checksums, one for each array of the encoding, and its certificate sums.

    `inherited` says how many of its rows were taken from which cache; the sums are of the others.
    """

    block: int
    objects: tuple[Checksums, ...]
    certificate: dict[str, Sums]
    inherited: dict[str, int] = field(default_factory=dict)


class Journal:
    """The journal of one writer. A line that a kill cut short is dropped when the journal is opened again."""

    def __init__(self, folder: Path):
        self._path = folder / JOURNAL_FILE
        self.committed: dict[int, CommittedBlock] = {}
        self._end = 0
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        sync_folder(folder)  # also when it is there: the run that created it may have been killed before this line
        self._replay()

    def append(self, block: CommittedBlock) -> None:
        """Record a block whose bytes are already durable."""
        line = canonical_json(
            {
                "block": block.block,
                "objects": [checksums.as_json() for checksums in block.objects],
                "certificate": block.certificate,
                "inherited": block.inherited,
            }
        )
        write_all(self._descriptor, line + b"\n", self._end)
        os.fsync(self._descriptor)
        self._end += len(line) + 1
        self.committed[block.block] = block

    def forget(self, block: int) -> None:
        """Treat a block as not committed (its bytes were found damaged); a later line for it replaces the earlier."""
        self.committed.pop(block, None)

    def close(self) -> None:
        """Close the file; everything in it is durable already."""
        os.close(self._descriptor)

    def _replay(self) -> None:
        size = os.fstat(self._descriptor).st_size
        content = os.pread(self._descriptor, size, 0) if size else b""
        self.committed, self._end = _replayed(content)
        os.ftruncate(self._descriptor, self._end)


def committed_blocks(folder: Path) -> dict[int, CommittedBlock]:
    """What the journal of an unfinished cache says now, which another process may be writing."""
    try:
        return _replayed((folder / JOURNAL_FILE).read_bytes())[0]
    except FileNotFoundError:
        return {}


def _replayed(content: bytes) -> tuple[dict[int, CommittedBlock], int]:
    """The blocks of whole lines, and where these end."""
    committed, end = {}, 0
    for line in content.splitlines(keepends=True):
        block = _parsed(line)
        if block is None:
            break
        committed[block.block] = block
        end += len(line)
    return committed, end


def _parsed(line: bytes) -> CommittedBlock | None:
    if not line.endswith(b"\n"):
        return None
    try:
        fields: dict[str, Any] = json.loads(line)
        objects = tuple(Checksums(**entry) for entry in fields["objects"])
        inherited = dict(fields.get("inherited", {}))  # earlier versions took no rows from other caches
        return CommittedBlock(int(fields["block"]), objects, fields["certificate"], inherited)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
