"""The index of a remote: by what caches can be found, also where objects cannot be listed.

Each cache has one entry under each of its values, written before its pointer, so an entry says only that a cache may be
there. All entries of a value are also in one object, which every pusher writes from a listing and writes again until the
listing has not changed since: whoever writes last has seen all entries, so none is lost and no lock is needed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from pipeline.canonical import canonical_json
from pipeline.errors import CorruptCacheError
from pipeline.sharing import places
from pipeline.sharing.connection import Absent, Connection
from pipeline.sharing.places import KINDS, Kind
from pipeline.targets.manifest import Manifest

LARGEST_INDEX_BYTES = 64_000_000
INDEX_FORMAT = "softcache index"


@dataclass(frozen=True, order=True)
class Entry:
    """A cache that may be on a remote: its rows, by which the smallest is found, and its key."""

    rows: int
    key: str


def values_of(manifest: Manifest) -> dict[Kind, str]:
    """The values under which a cache can be found."""
    teacher = manifest.teacher
    return {"rows": manifest.row_key, "teachers": teacher["key"], "digests": teacher["digest"], "all": places.EVERY}


def add_to_index(connection: Connection, manifest: Manifest) -> None:
    """Write the entries of a cache, and the index objects that hold them. Doing it again changes nothing.

    Raises RemoteError, also where the remote cannot be listed or written.
    """
    values = values_of(manifest)
    for kind in KINDS:
        entry = canonical_json({"key": manifest.key, "rows": manifest.rows})
        connection.write(places.index_entry(kind, values[kind], manifest.key, manifest.rows), entry)
        _write_index(connection, kind, values[kind])


def entries(connection: Connection, kind: Kind, value: str) -> list[Entry]:
    """The caches that may be there with this value, the smallest first, then the lowest key.

    Raises CorruptCacheError for an index that is damaged, and RemoteError.
    """
    name = places.index_object(kind, value)
    try:
        content = connection.read_small(name, LARGEST_INDEX_BYTES)
    except Absent:
        return []
    try:
        fields = json.loads(content)
        found = [Entry(int(one["rows"]), str(one["key"])) for one in fields["caches"]]
        is_one = fields["format"] == INDEX_FORMAT and all(places.is_key(one.key) for one in found)
    except (ValueError, KeyError, TypeError, RecursionError):
        is_one = False
    if not is_one:
        raise CorruptCacheError(
            f"remote {connection.remote.name}: {name} is damaged. softcache caches push of any of its caches writes it anew."
        )
    return sorted(found)


def _write_index(connection: Connection, kind: Kind, value: str) -> None:
    listed, written = _listed(connection, kind, value), None
    while listed != written:
        caches = [{"key": one.key, "rows": one.rows} for one in listed]
        content = canonical_json({"format": INDEX_FORMAT, "version": 1, "caches": caches})
        connection.write(places.index_object(kind, value), content)
        written, listed = listed, _listed(connection, kind, value)


def _listed(connection: Connection, kind: Kind, value: str) -> list[Entry]:
    names = (one.name for one in connection.listed(places.index_entries(kind, value)))
    return sorted(Entry(rows, key) for key, rows in filter(None, map(places.entry_of_name, names)))
