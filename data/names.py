"""A million names in 8 bytes each beside their text; as texts of their own they would take 90."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray


class Names(Sequence[str]):
    """Names (M,) that lie one after another in UTF-8, each ended by a zero byte."""

    def __init__(self, blob: bytes | bytearray, ends: NDArray[np.int64] | None = None, begin: int = 0):
        """`ends` (M,) are where the names end, if that is known, and `begin` is where the first begins."""
        self._blob, self._begin = blob, begin
        self._ends = np.flatnonzero(np.frombuffer(blob, np.uint8) == 0) if ends is None else ends

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        return self._blob[self._begin_of(number) : self._ends[number]].decode()

    def part(self, start: int, stop: int) -> Names:
        """The names from `start` to `stop`, of which nothing is copied."""
        return Names(self._blob, self._ends[start:stop], self._begin_of(start))

    def _begin_of(self, number: int) -> int:
        return self._begin if number == 0 else int(self._ends[number - 1]) + 1
