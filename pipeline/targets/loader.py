"""Serving the soft targets of a cache in batches: gathered ahead by a second thread, in an order that can be gone on with.

Shape legend: B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.devices import own_thread_count, threads
from pipeline.errors import UserError
from pipeline.prefetch import prefetched
from pipeline.sorting import Indices
from pipeline.targets.order import ORDERS, RowOrder, Windows, windows_of
from pipeline.targets.reader import TargetCache

if TYPE_CHECKING:
    from pipeline.targets.sparse import SparseTargets

OrderName = Literal["global", "window", "sequential"]

# Stored bytes that are gathered by one call: fewer take hardly more time than the call and handing them over.
GATHERED_AT_ONCE = 2**22
GROUPS_AHEAD = 2


@dataclass(frozen=True)
class TargetBatch:
    """`positions` (B,) int64 of the samples in the rows that the loader was given, and their soft targets.

    These are probabilities (B, *positions, C) or SparseTargets; of a loader that does not decode, the stored arrays.
    """

    positions: Tensor
    soft_targets: Tensor | SparseTargets | tuple[Tensor, ...]


class TargetLoader:
    """The batches of one epoch after another; iterating goes through one epoch, or what is left of it.

    Which rows a batch has is a function of (order, seed, epoch) alone, so `state_dict` is two numbers: a loader that was
    stopped after any batch, restored by `load_state_dict`, serves exactly the rows that were left, in the same order.
    """

    def __init__(
        self,
        cache: TargetCache,
        batch_size: int,
        *,
        rows: Indices | None = None,
        order: OrderName = "global",
        seed: int = 0,
        temperature: float | None = None,
        max_kl: float | None = None,
        windows: Windows | None = None,
        decode: bool = True,
        device: str | torch.device = "cpu",
        drop_last: bool = False,
        groups_ahead: int = GROUPS_AHEAD,
    ):
        """Serve the given `rows` (N,) of the cache (what `cache.join` gave for a dataset), or all.

        Raises MismatchError for a temperature or an error that the certificate does not vouch for. Without `decode`, stored
        arrays are given as they are, in memory that is used again: a batch is then good until the next one is asked for.
        `windows` says how the order "window" cuts rows: by default, at the cache's blocks, as many as hold 16 MB.
        `groups_ahead` groups of 4 MB are gathered ahead by a second thread; 0 does without it.
        """
        if order not in ORDERS:
            raise UserError(f"order = {order!r}; there are {', '.join(ORDERS)}.")
        if batch_size < 1:
            raise UserError(f"batch_size = {batch_size}; at least 1 is needed.")
        self.cache, self.batch_size, self.order, self.seed = cache, batch_size, order, seed
        self.epoch, self.batch = 0, 0
        self.windows = windows or windows_of(cache.manifest.encoding_arrays())
        self._rows, self._device, self._decode = rows, torch.device(device), decode
        self._temperature = cache.temperature if temperature is None else temperature
        cache.check_temperature(self._temperature, max_kl)
        self._count = len(cache) if rows is None else len(rows)
        self.batches = self._count // batch_size if drop_last else -(-self._count // batch_size)
        row_bytes = sum(spec.row_bytes for spec in cache.manifest.encoding_arrays())
        self._at_once = max(1, min(GATHERED_AT_ONCE // (row_bytes * batch_size), self.batches))
        self._ahead = groups_ahead
        # One is given out; while others gather, one more is needed. Few are better: they stay in the processor's cache.
        self._slots: list[_Slot] = [_Slot(self) for _ in range(self._ahead + 2 if self._ahead else 1)]

    def __len__(self) -> int:
        """The batches of a whole epoch."""
        return self.batches

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is: the epoch, and the batch that comes next; with what decides about their rows."""
        return {"epoch": self.epoch, "batch": self.batch, **self._decides()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another loader was. Raises UserError when that one served other rows, or in another order."""
        for name, value in self._decides().items():
            if state.get(name) != value:
                raise UserError(f"the loader's state has {name} = {state.get(name)!r}, this loader has {value!r}.")
        self.epoch, self.batch = int(state["epoch"]), int(state["batch"])

    def __iter__(self) -> Iterator[TargetBatch]:
        order = ORDERS[self.order](self._count, self.seed, self.epoch, self.windows)
        groups = -(-self.batches // self._at_once)
        with (
            own_thread_count(),
            prefetched(lambda group: self._gathered(order, group), self._ahead, groups, together=True) as made,
        ):
            while self.batch < self.batches:
                group, inside = divmod(self.batch, self._at_once)
                gathered = made(group)
                for number in range(inside, min(self._at_once, self.batches - group * self._at_once)):
                    self.batch += 1
                    yield gathered.batch(number)
        self.epoch, self.batch = self.epoch + 1, 0

    def _gathered(self, order: RowOrder, group: int) -> _Gathered:
        first = group * self._at_once * self.batch_size
        last = min(first + self._at_once * self.batch_size, self._count, self.batches * self.batch_size)
        positions = order.between(first, last)
        slot = self._slots[group % len(self._slots)]
        rows = positions if self._rows is None else self._rows[positions]
        with threads(
            1
        ):  # memory is the limit: torch's other threads would only wait for it, on cores that a model needs
            stored = slot.filled(rows)
            decoded = None
            if self._decode and self._device.type == "cpu":  # a batch at a time, which stays in a core's own cache
                batches = zip(*(torch.split(array, self.batch_size) for array in stored), strict=True)
                decoded = [self.cache.decoded(batch, self._temperature) for batch in batches]
        return _Gathered(self, slot, torch.from_numpy(positions.astype(np.int64)), stored, decoded)

    def _decides(self) -> dict[str, Any]:
        cut = [self.windows.rows_per_block, self.windows.blocks] if self.order == "window" else None
        return {
            "order": self.order,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "rows": self._count,
            "windows": cut,
        }


class _Slot:
    """Memory for one group of batches, used again and again; pinned where batches go to a GPU."""

    def __init__(self, loader: TargetLoader):
        self._loader = loader
        self._buffers: tuple[Tensor, ...] | None = None
        self.copied: torch.cuda.Event | None = None

    def filled(self, rows: Indices) -> tuple[Tensor, ...]:
        """The stored rows, once nothing is copied from here any more."""
        loader = self._loader
        if self.copied is not None:
            self.copied.synchronize()
        if self._buffers is None:
            pinned = loader._device.type == "cuda"
            self._buffers = loader.cache.stored_buffers(loader._at_once * loader.batch_size, pinned)
        return loader.cache.stored(rows, self._buffers)


@dataclass(frozen=True)
class _Gathered:
    """A group of batches that lie behind one another in memory."""

    loader: TargetLoader
    slot: _Slot
    positions: Tensor
    stored: tuple[Tensor, ...]
    decoded: Sequence[Tensor | SparseTargets] | None

    def batch(self, number: int) -> TargetBatch:
        """One batch of the group."""
        loader = self.loader
        held = slice(number * loader.batch_size, (number + 1) * loader.batch_size)
        if self.decoded is not None:
            return TargetBatch(self.positions[held], self.decoded[number])
        stored = tuple(array[held] for array in self.stored)
        if loader._device.type == "cuda":
            stored = tuple(array.to(loader._device, non_blocking=True) for array in stored)
            self.slot.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.slot.copied.record()
        if not loader._decode:
            return TargetBatch(self.positions[held], stored)
        return TargetBatch(self.positions[held], loader.cache.decoded(stored, loader._temperature))
