"""What samples that stay in their files are called, in results and in messages.

Shape legend: M samples of a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, Protocol, overload

import numpy as np


class StoredNames(Sequence[str]):
    """What M samples of several files are called, such as "train-1.parquet, row 17": made when it is asked for."""

    def __init__(
        self, origin: str, files: Sequence[str], counts: Sequence[int], what: str, keys: Sequence[str] | None = None
    ):
        """`counts` says how many of the samples are in each of the files, whose names may be empty; `what` one of them is.

        A sample is called by its number in the file, or by its key of `keys` (M,). `origin` is where the files are.
        """
        self._origin, self._files, self._what, self._keys = origin, files, what, keys
        self._ends = np.cumsum(counts, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        file = self.file_of(number)
        begin = int(self._ends[file - 1]) if file else 0
        own = f"{self._what} {number - begin if self._keys is None else self._keys[number]}"
        return f"{self._files[file]}, {own}" if self._files[file] else own

    def file_of(self, number: int) -> int:
        """In which of the files a sample is."""
        return int(np.searchsorted(self._ends, number, side="right"))

    def place(self, number: int) -> str:
        """Where a sample is, for messages."""
        return self.placed(self[number])

    def placed(self, name: str) -> str:
        """Where the sample of a name is, for messages."""
        return f"{self._origin}{name}"


class Images(Protocol):
    """M encoded images, each opened when it is needed. Several threads may open some at once."""

    @property
    def names(self) -> StoredNames: ...

    def opened(self, number: int) -> IO[bytes]:
        """An image as a file. Raises DatasetError when there is none."""
        ...
