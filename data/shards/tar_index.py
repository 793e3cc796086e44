"""Where the samples of a .tar file of a WebDataset are, from one pass over its headers. Nothing is ever extracted.

A sample is what follows each other with one key: a member's path up to the first dot of its base name. What comes after
that dot says what a member is: `0001.jpg` with `0001.cls`. Names are texts here, never paths.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from data.errors import DatasetError
from data.image_files.listing import EXTENSIONS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ANY_IMAGE = "image"  # data.input of a recipe that names no ending
IMAGE_ENDINGS = frozenset(extension.removeprefix(".") for extension in EXTENSIONS)
NO_LABEL = -1
_PARTS = ("keys", "offsets", "sizes", "labels")
MOST_LABEL_BYTES = {"cls": 64, "json": 2**24}

_KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
_LABEL = re.compile(rb"\s*(-?[0-9]{1,18})\s*")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_KINDS = (
    (tarfile.TarInfo.issym, "symbolic link"),
    (tarfile.TarInfo.islnk, "hard link"),
    (tarfile.TarInfo.isdev, "device"),
)


@dataclass
class TarIndex:
    """n samples of a file: `keys` in UTF-8, each ended by a zero byte; where the bytes of each are; its label, -1 for none."""

    keys: bytearray = field(default_factory=bytearray)
    offsets: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    labels: array[int] = field(default_factory=lambda: array("q"))

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """All of it as arrays by name, to keep."""
        import numpy as np

        return {name: np.frombuffer(getattr(self, name), np.int64 if name != "keys" else np.uint8) for name in _PARTS}

    @classmethod
    def read(cls, place: Path) -> TarIndex | None:
        """What was kept; None where it is not there, or damaged."""
        from data.shards.kept_files import read_arrays

        known = read_arrays(place, _PARTS)
        if known is None:
            return None
        keys, *numbers = known
        return cls(bytearray(keys.tobytes()), *(array("q", part.tobytes()) for part in numbers))


class Member(NamedTuple):
    """A plain file in a .tar file."""

    name: str
    offset: int
    size: int


def index_of(path: Path, ending: str, label_field: str) -> TarIndex:
    """Where the samples of a file are. `ending` is that of the members which are samples; see `label_of` for `label_field`.

    Raises DatasetError naming the member that has no place in a WebDataset.
    """
    index, hashes = TarIndex(), array("q")
    with path.open("rb") as file:
        for key, members in _grouped(path, members_of(path, file)):
            chosen = _chosen(path, key, members, ending.lower())
            index.keys += key.encode() + b"\0"
            index.offsets.append(chosen.offset)
            index.sizes.append(chosen.size)
            index.labels.append(label_of(path, key, members, label_field, file.fileno()))
            hashes.append(hash(key))
    _refuse_repeated(path, index, hashes)
    return index


def members_of(path: Path, file: Any) -> Iterator[Member]:
    """The plain files in a .tar file, in order. Raises DatasetError when it holds links or devices, or is not whole."""
    begin = file.read(8)
    file.seek(0)
    for magic, name in _COMPRESSED.items():
        if begin.startswith(magic):
            raise DatasetError(
                f"{path}: this file is compressed ({name}), so that samples cannot be read by themselves. Decompress it; images "
                "are compressed already."
            )
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                _refuse_odd(path, member, end)
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if not member.isdir():
                    yield Member(member.name, member.offset_data, member.size)
    except (tarfile.TarError, OSError, ValueError, OverflowError) as problem:
        if isinstance(problem, DatasetError):
            raise
        raise DatasetError(
            f"{path}: this is no whole .tar file ({problem}). Was it cut short, or is it another kind of file?"
        ) from None
    _refuse_unfinished(path, file, end)


def label_of(path: Path, key: str, members: dict[str, Member], label_field: str, descriptor: int) -> int:
    """The label that a sample's `.json` has in this field; for the field "label", that of `.cls` comes first. -1 for none."""
    if label_field == "label" and "cls" in members:
        content = _small(path, members["cls"], "cls", descriptor)
        found = _LABEL.fullmatch(content)
        if found is None:
            raise DatasetError(
                f"{path}, {members['cls'].name}: {content!r} is no label; the number of a class is needed."
            )
        return int(found[1])
    if "json" not in members:
        return NO_LABEL
    place = f"{path}, {members['json'].name}"
    try:
        table = json.loads(_small(path, members["json"], "json", descriptor))
    except (ValueError, RecursionError) as problem:
        if isinstance(problem, DatasetError):
            raise
        raise DatasetError(f"{place}: this is no JSON ({problem}).") from None
    label = table.get(label_field) if isinstance(table, dict) else None
    if label is None:
        return NO_LABEL
    if type(label) is not int or abs(label) >= 10**18:
        raise DatasetError(f"{place}: field {label_field!r} is {label!r:.60}; the number of a class is needed.")
    return label


def _grouped(path: Path, members: Iterator[Member]) -> Iterator[tuple[str, dict[str, Member]]]:
    """The key of each sample, and its members by their ending."""
    key, found = "", dict[str, Member]()
    for member in members:
        base = member.name.rpartition("/")[2]
        if base.startswith(".") or (member.name.startswith("__") and member.name.endswith("__")):
            continue  # hidden; or what the webdataset library notes of the whole file
        named = _KEY.fullmatch(member.name)
        if named is None or not member.name.isprintable():
            raise DatasetError(
                f"{path}: the member {member.name!a} has no place in a WebDataset, where members are named KEY.ENDING, such as "
                "0001.jpg. Leave it out."
            )
        if named[1] != key:
            if found:
                yield key, found
            key, found = named[1], {}
        ending = named[2].lower()
        if ending in found:
            raise DatasetError(
                f"{path}: sample {key} has two members that end in .{ending}; each key is of one sample."
            )
        found[ending] = member
    if found:
        yield key, found


def _chosen(path: Path, key: str, members: dict[str, Member], ending: str) -> Member:
    """The member that is the sample."""
    if ending == ANY_IMAGE:
        found = [name for name in members if name.rpartition(".")[2] in IMAGE_ENDINGS]
    else:
        found = [ending.removeprefix(".")] if ending.removeprefix(".") in members else []
    if len(found) == 1:
        return members[found[0]]
    wanted = "image" if ending == ANY_IMAGE else f"member .{ending.removeprefix('.')}"
    what = f"no {wanted}; it has .{', .'.join(members)}" if not found else f"several images: .{', .'.join(found)}"
    raise DatasetError(f"{path}: sample {key} has {what}. Name the ending of the samples with data.input.")


def _small(path: Path, member: Member, kind: str, descriptor: int) -> bytes:
    if member.size > MOST_LABEL_BYTES[kind]:
        raise DatasetError(
            f"{path}, {member.name}: {member.size} bytes are too many for a .{kind}; at most {MOST_LABEL_BYTES[kind]} are read."
        )
    return os.pread(descriptor, member.size, member.offset)


def _refuse_odd(path: Path, member: tarfile.TarInfo, end: int) -> None:
    kind = next((name for is_one, name in _KINDS if is_one(member)), None)
    if kind is None and not member.isdir() and (not member.isreg() or member.issparse()):
        kind = "file of another kind"
    if kind is not None:
        raise DatasetError(f"{path}: the member {member.name!a} is a {kind}; only plain files are read. Leave it out.")
    if member.size < 0 or member.offset < end:
        raise DatasetError(
            f"{path}: the member {member.name!a} does not lie behind the one before; the file is damaged."
        )


def _refuse_unfinished(path: Path, file: Any, end: int) -> None:
    """A .tar file ends with blocks of zeros: tarfile does not tell if it was cut between members, or is damaged there."""
    if not any(os.pread(file.fileno(), tarfile.BLOCKSIZE, end)) and os.fstat(file.fileno()).st_size > end:
        return
    raise DatasetError(
        f"{path}: no member and no end of the archive is at byte {end}. Was the file cut short, or damaged? Bring it again."
    )


def _refuse_repeated(path: Path, index: TarIndex, hashes: array[int]) -> None:
    import numpy as np

    ordered = np.sort(np.frombuffer(hashes, np.int64)) if hashes else np.empty(0, np.int64)
    twice = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if not twice:
        return
    keys = [key for key in bytes(index.keys[:-1]).decode().split("\0") if hash(key) in twice]
    repeated = next((key for place, key in enumerate(keys) if key in keys[:place]), None)
    if repeated is not None:
        raise DatasetError(f"{path}: sample {repeated} is there twice, with others between; each key is of one sample.")
