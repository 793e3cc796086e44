"""LitData: optimised chunks in a local folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.peers.orders import Parts, windowed
from benchmarks.peers.peer import Epochs, Layout, Peer, Targets

CHUNK_BYTES = "64MB"


def row_of(number: int, file: str) -> Tensor:
    """One row of the source; called in the processes that `optimize` starts."""
    rows: Targets = np.load(file, mmap_mode="r")
    return torch.from_numpy(rows[number].copy())


def _write_optimised(source: Targets, place: Path, layout: Layout) -> None:
    from litdata import optimize

    file = str(getattr(source, "filename"))  # noqa: B009 - of np.memmap, which NDArray does not know
    optimize(
        partial(row_of, file=file),
        list(range(layout.rows)),
        str(place),
        chunk_bytes=CHUNK_BYTES,
        num_workers=1,  # rows stay in their order, and the start of one process is quite enough of its time
        verbose=False,
    )


def _write_tokens(source: Targets, place: Path, layout: Layout) -> None:
    from litdata import TokensLoader
    from litdata.streaming.cache import Cache

    rows_per_chunk = layout.blocks.rows_per_block * layout.blocks.blocks_per_window
    cache = Cache(str(place), chunk_size=rows_per_chunk * layout.classes, item_loader=TokensLoader())
    _fill(cache, (source[row].copy() for row in range(layout.rows)))


def _write_blocks(source: Targets, place: Path, layout: Layout) -> None:
    from litdata.streaming.cache import Cache

    cache = Cache(str(place), chunk_bytes=CHUNK_BYTES)
    _fill(cache, (source[layout.block(start)].copy() for start in layout.starts))


def _fill(cache: Any, samples: Iterator[Targets]) -> None:
    """What `optimize` does in each of its processes."""
    for number, sample in enumerate(samples):
        cache[number] = torch.from_numpy(sample)
    cache.done()
    cache.merge()


@contextmanager
def _loader(place: Path, layout: Layout, tokens: bool) -> Iterator[Epochs]:
    from litdata import StreamingDataset, TokensLoader

    def epochs(seed: int, epoch: int, batch_size: int) -> Iterator[Tensor]:
        item_loader = TokensLoader(block_size=layout.classes) if tokens else None
        dataset: Any = StreamingDataset(str(place), shuffle=True, seed=seed, item_loader=item_loader)
        dataset.set_epoch(epoch + 1)  # its first epoch is 1
        return iter(DataLoader(dataset, batch_size))

    yield epochs


@contextmanager
def _window(place: Path, layout: Layout) -> Iterator[Epochs]:
    from litdata import StreamingDataset

    dataset: Any = StreamingDataset(str(place))

    def read(parts: Parts) -> None:
        for rows, memory in parts:
            torch.from_numpy(memory).copy_(dataset[rows.start // layout.blocks.rows_per_block])

    yield windowed(layout, read)


NEEDS = ("litdata", "lightning_utilities", "boto3", "requests")
PEERS = [
    Peer(
        "litdata",
        "litdata.optimize, a sample a row; StreamingDataset(shuffle=True) in a DataLoader",
        "own",
        _write_optimised,
        partial(_loader, tokens=False),
        needs=NEEDS,
        usual=True,
    ),
    Peer(
        "litdata-tokens",
        "rows as one run of float16 tokens; TokensLoader(block_size=classes), shuffled, in a DataLoader",
        "own",
        _write_tokens,
        partial(_loader, tokens=True),
        needs=NEEDS,
    ),
    Peer(
        "litdata-window",
        "a sample a block; samples by number into the pool of a window",
        "window",
        _write_blocks,
        _window,
        needs=NEEDS,
    ),
]
