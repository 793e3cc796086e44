"""h5py: one contiguous dataset."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from benchmarks.peers.orders import Parts, Rows, gathered, windowed
from benchmarks.peers.peer import Epochs, Layout, Peer, Targets


def _write(source: Targets, place: Path, layout: Layout) -> None:
    import h5py

    with h5py.File(place / "rows.h5", "w") as file:
        file.create_dataset("soft_targets", data=source)


@contextmanager
def _rows(place: Path, layout: Layout) -> Iterator[Epochs]:
    import h5py

    with h5py.File(place / "rows.h5", "r") as file:
        dataset = file["soft_targets"]

        def take(which: Rows) -> torch.Tensor:
            return torch.from_numpy(dataset[np.sort(which)])  # h5py takes rising indices only

        yield gathered(layout.rows, take)


@contextmanager
def _window(place: Path, layout: Layout) -> Iterator[Epochs]:
    import h5py

    with h5py.File(place / "rows.h5", "r") as file:
        dataset = file["soft_targets"]

        def read(parts: Parts) -> None:
            for rows, memory in parts:
                dataset.read_direct(memory, np.s_[rows])

        yield windowed(layout, read)


PEERS = [
    Peer(
        "h5py",
        "contiguous dataset; random rows, sorted within a batch",
        "global",
        _write,
        _rows,
        needs=("h5py",),
        usual=True,
    ),
    Peer(
        "h5py-window",
        "contiguous dataset; read_direct of blocks into the pool of a window",
        "window",
        _write,
        _window,
        needs=("h5py",),
    ),
]
