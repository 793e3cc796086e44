"""Canonical JSON and the sha256 that every key is made of."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces: equal values give equal bytes.

    Raises ValueError for NaN and infinity, which JSON cannot hold.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def digest_of(value: Any) -> str:
    """Sha256 (64 hex digits) over the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def short(key: str) -> str:
    """The first 12 hex digits of a key, as messages and tables show it."""
    return key[:12]
