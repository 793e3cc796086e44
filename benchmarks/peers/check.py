"""Whether a peer serves what it was given: every row once in each epoch, bit for bit, shuffled, in full batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.peer import Blocks, Peer, Targets
from benchmarks.peers.source import make_source

ROWS, CLASSES, BATCH_SIZE = 1003, 10, 50
BLOCKS = Blocks(rows_per_block=64, blocks_per_window=3)
"""A last block, a last window and a last batch that are short, and batches that cross windows."""


class Differs(Exception):
    """A peer does not serve what it was given."""


def check(peer: Peer, folder: Path) -> None:
    """Write little data in a folder that does not exist yet, and read two epochs; raises Differs."""
    folder.mkdir(parents=True)
    source = make_source(folder / "source.npy", ROWS, CLASSES)
    peer.write(source, folder / peer.name, BLOCKS)
    with peer.open(folder / peer.name) as opened:
        first, second = (_epoch(peer, list(opened(0, epoch, BATCH_SIZE)), source) for epoch in range(2))
    if (peer.order == "sequential") != bool(torch.equal(first, second)):
        raise Differs(f"{peer.name}: two epochs have {'another' if peer.order == 'sequential' else 'the same'} order")


def _epoch(peer: Peer, batches: list[Tensor], source: Targets) -> Tensor:
    """The rows in the order in which they came; all batches were kept until the last, so memory that is reused shows."""
    if {batch.dtype for batch in batches} != {torch.float16}:
        raise Differs(f"{peer.name}: batches of {batches[0].dtype}, not float16")
    if any(len(batch) != BATCH_SIZE for batch in batches[:-1]):
        raise Differs(f"{peer.name}: batches of {[len(batch) for batch in batches]} rows, not of {BATCH_SIZE}")
    served = torch.cat(batches)
    if _sorted(served.numpy()) != _sorted(source):
        raise Differs(f"{peer.name}: the {len(served)} rows of an epoch are not the {len(source)} that were written")
    return served


def _sorted(rows: Targets) -> list[bytes]:
    return sorted(np.ascontiguousarray(row).tobytes() for row in rows)
