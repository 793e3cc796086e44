"""The first look at samples that stay in their files: digests, and shapes of images, remembered for each file of a dataset.

Shape legend: M samples of a part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.digests import DIGEST_BYTES
from data.image_files.image_memory import Seen
from data.image_files.images import ImageStore
from data.looks import Looks
from data.shards.kept_files import KeptFiles, read_arrays
from data.shards.stored_arrays import ArrayStore
from data.shards.stored_names import Images
from data.workers import Memory, Workers

FEW_SAMPLES = 2000  # of which nothing is remembered: their first look takes no time
IMAGES_IN_A_PIECE = 4096


class Shard(NamedTuple):
    """The samples from number `start` to `stop` of a part, and the files that they are in."""

    files: Sequence[Path]
    start: int
    stop: int


def shards_of(files: Sequence[Sequence[Path]], counts: Sequence[int]) -> list[Shard]:
    """The shards of a part whose samples are so many in each of the groups of files."""
    ends = np.cumsum(counts, dtype=np.int64).tolist()
    return [Shard(group, end - count, end) for group, count, end in zip(files, counts, ends, strict=True)]


class ShardLooks:
    """Looks at what was not seen yet of a dataset, one shard after another, and remembers it."""

    def __init__(self, looks: Looks, dataset: Path, *about: str):
        """`about`: what else the samples of a file depend on, such as a column's name."""
        self._bar = looks.bar
        self._kept = None
        if looks.folder is not None:
            # Another Pillow may read other pixels from a JPEG.
            self._kept = KeptFiles(looks.folder, "looks", dataset, *about, f"Pillow {version('pillow')}")
        self._places: list[Path] = []

    def seen(self, images: Images, shards: Sequence[Shard], workers: Workers) -> Seen | None:
        """What is seen of all images (M,); None where they are few. Raises DatasetError naming the first that is broken."""
        if len(images.names) < FEW_SAMPLES:
            return None
        seen = Seen(np.empty((len(images.names), DIGEST_BYTES), np.uint8), np.empty((len(images.names), 3), np.int32))

        def look(start: int, stop: int, advance: Callable[[int], None]) -> None:
            for begin in range(start, stop, IMAGES_IN_A_PIECE):
                piece = slice(begin, min(begin + IMAGES_IN_A_PIECE, stop))
                opened = lambda number, begin=begin: images.opened(begin + number)  # noqa: E731
                store = ImageStore(images.names[piece], opened, images.names.placed, workers, Memory(0))
                found = store.look(advance)
                seen.digests[piece], seen.shapes[piece] = found.digests, found.shapes

        self._look_at_missing(shards, {"digests": seen.digests, "shapes": seen.shapes}, look, "images")
        return seen

    def digests(self, arrays: ArrayStore, shards: Sequence[Shard]) -> None:
        """Let a store know the digests of its arrays, unless they are few. Raises DatasetError naming the first bad one."""
        if len(arrays) < FEW_SAMPLES:
            return
        digests = np.empty((len(arrays), DIGEST_BYTES), np.uint8)

        def look(start: int, stop: int, advance: Callable[[int], None]) -> None:
            digests[start:stop] = arrays.look(start, stop, advance)

        self._look_at_missing(shards, {"digests": digests}, look, "samples")
        arrays.know(digests)

    def forget_others(self) -> None:
        """Remove what is remembered of files that were not asked for."""
        if self._kept is not None:
            with suppress(OSError):
                self._kept.remove_others(self._places)

    def _look_at_missing(
        self,
        shards: Sequence[Shard],
        into: dict[str, NDArray[np.generic]],
        look: Callable[[int, int, Callable[[int], None]], None],
        unit: str,
    ) -> None:
        """Fill the arrays (M, ...) from memory, or by a look."""
        places = [self._kept.place(shard.files) if self._kept is not None else Path() for shard in shards]
        missing = [number for number, shard in enumerate(shards) if not self._recalled(places[number], shard, into)]
        total = sum(shards[number].stop - shards[number].start for number in missing)
        if missing:
            with self._bar(f"looking at {unit}", total, unit) as advance:
                for number in missing:
                    start, stop = shards[number].start, shards[number].stop
                    look(start, stop, advance)
                    if self._kept is not None:
                        with suppress(OSError):  # a memory that cannot be written is no error
                            self._kept.write_arrays(places[number], {name: into[name][start:stop] for name in into})
        self._places += places

    def _recalled(self, place: Path, shard: Shard, into: dict[str, NDArray[np.generic]]) -> bool:
        known = read_arrays(place, list(into)) if self._kept is not None else None
        if known is None or any(len(array) != shard.stop - shard.start for array in known):
            return False
        for whole, array in zip(into.values(), known, strict=True):
            whole[shard.start : shard.stop] = array
        return True
