"""MosaicML streaming: MDS shards in a local folder."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.peers.orders import Parts, Rows, gathered, windowed
from benchmarks.peers.peer import Epochs, Layout, Peer, Targets

COLUMN = "soft_targets"


def _mosaic() -> tuple[Any, Any]:
    """MDSWriter and StreamingDataset, without torchvision and transformers.

    The `__init__` of two packages import them for datasets of images and of text, which nothing that is used here
    does. So these two are put in place without being run; their modules are found where they always are.
    """
    for name in ("streaming", "streaming.base"):
        found = importlib.util.find_spec(name)
        if name not in sys.modules and found is not None:
            sys.modules[name] = importlib.util.module_from_spec(found)
    from streaming.base.dataset import StreamingDataset
    from streaming.base.format import MDSWriter

    return MDSWriter, StreamingDataset


@contextmanager
def _dataset(place: Path, batch_size: int) -> Iterator[Any]:
    _, streaming_dataset = _mosaic()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # as its rows are
        dataset = streaming_dataset(local=str(place), shuffle=True, batch_size=batch_size)
        try:
            yield dataset
        finally:
            dataset.__del__()  # releases the folder, which else cannot be opened again while something refers to this


def _write_rows(source: Targets, place: Path, layout: Layout) -> None:
    writer, _ = _mosaic()
    with writer(out=str(place), columns={COLUMN: f"ndarray:float16:{layout.classes}"}) as out:
        for row in source:
            out.write({COLUMN: row})


def _write_blocks(source: Targets, place: Path, layout: Layout) -> None:
    writer, _ = _mosaic()
    with writer(out=str(place), columns={COLUMN: "ndarray:float16"}) as out:
        for start in layout.starts:
            out.write({COLUMN: source[layout.block(start)]})


@contextmanager
def _loader(place: Path, layout: Layout) -> Iterator[Epochs]:
    with _dataset(place, batch_size=256) as dataset:

        def epochs(seed: int, epoch: int, batch_size: int) -> Iterator[Tensor]:
            dataset.shuffle_seed, dataset.next_epoch = seed, epoch
            return (batch[COLUMN] for batch in DataLoader(dataset, batch_size))

        yield epochs


@contextmanager
def _rows(place: Path, layout: Layout) -> Iterator[Epochs]:
    with _dataset(place, batch_size=1) as dataset:

        def take(which: Rows) -> Tensor:
            return torch.from_numpy(np.stack([dataset[row][COLUMN] for row in which.tolist()]))

        yield gathered(layout.rows, take)


@contextmanager
def _window(place: Path, layout: Layout) -> Iterator[Epochs]:
    with _dataset(place, batch_size=1) as dataset:

        def read(parts: Parts) -> None:
            for rows, memory in parts:
                memory[:] = dataset[rows.start // layout.blocks.rows_per_block][COLUMN]

        yield windowed(layout, read)


NEEDS = ("streaming", "catalogue", "brotli", "snappy", "zstd")
PEERS = [
    Peer(
        "mosaic",
        "MDS, a sample a row; StreamingDataset(shuffle=True) in a DataLoader",
        "own",
        _write_rows,
        _loader,
        needs=NEEDS,
        imports=_mosaic,
        usual=True,
    ),
    Peer(
        "mosaic-rows",
        "MDS, a sample a row; random samples by number, stacked",
        "global",
        _write_rows,
        _rows,
        needs=NEEDS,
        imports=_mosaic,
    ),
    Peer(
        "mosaic-window",
        "MDS, a sample a block; samples by number into the pool of a window",
        "window",
        _write_blocks,
        _window,
        needs=NEEDS,
        imports=_mosaic,
    ),
]
