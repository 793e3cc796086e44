""".npz files of outputs: names and headers are checked before any array is decompressed.

Shape legend: R rows, C classes.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import OutputsError
from pipeline.teachers.outputs_checks import refuse_other_shape
from pipeline.teachers.outputs_file import (
    DIGEST_NAMES,
    KINDS,
    UNREAD,
    OutputsFile,
    Rows,
    checked_digests,
    checked_index,
    refuse_other_kind,
    refuse_unknown,
    refuse_views,
)

ARRAYS = "logits, probabilities or log_probabilities, with index or digest, each with _PART where the source has parts"
SAID = ("class_names", "temperature", "provenance")  # what a file says of itself
ROLES = ("index", *DIGEST_NAMES, "view", *UNREAD)
LARGEST_TEXT = 4096  # bytes of a digest or a class name: nobody's has more
DAMAGE = (  # what zipfile, zlib and numpy raise for damaged, encrypted or unknown content, or one too large for memory
    *(OSError, ValueError, EOFError, KeyError, MemoryError, RuntimeError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error, OverflowError),
)


@dataclass(frozen=True)
class _Member:
    """One array of an archive by its header; `read` decompresses it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], NDArray[Any]]

    def __len__(self) -> int:
        return self.shape[0] if self.shape else 0


def read_npz(path: Path, kind: str, class_names: Sequence[str]) -> OutputsFile:
    """Named arrays; see ARRAYS. They are held in memory; labels, classes and provenance are not read."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = _names_of(archive)
            suffixes = _suffixes(path, list(names), kind)
            members = {name: _member(archive, info) for name, info in names.items()}
            origins = {name: str(path) if len(suffixes) == 1 else f"{path} ({name})" for name in suffixes}
            for name in suffixes:
                refuse_other_shape(members[name].shape, members[name].dtype, len(class_names), origins[name])
            stated = _class_names(path, members, len(class_names))
            temperature = _temperature(path, members)
            rows = tuple(_rows_of_part(members, name, suffix, f"{path} ({name})") for name, suffix in suffixes.items())
    except DAMAGE as problem:
        raise OutputsError(f"{path} is not a whole .npz file of numbers ({problem}).") from None
    return OutputsFile(path, rows, stated, temperature)


def _names_of(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    names: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name in names:
            raise ValueError(f"array {name!r} is there twice")
        names[name] = info
    return names


def _suffixes(path: Path, names: Sequence[str], kind: str) -> dict[str, str]:
    """The suffix, "" or "_PART", of each array of values. Raises OutputsError for an array that has no meaning."""
    suffixes: dict[str, str] = {}
    for name in names:
        for found in sorted(KINDS, key=len, reverse=True):
            if name == found or name.startswith(f"{found}_"):
                refuse_other_kind(path, name, found, kind)
                suffixes[name] = name.removeprefix(found)
                break
    known = {*SAID, *(f"{role}{suffix}" for role in ROLES for suffix in suffixes.values())}
    for name in names:
        if name not in suffixes and name not in known:
            refuse_unknown(path, name, [*KINDS, *ROLES, "class_names"], "array of outputs")
    if not suffixes:
        raise OutputsError(f"{path} holds no outputs. Its arrays are to be named {ARRAYS}.")
    return suffixes


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    """The header of an array, for which a few hundred bytes are decompressed. Raises ValueError for what is no array."""
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):  # others are of tables with named columns, and may have headers of any size
            raise ValueError(f"{info.filename} is of version {version} of the .npy format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype.hasobject:
            raise ValueError(f"{info.filename} holds Python objects, which are never opened")
        size = math.prod(shape) * dtype.itemsize
        if file.tell() + size != info.file_size:
            raise ValueError(
                f"{info.filename} has {info.file_size} bytes, but an array of {size} bytes is said to be in it"
            )
    return _Member(shape, dtype, partial(_read, archive, info))


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    with archive.open(info) as file:
        return np.asarray(np.lib.format.read_array(_as_binary(file), allow_pickle=False))


def _as_binary(file: Any) -> BinaryIO:
    return file  # type: ignore[no-any-return]  # typeshed's IO[bytes] is one


def _class_names(path: Path, members: dict[str, _Member], class_count: int) -> tuple[str, ...] | None:
    member = members.get("class_names")
    if member is None:
        return None
    small = member.dtype.kind in "USiu" and member.dtype.itemsize <= LARGEST_TEXT
    if member.shape != (class_count,) or not small:
        raise OutputsError(
            f"{path}: class_names is {member.dtype} of shape {member.shape}; one text for each of the {class_count} classes is "
            "needed."
        )
    return tuple(str(name) for name in member.read())


def _temperature(path: Path, members: dict[str, _Member]) -> float | None:
    member = members.get("temperature")
    if member is None:
        return None
    if math.prod(member.shape) != 1 or member.dtype.kind not in "fiu":
        raise OutputsError(
            f"{path}: temperature is {member.dtype} of shape {member.shape}; one number, the one that the outputs were softened "
            "with, is needed."
        )
    return float(member.read().ravel()[0])


def _rows_of_part(members: dict[str, _Member], name: str, suffix: str, origin: str) -> Rows:
    values = members[name]
    if len(values) == 0:
        raise OutputsError(f"{origin}: {name} has no rows. Leave out a part that was not scored.")
    beside = {role: members[f"{role}{suffix}"] for role in ROLES if f"{role}{suffix}" in members}
    for role, member in beside.items():
        if role not in UNREAD:
            _refuse_other_rows(member, f"{role}{suffix}", len(values), origin)
    digests = next((beside[role].read() for role in DIGEST_NAMES if role in beside), None)
    if "view" in beside:
        refuse_views(beside["view"].read(), origin)
    return Rows(
        name,
        values.read(),
        np.arange(len(values)),
        suffix.removeprefix("_") or None,
        None if "index" not in beside else checked_index(beside["index"].read(), origin),
        None if digests is None else checked_digests(digests, origin),
    )


def _refuse_other_rows(member: _Member, what: str, count: int, origin: str) -> None:
    """One entry for each row, none of them large: an index or digest that was made to fill the memory is not read."""
    if len(member) != count:
        raise OutputsError(f"{origin}: {count} rows, but {len(member)} in {what}; they must match.")
    if math.prod(member.shape[1:]) * member.dtype.itemsize > LARGEST_TEXT:
        raise OutputsError(f"{origin}: {what} is {member.dtype} of shape {member.shape}; one entry a row is needed.")
