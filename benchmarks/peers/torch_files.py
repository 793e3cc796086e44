"""torch.save: one file for each row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from benchmarks.peers.orders import shuffled_loader
from benchmarks.peers.peer import Epochs, Layout, Peer, Targets


def _write(source: Targets, place: Path, layout: Layout) -> None:
    for row in range(layout.rows):
        torch.save(torch.from_numpy(source[row].copy()), place / f"{row}.pt")


class _Files(Dataset[Tensor]):
    def __init__(self, place: Path, rows: int):
        self._place, self._rows = place, rows

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, row: int) -> Tensor:
        loaded: Tensor = torch.load(self._place / f"{row}.pt")
        return loaded


@contextmanager
def _loader(place: Path, layout: Layout) -> Iterator[Epochs]:
    dataset = _Files(place, layout.rows)
    yield lambda seed, epoch, batch_size: shuffled_loader(dataset, seed, epoch, batch_size)


PEERS = [
    Peer(
        "torch-files",
        "torch.save of each row; torch.load in a shuffling DataLoader",
        "global",
        _write,
        _loader,
        usual=True,
    )
]
