"""A dataset held in memory as arrays, and the checks that every such dataset passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from data.digests import Digests, array_digests
from data.errors import DatasetError

NO_LABEL = -1
MOST_NUMBERED_CLASSES = 1_000_000


@dataclass(frozen=True)
class ArrayDataset:
    """Samples of equal shape in memory.

    `values` is (N, *sample_shape) of any numeric dtype, `given_labels` (N,) int64 with -1 where a sample has none, and
    `origin` says where they came from, for messages. `part` names the part of the source that holds them ("all", or a
    split of the source's own), and `taken` (N,) their places in it (default: the whole part in order), which has
    `part_samples` of them. Use `checked_dataset` to build one from what a user brought.
    """

    values: NDArray[np.generic]
    given_labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    split: str
    origin: str
    part: str = "all"
    taken: NDArray[np.int64] | None = None
    part_samples: int | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return self.values.shape[1:]

    def sample(self, index: int) -> NDArray[np.generic]:
        """The raw sample at a stable index."""
        return np.asarray(self.values[index])

    def samples(self, indices: NDArray[np.int64]) -> NDArray[np.generic]:
        """The raw samples (B, *sample_shape) at `indices` (B,)."""
        return self.values[indices]

    def label(self, index: int) -> int | None:
        """The class index of a sample, or None."""
        label = int(self.given_labels[index])
        return None if label == NO_LABEL else label

    def labels(self) -> NDArray[np.int64]:
        """All labels (N,), -1 where a sample has none."""
        return self.given_labels

    @property
    def positions(self) -> NDArray[np.int64]:
        """Places (N,) of the samples in their part of the source, which splitting and subsetting keep."""
        return np.arange(len(self)) if self.taken is None else self.taken

    def sample_digests(self) -> Digests:
        """Digests (N, 16) of the raw content of every sample."""
        return self._digests

    @cached_property
    def _digests(self) -> Digests:
        return array_digests(self.values)

    def subset(self, indices: NDArray[np.int64], split: str) -> ArrayDataset:
        """The samples at `indices`, in that order, as a dataset of its own."""
        return replace(
            self,
            values=self.values[indices],
            given_labels=self.given_labels[indices],
            taken=self.positions[indices],
            part_samples=len(self) if self.taken is None else self.part_samples,
            split=split,
        )


def checked_dataset(
    values: NDArray[np.generic],
    labels: NDArray[np.generic] | None,
    class_names: Sequence[str] | None,
    *,
    split: str,
    origin: str,
) -> ArrayDataset:
    """Build an ArrayDataset after checking lengths, dtypes, the range of labels and that values are finite.

    Without `class_names` the classes are "0", "1", ... up to the largest label. Raises DatasetError naming `origin`
    and the first offending row.
    """
    refuse_unsuited_samples(values.shape, values.dtype, origin)
    if values.dtype.kind == "f":
        finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if not finite.all():
            raise DatasetError(f"{origin}: row {int(np.argmin(finite))} of the samples holds NaN or infinity.")
    checked, names = checked_labels(labels, len(values), class_names, origin)
    return ArrayDataset(values, checked, names, split, origin, part=split)


def refuse_unsuited_samples(shape: tuple[int, ...], dtype: np.dtype[np.generic], origin: str) -> None:
    """Raises DatasetError unless samples of this shape (N, ...) and dtype are such as a model takes."""
    if len(shape) < 2 or 0 in shape:
        raise DatasetError(
            f"{origin}: samples have shape {shape}; at least one row, and one dimension after it, is needed."
        )
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise DatasetError(
            f"{origin}: samples have dtype {dtype}; booleans, or integers or floats of at most 64 bits, are needed."
        )


def checked_labels(
    labels: NDArray[np.generic] | None,
    rows: int,
    class_names: Sequence[str] | None,
    origin: str,
    place: Callable[[int], str] | None = None,
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels (rows,) int64 and the names of their classes; see `checked_dataset`, for which this is one of the checks.

    `place` says where a row is (default: in `origin`).
    """
    checked = _whole_labels(labels, rows, origin)
    names = tuple(class_names) if class_names else numbered_classes(checked, origin)
    if len(set(names)) != len(names):
        raise DatasetError(f"{origin}: class names repeat: {', '.join(names)}.")
    if len(names) < 2:
        raise DatasetError(f"{origin}: {len(names)} classes are known; give class_names, or labels of two classes.")
    outside = (checked < NO_LABEL) | (checked >= len(names))
    if outside.any():
        row = int(np.argmax(outside))
        where = f"{origin}: row {row}" if place is None else place(row)
        raise DatasetError(
            f"{where} has label {int(checked[row])}; 0 to {len(names) - 1} are allowed, and -1 for none."
        )
    return checked, names


def numbered_classes(labels: NDArray[np.int64], origin: str) -> tuple[str, ...]:
    """The classes "0", "1", ... up to the largest label.

    Raises DatasetError for a label as large as no number of classes: it is more likely a mistake.
    """
    largest = int(labels.max(initial=NO_LABEL))
    if largest > MOST_NUMBERED_CLASSES:
        row = int(np.argmax(labels))
        raise DatasetError(
            f"{origin}: row {row} has label {largest}; without class_names at most {MOST_NUMBERED_CLASSES} is allowed."
        )
    return tuple(str(label) for label in range(largest + 1))


def _whole_labels(labels: NDArray[np.generic] | None, rows: int, origin: str) -> NDArray[np.int64]:
    if labels is None:
        return np.full(rows, NO_LABEL, dtype=np.int64)
    if labels.shape != (rows,):
        raise DatasetError(
            f"{origin}: {rows} samples but labels of shape {labels.shape}; one label a sample is needed."
        )
    if labels.dtype.kind not in "biu":
        raise DatasetError(f"{origin}: labels have dtype {labels.dtype}; integers are needed, -1 for none.")
    converted = labels.astype(np.int64)
    if labels.dtype.kind == "u" and (converted < 0).any():  # only uint64 has labels that int64 has not
        row = int(np.argmin(converted))
        raise DatasetError(f"{origin}: row {row} has label {labels[row]}, which is no class; -1 means none.")
    return converted
