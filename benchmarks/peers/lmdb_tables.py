"""LMDB: one value for each row, under its number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from benchmarks.peers.orders import Rows, gathered, shuffled_loader
from benchmarks.peers.peer import Epochs, Layout, Peer, Targets


def _key(row: int) -> bytes:
    return row.to_bytes(8, "big")


def _write(source: Targets, place: Path, layout: Layout, fsync_each: bool) -> None:
    """A transaction for each block; either each ends with an fsync, as is LMDB's default, or all do with one."""
    import lmdb

    room = 4 * layout.rows * layout.row_bytes + 2**26  # of address space; the file grows as needed
    with lmdb.open(str(place), map_size=room, sync=fsync_each) as environment:
        for start in layout.starts:
            rows = layout.block(start)
            with environment.begin(write=True) as transaction, transaction.cursor() as cursor:
                pairs = [(_key(row), source[row].tobytes()) for row in range(rows.start, rows.stop)]
                cursor.putmulti(pairs, append=True)
        environment.sync(True)


@contextmanager
def _environment(place: Path) -> Iterator[Any]:
    import lmdb

    with lmdb.open(str(place), readonly=True, lock=False) as environment:
        yield environment


class _Rows(Dataset[Tensor]):
    """A transaction for each row, as in the many datasets that are written like this."""

    def __init__(self, environment: Any, rows: int):
        self._environment, self._rows = environment, rows

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, row: int) -> Tensor:
        with self._environment.begin() as transaction:
            return torch.frombuffer(bytearray(transaction.get(_key(row))), dtype=torch.float16)


@contextmanager
def _loader(place: Path, layout: Layout) -> Iterator[Epochs]:
    with _environment(place) as environment:
        dataset = _Rows(environment, layout.rows)
        yield lambda seed, epoch, batch_size: shuffled_loader(dataset, seed, epoch, batch_size)


@contextmanager
def _buffers(place: Path, layout: Layout) -> Iterator[Epochs]:
    with _environment(place) as environment, environment.begin(buffers=True) as transaction:

        def take(which: Rows) -> Tensor:
            rows = bytearray().join([transaction.get(_key(row)) for row in which.tolist()])  # copied once, from the map
            return torch.frombuffer(rows, dtype=torch.float16).view(-1, layout.classes)

        yield gathered(layout.rows, take)


PEERS = [
    Peer(
        "lmdb",
        "a transaction with fsync for each block; a transaction a row, in a shuffling DataLoader",
        "global",
        partial(_write, fsync_each=True),
        _loader,
        durable=True,
        needs=("lmdb",),
        usual=True,
    ),
    Peer(
        "lmdb-buffers",
        "transactions with one fsync at the end; one transaction, a batch of buffers copied once",
        "global",
        partial(_write, fsync_each=False),
        _buffers,
        durable=True,
        needs=("lmdb",),
    ),
]
