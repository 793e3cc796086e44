"""Which sealed caches may give rows to another: those of its row_key that are certified where it must be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.targets.certificate import error_at

if TYPE_CHECKING:
    from pipeline.targets.manifest import Manifest
    from pipeline.targets.shelf import Shelf


def donors_of(shelf: Shelf, row_key: str, key: str, temperatures: Sequence[float]) -> list[tuple[Path, Manifest]]:
    """The sealed caches that may give rows to the cache `key`, the largest first, then by key.

    One that is not certified at all the temperatures that are needed cannot vouch for its rows.
    """
    found = [
        (folder, manifest)
        for folder, manifest in shelf.sealed()
        if manifest.row_key == row_key
        and manifest.key != key
        and all(error_at(manifest.certificate, temperature) is not None for temperature in temperatures)
    ]
    return sorted(found, key=lambda donor: (-donor[1].rows, donor[1].key))
