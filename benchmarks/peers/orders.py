"""Epochs of peers that leave the order to their user: any row, rows in order, windows of blocks, a DataLoader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.peers.peer import Epochs, Layout, Targets

Rows = NDArray[np.int64]
Parts = list[tuple[slice, Targets]]
"""Rows of the array, and the memory where they go."""


def gathered(rows: int, take: Callable[[Rows], Tensor]) -> Epochs:
    """Batches of any rows: `take` returns those that it is given."""

    def epochs(seed: int, epoch: int, batch_size: int) -> Iterator[Tensor]:
        order = np.random.default_rng([seed, epoch]).permutation(rows)
        return (take(order[start : start + batch_size]) for start in range(0, rows, batch_size))

    return epochs


def in_order(rows: int, copied: Callable[[slice], Targets]) -> Epochs:
    """Batches of rows that follow each other, each copied."""

    def epochs(seed: int, epoch: int, batch_size: int) -> Iterator[Tensor]:
        return (torch.from_numpy(copied(slice(start, start + batch_size))) for start in range(0, rows, batch_size))

    return epochs


def windowed(layout: Layout, read: Callable[[Parts], None]) -> Epochs:
    """Batches from windows of permuted blocks, which `read` fills; one pool of memory serves every window."""
    pool = empty_pool(layout)

    def epochs(seed: int, epoch: int, batch_size: int) -> Iterator[Tensor]:
        random = np.random.default_rng([seed, epoch])
        starts = random.permutation(np.asarray(layout.starts)).tolist()
        return batches_of(torch.from_numpy(pool), _filled(starts, layout, pool, read, random), batch_size)

    return epochs


def streamed(layout: Layout, stream: Callable[[int, int], Iterable[Targets]]) -> Epochs:
    """Batches from windows of blocks that come in an order of the package, as `stream` (seed, epoch) yields them."""
    pool = empty_pool(layout)

    def epochs(seed: int, epoch: int, batch_size: int) -> Iterator[Tensor]:
        orders = _received(iter(stream(seed, epoch)), layout, pool, np.random.default_rng([seed, epoch]))
        return batches_of(torch.from_numpy(pool), orders, batch_size)

    return epochs


def empty_pool(layout: Layout) -> Targets:
    """Memory for one window."""
    rows = layout.blocks.rows_per_block * layout.blocks.blocks_per_window
    return np.empty((rows, layout.classes), np.float16)


def _filled(
    starts: list[int], layout: Layout, pool: Targets, read: Callable[[Parts], None], random: np.random.Generator
) -> Iterator[Tensor]:
    """The order in which the pool's rows are served, once for each window that was read into it."""
    at_once = layout.blocks.blocks_per_window
    for window in (starts[first : first + at_once] for first in range(0, len(starts), at_once)):
        parts, rows = [], 0
        for block in map(layout.block, window):
            parts.append((block, pool[rows : rows + block.stop - block.start]))
            rows += block.stop - block.start
        read(parts)
        yield torch.from_numpy(random.permutation(rows))


def _received(
    blocks: Iterator[Targets], layout: Layout, pool: Targets, random: np.random.Generator
) -> Iterator[Tensor]:
    rows, held = 0, 0
    for block in blocks:
        pool[rows : rows + len(block)] = block
        rows, held = rows + len(block), held + 1
        if held == layout.blocks.blocks_per_window:
            yield torch.from_numpy(random.permutation(rows))
            rows, held = 0, 0
    if rows:
        yield torch.from_numpy(random.permutation(rows))


def batches_of(pool: Tensor, orders: Iterator[Tensor], batch_size: int) -> Iterator[Tensor]:
    """Full batches of the pool's rows in each order; what a window leaves over begins a batch that the next one fills."""
    begun = pool[:0]
    for order in orders:
        if len(begun):
            needed = batch_size - len(begun)
            begun = torch.cat([begun, pool.index_select(0, order[:needed])])
            if len(begun) < batch_size:
                continue
            yield begun
            order = order[needed:]
            begun = pool[:0]
        for start in range(0, len(order), batch_size):
            batch = pool.index_select(0, order[start : start + batch_size])
            if len(batch) == batch_size:
                yield batch
            else:
                begun = batch
    if len(begun):
        yield begun


def shuffled_loader(dataset: Any, seed: int, epoch: int, batch_size: int) -> Iterator[Any]:
    """torch's DataLoader over a map-style dataset, in this process: with two cores, workers cost more than they save."""
    from torch.utils.data import DataLoader

    generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
    return iter(DataLoader(dataset, batch_size, shuffle=True, generator=generator))
