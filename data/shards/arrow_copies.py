"""Copies of compressed columns as plain Arrow files, which can be mapped: random rows of Parquet would cost a row group each."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from data.errors import DatasetError
from data.looks import Bar
from data.shards.kept_files import KeptFiles
from data.shards.table_files import ArrowTable, TableFile

Chunks = Sequence[Any]  # Arrow arrays, one after another


def in_memory(table: TableFile, column: str) -> Chunks:
    """A column decompressed into memory: for small ones."""
    return list(table.pieces(column))


def mapped_copies(files: Sequence[tuple[Path, TableFile]], column: str, kept: KeptFiles, bar: Bar) -> list[Chunks]:
    """The column of each file as arrays that are mapped from its copy, which is made where it is not there yet.

    Raises DatasetError when a file is damaged, or there is no room for the copies.
    """
    places = [kept.place([path]) for path, _ in files]
    missing = {place: table for place, (_, table) in zip(places, files, strict=True) if not place.is_file()}
    if missing:
        _refuse_too_large(missing.values(), column, kept.folder)
        with bar("copying to Arrow", sum(table.rows() for table in missing.values()), "rows") as advance:
            for place, table in missing.items():
                for rows in _copied(table, column, kept, place):
                    advance(rows)
    kept.remove_others(places)
    return [ArrowTable(place).mapped(column) or () for place in places]


def _copied(table: TableFile, column: str, kept: KeptFiles, place: Path) -> Iterator[int]:
    """Make a copy; gives how many rows came to it, piece by piece."""
    schema = pa.schema([table.schema().field(column)])
    try:
        with kept.written(place) as file, pa.ipc.new_file(file, schema) as writer:
            for piece in table.pieces(column):
                writer.write_batch(pa.record_batch([piece], schema=schema))
                yield len(piece)
                pa.default_memory_pool().release_unused()  # it would keep several times what a piece takes
    except OSError as problem:
        raise DatasetError(f"{place}: the copy of column {column!r} cannot be written ({problem}).") from None


def _refuse_too_large(tables: Any, column: str, folder: Path) -> None:
    needed = sum(table.size_of(column) for table in tables)
    free = shutil.disk_usage(next(above for above in (folder, *folder.parents) if above.is_dir())).free
    if needed > free:
        raise DatasetError(
            f"{folder}: a copy of column {column!r} needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free here. Make "
            "room, or choose another --workspace."
        )
