"""Parquet and Arrow files, read by column: each column whole, or in pieces of limited size, or mapped where it lies as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import DatasetError

BYTES_AT_ONCE = 4 * 10**6  # of a column, decompressed
MOST_ROWS_AT_ONCE = 1000
WIDTHS = {"INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12}  # bytes of Parquet's types, once decoded


class TableFile(Protocol):
    """One file that holds a table. What is asked of it raises DatasetError where the file is damaged."""

    def schema(self) -> Any:
        """The Arrow schema."""
        ...

    def rows(self) -> int:
        """How many rows it has."""
        ...

    def whole(self, column: str) -> Any:
        """A column as one chunked array, in memory: for labels."""
        ...

    def pieces(self, column: str) -> Iterator[Any]:
        """A column as arrays of limited size, one after another."""
        ...

    def mapped(self, column: str) -> Sequence[Any] | None:
        """A column as arrays that lie in the file itself, of which nothing is read yet; None where it is compressed."""
        ...

    def size_of(self, column: str) -> int:
        """About how many bytes a column takes, decompressed."""
        ...


class ParquetTable:
    """A Parquet file."""

    def __init__(self, path: Path):
        self.path = path

    def schema(self) -> Any:
        with self._opened() as file:
            return file.schema_arrow

    def rows(self) -> int:
        with self._opened() as file:
            return int(file.metadata.num_rows)

    def whole(self, column: str) -> Any:
        with self._opened() as file:
            return file.read(columns=[column], use_threads=False).column(0)

    def pieces(self, column: str) -> Iterator[Any]:
        rows = self.rows()
        rows_at_once = max(1, min(MOST_ROWS_AT_ONCE, BYTES_AT_ONCE * rows // max(1, self.size_of(column))))
        with self._opened() as file:
            # One row group after another: asked for all, Arrow begins to read the next ones.
            groups = range(file.metadata.num_row_groups)
            some = {"batch_size": rows_at_once, "columns": [column], "use_threads": False}
            batches = chain.from_iterable(file.iter_batches(row_groups=[group], **some) for group in groups)
            done = 0
            while True:
                with readable(self.path, f"the rows from {done} of column {column!r}"):
                    batch = next(batches, None)
                if batch is None:
                    return
                done += len(batch)
                yield batch.column(0)

    def mapped(self, column: str) -> None:
        return None

    def size_of(self, column: str) -> int:
        with self._opened() as file:
            groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
            leaves = [group.column(place) for group in groups for place in range(group.num_columns)]
            mine = [leaf for leaf in leaves if leaf.path_in_schema.split(".")[0] == column]
            return sum(
                max(leaf.total_uncompressed_size, leaf.num_values * WIDTHS.get(leaf.physical_type, 1)) for leaf in mine
            )

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        with (
            readable(self.path),
            pq.ParquetFile(self.path, memory_map=True, page_checksum_verification=True) as file,
        ):
            yield file


class ArrowTable:
    """A file in Arrow's own format, of a file or of a stream."""

    def __init__(self, path: Path):
        self.path = path

    def schema(self) -> Any:
        with readable(self.path):
            return _reader(pa.memory_map(str(self.path))).schema

    def rows(self) -> int:
        return sum(map(len, self._batches(pa.memory_map(str(self.path)))))

    def whole(self, column: str) -> Any:
        return pa.chunked_array(list(self._arrays(column)), self.schema().field(column).type)

    def pieces(self, column: str) -> Iterator[Any]:
        for array in self._arrays(column):
            rows_at_once = max(1, BYTES_AT_ONCE * len(array) // max(1, array.nbytes))
            for start in range(0, len(array), rows_at_once):
                yield array.slice(start, rows_at_once)

    def mapped(self, column: str) -> Sequence[Any] | None:
        with readable(self.path):
            source = pa.memory_map(str(self.path))
            whole = source.read_buffer()
            found = []
            for batch in self._batches(source):
                array = batch.column(column)
                buffers = [buffer for buffer in array.buffers() if buffer is not None and buffer.size]
                if not all(0 <= buffer.address - whole.address < whole.size for buffer in buffers):
                    return None
                found.append(array)
        return found

    def size_of(self, column: str) -> int:
        return sum(array.nbytes for array in self._arrays(column))

    def _arrays(self, column: str) -> Iterator[Any]:
        """The column of each record batch, in memory: Arrow copies what it reads of some columns alone."""
        options = pa.ipc.IpcReadOptions(included_fields=[self.schema().get_field_index(column)])
        return (batch.column(0) for batch in self._batches(pa.memory_map(str(self.path)), options))

    def _batches(self, source: Any, options: Any = None) -> Iterator[Any]:
        """The record batches one by one; without options they lie in the mapped file, unless they are compressed."""
        with readable(self.path):
            reader = _reader(source, options)
            if isinstance(reader, pa.ipc.RecordBatchFileReader):
                for number in range(reader.num_record_batches):
                    yield reader.get_batch(number)
            else:
                yield from reader


TABLES: dict[str, type[ParquetTable] | type[ArrowTable]] = {
    ".parquet": ParquetTable,
    ".arrow": ArrowTable,
    ".feather": ArrowTable,
}


def table_file(path: Path) -> TableFile:
    """The table in a file, by the file's ending."""
    kind = TABLES.get(path.suffix.lower())
    if kind is None:
        raise DatasetError(f"{path}: a file whose name ends in {', '.join(TABLES)} is needed.")
    return kind(path)


@contextmanager
def readable(path: Path, what: str = "this file") -> Iterator[None]:
    """What Arrow cannot read raises DatasetError."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as problem:
        reason = " ".join(str(problem).split())
        raise DatasetError(
            f"{path}: {what} cannot be read ({reason}). Was it cut short, or is it another kind of file?"
        ) from None


def class_names_in(schema: Any, column: str) -> list[str] | None:
    """The names that the datasets library noted for a column of labels, in the file's metadata; None where it noted none."""
    noted = (schema.metadata or {}).get(b"huggingface")
    try:
        feature = json.loads(noted)["info"]["features"][column] if noted else {}
        names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _reader(source: Any, options: Any = None) -> Any:
    source.seek(0)
    try:
        return pa.ipc.open_file(source, options=options)
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_stream(source, options=options)
