"""One cache on a remote: its pointer, its manifest, and each of its objects, checked before a byte of it is used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.canonical import canonical_json, short
from pipeline.errors import CorruptCacheError
from pipeline.sharing import places
from pipeline.sharing.connection import ATTEMPTS, Absent, Connection
from pipeline.targets.block_table import BLOCK_TABLE_FILE, ENTRY, read_block_table
from pipeline.targets.manifest import LARGEST_MANIFEST_BYTES, MANIFEST_FILE, Manifest, checked_manifest
from pipeline.targets.objects import ObjectTable, StoredObject

LARGEST_POINTER_BYTES = 2**16
LARGEST_NPY_HEADER_BYTES = 4096
POINTER_FORMAT = "softcache pointer"


@dataclass(frozen=True)
class Pointer:
    """Which build of a key counts: the sha256 of its manifest.json, and its bytes, for people."""

    key: str
    manifest_sha256: str
    size: int

    def content(self) -> bytes:
        """What the pointer's object holds."""
        return canonical_json(
            {
                "format": POINTER_FORMAT,
                "version": 1,
                "key": self.key,
                "manifest_sha256": self.manifest_sha256,
                "bytes": self.size,
            }
        )


def read_pointer(connection: Connection, key: str) -> Pointer | None:
    """The pointer of a key; None where this remote has no such cache. Raises CorruptCacheError and RemoteError."""
    name = places.pointer(key)
    try:
        content = connection.read_small(name, LARGEST_POINTER_BYTES)
    except Absent:
        return None
    try:
        fields = json.loads(content)
        found = Pointer(str(fields["key"]), str(fields["manifest_sha256"]), int(fields["bytes"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CorruptCacheError(f"remote {connection.remote.name}: {name} is no pointer of softcache.") from None
    if found.key != key or not places.is_key(found.manifest_sha256) or found.content() != content:
        raise CorruptCacheError(
            f"remote {connection.remote.name}: {name} is damaged, or is not the pointer of {short(key)}."
        )
    return found


class RemoteCache:
    """One build of a cache on a remote. What is read of it was checked against the sha256 that its manifest leads to."""

    def __init__(self, connection: Connection, pointer: Pointer):
        """Nothing is read yet."""
        self.connection, self.pointer = connection, pointer
        self.folder = places.build_folder(pointer.key, pointer.manifest_sha256)

    @property
    def where(self) -> str:
        """How errors name it."""
        return f"remote {self.connection.remote.name}: {self.folder}"

    @cached_property
    def manifest_bytes(self) -> bytes:
        """manifest.json. Raises CorruptCacheError when it is missing or is not the one that the pointer names."""

        def once() -> bytes:
            try:
                return self.connection.read_small(f"{self.folder}/{MANIFEST_FILE}", LARGEST_MANIFEST_BYTES)
            except Absent:
                raise self._missing(MANIFEST_FILE) from None

        for attempt in range(1, ATTEMPTS + 1):
            content = once()
            found = hashlib.sha256(content).hexdigest()
            if found == self.pointer.manifest_sha256:
                return content
            if attempt == ATTEMPTS:
                raise CorruptCacheError(self._differs(MANIFEST_FILE, found, self.pointer.manifest_sha256))
        raise AssertionError("unreachable")

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest, checked as one on disk is. Raises VerificationError."""
        found = checked_manifest(self.manifest_bytes, self.where)
        if found.key != self.pointer.key:
            raise CorruptCacheError(f"{self.where} holds cache {short(found.key)}, not {short(self.pointer.key)}.")
        return found

    @cached_property
    def block_table_bytes(self) -> bytes:
        """blocks.npy, which the manifest's sha256 is of. Raises CorruptCacheError."""
        reference = self.manifest.block_table
        name = f"{self.folder}/{BLOCK_TABLE_FILE}"
        at_most = reference.entries * ENTRY.itemsize + LARGEST_NPY_HEADER_BYTES
        found = ""
        for _ in range(ATTEMPTS):
            try:
                content = self.connection.read_small(name, at_most)
            except Absent:
                raise self._missing(BLOCK_TABLE_FILE) from None
            found = hashlib.sha256(content).hexdigest()
            if found == reference.sha256:
                return content
        raise CorruptCacheError(self._differs(BLOCK_TABLE_FILE, found, reference.sha256))

    @cached_property
    def table(self) -> ObjectTable:
        """Where each object lies, and what it must be. Raises VerificationError."""
        entries: NDArray[np.void] = read_block_table(self.block_table_bytes, self.manifest.block_table.entries)
        return ObjectTable(self.manifest, entries, self.where)

    @property
    def size(self) -> int:
        """Bytes of the whole cache."""
        return len(self.manifest_bytes) + len(self.block_table_bytes) + self.table.store_bytes

    def objects(self) -> Iterator[StoredObject]:
        """Every object of the store, in the order of the block table."""
        return self.table.objects()

    def read(self, stored: StoredObject) -> memoryview:
        """The bytes of an object, right by their sha256. Good until this thread's next read of this connection.

        Bytes that differ are asked for again, a few times. Raises CorruptCacheError naming the object, and RemoteError.
        """
        found = ""
        for _ in range(ATTEMPTS):
            data = self._read_once(stored)
            found = hashlib.sha256(data).hexdigest()
            if found == stored.checksums.sha256:
                return data
        raise CorruptCacheError(self._differs(stored.name, found, stored.checksums.sha256))

    def _read_once(self, stored: StoredObject) -> memoryview:
        name, whole = f"{self.folder}/{stored.file}", self.table.layout.name == "zarr"
        try:
            if whole:
                return self.connection.read(name, stored.size)
            if len(stored.ranges) == 1:
                [(start, stop)] = stored.ranges
                return self.connection.read(name, stop - start, start)
            parts = [bytes(self.connection.read(name, stop - start, start)) for start, stop in stored.ranges]
            return memoryview(b"".join(parts))
        except Absent:
            raise self._missing(stored.file) from None

    def _missing(self, name: str) -> CorruptCacheError:
        return CorruptCacheError(f"{self.where}: object {name} is missing. Push the cache again where it is whole.")

    def _differs(self, name: str, found: str, sealed: str) -> str:
        return f"{self.where}: object {name} has sha256 {found}, but {sealed} was sealed. Nothing of it was used."


def open_remote_cache(connection: Connection, key: str) -> RemoteCache | None:
    """The cache of a key, or None where the remote has none. Raises CorruptCacheError and RemoteError."""
    pointer = read_pointer(connection, key)
    return None if pointer is None else RemoteCache(connection, pointer)
