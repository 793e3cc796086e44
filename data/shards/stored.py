"""Datasets whose samples stay in the files that they came in: put together of parts, with their names, labels and classes.

Shape legend: M samples of a part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from data.arrays import checked_labels, numbered_classes
from data.errors import DatasetError
from data.image_files.images import ImageDataset, ImageStore
from data.shards.shard_looks import Shard, ShardLooks
from data.shards.stored_arrays import ArrayStore, Rows, StoredArrays
from data.shards.stored_names import Images, StoredNames
from data.splits import Splittable, filled_splits, split_by_content
from data.workers import Memory, Workers

S = TypeVar("S", bound=Splittable)


class Arrays(Rows, Protocol):
    """M arrays, each read when it is needed."""

    @property
    def names(self) -> StoredNames: ...


@dataclass(frozen=True)
class StoredPart:
    """Samples of one part of a source, their labels (M,), -1 for none, and the names of their classes where those are known.

    `shards` says which of the samples, in order, are in which files.
    """

    samples: Images | Arrays
    labels: NDArray[np.int64]
    origin: str
    shards: Sequence[Shard]
    class_names: Sequence[str] | None = None


def datasets_of(
    parts: Mapping[str, StoredPart],
    class_names: Sequence[str] | None,
    *,
    origin: str,
    label: str,
    looks: ShardLooks,
    workers: Workers,
    memory: Memory,
) -> dict[str, ImageDataset | StoredArrays]:
    """A dataset of each part; `class_names` are those of the recipe, and `label` is what it calls the labels.

    Raises DatasetError when labels or shapes do not fit.
    """
    names = _class_names(parts, class_names, origin, label)
    found: dict[str, ImageDataset | StoredArrays] = {}
    for name, part in parts.items():
        samples, where = part.samples, part.origin
        if not len(samples.names):
            raise DatasetError(f"{where}: there are no samples in it.")
        everything = np.arange(len(samples.names))
        labels, classes = checked_labels(part.labels, len(everything), names, where, samples.names.place)
        if isinstance(samples, Rows):
            arrays = ArrayStore(samples, where, workers, memory)
            looks.digests(arrays, part.shards)
            found[name] = StoredArrays(arrays, everything, labels, classes, name, where, name)
        else:
            seen = looks.seen(samples, part.shards, workers)
            images = ImageStore(samples.names, samples.opened, samples.names.placed, workers, memory, seen)
            found[name] = ImageDataset(images, everything, labels, classes, name, where, name)
    looks.forget_others()
    _refuse_unlike(list(found.values()))
    return found


def splits_of(found: Mapping[str, S], fractions: tuple[float, float, int]) -> dict[str, S]:
    """The three splits of what is one whole ("all"), or some splits already. `fractions`: validation, test and the seed."""
    validation, test, seed = fractions
    if "all" in found:
        return split_by_content(found["all"], validation=validation, test=test, seed=seed)
    return filled_splits(found, validation=validation, test=test, seed=seed)


def _class_names(
    parts: Mapping[str, StoredPart], given: Sequence[str] | None, origin: str, label: str
) -> tuple[str, ...]:
    """The names that the files give, or those of the recipe, or numbers up to the largest label of any part."""
    own = [part.class_names for part in parts.values() if part.class_names is not None]
    if any(list(names) != list(own[0]) for names in own):
        raise DatasetError(f"{origin}: the splits differ in the class names of column {label!r}.")
    if own and given is not None:
        raise DatasetError(
            f"{origin}: column {label!r} has class names of its own; remove data.class_names of the recipe."
        )
    if own:
        return tuple(own[0])
    return tuple(given) if given else numbered_classes(np.concatenate([part.labels for part in parts.values()]), origin)


def _refuse_unlike(datasets: Sequence[ImageDataset | StoredArrays]) -> None:
    """Raises DatasetError unless all are of images (whose shapes may differ), or of arrays of one shape and dtype."""
    kinds = [
        f"arrays of shape {one.sample_shape} and dtype {one.store.dtype}" if isinstance(one, StoredArrays) else "images"
        for one in datasets
    ]
    for dataset, kind in zip(datasets, kinds, strict=True):
        if kind != kinds[0]:
            raise DatasetError(
                f"{dataset.origin}: the samples are {kind}, those of {datasets[0].origin} are {kinds[0]}; they must be alike."
            )
