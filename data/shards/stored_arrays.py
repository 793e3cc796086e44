"""Arrays that stay in the files that they came in: read by block, kept in memory where they fit, digested by their content.

Shape legend: M samples of a store, N of a dataset, B of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from data.arrays import refuse_unsuited_samples
from data.digests import DIGEST_BYTES, Digests, array_digests
from data.errors import DatasetError
from data.placed import PlacedSamples
from data.workers import Memory, Workers

BYTES_AT_ONCE = 2 * 10**6  # of a block of the first look; each worker has one
BLOCKS_AT_ONCE = 64  # between two reports of progress
BATCHES_AHEAD = 2  # prepared while a model works on another, where samples are read each time


@runtime_checkable
class Rows(Protocol):
    """Where the samples are: M arrays of one dtype and shape. Several threads may read at once."""

    @property
    def dtype(self) -> np.dtype[np.generic]: ...

    @property
    def sample_shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def gathered(self, numbers: NDArray[np.int64]) -> NDArray[np.generic]:
        """The samples (B, *sample_shape) of these numbers (B,). Raises DatasetError naming the first that is another kind."""
        ...

    def place(self, number: int) -> str:
        """Which sample this is, for messages."""
        ...


class ArrayStore:
    """M arrays by number. The first look reads each once, for its digest; later ones come from memory where all of them fit."""

    def __init__(self, rows: Rows, origin: str, workers: Workers, memory: Memory):
        """Raises DatasetError when there are no samples, or such as no model takes."""
        refuse_unsuited_samples((len(rows), *rows.sample_shape), rows.dtype, origin)
        self.workers, self.memory = workers, memory
        self._rows = rows
        self._digests: Digests | None = None
        self._kept: NDArray[np.generic] | None = None
        self._may_keep: bool | None = None  # not known before somebody asks for samples, or for the digests

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def dtype(self) -> np.dtype[np.generic]:
        return self._rows.dtype

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return self._rows.sample_shape

    def place(self, number: int) -> str:
        """Which sample this is, for messages."""
        return self._rows.place(number)

    def gathered(self, numbers: NDArray[np.int64]) -> NDArray[np.generic]:
        """The samples (B, *sample_shape) of these numbers (B,)."""
        kept = self._kept
        return self._rows.gathered(numbers) if kept is None else kept[numbers]

    @property
    def digests(self) -> Digests:
        """Digests (M, 16), as of arrays. Raises DatasetError naming the first sample that is not finite, or another kind."""
        if self._digests is None:
            self.know(self.look(0, len(self), lambda amount: None))
        assert self._digests is not None
        return self._digests

    @property
    def in_memory(self) -> bool:
        """Whether all samples stay in memory; asking reads them, if there is room that nobody else took."""
        if self._may_keep is None:
            self._may_keep = self.memory.take(len(self) * self._bytes_each)
            if self._may_keep:
                kept = np.empty((len(self), *self.sample_shape), self.dtype)
                for _ in self._blocks(0, len(self), lambda numbers, block: kept.__setitem__(numbers, block)):
                    pass
                self._kept = kept
        return self._kept is not None

    def let_go(self) -> None:
        """Forget the samples that are kept."""
        if self._kept is not None:
            self.memory.give_back(self._kept.nbytes)
        self._kept, self._may_keep = None, False

    def know(self, digests: Digests) -> None:
        """Take these (M, 16) for the digests: somebody looked at the samples already."""
        self._digests = digests
        digests.flags.writeable = False

    def look(self, start: int, stop: int, advance: Callable[[int], None]) -> Digests:
        """The digests of the samples from `start` to `stop`, of which each is read once."""
        digests = np.empty((stop - start, DIGEST_BYTES), np.uint8)

        def look(numbers: NDArray[np.int64], block: NDArray[np.generic]) -> None:
            self._refuse_infinite(block, int(numbers[0]))
            digests[numbers - start] = array_digests(block)

        for count in self._blocks(start, stop, look):
            advance(count)
        return digests

    @property
    def _bytes_each(self) -> int:
        return int(np.prod(self.sample_shape)) * self.dtype.itemsize

    def _blocks(
        self, start: int, stop: int, use: Callable[[NDArray[np.int64], NDArray[np.generic]], None]
    ) -> Iterator[int]:
        """Let the workers `use` blocks of samples by their numbers; gives how many more were used, now and then."""
        rows_at_once = max(1, BYTES_AT_ONCE // self._bytes_each)
        begins = range(start, stop, rows_at_once)

        def read(begin: int) -> None:
            numbers = np.arange(begin, min(begin + rows_at_once, stop))
            use(numbers, self._rows.gathered(numbers))

        for place in range(0, len(begins), BLOCKS_AT_ONCE):
            some = begins[place : place + BLOCKS_AT_ONCE]
            self.workers.map(read, some)
            yield min(some[-1] + rows_at_once, stop) - some[0]

    def _refuse_infinite(self, block: NDArray[np.generic], start: int) -> None:
        if block.dtype.kind == "f":
            finite = np.isfinite(block).reshape(len(block), -1).all(axis=1)
            if not finite.all():
                raise DatasetError(f"{self.place(start + int(np.argmin(finite)))}: the sample holds NaN or infinity.")


class StoredArrays(PlacedSamples[ArrayStore]):
    """Arrays of a store, all of one shape."""

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return self.store.sample_shape

    @property
    def batches_ahead(self) -> int:
        """How many batches are worth preparing while a model works: none where all samples are in memory."""
        return 0 if self.store.in_memory else BATCHES_AHEAD

    def sample(self, index: int) -> NDArray[np.generic]:
        """The raw sample at a stable index."""
        return np.asarray(self.store.gathered(self.positions[index : index + 1])[0])

    def samples(self, indices: NDArray[np.int64]) -> NDArray[np.generic]:
        """The raw samples (B, *sample_shape) at `indices` (B,)."""
        return self.store.gathered(self.positions[indices])
