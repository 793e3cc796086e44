"""Parquet files of outputs; pyarrow is an optional extra.

Shape legend: B rows of a batch, C classes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import OutputsError
from pipeline.targets.export import METADATA_KEY
from pipeline.teachers.outputs_file import OutputsFile, refuse_views
from pipeline.teachers.outputs_tables import Columns, Spill, columns_of

BATCH_ROWS = 4096


def read_parquet(path: Path, kind: str, class_names: Sequence[str]) -> OutputsFile:
    """A Parquet file: one column for each class or one list column, and index, digest and part where there are such."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise OutputsError(f'{path}: Parquet needs pyarrow: pip install "softcache[parquet]"') from None
    try:
        with parquet.ParquetFile(path) as file, tempfile.TemporaryFile() as beside:
            spill, schema = Spill(beside), file.schema_arrow
            lists = [field.name for field in schema if arrow.types.is_nested(field.type)]
            columns = columns_of(path, schema.names, lists, kind, class_names)
            wanted = [
                name for name in (*columns.values, columns.index, columns.digest, columns.part, columns.view) if name
            ]
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=wanted):
                first = spill.rows
                spill.add(_values_of(batch, columns, spill, path))
                if columns.index is not None:
                    spill.index.append(_whole(batch, columns.index, first, path).to_numpy(zero_copy_only=False))
                if columns.digest is not None:
                    spill.digests.append(_digests_of(_whole(batch, columns.digest, first, path), first, path))
                if columns.part is not None:
                    spill.parts += [str(part) for part in _whole(batch, columns.part, first, path).to_pylist()]
                if columns.view is not None:
                    refuse_views(
                        _whole(batch, columns.view, first, path).to_numpy(zero_copy_only=False), str(path), first
                    )
            rows = spill.rows_of(path)
    except (arrow.ArrowException, OSError) as problem:
        raise OutputsError(f"{path} is not a whole Parquet file ({problem}).") from None
    names, temperature = _stated(schema.metadata or {})
    return OutputsFile(path, rows, names if columns.is_list else None, temperature)


def _stated(metadata: dict[bytes, bytes]) -> tuple[tuple[str, ...] | None, float | None]:
    """The class names and the temperature that an exported file says of itself."""
    try:
        said = json.loads(metadata.get(METADATA_KEY, b"{}"))
        names, temperature = said.get("class_names"), said.get("temperature")
        return names and tuple(map(str, names)), None if temperature is None else float(temperature)
    except (ValueError, TypeError, AttributeError):
        return None, None


def _values_of(batch: Any, columns: Columns, before: Spill, path: Path) -> NDArray[Any]:
    """Values (B, C) of one batch; what is null becomes NaN, which the checks refuse by row."""
    if not columns.is_list:
        arrays = [_numeric(batch.column(name), name, path) for name in columns.values]
        return np.stack(arrays, axis=1)
    from pyarrow import compute

    column = batch.column(columns.values[0])
    lengths = compute.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    width = before.classes if before.rows else int(lengths[0])
    differing = np.flatnonzero(lengths != width)
    if len(differing):
        raise OutputsError(
            f"{path}: row {before.rows + differing[0]} has {lengths[differing[0]]} numbers in {columns.values[0]}, row 0 has "
            f"{width}; each needs as many as there are classes."
        )
    return _numeric(column.flatten(), columns.values[0], path).reshape(len(batch), width)


def _numeric(column: Any, name: str, path: Path) -> NDArray[Any]:
    found = column.to_numpy(zero_copy_only=False)
    if found.dtype.kind not in "fiu":
        raise OutputsError(f"{path}: column {name!r} is {column.type}; numbers are needed.")
    return found if found.dtype.kind == "f" else found.astype(np.float64)  # type: ignore[no-any-return]


def _whole(batch: Any, name: str, first: int, path: Path) -> Any:
    """A column without nulls, of rows `first` and following."""
    column = batch.column(name)
    if column.null_count:
        raise OutputsError(f"{path}: row {first + int(np.argmax(np.array(column.is_null())))} has no {name}.")
    return column


def _digests_of(column: Any, first: int, path: Path) -> NDArray[np.generic]:
    """Those of rows `first` and following: of bytes (B, 16) uint8, else texts as they are. The column's type decides."""
    values = column.to_pylist()
    if not values or not isinstance(values[0], bytes):  # all are of the type of the column
        return np.array([str(text) for text in values], dtype="U")
    wrong = next((row for row, value in enumerate(values) if len(value) != 16), None)
    if wrong is not None:
        raise OutputsError(
            f"{path}: row {first + wrong} has digest {values[wrong][:40].hex()!r} of {len(values[wrong])} bytes; 16 are needed "
            "(or a column of texts with 32 hex digits each)."
        )
    return np.frombuffer(b"".join(values), dtype=np.uint8).reshape(-1, 16)
