"""What was seen of the images of a folder, remembered by the identity of each file, in one file of bytes.

Its first line says what the rest is: a sha256 of the line's JSON, and the JSON. Then follow, of M images each: the names
(UTF-8, each ended by a zero byte), the identities (4 int64), the digests (16 bytes) and the shapes (3 int32; 0 where an
image was not looked at yet), all in the machine's byte order. It is a convenience: what is damaged, or of another decoder,
is as if it were not there.

Shape legend: M images of the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from data.image_files.listing import IDENTITY, Listing

if TYPE_CHECKING:  # a run with nothing to do reads the first line alone, and needs no numpy
    import numpy as np
    from numpy.typing import NDArray

    from data.digests import Digests
    from data.image_files.kept_pixels import Shapes

FORMAT = 1
BYTES_AT_ONCE = 2**22


@dataclass(frozen=True)
class Seen:
    """Digests (M, 16) and shapes (M, 3) of decoded images; the shape is 0 where an image was not looked at yet."""

    digests: Digests
    shapes: Shapes

    @property
    def missing(self) -> NDArray[np.int64]:
        """The numbers of the images that were not looked at."""
        import numpy as np

        return np.flatnonzero(self.shapes[:, 0] == 0)


def memory_of(folder: Path, root: Path) -> Path:
    """Where what was seen of the images below `root` is remembered."""
    return folder / f"images-{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()}.bin"


def state_of(files: Listing) -> str:
    """Hash of the names and identities of all files: while it is the same, so are their images."""
    return _sha256(files.names, files.identities)


def content_of(files: Listing, seen: Seen) -> str:
    """Hash of the names, digests and shapes of all images: what the samples of a folder follow from."""
    return _sha256(files.names, seen.digests.data, seen.shapes.data)


def remembered_content(path: Path, state: str) -> str | None:
    """`content_of` the images as they were last seen, if all were and their files are still in that state."""
    try:
        with path.open("rb") as file:
            head = _head(file.readline())
    except OSError:
        return None
    return str(head["content"]) if head and head["state"] == state and head["content"] else None


def recalled(path: Path, state: str, files: Listing) -> Seen:
    """What is remembered of these files (M,), whose `state_of` is given: of each whose path and identity are the same."""
    import numpy as np

    body = _body(path)
    if body is not None and body.state == state:
        return body.seen
    seen = unseen(len(files))
    if body is not None and len(body.seen.digests):
        identities = np.frombuffer(files.identities, np.int64).reshape(-1, len(IDENTITY))
        before = _matches(_hashes(files.names), identities, _hashes(body.names), body.identities)
        found = np.flatnonzero(before >= 0)
        seen.digests[found] = body.seen.digests[before[found]]
        seen.shapes[found] = body.seen.shapes[before[found]]
    return seen


def unseen(count: int) -> Seen:
    """Nothing seen of any image."""
    import numpy as np

    return Seen(np.zeros((count, 16), np.uint8), np.zeros((count, 3), np.int32))


def remember(path: Path, state: str, files: Listing, seen: Seen) -> None:
    """Replace the memory, whole but not durably; of several processes at once, the last one wins. Raises OSError."""
    parts = (files.names, files.identities, seen.digests.data, seen.shapes.data)
    head = {
        "format": FORMAT,
        "decoder": _decoder(),
        "state": state,
        "content": None if len(seen.missing) else content_of(files, seen),
        "images": len(files),
        "names_bytes": len(files.names),
        "body_sha256": _sha256(*parts),
    }
    line = json.dumps(head).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".unfinished-{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(_sha256(line).encode() + b" " + line + b"\n")
            for part in parts:
                file.write(part)
        beside.replace(path)
    except BaseException:  # a full disk, or Ctrl-C
        beside.unlink(missing_ok=True)
        raise


def joined(parts: Sequence[Seen]) -> Seen:
    """What was seen of one part after another."""
    import numpy as np

    return Seen(np.concatenate([part.digests for part in parts]), np.concatenate([part.shapes for part in parts]))


def _decoder() -> str:
    """What decoded: another Pillow may read other pixels from a JPEG."""
    return f"Pillow {version('pillow')}"


def _sha256(*parts: bytes | bytearray | memoryview | array[int]) -> str:
    state = hashlib.sha256()
    for part in parts:
        state.update(part)
    return state.hexdigest()


def _head(line: bytes) -> dict[str, Any] | None:
    """What the first line says; None when it is damaged, or of another format or decoder."""
    sha256, _, text = line.removesuffix(b"\n").partition(b" ")
    if _sha256(text).encode() != sha256:
        return None
    head: dict[str, Any] = json.loads(text)
    return head if (head["format"], head["decoder"]) == (FORMAT, _decoder()) else None


class _Body(NamedTuple):
    """What follows the first line, with the state that it tells."""

    state: str
    names: bytes
    identities: NDArray[np.int64]  # (M, 4)
    seen: Seen


def _body(path: Path) -> _Body | None:
    """All that is remembered; None where nothing is, or it is damaged."""
    import numpy as np

    try:
        with path.open("rb") as file:
            head = _head(file.readline())
            if head is None:
                return None
            count = head["images"]
            names, identities = file.read(head["names_bytes"]), np.empty((count, len(IDENTITY)), np.int64)
            seen = unseen(count)
            read = [file.readinto(part.data) for part in (identities, seen.digests, seen.shapes)]
    except OSError:
        return None
    whole = read == [identities.nbytes, seen.digests.nbytes, seen.shapes.nbytes]
    if not whole or _sha256(names, identities.data, seen.digests.data, seen.shapes.data) != head["body_sha256"]:
        return None
    return _Body(head["state"], names, identities, seen)


def _matches(
    names: NDArray[np.int64], identities: NDArray[np.int64], old_names: NDArray[np.int64], old: NDArray[np.int64]
) -> NDArray[np.int64]:
    """For each file by the hash of its name (M,) and its identity (M, 4), its place among the old ones; -1 if it has none.

    The hashes differ in each process and have 64 bits: two names that share one would have to share an inode and all times.
    """
    import numpy as np

    order = np.argsort(old_names)
    place = np.searchsorted(old_names[order], names)
    found = order[np.minimum(place, len(order) - 1)]
    same = (old_names[found] == names) & (old[found] == identities).all(axis=1)
    return np.where(same, found, -1)


def _hashes(names: bytes | bytearray) -> NDArray[np.int64]:
    """A hash of each name (M,)."""
    import numpy as np

    return np.concatenate([np.fromiter(map(hash, some), np.int64) for some in _in_pieces(names)])


def _in_pieces(blob: bytes | bytearray) -> Iterator[list[bytes]]:
    """The names in lists of limited length: a million bytes objects at once take 70 MB."""
    start = 0
    while start < len(blob):
        stop = blob.find(b"\0", min(start + BYTES_AT_ONCE, len(blob) - 1))
        yield bytes(blob[start:stop]).split(b"\0")
        start = stop + 1
