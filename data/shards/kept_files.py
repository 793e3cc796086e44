"""What is kept for each file of a dataset, in a file of its own: a copy, an index, or what was seen of its samples.

It belongs to the file as it is (its size, times and inode), is written whole or not at all, and is removed when the dataset
has no use for it any more.
"""

from __future__ import annotations

import hashlib
import os
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMAT = 1
SECONDS_OF_A_TICK = 0.02  # file systems note times by the kernel's tick, of 1 to 10 ms
SECONDS_UNFINISHED = 3600.0  # after which a file that nobody wrote to was left by a run that was killed


class KeptFiles:
    """What of one kind is kept for the files of one dataset, in a folder of its own."""

    def __init__(self, memories: Path, kind: str, dataset: Path, *about: str):
        """`memories` is the folder for all of this (runs/.memory), `about` what else it depends on, such as a column's name."""
        identity = "\0".join((str(dataset.absolute()), *about))
        self.folder = memories / f"{kind}-{hashlib.sha256(os.fsencode(identity)).hexdigest()[:32]}"

    def place(self, files: Sequence[Path]) -> Path:
        """Where that of some files, as they are now, is kept. To be asked before they are read."""
        _let_settle(files)
        return self.folder / hashlib.sha256(repr([FORMAT, *map(_identity, files)]).encode()).hexdigest()[:32]

    @contextmanager
    def written(self, place: Path) -> Iterator[IO[bytes]]:
        """A file to write, which is at its place when all is written. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = place.with_name(f"{place.name}.unfinished-{os.getpid()}")
        try:
            with beside.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            beside.replace(place)
        finally:
            beside.unlink(missing_ok=True)

    def write_arrays(self, place: Path, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Keep some arrays by their names. Raises OSError."""
        import numpy as np

        with self.written(place) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub mistakes the names for its own argument

    def remove_others(self, places: Iterable[Path]) -> None:
        """Remove what is kept at other places; what cannot be removed is left."""
        wanted = set(places)
        for found in self.folder.iterdir() if self.folder.is_dir() else ():
            unfinished = ".unfinished-" in found.name and time.time() - found.stat().st_mtime < SECONDS_UNFINISHED
            if found not in wanted and not unfinished:
                found.unlink(missing_ok=True)


def read_arrays(place: Path, names: Sequence[str]) -> list[NDArray[np.generic]] | None:
    """The arrays that `write_arrays` kept, by their names; None where they are not there, or damaged (a zip has checksums)."""
    import numpy as np

    try:
        with np.load(place, allow_pickle=False) as arrays:
            return [np.asarray(arrays[name]) for name in names]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def _let_settle(files: Sequence[Path]) -> None:
    """Wait until none of the files changed within this tick: another change in it would leave the same identity."""
    since = time.time() - max((path.stat().st_ctime for path in files), default=0.0)
    if 0 <= since < SECONDS_OF_A_TICK:
        time.sleep(SECONDS_OF_A_TICK - since)


def _identity(path: Path) -> tuple[int, ...]:
    """What changes whenever a file does."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
