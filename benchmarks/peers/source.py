"""The soft targets that every peer stores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.peers.peer import Targets

ROWS, CLASSES = 200_000, 1000
TEMPERATURE = 4.0
SPREAD_OF_LOGITS = 3.27
"""Standard deviation of a made-up teacher's logits."""

ROWS_AT_ONCE = 4096


def make_source(file: Path, rows: int = ROWS, classes: int = CLASSES) -> Targets:
    """Write softmax(logits / 4) of normal logits as a float16 .npy, the same at every call; returns it memory-mapped."""
    targets = np.lib.format.open_memmap(file, "w+", np.dtype(np.float16), (rows, classes))
    generator = torch.Generator().manual_seed(0)
    for start in range(0, rows, ROWS_AT_ONCE):
        logits = SPREAD_OF_LOGITS * torch.randn(min(ROWS_AT_ONCE, rows - start), classes, generator=generator)
        targets[start : start + ROWS_AT_ONCE] = torch.softmax(logits / TEMPERATURE, dim=1).half().numpy()
    targets.flush()
    return open_source(file)


def open_source(file: Path) -> Targets:
    """The targets, memory-mapped."""
    targets: Targets = np.load(file, mmap_mode="r")
    return targets
