"""Samples of a store at given places: what datasets whose samples stay in their files have in common.

Shape legend: M samples of a store, N samples of a dataset.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from data.arrays import NO_LABEL
from data.digests import Digests


class Store(Protocol):
    """M samples by number."""

    def __len__(self) -> int: ...

    @property
    def digests(self) -> Digests: ...

    def place(self, number: int) -> str: ...


S = TypeVar("S", bound=Store)


@dataclass(frozen=True)
class PlacedSamples(Generic[S]):
    """The samples of `store` at `positions` (N,), with `given_labels` (N,), -1 where a sample has none.

    See ArrayDataset for `part` and `origin`.
    """

    store: S
    positions: NDArray[np.int64]
    given_labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    split: str
    origin: str
    part: str = "all"

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def part_samples(self) -> int:
        """How many samples the part has, those of other splits and those that were left out included."""
        return len(self.store)

    def place(self, index: int) -> str:
        """Which sample this is, for messages."""
        return self.store.place(int(self.positions[index]))

    def label(self, index: int) -> int | None:
        """The class index of a sample, or None."""
        label = int(self.given_labels[index])
        return None if label == NO_LABEL else label

    def labels(self) -> NDArray[np.int64]:
        """All labels (N,), -1 where a sample has none."""
        return self.given_labels

    def sample_digests(self) -> Digests:
        """Digests (N, 16) of the raw content of every sample."""
        return self.store.digests[self.positions]

    def subset(self, indices: NDArray[np.int64], split: str) -> Self:
        """The samples at `indices`, in that order, as a dataset of its own."""
        return replace(self, positions=self.positions[indices], given_labels=self.given_labels[indices], split=split)
