"""WebDataset: .npy members in tar shards, as many rows in each as in a window."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.peers.orders import streamed
from benchmarks.peers.peer import Epochs, Layout, Peer, Targets

MEMBER = "npy"


def _write_rows(source: Targets, place: Path, layout: Layout) -> None:
    rows_per_shard = layout.blocks.rows_per_block * layout.blocks.blocks_per_window
    _write(source, place, rows_per_shard)


def _write_blocks(source: Targets, place: Path, layout: Layout) -> None:
    _write((source[layout.block(start)] for start in layout.starts), place, layout.blocks.blocks_per_window)


def _write(samples: Iterable[Targets], place: Path, samples_per_shard: int) -> None:
    import webdataset

    with webdataset.ShardWriter(str(place / "%06d.tar"), maxcount=samples_per_shard, verbose=0) as shards:
        for number, sample in enumerate(samples):
            shards.write({"__key__": f"{number:09d}", MEMBER: sample})


def _samples(place: Path, seed: int, epoch: int, buffer: int) -> Any:
    """Shards in a random order, their samples through a shuffle buffer; decoded."""
    import webdataset

    shards = [str(path) for path in sorted(place.glob("*.tar"))]
    both = random.Random(f"{seed} {epoch}")
    both.shuffle(shards)  # what shardshuffle does, but from this epoch's seed
    return webdataset.WebDataset(shards, shardshuffle=False).shuffle(buffer, initial=buffer, rng=both).decode()


@contextmanager
def _loader(place: Path, layout: Layout) -> Iterator[Epochs]:
    import webdataset

    def epochs(seed: int, epoch: int, batch_size: int) -> Iterator[Tensor]:
        buffer = layout.blocks.rows_per_block * layout.blocks.blocks_per_window
        batches = _samples(place, seed, epoch, buffer).to_tuple(MEMBER).batched(batch_size)
        return (batch for [batch] in webdataset.WebLoader(batches, batch_size=None))

    yield epochs


@contextmanager
def _window(place: Path, layout: Layout) -> Iterator[Epochs]:
    def stream(seed: int, epoch: int) -> Iterator[Targets]:
        return (sample[MEMBER] for sample in _samples(place, seed, epoch, layout.blocks.blocks_per_window))

    yield streamed(layout, stream)


PEERS = [
    Peer(
        "webdataset",
        "tar shards, an .npy a row; shuffle buffer of a window's rows, batched, WebLoader",
        "own",
        _write_rows,
        _loader,
        needs=("webdataset",),
        usual=True,
    ),
    Peer(
        "webdataset-window",
        "tar shards, an .npy a block; shuffled shards and blocks into the pool of a window",
        "window",
        _write_blocks,
        _window,
        needs=("webdataset",),
    ),
]
