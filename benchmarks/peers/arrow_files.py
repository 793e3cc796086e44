"""pyarrow: memory-mapped Arrow IPC files, and Parquet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from benchmarks.peers.orders import Parts, Rows, gathered, windowed
from benchmarks.peers.peer import Epochs, Layout, Peer, Targets

COLUMN = "soft_targets"


def _lists(rows: Targets) -> Any:
    """Rows as an Arrow array of lists of fixed size."""
    import pyarrow

    values = pyarrow.array(np.ascontiguousarray(rows).reshape(-1))
    return pyarrow.FixedSizeListArray.from_arrays(values, rows.shape[1])


def _binary(rows: Targets) -> Any:
    """Rows as an Arrow array of bytes of fixed size, which Parquet neither nests nor encodes."""
    import pyarrow

    row_bytes = rows.shape[1] * rows.itemsize
    content = pyarrow.py_buffer(np.ascontiguousarray(rows))
    return pyarrow.FixedSizeBinaryArray.from_buffers(pyarrow.binary(row_bytes), len(rows), [None, content])


def _rows_of_lists(array: Any, classes: int) -> Targets:
    rows: Targets = array.flatten().to_numpy().reshape(-1, classes)
    return rows


def _rows_of_binary(array: Any, classes: int) -> Targets:
    rows = np.frombuffer(array.buffers()[1], np.float16).reshape(-1, classes)
    return rows[array.offset : array.offset + len(array)]


def _tensor(array: Any, classes: int) -> Tensor:
    """An array of lists without a copy; through numpy torch would warn, since Arrow marks memory as read-only."""
    return from_dlpack(array.flatten()).view(-1, classes)


def _write_ipc(source: Targets, place: Path, layout: Layout, one_batch: bool) -> None:
    import pyarrow

    parts = [slice(None)] if one_batch else [layout.block(start) for start in layout.starts]
    schema = pyarrow.schema({COLUMN: pyarrow.list_(pyarrow.float16(), layout.classes)})
    with pyarrow.OSFile(str(place / "rows.arrow"), "wb") as file, pyarrow.ipc.new_file(file, schema) as out:
        for rows in parts:
            out.write_batch(pyarrow.record_batch([_lists(source[rows])], schema=schema))


@contextmanager
def _table(place: Path, layout: Layout) -> Iterator[Epochs]:
    import pyarrow

    with pyarrow.memory_map(str(place / "rows.arrow")) as file:
        table = pyarrow.ipc.open_file(file).read_all()

        def take(which: Rows) -> Tensor:
            return _tensor(table.take(which)[COLUMN].combine_chunks(), layout.classes)

        yield gathered(layout.rows, take)


@contextmanager
def _array(place: Path, layout: Layout) -> Iterator[Epochs]:
    import pyarrow

    with pyarrow.memory_map(str(place / "rows.arrow")) as file:
        array = pyarrow.ipc.open_file(file).get_batch(0)[COLUMN]

        def take(which: Rows) -> Tensor:
            return _tensor(array.take(pyarrow.array(which)), layout.classes)

        yield gathered(layout.rows, take)


def _write_parquet(source: Targets, place: Path, layout: Layout, binary: bool) -> None:
    import pyarrow
    from pyarrow import parquet

    columns_of = _binary if binary else _lists
    schema = pyarrow.schema({COLUMN: columns_of(source[:1]).type})
    with parquet.ParquetWriter(
        place / "rows.parquet", schema, compression="none", use_dictionary=False, write_statistics=False
    ) as out:
        for start in layout.starts:
            rows = source[layout.block(start)]
            out.write_batch(pyarrow.record_batch([columns_of(rows)], schema=schema), row_group_size=len(rows))


@contextmanager
def _row_groups(place: Path, layout: Layout, binary: bool) -> Iterator[Epochs]:
    from pyarrow import parquet

    rows_of = _rows_of_binary if binary else _rows_of_lists
    with parquet.ParquetFile(place / "rows.parquet", memory_map=True) as file:

        def read(parts: Parts) -> None:
            for rows, memory in parts:
                group = file.read_row_group(rows.start // layout.blocks.rows_per_block)
                filled = 0
                for chunk in group[COLUMN].chunks:
                    memory[filled : filled + len(chunk)] = rows_of(chunk, layout.classes)
                    filled += len(chunk)

        yield windowed(layout, read)


PEERS = [
    Peer(
        "arrow",
        "Arrow IPC, a record batch a block; Table.take of random rows from the memory map",
        "global",
        partial(_write_ipc, one_batch=False),
        _table,
        needs=("pyarrow",),
        usual=True,
    ),
    Peer(
        "arrow-array",
        "Arrow IPC, all rows in one record batch; Array.take of random rows from the memory map",
        "global",
        partial(_write_ipc, one_batch=True),
        _array,
        needs=("pyarrow",),
    ),
    Peer(
        "parquet",
        "Parquet, lists of float16; row groups into the pool of a window",
        "window",
        partial(_write_parquet, binary=False),
        partial(_row_groups, binary=False),
        needs=("pyarrow",),
        usual=True,
    ),
    Peer(
        "parquet-binary",
        "Parquet, a row as bytes of fixed size; row groups into the pool of a window",
        "window",
        partial(_write_parquet, binary=True),
        partial(_row_groups, binary=True),
        needs=("pyarrow",),
    ),
]
