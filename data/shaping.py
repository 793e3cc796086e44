"""The samples of a dataset as a model sees them: at one mode and size, kept in memory or made by workers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.digests import Digests
from data.errors import DatasetError
from data.geometry import Geometry
from data.workers import Memory, Workers

BATCHES_AHEAD = 2  # prepared while a model works on another, where samples are made anew each time
SAMPLES_AT_ONCE = 1024


def shaped(datasets: Mapping[str, Any], settings: Any) -> dict[str, Any]:
    """Splits as a recipe's `[data]` table lets a model see them: its mode, resize and crop, workers and memory.

    Raises DatasetError when that does not make all samples equal in shape, naming the first two that differ.
    """
    geometry = Geometry.of(settings)
    workers, memory = Workers(settings.workers), Memory(settings.memory_mb)
    made: dict[str, Any] = {}
    for split, dataset in datasets.items():
        store = getattr(dataset, "store", None)
        alike = store is None or not hasattr(dataset, "shapes")  # arrays are of one shape, images may not be
        if geometry.changes_nothing and alike:
            made[split] = dataset
        elif store is not None:
            made[split] = ShapedDataset(dataset, geometry, store.workers, store.memory)
        else:
            made[split] = ShapedDataset(dataset, geometry, workers, memory)
    first = next(iter(made.values()))
    for dataset in made.values():
        if isinstance(dataset, ShapedDataset) and dataset.sample_shape != first.sample_shape:
            raise _unlike(first, 0, first.sample_shape, dataset, 0, dataset.sample_shape)
    return made


class ShapedDataset:
    """The samples of `raw` after `geometry`. Digests, labels and `sample` are those of the raw samples."""

    def __init__(self, raw: Any, geometry: Geometry, workers: Workers, memory: Memory):
        """`raw` is a dataset; of images whose shapes differ it also has `shapes` (N, 3)."""
        self.raw, self.geometry = raw, geometry
        self._workers, self._memory, self._lock = workers, memory, Lock()
        self._all: NDArray[np.generic] | None = None

    def __len__(self) -> int:
        return len(self.raw)

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.raw.class_names)

    @property
    def split(self) -> str:
        return str(self.raw.split)

    @property
    def origin(self) -> str:
        return str(getattr(self.raw, "origin", "the dataset"))

    @property
    def part(self) -> str:
        return str(getattr(self.raw, "part", self.split))

    @property
    def positions(self) -> NDArray[np.int64]:
        positions: NDArray[np.int64] = getattr(self.raw, "positions", np.arange(len(self)))
        return positions

    @property
    def part_samples(self) -> int | None:
        return getattr(self.raw, "part_samples", None)

    @property
    def names(self) -> list[str] | None:
        return getattr(self.raw, "names", None)

    @cached_property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape that every sample has. Raises DatasetError naming the first two that differ."""
        raw = np.asarray(self.raw.shapes) if hasattr(self.raw, "shapes") else np.array([self.raw.sample_shape])
        first = _first_of_each(raw)
        expected = self._shape_of(raw, 0)
        for index in first:
            found = self._shape_of(raw, index)
            if found != expected:
                raise _unlike(self, 0, expected, self, index, found)
        return expected

    @property
    def batches_ahead(self) -> int:
        """How many batches are worth preparing while a model works: none where all samples are in memory."""
        return 0 if self._raw_serves or self._fits else BATCHES_AHEAD

    def sample(self, index: int) -> NDArray[np.generic]:
        """The raw sample at a stable index."""
        return np.asarray(self.raw.sample(index))

    def samples(self, indices: NDArray[np.int64]) -> NDArray[np.generic]:
        """The samples (B, *sample_shape) at `indices` (B,) as a model sees them."""
        if self._raw_serves:
            return np.asarray(self.raw.store.gathered(self.raw.positions[indices]))
        if not self._fits:
            return np.stack(self._workers.map(self._seen, indices.tolist()))
        with self._lock:
            if self._all is None:
                self._all = self._made()
        return self._all[indices]

    def label(self, index: int) -> int | None:
        """The class index of a sample, or None."""
        label: int | None = self.raw.label(index)
        return label

    def labels(self) -> NDArray[np.int64]:
        """All labels (N,), -1 where a sample has none."""
        return np.asarray(self.raw.labels())

    def sample_digests(self) -> Digests:
        """Digests (N, 16) of the raw content of every sample."""
        return np.asarray(self.raw.sample_digests())

    def place(self, index: int) -> str:
        """Which sample this is, for messages."""
        return str(self.raw.place(index)) if hasattr(self.raw, "place") else f"{self.origin}: sample {index}"

    def _shape_of(self, shapes: NDArray[np.int64], index: int) -> tuple[int, ...]:
        try:
            return self.geometry.shape_of(tuple(shapes[index].tolist()))
        except DatasetError as problem:
            raise DatasetError(f"{self.place(index)}: {problem}") from None

    def _seen(self, index: int) -> NDArray[np.generic]:
        return self.geometry(np.asarray(self.raw.sample(index)))

    @property
    def _raw_serves(self) -> bool:
        """Whether the decoded images are in memory just as a model sees them."""
        store = getattr(self.raw, "store", None)
        return store is not None and self.geometry.changes_nothing and bool(store.in_memory)

    @cached_property
    def _fits(self) -> bool:
        """Whether all samples may be kept in memory; decoded images make room for resized ones."""
        size = len(self) * self._seen(0).nbytes
        if self._memory.take(size):
            return True
        if hasattr(self.raw, "store"):
            self.raw.store.let_go()
        return self._memory.take(size)

    def _made(self) -> NDArray[np.generic]:
        first = self._seen(0)
        everything = np.empty((len(self), *first.shape), first.dtype)
        for start in range(0, len(self), SAMPLES_AT_ONCE):
            numbers = range(start, min(start + SAMPLES_AT_ONCE, len(self)))
            everything[start : numbers.stop] = self._workers.map(self._seen, numbers)
        return everything


def _first_of_each(shapes: NDArray[Any]) -> list[int]:
    """Where each shape of (N, D) appears first, ascending."""
    if (shapes == shapes[:1]).all():  # nearly always, and sorting a million takes a second and much memory
        return [0] if len(shapes) else []
    _, first = np.unique(shapes, axis=0, return_index=True)
    return sorted(first.tolist())


def _unlike(
    one: Any, index: int, shape: tuple[int, ...], other: Any, other_index: int, other_shape: tuple[int, ...]
) -> DatasetError:
    """Two samples differ in shape; what makes them equal depends on how they differ."""
    first, second = one.place(index), other.place(other_index)
    if shape[0] != other_shape[0]:
        kinds = {1: "grey (L)", 3: "coloured (RGB)"}
        what = f"{first} is {kinds.get(shape[0], shape)}, {second} is {kinds.get(other_shape[0], other_shape)}"
        return DatasetError(f'{what}. Convert all with data.mode = "RGB" or data.mode = "L".')
    what = f"{first} is {_size(shape)}, {second} is {_size(other_shape)} (height x width) as a model would see them"
    return DatasetError(
        f"{what}. Make all equal with data.resize = [height, width], or with data.resize and data.crop."
    )


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape[1:]))
