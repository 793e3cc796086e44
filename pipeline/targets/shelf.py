"""The shelf: the caches of a workspace, and which of them can serve a list of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.canonical import short
from pipeline.errors import MismatchError, UserError, VerificationError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.targets.manifest import Manifest
    from pipeline.targets.reader import TargetCache


class Shelf:
    """`caches/` of a workspace. `warn` is told, once of each, of caches that cannot be read when they are looked through."""

    def __init__(self, folder: Path, warn: Callable[[str], None] = lambda text: None):
        self.folder = folder
        self._warn = warn
        self._warned: set[Path] = set()
        self._opened: dict[Path, tuple[tuple[int, int, int], TargetCache]] = {}

    def folder_of(self, key: str) -> Path:
        """Where the cache of a key is, or would be."""
        return self.folder / key

    def has(self, key: str) -> bool:
        """Whether a sealed cache with exactly this key is here."""
        return (self.folder_of(key) / "manifest.json").is_file()

    def open(self, folder: Path) -> TargetCache:
        """The cache in a folder, opened once as long as its manifest stays the same file. Raises VerificationError."""
        from pipeline.targets.reader import TargetCache

        path = folder / "manifest.json"
        status = path.stat() if path.is_file() else None
        identity = (status.st_mtime_ns, status.st_size, status.st_ino) if status else (0, 0, 0)
        if folder not in self._opened or self._opened[folder][0] != identity:
            self._opened[folder] = (identity, TargetCache(folder))
        return self._opened[folder][1]

    def check_place(self, key: str) -> None:
        """Raises VerificationError when the folder of `key` holds another cache, or a damaged manifest."""
        from pipeline.targets.manifest import read_manifest

        found = read_manifest(self.folder_of(key)).key
        if found != key:
            raise MismatchError(
                f"{self.folder_of(key)} holds cache {short(found)}, not {short(key)}: it was moved there. Move it to "
                f"{self.folder_of(found)}, or delete it."
            )

    def folders(self) -> list[Path]:
        """The folders of sealed caches, by key; hidden ones are being removed or written, or were left by such a command."""
        return sorted(path.parent for path in self.folder.glob("[!.]*/manifest.json"))

    def without_manifest(self) -> list[Path]:
        """The folders of caches that are neither sealed nor being made: their manifest is lost."""
        caches = (path for path in self.folder.glob("[!.]*") if path.is_dir())
        return sorted(
            path for path in caches if not any((path / name).exists() for name in ("manifest.json", "unfinished.json"))
        )

    def sealed(self) -> Iterator[tuple[Path, Manifest]]:
        """Every readable sealed cache; unreadable ones are warned of once and left out."""
        from pipeline.targets.manifest import read_manifest

        for folder in self.folders():
            try:
                yield folder, read_manifest(folder)
            except VerificationError as problem:
                self._warn_once(folder, problem)

    def named(self, name: str) -> Path:
        """The folder for a key, the start of one, or a path. Raises UserError when none or several match."""
        if (Path(name) / "manifest.json").is_file():
            return Path(name)
        matching = [folder for folder in self.folders() if folder.name.startswith(name)]
        if len(matching) == 1:
            return matching[0]
        if matching:
            keys = ", ".join(short(folder.name) for folder in matching)
            raise UserError(f"{name!r} is the start of {len(matching)} caches: {keys}. Give more digits.")
        for folder in (Path(name), self.folder / name):
            if name and folder.is_dir():  # no sealed cache; reading it says what is missing
                return folder
        keys = ", ".join(short(folder.name) for folder in self.folders()) or "none"
        raise UserError(f"no cache {name!r} in {self.folder}, and no such folder. The caches here are: {keys}.")

    def serving(self, row_key: str, key: str, digests: Callable[[], NDArray[np.uint8]]) -> Path | None:
        """The cache that serves a dataset: the exact key, else the smallest with all its samples, else the lowest key.

        `digests` gives the dataset's (N, 16) and is called only when another cache has this row_key.
        """
        if self.has(key):
            self.check_place(key)
            return self.folder_of(key)
        candidates = [(manifest.rows, folder) for folder, manifest in self.sealed() if manifest.row_key == row_key]
        if not candidates:
            return None
        wanted = digests()
        for _, folder in sorted(candidates):
            try:
                if bool((self.open(folder).find(wanted) >= 0).all()):
                    return folder
            except VerificationError as problem:
                self._warn_once(folder, problem)
        return None

    def _warn_once(self, folder: Path, problem: VerificationError) -> None:
        if folder not in self._warned:
            self._warned.add(folder)
            self._warn(
                f"warning: {folder} is passed over; where its rows are asked for, other caches give them or they are computed. "
                f"{problem}"
            )
