"""Files of outputs: what each kind holds, read into the same form whatever the kind is.

Shape legend: R rows, C classes.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import OutputsError

KINDS = {"logits": "logits", "probabilities": "probabilities", "log_probabilities": "log-probabilities"}
DIGEST_NAMES = ("digest", "sample_digest")
PART_NAMES = ("part", "split")
UNREAD = ("label", "class")  # what an export adds for people


@dataclass(frozen=True)
class Rows:
    """Rows of a file that are of one part of the source (None: not said).

    Their numbers are `rows` (R,) of `values`, which is what messages count by; they say which sample is theirs by
    `index` (R,), the place in the part, by `digests` (R, 16), or (neither) by their order. `name` is for messages.
    """

    name: str
    values: NDArray[np.generic]
    rows: NDArray[np.int64]
    part: str | None = None
    index: NDArray[np.int64] | None = None
    digests: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class OutputsFile:
    """What a file holds, and what it says of itself: its classes in order and its temperature, where it does."""

    path: Path
    rows: tuple[Rows, ...]
    class_names: tuple[str, ...] | None = None
    temperature: float | None = None


def read_outputs(path: Path, kind: str, class_names: Sequence[str]) -> OutputsFile:
    """Read a file of outputs of a `kind`; tables need the names of their class columns.

    Raises OutputsError for a file of another type, or that is damaged, or holds Python objects or unknown columns.
    """
    reader = _readers().get(path.suffix)
    if reader is None:
        raise OutputsError(
            f"{path}: a file of outputs ends in {', '.join(_readers())}, not {path.suffix or 'nothing'!r}."
        )
    return reader(path, kind, class_names)


def refuse_unknown(path: Path, name: str, known: Sequence[str], what: str) -> None:
    """Raises OutputsError naming an array or column that has no meaning, and the nearest that has."""
    close = difflib.get_close_matches(name, known, n=1)
    raise OutputsError(
        f"{path}: {name!r} is no {what}.{f' Did you mean {close[0]!r}?' if close else ''} Known are {listed(known)}."
    )


def listed(names: Iterable[object]) -> str:
    """Names for people; of very many, the first and how many there are."""
    texts = [str(name) for name in names]
    return ", ".join(texts) if len(texts) <= 20 else f"{', '.join(texts[:10])}, ... ({len(texts)} in all)"


def refuse_views(views: NDArray[np.generic], origin: str, first: int = 0) -> None:
    """Raises OutputsError when a row is of an augmented view: only outputs for the samples themselves are joined."""
    others = np.flatnonzero(views != 0)
    if len(others):
        raise OutputsError(
            f"{origin}: row {first + others[0]} is of view {views[others[0]]}; only view 0, the sample itself, is imported."
        )


def refuse_other_kind(path: Path, name: str, found: str, wanted: str) -> None:
    """Raises OutputsError when an array or column is named for other values than the recipe says."""
    if KINDS[found] != wanted:
        raise OutputsError(
            f"{path} holds {name}, but the recipe says values = {wanted!r}. Say values = {KINDS[found]!r} (with caches import: "
            f"--values {KINDS[found]}), or rename them."
        )


def checked_index(index: NDArray[np.generic], origin: str) -> NDArray[np.int64]:
    """Indices (R,) as int64. Raises OutputsError when they are not one column of integers."""
    if index.ndim != 1 or index.dtype.kind not in "iu":
        raise OutputsError(
            f"{origin}: index is {index.dtype} of shape {index.shape}; one integer for each row is needed."
        )
    return index.astype(np.int64)


def checked_digests(digests: NDArray[np.generic], origin: str) -> NDArray[np.uint8]:
    """Digests (R, 16) from 16 bytes or 32 hex digits each. Raises OutputsError naming the first row that has neither."""
    if digests.ndim == 2 and digests.shape[1] == 16 and digests.dtype == np.uint8:
        return np.ascontiguousarray(digests).astype(np.uint8)
    if digests.ndim != 1 or digests.dtype.kind not in "US":
        raise OutputsError(
            f"{origin}: digest is {digests.dtype} of shape {digests.shape}; 16 bytes (uint8) or 32 hex digits each are needed."
        )
    texts = digests.astype("U")
    try:
        decoded = [bytes.fromhex(text) for text in texts]
    except ValueError:
        decoded = []
    lengths = np.array([len(text) for text in texts])
    if len(decoded) != len(texts) or (lengths != 32).any():
        wrong = next(row for row, text in enumerate(texts) if not _is_hex(text))
        raise OutputsError(f"{origin}: row {wrong} has digest {str(texts[wrong])!r}; 32 hex digits are needed.")
    return np.frombuffer(b"".join(decoded), dtype=np.uint8).reshape(-1, 16)


def _is_hex(text: str) -> bool:
    return len(text) == 32 and set(text) <= set("0123456789abcdefABCDEF")


def _read_npy(path: Path, kind: str, class_names: Sequence[str]) -> OutputsFile:
    """One bare array: its rows are those of the source, in order. It is memory-mapped."""
    try:
        values = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, OSError, EOFError) as problem:
        raise OutputsError(f"{path} is not a whole .npy file of numbers ({problem}).") from None
    return OutputsFile(path, (Rows("its rows", values, np.arange(len(values) if values.ndim else 0)),))


def _readers() -> dict[str, Callable[[Path, str, Sequence[str]], OutputsFile]]:
    from pipeline.teachers.outputs_csv import read_csv
    from pipeline.teachers.outputs_npz import read_npz
    from pipeline.teachers.outputs_parquet import read_parquet

    return {".npy": _read_npy, ".npz": read_npz, ".parquet": read_parquet, ".csv": read_csv}
