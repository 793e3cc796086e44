"""A torch Dataset of cached soft targets, and a batch sampler, for those who keep their own DataLoader.

    rows = TargetRows(cache)
    batches = TargetBatchSampler(rows, batch_size=256, order="window", seed=0)
    for positions, soft_targets in DataLoader(rows, batch_sampler=batches, collate_fn=whole_batch, num_workers=4): ...

Shape legend: N rows of the dataset, B of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from pipeline.errors import UserError
from pipeline.sorting import Indices
from pipeline.targets.order import ORDERS, Windows, windows_of
from pipeline.targets.reader import TargetCache

if TYPE_CHECKING:
    from pipeline.targets.sparse import SparseTargets

# Positions (B,) int64 among the dataset's rows, and their soft targets (B, *positions, C).
Served = tuple[Tensor, "Tensor | SparseTargets"]


class TargetRows(Dataset[Served]):
    """The soft targets of rows of a cache; a whole batch is gathered by one call of `__getitems__`.

    Workers started by fork or spawn open the cache's files for themselves.
    """

    def __init__(
        self,
        cache: TargetCache,
        rows: Indices | None = None,
        temperature: float | None = None,
        max_kl: float | None = None,
    ):
        """Of the given `rows` (N,), which `cache.join` gives for a dataset, or of all.

        Raises MismatchError for a temperature or an error that the certificate does not vouch for.
        """
        self.cache, self._rows, self._max_kl = cache, rows, max_kl
        self._temperature = cache.temperature if temperature is None else temperature
        cache.check_temperature(self._temperature, max_kl)

    def __len__(self) -> int:
        return len(self.cache) if self._rows is None else len(self._rows)

    def __getitem__(self, position: int) -> Served:
        return self.__getitems__([position])

    def __getitems__(self, positions: Sequence[int]) -> Served:
        """The soft targets at these positions (B,); a DataLoader calls it with all of a batch."""
        wanted = np.asarray(positions, dtype=np.int64)
        rows = wanted if self._rows is None else self._rows[wanted].astype(np.int64, copy=False)
        return torch.from_numpy(wanted), self.cache.served(rows, self._temperature, self._max_kl)


def whole_batch(batch: Any) -> Any:
    """The `collate_fn` of a DataLoader over TargetRows: what `__getitems__` gave is a whole batch already."""
    return batch


class TargetBatchSampler(Sampler[list[int]]):
    """Positions of each batch of an epoch, as a function of (order, seed, epoch); goes on where it was stopped.

    A DataLoader with workers asks for batches ahead of those that it gives out. To stop and go on, say how many batches were
    used: `load_state_dict({"epoch": epoch, "batch": used})`.
    """

    def __init__(
        self,
        rows: TargetRows,
        batch_size: int,
        *,
        order: str = "global",
        seed: int = 0,
        windows: Windows | None = None,
        drop_last: bool = False,
    ):
        """Batches of the positions of `rows`. `windows` says how the order "window" cuts them; default: at the cache's blocks."""
        if order not in ORDERS:
            raise UserError(f"order = {order!r}; there are {', '.join(ORDERS)}.")
        self._rows, self._batch_size, self._order, self._seed = len(rows), batch_size, order, seed
        self._windows = windows or windows_of(rows.cache.manifest.encoding_arrays())
        self._batches = self._rows // batch_size if drop_last else -(-self._rows // batch_size)
        self.epoch, self.batch = 0, 0

    def __len__(self) -> int:
        """The batches that are left of this epoch."""
        return self._batches - self.batch

    def set_epoch(self, epoch: int) -> None:
        """Begin another epoch."""
        self.epoch, self.batch = epoch, 0

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on in an epoch after so many of its batches."""
        self.epoch, self.batch = int(state["epoch"]), int(state["batch"])

    def __iter__(self) -> Iterator[list[int]]:
        order = ORDERS[self._order](self._rows, self._seed, self.epoch, self._windows)
        for batch in range(self.batch, self._batches):
            first = batch * self._batch_size
            yield order.between(first, min(first + self._batch_size, self._rows)).tolist()
        self.set_epoch(self.epoch + 1)
