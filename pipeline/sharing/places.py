"""Where things are on a remote: names of objects, which are the same on every kind of remote.

caches/<key>/current                    the pointer: which build of the key counts; put if absent, and last
caches/<key>/<manifest sha256>/...      that build: manifest.json, blocks.npy and the store, as in a local cache; immutable
index/<kind>/<value>/<key>.<rows>       an entry: the cache <key>, of so many rows, has this value
index/<kind>/<value>.json               the entries of a value in one object, for clients that cannot list
"""

from __future__ import annotations

import re
from typing import Literal

# What caches can be found by: their row_key, their teacher stage's key, their teacher's digest; "all" has one value, "all".
Kind = Literal["rows", "teachers", "digests", "all"]
KINDS: tuple[Kind, ...] = ("rows", "teachers", "digests", "all")
EVERY = "all"

POINTER = "current"
_HEX = re.compile(r"[0-9a-f]{64}")


def build_folder(key: str, manifest_sha256: str) -> str:
    """The folder of one build of a cache, without a slash at the end."""
    return f"caches/{key}/{manifest_sha256}"


def pointer(key: str) -> str:
    """The pointer to the build of a key that counts."""
    return f"caches/{key}/{POINTER}"


def key_of_pointer(name: str) -> str | None:
    """The key whose pointer has this name; None for any other object."""
    parts = name.split("/")
    is_one = len(parts) == 3 and parts[0] == "caches" and parts[2] == POINTER and is_key(parts[1])
    return parts[1] if is_one else None


def index_entries(kind: Kind, value: str) -> str:
    """The folder of the entries of a value, with a slash at the end."""
    return f"index/{kind}/{value}/"


def index_entry(kind: Kind, value: str, key: str, rows: int) -> str:
    """The entry of one cache; its name says all of it, so that a listing is enough."""
    return f"{index_entries(kind, value)}{key}.{rows}"


def entry_of_name(name: str) -> tuple[str, int] | None:
    """Key and rows of an entry with this name; None for any other object."""
    key, dot, rows = name.rpartition("/")[2].partition(".")
    return (key, int(rows)) if dot and is_key(key) and rows.isdecimal() and rows.isascii() else None


def index_object(kind: Kind, value: str) -> str:
    """All entries of a value in one object."""
    return f"index/{kind}/{value}.json"


def is_key(text: str) -> bool:
    """Whether a text from a remote is a key or a sha256, so that names may be made of it."""
    return _HEX.fullmatch(text) is not None
