"""Digests of files, remembered by (path, size, mtime, ctime, inode) so that a no-op run reads no large file."""

from __future__ import annotations

import ast
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.canonical import canonical_json


def sha256_of_file(path: Path) -> str:
    """Sha256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_source(path: Path) -> str:
    """Sha256 of a Python file's syntax tree: comments and layout do not count. Of another file's bytes."""
    if path.suffix != ".py":
        return sha256_of_file(path)
    tree = ast.dump(ast.parse(path.read_bytes()))
    return hashlib.sha256(tree.encode()).hexdigest()


class FileMemory:
    """Remembers what a function said of a file until the file's identity changes.

    The memory is a convenience: deleting `path` costs time, never correctness.
    """

    def __init__(self, path: Path):
        self.path = path
        self._changed = False
        try:
            self._known: dict[str, dict[str, Any]] = dict(json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError):
            self._known = {}

    def recall(self, file: Path, question: Callable[[Path], str]) -> str:
        """`question(file)`, computed only when the file is new or its identity changed. Raises OSError."""
        status = file.stat()
        identity = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        name = f"{question.__name__} {file.resolve()}"
        entry = self._known.get(name)
        if entry is not None and entry["identity"] == identity:
            return str(entry["answer"])
        answer = question(file)
        self._known[name] = {"identity": identity, "answer": answer}
        self._changed = True
        return answer

    def save(self) -> None:
        """Write what was learnt; the last of several runs wins."""
        if self._changed:
            write_memory(self.path, self._known)
            self._changed = False


def write_memory(path: Path, value: Any) -> None:
    """Replace a file of JSON, whole but not durably; of several processes at once, the last one wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".unfinished-{os.getpid()}")
    beside.write_bytes(canonical_json(value))
    beside.replace(path)
