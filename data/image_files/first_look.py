"""The first look at image files: each is decoded once, for its digest and shape, by several processes where they are many.

Shape legend: M images of a folder, n of a piece.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from data.digests import DIGEST_BYTES, image_digest
from data.image_files.image_memory import Seen
from data.image_files.listing import IDENTITY, Listing
from data.image_files.pixels import bombs_are_errors, decoded
from data.looks import Looks
from data.names import Names
from data.processes import Processes
from data.workers import Workers

IMAGES_WORTH_PROCESSES = 2000  # fewer are decoded before another process has started
IMAGES_IN_A_PIECE = 256
BYTES_READ_AT_ONCE = 2**16  # more would be allocated with new pages for every file
SECONDS_OF_A_TICK = 0.02  # file systems note times by the kernel's tick, of 1 to 10 ms


def look_at_missing(
    root: Path, files: Listing, names: Names, seen: Seen, workers: Workers, looks: Looks, save: Callable[[], None]
) -> None:
    """Look at each image (M,) that was not seen yet, and note it in `seen`; `save` is called now and then, and at the end.

    Raises DatasetError naming the first that cannot be decoded; what was seen before it is saved.
    """
    missing = seen.missing
    if not len(missing):
        return
    let_settle(files, missing)
    pieces = [missing[start : start + IMAGES_IN_A_PIECE] for start in range(0, len(missing), IMAGES_IN_A_PIECE)]
    begin = str(root / "_")[:-1]
    arguments = ((begin, [names[number] for number in piece.tolist()]) for piece in pieces)
    saved = time.monotonic()
    try:
        with looks.bar("looking at images", len(missing), "images") as advance:
            for piece, found in zip(pieces, _looked_at(arguments, len(missing), workers), strict=True):
                seen.digests[piece], seen.shapes[piece] = found.digests, found.shapes
                advance(len(piece))
                if time.monotonic() - saved > looks.seconds_between_saves:
                    save()
                    saved = time.monotonic()
    finally:
        save()


def seen_of(begin: str, names: Sequence[str], mapped: Callable[..., Iterable[None]] = map) -> Seen:
    """What is seen of images (n,) whose paths are `begin` and a name. Raises DatasetError naming the first broken one.

    They are decoded by `mapped`.
    """
    seen = Seen(np.empty((len(names), DIGEST_BYTES), np.uint8), np.empty((len(names), 3), np.int32))

    def look(number: int) -> None:
        path = f"{begin}{names[number]}"
        with _opened(path) as file:
            pixels = decoded(file, path)
        seen.digests[number] = np.frombuffer(image_digest(pixels), np.uint8)
        seen.shapes[number] = pixels.shape

    with bombs_are_errors():
        for _ in mapped(look, range(len(names))):
            pass
    return seen


def let_settle(files: Listing, numbers: NDArray[np.int64]) -> None:
    """Wait until none of the files changed within this tick: another change in it would leave the same identity."""
    changed = np.frombuffer(files.identities, np.int64).reshape(-1, len(IDENTITY))[numbers, IDENTITY.index("ctime_ns")]
    since = time.time() - int(changed.max()) / 1e9
    if 0 <= since < SECONDS_OF_A_TICK:
        time.sleep(SECONDS_OF_A_TICK - since)


def _opened(path: str) -> IO[bytes]:
    """A file to decode, read at once where it is small: Pillow reads and seeks a dozen times."""
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - a Path takes as long to make as a tiny image to decode
        content = file.read(BYTES_READ_AT_ONCE)
    return BytesIO(content) if len(content) < BYTES_READ_AT_ONCE else Path(path).open("rb")


def _looked_at(arguments: Iterable[tuple[str, list[str]]], images: int, workers: Workers) -> Iterator[Seen]:
    if images < IMAGES_WORTH_PROCESSES or workers.count == 1:
        for begin, names in arguments:
            yield seen_of(begin, names, workers.map)
        return
    with Processes(workers.count) as processes:
        yield from processes.map(seen_of, arguments)
