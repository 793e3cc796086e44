"""Columns of Arrow tables whose chunks are mapped into memory: images or arrays by row, and labels.

Shape legend: M rows of a column, B of a batch.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.errors import DatasetError
from data.shards.stored_names import StoredNames


class ImageColumn:
    """Encoded images: bytes, or what the datasets library makes of them, a struct of bytes and path."""

    def __init__(self, chunks: Sequence[Any], names: StoredNames):
        """`chunks` are arrays of M rows together, and `names` says where each row is. Raises DatasetError when one is damaged."""
        self.names = names
        self._chunks = _Chunks(chunks, names)
        for place, chunk in enumerate(chunks):
            if not holds_images(chunk.type):
                raise DatasetError(
                    f"{self._chunks.begins(place)}: column of type {chunk.type}, but images are in those before."
                )

    def opened(self, number: int) -> IO[bytes]:
        """An image as a file. Raises DatasetError when the row holds none."""
        value = self._chunks.one(number).as_py()
        path = value.get("path") if isinstance(value, dict) else None
        content = value.get("bytes") if isinstance(value, dict) else value
        if content is None:
            what = "no image" if path is None else f"only the path of an image, {path}, not the image"
            raise DatasetError(
                f"{self.names.place(number)}: the row holds {what}. Leave it out, or save the dataset with it."
            )
        return io.BytesIO(content)


class NumberColumn:
    """Numbers, or lists of them: one array of equal dtype and shape a row. See `data.shards.stored_arrays.Rows`."""

    def __init__(self, chunks: Sequence[Any], name: str, names: StoredNames, origin: str):
        """`chunks` as for ImageColumn. Raises DatasetError when the column `name` holds something else than numbers."""
        self.names = names
        kind = chunks[0].type if chunks else pa.null()
        self.dtype = _number_type(kind, name, origin)
        self._name, self._chunks = name, _Chunks([_storage(chunk) for chunk in chunks], names)
        for place, chunk in enumerate(chunks):
            if _number_type(chunk.type, name, origin) != self.dtype:
                raise DatasetError(
                    f"{self._chunks.begins(place)}: column {name!r} is of type {chunk.type} here, but {kind} in {names[0]}."
                )
        # Arrow's own tensors are stored flat, and their type says the shape.
        self._tensor = tuple(kind.shape) if isinstance(kind, pa.FixedShapeTensorType) else None
        self._sizes: tuple[int, ...] = self._shape_of_first()  # of the lists, from the outermost in
        self.sample_shape = self._tensor or self._sizes
        self._views: dict[int, NDArray[np.generic]] = {}

    def __len__(self) -> int:
        return len(self._chunks)

    def place(self, number: int) -> str:
        """Which row this is, for messages."""
        return self.names.place(number)

    def gathered(self, numbers: NDArray[np.int64]) -> NDArray[np.generic]:
        """The rows (B, *sample_shape) of these numbers (B,)."""
        found = np.empty((len(numbers), *self.sample_shape), self.dtype)
        for place, where, rows in self._chunks.grouped(numbers):
            if self.dtype == np.bool_:
                found[where] = self._taken(place, rows)
            elif len(rows) == len(numbers):
                self._view(place).take(rows, axis=0, out=found, mode="clip")  # "raise" would buffer it all
            else:
                found[where] = self._view(place)[rows]
        return found

    def _view(self, place: int) -> NDArray[np.generic]:
        """All rows of a chunk, of which nothing is copied."""
        if place not in self._views:
            flat = self._flat(self._chunks[place], self._chunks.begin(place))
            self._views[place] = flat.to_numpy(zero_copy_only=True).reshape(-1, *self.sample_shape)
        return self._views[place]

    def _taken(self, place: int, rows: NDArray[np.int64]) -> NDArray[np.generic]:
        """Some rows of a chunk of booleans, which are bits, so that there is no view of them."""
        self._flat(self._chunks[place], self._chunks.begin(place))
        flat = self._flat(self._chunks[place].take(pa.array(rows)), 0)
        taken: NDArray[np.generic] = flat.to_numpy(zero_copy_only=False)
        return taken.reshape(len(rows), *self.sample_shape)

    def _flat(self, rows: Any, begin: int) -> Any:
        """The numbers of all rows, the first of which is number `begin`, one after another."""
        flat = rows
        for size in self._sizes:
            if flat.null_count or not _all_lengths_are(flat, size):
                raise self._unlike(rows, begin)
            flat = flat.flatten()
        if flat.null_count:
            raise self._unlike(rows, begin)
        return flat

    def _unlike(self, rows: Any, begin: int) -> DatasetError:
        """Which row is not of the shape of row 0, or has a gap."""
        for number in range(len(rows)):
            row = rows[number].as_py()
            if (shape := _shape(row)) != self._sizes:
                return self._of_another_shape(begin + number, shape, self._sizes)
            if _has_gap(row):
                return DatasetError(
                    f"{self.place(begin + number)}: column {self._name!r} is no array (a number is missing). Leave the row out, "
                    "or fill the gap."
                )
        raise AssertionError("all rows are alike")

    def _of_another_shape(self, number: int, shape: Any, expected: Any) -> DatasetError:
        return DatasetError(
            f"{self.place(number)}: shape {shape}, but {self.names[0]} has {expected}; all must be of one shape."
        )

    def _shape_of_first(self) -> tuple[int, ...]:
        if not len(self):
            return ()
        shape = _shape(self._chunks.one_row(0).to_pylist()[0])
        if shape is None:
            raise self._of_another_shape(0, None, None)
        return shape


class _Chunks:
    """M rows in several arrays."""

    def __init__(self, chunks: Sequence[Any], names: StoredNames):
        self._chunks, self._names = chunks, names
        self._ends = np.cumsum([len(chunk) for chunk in chunks], dtype=np.int64)
        self._ends_list: list[int] = self._ends.tolist()
        for place, chunk in enumerate(chunks):
            try:
                chunk.validate(full=True)  # offsets that point elsewhere would crash
            except pa.ArrowInvalid as problem:
                raise DatasetError(f"{self.begins(place)}: the rows from here are damaged ({problem}).") from None

    def begins(self, place: int) -> str:
        """Where the first row of a chunk is, for messages."""
        return self._names.place(min(self.begin(place), len(self._names) - 1)) if len(self._names) else ""

    def __len__(self) -> int:
        return self._ends_list[-1] if self._ends_list else 0

    def one(self, number: int) -> Any:
        """The value of a row."""
        place = bisect_right(self._ends_list, number)
        return self._chunks[place][number - self.begin(place)]

    def one_row(self, number: int) -> Any:
        """A row as an array of one."""
        place = bisect_right(self._ends_list, number)
        return self._chunks[place].slice(number - self.begin(place), 1)

    def __getitem__(self, place: int) -> Any:
        return self._chunks[place]

    def grouped(self, numbers: NDArray[np.int64]) -> list[tuple[int, Any, NDArray[np.int64]]]:
        """For each chunk that has some of the rows: its place, their places in `numbers`, and their numbers in the chunk."""
        if not len(numbers):
            return []
        chunk_of = np.searchsorted(self._ends, numbers, side="right")
        if (chunk_of == chunk_of[0]).all():
            return [(int(chunk_of[0]), slice(None), numbers - self.begin(int(chunk_of[0])))]
        order = np.argsort(chunk_of, kind="stable")
        pieces = np.split(order, np.flatnonzero(np.diff(chunk_of[order])) + 1)
        places = [(int(chunk_of[piece[0]]), piece) for piece in pieces]
        return [(place, piece, numbers[piece] - self.begin(place)) for place, piece in places]

    def begin(self, place: int) -> int:
        """The number of the first row of a chunk."""
        return self._ends_list[place - 1] if place else 0


def holds_images(kind: Any) -> bool:
    """Whether a column of this Arrow type holds encoded images."""
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_bytes(field.type) for field in kind)
    return _is_bytes(kind)


def labels_in(column: Any, name: str, origin: str, remedy: str) -> NDArray[np.int64]:
    """The labels (M,) of an Arrow array of integers, -1 where there is none. Raises DatasetError when it holds other things."""
    kind = column.type
    if pa.types.is_null(kind):
        return np.full(len(column), -1, np.int64)
    if not (pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        raise DatasetError(f"{origin}: the labels of column {name!r} are of type {kind}; integers are needed. {remedy}")
    try:
        whole = pc.fill_null(column.cast(pa.int64()), -1)
    except pa.ArrowInvalid as problem:  # only uint64 has labels that int64 has not
        raise DatasetError(f"{origin}: the labels of column {name!r} are no class numbers ({problem}).") from None
    labels: NDArray[np.int64] = whole.to_numpy() if isinstance(whole, pa.ChunkedArray) else whole.to_numpy(False)
    return labels


def refuse_missing_column(known: Sequence[str], name: str, origin: str) -> None:
    """Raises DatasetError unless a column of that name is known."""
    if name not in known:
        raise DatasetError(
            f"{origin}: no column {name!r}; there are {', '.join(known)}. Name the columns of samples and labels with data.input "
            "and data.label."
        )


def _all_lengths_are(lists: Any, size: int) -> bool:
    if pa.types.is_fixed_size_list(lists.type):
        return int(lists.type.list_size) == size
    extent = pc.min_max(pc.list_value_length(lists)).as_py()
    return bool(extent == {"min": size, "max": size})


def _is_bytes(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _storage(array: Any) -> Any:
    return array.storage if isinstance(array.type, pa.BaseExtensionType) else array


def _number_type(kind: Any, name: str, origin: str) -> np.dtype[np.generic]:
    if isinstance(kind, pa.FixedShapeTensorType) and kind.permutation not in (None, list(range(len(kind.shape)))):
        raise DatasetError(
            f"{origin}: column {name!r} holds tensors whose axes are permuted; store them in their order."
        )
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind) or pa.types.is_map(kind) or pa.types.is_union(kind):
        raise DatasetError(f"{origin}: column {name!r} holds neither images nor numbers.")
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise DatasetError(f"{origin}: column {name!r} is of type {kind}; images or numbers are needed.")
    dtype: np.dtype[np.generic] = np.dtype(kind.to_pandas_dtype())
    return dtype


def _has_gap(row: Any) -> bool:
    return row is None or (isinstance(row, list) and any(map(_has_gap, row)))


def _shape(row: Any) -> tuple[int, ...] | None:
    """The shape of nested lists; None where there are none, or where they are of unequal lengths."""
    try:
        return None if row is None else np.shape(row)
    except ValueError:
        return None
