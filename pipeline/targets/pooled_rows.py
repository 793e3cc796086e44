"""Rows of an array whose blocks are read, and decoded where they are compressed, into a bounded pool of memory."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.sorting import Indices
from pipeline.targets.arrays import ArraySpec
from pipeline.targets.mapped_rows import word_of

if TYPE_CHECKING:
    from torch import Tensor

READERS = min(4, os.cpu_count() or 1)  # threads that decode blocks side by side

ReadInto = Callable[[int, NDArray[np.uint8]], None]


class PooledRows:
    """The rows of one array; as many of its blocks as fit are kept decoded.

    The block used last makes room: an epoch comes back to a block after all others, so that of those kept longest most are
    still there then, and a window's blocks are decoded into memory that the processor's cache still holds.
    Any number of threads may gather at once: one of them at a time brings blocks in, with several threads to decode them,
    while the others gather from blocks that are there. A block that is being gathered from is never let go.
    """

    def __init__(self, spec: ArraySpec, read_into: ReadInto, pool_bytes: int):
        """`read_into(block, target)` fills `target` (bytes of a block); `pool_bytes` is kept to, but for one block."""
        import torch

        slots = max(1, min(spec.chunks, pool_bytes // spec.chunk_bytes))
        self._rows_per_block, self._slots, self._read_into = spec.rows_per_chunk, slots, read_into
        self._memory: NDArray[np.uint8] = np.empty((slots, spec.chunk_bytes), dtype=np.uint8)
        self._words = torch.from_numpy(self._memory).view(-1, spec.row_bytes).view(word_of(spec))
        self._slot_of: OrderedDict[int, int] = OrderedDict()  # by block, the most recently used last
        self._users = [0] * slots
        self._free = list(range(slots))
        self._changed = threading.Condition()
        self._loading = threading.Lock()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="blocks") if READERS > 1 else None

    @property
    def nbytes(self) -> int:
        return self._memory.nbytes

    def gather(self, rows: Indices, out: Tensor) -> None:
        """Copy the rows (B,), which must exist, to `out` (B, words of a row)."""
        import torch

        blocks, inside = np.divmod(rows, self._rows_per_block)
        needed = np.unique(blocks)
        for start in range(0, len(needed), self._slots):
            some = needed[start : start + self._slots]
            with self._held(some.tolist()) as slots:
                if len(some) == len(needed):
                    places = np.asarray(slots)[np.searchsorted(some, blocks)] * self._rows_per_block + inside
                    torch.index_select(self._words, 0, torch.from_numpy(places), out=out)
                    return
                here = np.flatnonzero((blocks >= some[0]) & (blocks <= some[-1]))
                places = np.asarray(slots)[np.searchsorted(some, blocks[here])] * self._rows_per_block + inside[here]
                out[torch.from_numpy(here)] = torch.index_select(self._words, 0, torch.from_numpy(places))

    @contextmanager
    def _held(self, blocks: Sequence[int]) -> Iterator[list[int]]:
        """The slots of these blocks (at most as many as there are slots), kept in place meanwhile."""
        slots = self._pinned(blocks) or self._brought_in(blocks)
        try:
            yield slots
        finally:
            with self._changed:
                for slot in slots:
                    self._users[slot] -= 1
                self._changed.notify_all()

    def _pinned(self, blocks: Sequence[int]) -> list[int] | None:
        """The slots of these blocks if all are there."""
        with self._changed:
            if not all(block in self._slot_of for block in blocks):
                return None
            slots = [self._slot_of[block] for block in blocks]
            for block, slot in zip(blocks, slots, strict=True):
                self._users[slot] += 1
                self._slot_of.move_to_end(block)
            return slots

    def _brought_in(self, blocks: Sequence[int]) -> list[int]:
        with self._loading:  # only its holder waits for slots, so two threads cannot wait for each other's
            known = self._pinned(blocks)
            if known is not None:
                return known
            places = {block: self._claim(block) for block in blocks}
            missing = [(block, slot) for block, (slot, is_there) in places.items() if not is_there]
            try:
                self._fill(missing)
            except BaseException:
                self._give_up([slot for slot, _ in places.values()], [slot for _, slot in missing])
                raise
            with self._changed:
                self._slot_of.update(missing)
            return [slot for slot, _ in places.values()]

    def _claim(self, block: int) -> tuple[int, bool]:
        """A slot for a block, pinned, and whether the block is in it; waits until one is free."""
        with self._changed:
            if block in self._slot_of:
                slot = self._slot_of[block]
                self._users[slot] += 1
                return slot, True
            while True:
                if self._free:
                    slot = self._free.pop()
                    break
                unused = next((old for old, slot in reversed(self._slot_of.items()) if self._users[slot] == 0), None)
                if unused is not None:
                    slot = self._slot_of.pop(unused)
                    break
                self._changed.wait()
            self._users[slot] = 1
            return slot, False

    def _fill(self, missing: Sequence[tuple[int, int]]) -> None:
        if self._readers is None or len(missing) == 1:
            for block, slot in missing:
                self._read_into(block, self._memory[slot])
            return
        jobs = [self._readers.submit(self._read_into, block, self._memory[slot]) for block, slot in missing]
        problems = [job.exception() for job in jobs]
        for problem in problems:
            if problem is not None:
                raise problem

    def _give_up(self, pinned: Sequence[int], unfilled: Sequence[int]) -> None:
        with self._changed:
            for slot in pinned:
                self._users[slot] -= 1
            self._free += unfilled
            self._changed.notify_all()
