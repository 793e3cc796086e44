"""What a peer is: another way of storing rows of soft targets, of reading them shuffled, and how its files are laid out."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Targets = NDArray[np.float16]
"""Soft targets (rows, classes)."""

Epochs = Callable[[int, int, int], Iterator[Tensor]]
"""An opened peer, called with (seed, epoch, batch_size): the batches (batch_size, classes) float16 of one epoch.

Every row comes exactly once, the last batch may be short. Batches are memory of their own: none changes when the next
is made. One epoch is read at a time.
"""

Order = Literal["global", "window", "own", "sequential"]
"""Any permutation; permuted blocks, and rows permuted within a window of blocks; what the package does; none."""


@dataclass(frozen=True)
class Blocks:
    """How rows are cut by peers that store or read blocks of them."""

    rows_per_block: int = 1024
    """2 MB of 1000 classes: large enough to be read at the speed of memory, small enough for several in a window."""

    blocks_per_window: int = 8
    """16 MB of 1000 classes, the pool from which a window's rows are served."""


BLOCKS = Blocks()


@dataclass(frozen=True)
class Layout:
    """What was written; kept beside a peer's data, since some of them do not say it themselves."""

    rows: int
    classes: int
    blocks: Blocks

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.classes * np.dtype(np.float16).itemsize

    @property
    def starts(self) -> range:
        """The first row of each block."""
        return range(0, self.rows, self.blocks.rows_per_block)

    def block(self, start: int) -> slice:
        """The rows of the block that starts there."""
        return slice(start, min(start + self.blocks.rows_per_block, self.rows))


@dataclass(frozen=True)
class Peer:
    """One way of storing and reading, as most people use a package or as it is best used."""

    name: str
    how: str
    """In words: what is called, to write and to read."""

    order: Order
    writer: Callable[[Targets, Path, Layout], None]
    """Writes the rows into an empty folder; `Targets` is a memory-mapped .npy (np.load with `mmap_mode`)."""

    reader: Callable[[Path, Layout], AbstractContextManager[Epochs]]

    durable: bool = False
    """Whether a write, as used here, promises that the data has reached the disk (fsync) when it returns."""

    needs: tuple[str, ...] = ()
    """The modules that it imports, beside torch and numpy."""

    imports: Callable[[], object] | None = None
    """Imports them, where importing each by its name does not do."""

    usual: bool = False
    """Whether this is how most people use it, rather than how it is best used."""

    def missing(self) -> list[str]:
        """The modules that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]

    def load(self) -> None:
        """Import what it needs now, rather than at its first use, so that neither time nor memory of that is measured."""
        if self.imports:
            self.imports()
        else:
            for name in self.needs:
                importlib.import_module(name)

    def write(self, source: Targets, folder: Path, blocks: Blocks = BLOCKS) -> None:
        """Store the rows of a memory-mapped .npy in a folder that does not exist yet."""
        rows, classes = source.shape
        layout = Layout(rows, classes, blocks)
        data_of(folder).mkdir(parents=True)
        (folder / LAYOUT).write_text(json.dumps(asdict(layout)))
        self.writer(source, data_of(folder), layout)

    @contextmanager
    def open(self, folder: Path) -> Iterator[Epochs]:
        """Read what `write` stored."""
        with self.reader(data_of(folder), layout_of(folder)) as opened:
            yield opened

    def epoch(self, opened: Epochs, seed: int, epoch: int, batch_size: int) -> Iterator[Tensor]:
        """The batches of one epoch of an opened peer."""
        return opened(seed, epoch, batch_size)


LAYOUT = "layout.json"


def data_of(folder: Path) -> Path:
    """Where a peer's own files are in its folder."""
    return folder / "data"


def layout_of(folder: Path) -> Layout:
    """What was written into a folder."""
    kept = json.loads((folder / LAYOUT).read_text())
    return Layout(kept["rows"], kept["classes"], Blocks(**kept["blocks"]))
