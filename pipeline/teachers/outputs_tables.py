"""Tables of outputs, Parquet and CSV: read by batches into a temporary file, so that no table is ever whole in memory.

Shape legend: R rows, B rows of a batch, C classes.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import OutputsError
from pipeline.targets.export import METADATA_KEY
from pipeline.teachers.outputs_file import (
    DIGEST_NAMES,
    KINDS,
    PART_NAMES,
    UNREAD,
    OutputsFile,
    Rows,
    checked_digests,
    checked_index,
    refuse_other_kind,
    refuse_unknown,
)

BATCH_ROWS = 4096


@dataclass(frozen=True)
class Columns:
    """Which column is what: `values` in the order of the classes, or one that holds a list."""

    values: tuple[str, ...]
    is_list: bool
    index: str | None
    digest: str | None
    part: str | None


def columns_of(
    path: Path, names: Sequence[str], lists: Sequence[str], kind: str, class_names: Sequence[str]
) -> Columns:
    """The columns of a table by their names; `lists` are those that hold a list of numbers.

    Raises OutputsError for one that is unknown or missing, is there twice, or has two meanings.
    """
    repeated = [name for place, name in enumerate(names) if name in names[:place]]
    if repeated:
        raise OutputsError(f"{path}: column {repeated[0]!r} is there twice.")
    list_columns = [name for name in names if name in KINDS and name in lists]
    meaningful = ("index", *DIGEST_NAMES, *PART_NAMES, *UNREAD)
    rest = [name for name in names if name not in meaningful and name not in list_columns]
    if list_columns:
        refuse_other_kind(path, f"the column {list_columns[0]}", list_columns[0], kind)
        if rest:
            refuse_unknown(path, rest[0], [list_columns[0], *meaningful], "column here")
    else:
        clashing = [name for name in class_names if name in meaningful]
        if clashing:
            raise OutputsError(
                f"{path}: class {clashing[0]!r} has the name of a column with a meaning of its own. Bring a list column "
                f"({', '.join(KINDS)}; Parquet) or a .npz instead."
            )
        for name in rest:
            if name not in class_names:
                refuse_unknown(path, name, [*class_names, *meaningful], "class of the teacher and no other column")
        missing = [name for name in class_names if name not in rest]
        if missing:
            raise OutputsError(
                f"{path}: {len(missing)} of {len(class_names)} classes have no column; the first is {missing[0]!r}. One column "
                "for each class, by name, is needed."
            )

    def one(candidates: Sequence[str]) -> str | None:
        return next((name for name in candidates if name in names), None)

    values = tuple(list_columns[:1]) if list_columns else tuple(class_names)
    return Columns(values, bool(list_columns), one(["index"]), one(DIGEST_NAMES), one(PART_NAMES))


@dataclass
class Spill:
    """Batches of a table on their way to a temporary file that has no name and vanishes with the process."""

    file: IO[bytes] = field(default_factory=tempfile.TemporaryFile)
    rows: int = 0
    classes: int = 0
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.float64))
    index: list[NDArray[np.generic]] = field(default_factory=list)
    digests: list[NDArray[np.generic]] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)

    def add(self, values_BC: NDArray[Any]) -> None:
        """Append the values of a batch."""
        self.dtype, self.classes = values_BC.dtype, values_BC.shape[1]
        self.rows += len(values_BC)
        self.file.write(np.ascontiguousarray(values_BC).data.cast("B"))

    def rows_of(self, path: Path) -> tuple[Rows, ...]:
        """Everything that was added, memory-mapped; the rows of each part by themselves."""
        if self.rows == 0:
            raise OutputsError(f"{path} has no rows.")
        self.file.flush()
        values = np.memmap(self.file, dtype=self.dtype, mode="r", shape=(self.rows, self.classes))
        index = checked_index(np.concatenate(self.index), str(path)) if self.index else None
        digests = checked_digests(np.concatenate(self.digests), str(path)) if self.digests else None
        parts = np.array(self.parts) if self.parts else None

        def chosen(part: str | None) -> Rows:
            rows = np.arange(self.rows) if parts is None else np.flatnonzero(parts == part)
            return Rows(
                "its rows" if part is None else f"the rows of part {part!r}",
                values,
                rows,
                part,
                None if index is None else index[rows],
                None if digests is None else digests[rows],
            )

        return (chosen(None),) if parts is None else tuple(chosen(part) for part in dict.fromkeys(self.parts))


def read_csv(path: Path, kind: str, class_names: Sequence[str]) -> OutputsFile:
    """A CSV file with a header: one column for each class, and index, digest and part where there are such."""
    spill = Spill()
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file)
        try:
            header = next(lines, [])
            columns = columns_of(path, header, [], kind, class_names)
            place = {name: header.index(name) for name in header}
            for first, batch in _batches_of_lines(lines, len(header), path):
                spill.add(_numbers(batch, [place[name] for name in columns.values], header, first, path))
                if columns.index is not None:
                    spill.index.append(_integers([line[place[columns.index]] for line in batch], first, path))
                if columns.digest is not None:
                    spill.digests.append(np.array([line[place[columns.digest]] for line in batch], dtype="U"))
                if columns.part is not None:
                    spill.parts += [line[place[columns.part]] for line in batch]
        except (UnicodeDecodeError, csv.Error) as problem:
            raise OutputsError(f"{path} is not a CSV file in UTF-8 ({problem}).") from None
    return OutputsFile(path, spill.rows_of(path))


def _batches_of_lines(lines: Iterator[list[str]], fields: int, path: Path) -> Iterator[tuple[int, list[list[str]]]]:
    batch: list[list[str]] = []
    first = 0
    for line in lines:
        if not line:
            continue  # an empty line at the end
        if len(line) != fields:
            raise OutputsError(f"{path}: row {first + len(batch)} has {len(line)} fields, the header {fields}.")
        batch.append(line)
        if len(batch) == BATCH_ROWS:
            yield first, batch
            first += len(batch)
            batch = []
    if batch:
        yield first, batch


def _numbers(
    batch: list[list[str]], places: Sequence[int], header: Sequence[str], first: int, path: Path
) -> NDArray[np.float64]:
    values = np.empty((len(batch), len(places)))
    for row, line in enumerate(batch):
        for column, place in enumerate(places):
            try:
                values[row, column] = float(line[place])
            except ValueError:
                raise OutputsError(
                    f"{path}: row {first + row} has {line[place]!r} in column {header[place]!r}; a number is needed."
                ) from None
    return values


def _integers(texts: Sequence[str], first: int, path: Path) -> NDArray[np.int64]:
    found = []
    for row, text in enumerate(texts):
        try:
            found.append(int(text))
        except ValueError:
            raise OutputsError(f"{path}: row {first + row} has index {text!r}; an integer is needed.") from None
    try:
        return np.array(found, dtype=np.int64)
    except OverflowError:
        raise OutputsError(
            f"{path}: an index among rows {first} to {first + len(texts) - 1} is beyond 64 bits."
        ) from None


def read_parquet(path: Path, kind: str, class_names: Sequence[str]) -> OutputsFile:
    """A Parquet file: one column for each class or one list column, and index, digest and part where there are such."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise OutputsError(f'{path}: Parquet needs pyarrow: pip install "softcache[parquet]"') from None
    spill = Spill()
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            lists = [field.name for field in schema if arrow.types.is_nested(field.type)]
            columns = columns_of(path, schema.names, lists, kind, class_names)
            wanted = [name for name in (*columns.values, columns.index, columns.digest, columns.part) if name]
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=wanted):
                spill.add(_values_of(batch, columns, spill.rows, path))
                if columns.index is not None:
                    spill.index.append(_whole(batch, columns.index, spill.rows, path).to_numpy(zero_copy_only=False))
                if columns.digest is not None:
                    spill.digests.append(_digests_of(_whole(batch, columns.digest, spill.rows, path)))
                if columns.part is not None:
                    spill.parts += [str(part) for part in _whole(batch, columns.part, spill.rows, path).to_pylist()]
            stated = json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}"))
    except (arrow.ArrowException, OSError) as problem:
        raise OutputsError(f"{path} is not a whole Parquet file ({problem}).") from None
    names = stated.get("class_names") if columns.is_list else None
    return OutputsFile(path, spill.rows_of(path), names and tuple(names), stated.get("temperature"))


def _values_of(batch: Any, columns: Columns, first: int, path: Path) -> NDArray[Any]:
    """Values (B, C) of one batch; what is null becomes NaN, which the checks refuse by row."""
    if not columns.is_list:
        arrays = [_numeric(batch.column(name), name, path) for name in columns.values]
        return np.stack(arrays, axis=1)
    from pyarrow import compute

    column = batch.column(columns.values[0])
    lengths = compute.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    differing = np.flatnonzero(lengths != lengths[0])
    if len(differing):
        raise OutputsError(
            f"{path}: row {first + differing[0]} has {lengths[differing[0]]} numbers in {columns.values[0]}, row {first} "
            f"{lengths[0]}; each needs as many as there are classes."
        )
    return _numeric(column.flatten(), columns.values[0], path).reshape(len(batch), -1)


def _numeric(column: Any, name: str, path: Path) -> NDArray[Any]:
    found = column.to_numpy(zero_copy_only=False)
    if found.dtype.kind not in "fiu":
        raise OutputsError(f"{path}: column {name!r} is {column.type}; numbers are needed.")
    return found if found.dtype.kind == "f" else found.astype(np.float64)  # type: ignore[no-any-return]


def _whole(batch: Any, name: str, rows_after: int, path: Path) -> Any:
    """A column without nulls. `rows_after` counts the rows up to the end of the batch."""
    column = batch.column(name)
    if column.null_count:
        first = rows_after - len(column) + int(np.argmax(np.array(column.is_null())))
        raise OutputsError(f"{path}: row {first} has no {name}.")
    return column


def _digests_of(column: Any) -> NDArray[np.generic]:
    """16 bytes each as (B, 16) uint8, or texts as they are."""
    texts = column.to_pylist()
    if texts and isinstance(texts[0], bytes) and all(len(text) == 16 for text in texts):
        return np.frombuffer(b"".join(texts), dtype=np.uint8).reshape(-1, 16)
    return np.array([text.hex() if isinstance(text, bytes) else str(text) for text in texts], dtype="U")
