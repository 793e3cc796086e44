"""Seconds of a write and of an epoch, and bytes on disk; compare with one thread of torch (torch.set_num_threads)."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from torch import Tensor

from benchmarks.peers.peer import BLOCKS, Blocks, Epochs, Peer, Targets, data_of, layout_of

BATCH_SIZE = 256


@dataclass(frozen=True)
class Consumed:
    """What a loop over batches has seen, so that none of them can have been left unread."""

    rows: int
    total: float
    """The sum of two values of each batch."""


def consume(batches: Iterable[Tensor]) -> Consumed:
    """Go through batches as a training loop does, without the training."""
    rows, total = 0, 0.0
    for batch in batches:
        rows += len(batch)
        total += float(batch[0, 0]) + float(batch[-1, -1])
    return Consumed(rows, total)


def timed_epoch(
    opened: Epochs, epoch: int, seed: int = 0, batch_size: int = BATCH_SIZE, batches: int | None = None
) -> float:
    """Seconds of one epoch of an opened peer, or of its first `batches` where an epoch would take minutes."""
    started = time.perf_counter()
    consume(islice(opened(seed, epoch, batch_size), batches))
    return time.perf_counter() - started


def timed_write(peer: Peer, source: Targets, folder: Path, blocks: Blocks = BLOCKS) -> float:
    """Seconds to store the source in a folder, which is emptied before.

    What others wrote is on the disk when the time begins (sync); what this peer wrote need not be when it ends, unless
    the peer is durable.
    """
    shutil.rmtree(folder, ignore_errors=True)
    os.sync()
    started = time.perf_counter()
    peer.write(source, folder, blocks)
    return time.perf_counter() - started


def bytes_per_row(folder: Path) -> float:
    """Apparent size of the files that a peer wrote, over its rows."""
    files = (path for path in data_of(folder).rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files) / layout_of(folder).rows
