"""tensorstore, with its zarr3 driver on files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.orders import Parts, gathered, windowed
from benchmarks.peers.peer import Epochs, Layout, Peer, Targets

BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
LZ4 = {"name": "blosc", "configuration": {"cname": "lz4", "clevel": 5, "shuffle": "bitshuffle", "typesize": 2}}


def _spec(place: Path, **context: Any) -> dict[str, Any]:
    return {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{place / 'rows.zarr'}/"}, "context": context}


def _write(source: Targets, place: Path, layout: Layout, lz4: bool = False, fsync: bool = True) -> None:
    import tensorstore

    chunk = [min(layout.blocks.rows_per_block, layout.rows), layout.classes]
    metadata = {
        "shape": list(source.shape),
        "data_type": "float16",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "codecs": [BYTES, LZ4] if lz4 else [BYTES],
    }
    spec = {**_spec(place, file_io_sync=fsync), "metadata": metadata}
    store: Any = tensorstore.open(spec, create=True).result()
    store.write(np.asarray(source)).result()


@contextmanager
def _rows(place: Path, layout: Layout) -> Iterator[Epochs]:
    import tensorstore

    store: Any = tensorstore.open(_spec(place), read=True).result()
    yield gathered(layout.rows, lambda which: torch.from_numpy(store[which].read().result()))


@contextmanager
def _window(place: Path, layout: Layout) -> Iterator[Epochs]:
    import tensorstore

    store: Any = tensorstore.open(_spec(place, file_io_mode={"mode": "memmap"}), read=True).result()
    array: Any = tensorstore.array

    def read(parts: Parts) -> None:
        # written into a view of the pool, chunks are copied once; `read` would allocate an array to be copied again
        reading = [array(memory).write(store[rows]) for rows, memory in parts]
        for block in reading:
            block.result()

    yield windowed(layout, read)


NEEDS = ("tensorstore",)
PEERS = [
    Peer(
        "tensorstore",
        "zarr3, uncompressed, its default fsync; read of random rows",
        "global",
        _write,
        _rows,
        durable=True,
        needs=NEEDS,
        usual=True,
    ),
    Peer(
        "tensorstore-window",
        "zarr3, uncompressed, no fsync; the chunks of a window at once from memory maps, into its pool",
        "window",
        partial(_write, fsync=False),
        _window,
        needs=NEEDS,
    ),
    Peer(
        "tensorstore-lz4-window",
        "zarr3, blosc-lz4, no fsync; the chunks of a window at once from memory maps, into its pool",
        "window",
        partial(_write, lz4=True, fsync=False),
        _window,
        needs=NEEDS,
    ),
]
