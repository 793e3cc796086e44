"""Plain files: numpy's memory map, which is the limit that peers are held against, and bare writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from benchmarks.peers.orders import Parts, gathered, in_order, windowed
from benchmarks.peers.peer import Epochs, Layout, Peer, Targets

ROWS_PER_WRITE = 4096
"""8 MB of 1000 classes: the blocks of softcache, against whose writing the bare writes are set."""


def write_one_file(source: Targets, place: Path, layout: Layout) -> None:
    """write(2) of the rows in order, without fsync."""
    with (place / "rows").open("wb", buffering=0) as file:
        for start in range(0, layout.rows, ROWS_PER_WRITE):
            _write(file.fileno(), source[start : start + ROWS_PER_WRITE])


def write_file_per_block(source: Targets, place: Path, layout: Layout) -> None:
    """A file for each 4096 rows, each with fsync, and the folder at the end."""
    for start in range(0, layout.rows, ROWS_PER_WRITE):
        with (place / str(start)).open("wb", buffering=0) as file:
            _write(file.fileno(), source[start : start + ROWS_PER_WRITE])
            os.fsync(file.fileno())
    folder = os.open(place, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _write(file: int, rows: Targets) -> None:
    left = rows.data.cast("B")
    while left:
        left = left[os.write(file, left) :]


def _mapped(place: Path, layout: Layout) -> Targets:
    # "c": private and writable, or torch warns; np.asarray: indexing the subclass np.memmap costs more
    return np.asarray(np.memmap(place / "rows", np.float16, "c", shape=(layout.rows, layout.classes)))


@contextmanager
def _fancy(place: Path, layout: Layout) -> Iterator[Epochs]:
    rows = _mapped(place, layout)
    yield gathered(layout.rows, lambda which: torch.from_numpy(rows[which]))


@contextmanager
def _index_select(place: Path, layout: Layout) -> Iterator[Epochs]:
    rows = torch.from_numpy(_mapped(place, layout))
    yield gathered(layout.rows, lambda which: rows.index_select(0, torch.from_numpy(which)))


@contextmanager
def _sequential(place: Path, layout: Layout) -> Iterator[Epochs]:
    rows = _mapped(place, layout)
    yield in_order(layout.rows, lambda which: rows[which].copy())


@contextmanager
def _window(place: Path, layout: Layout) -> Iterator[Epochs]:
    with (place / "rows").open("rb", buffering=0) as file:

        def read(parts: Parts) -> None:
            for rows, memory in parts:
                os.preadv(file.fileno(), [memory.data], rows.start * layout.row_bytes)

        yield windowed(layout, read)


@contextmanager
def _file_per_block(place: Path, layout: Layout) -> Iterator[Epochs]:
    def read(parts: Parts) -> None:
        for rows, memory in parts:
            filled = 0
            while filled < len(memory):
                number, inside = divmod(rows.start + filled, ROWS_PER_WRITE)
                taken = min(len(memory) - filled, ROWS_PER_WRITE - inside)
                with (place / str(number * ROWS_PER_WRITE)).open("rb", buffering=0) as file:
                    os.preadv(file.fileno(), [memory[filled : filled + taken].data], inside * layout.row_bytes)
                filled += taken

    yield windowed(layout, read)


PEERS = [
    Peer(
        "memmap",
        "raw write(2), no fsync; rows of np.memmap by fancy indexing",
        "global",
        write_one_file,
        _fancy,
        usual=True,
    ),
    Peer(
        "memmap-index-select",
        "raw write(2), no fsync; torch.index_select from the memory map",
        "global",
        write_one_file,
        _index_select,
    ),
    Peer(
        "memmap-sequential",
        "raw write(2), no fsync; np.memmap in order, each batch copied",
        "sequential",
        write_one_file,
        _sequential,
    ),
    Peer(
        "file-window",
        "raw write(2), no fsync; blocks by preadv into the pool of a window",
        "window",
        write_one_file,
        _window,
    ),
    Peer(
        "block-files",
        "a file with fsync for each 4096 rows; blocks by preadv into the pool of a window",
        "window",
        write_file_per_block,
        _file_per_block,
        durable=True,
    ),
]
