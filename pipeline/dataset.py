"""What the pipeline asks of a dataset, and what it makes of one: fingerprints, label budgets, class subsets.

Shape legend: N samples of the dataset.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.sorting import Indices, all_indices, order_of_digests, pieces, words_of_digests

NO_LABEL = -1
DATASET_PARTS = (
    "class_names",
    "split",
    "sample_shape",
    "__len__",
    "sample",
    "samples",
    "label",
    "labels",
    "sample_digests",
)


@runtime_checkable
class Dataset(Protocol):
    """One split of a dataset. Indices are stable: index i is the same sample every time."""

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def split(self) -> str: ...

    @property
    def sample_shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def sample(self, index: int) -> NDArray[np.generic]:
        """The raw sample, before any transform."""
        ...

    def samples(self, indices: NDArray[np.int64]) -> NDArray[np.generic]:
        """The samples (B, *sample_shape) at `indices` (B,) as a model sees them but for normalisation."""
        ...

    def label(self, index: int) -> int | None: ...

    def labels(self) -> NDArray[np.int64]:
        """All labels (N,), -1 where a sample has none."""
        ...

    def sample_digests(self) -> NDArray[np.uint8]:
        """Digests (N, 16) of the raw content of every sample: equal samples have equal digests."""
        ...


def refuse_malformed(dataset: object, what: str) -> None:
    """Raises UserError unless `dataset` is a Dataset whose labels and digests are what the protocol promises.

    Needed for datasets that a user's own function made; `what` says which, for the message.
    """
    if not isinstance(dataset, Dataset):
        lacking = [name for name in DATASET_PARTS if not hasattr(dataset, name)]
        raise UserError(f"{what} is a {type(dataset).__name__}, which is no dataset: it has no {', '.join(lacking)}.")
    labels, digests, classes = dataset.labels(), dataset.sample_digests(), len(dataset.class_names)
    for name, array, shape, dtype in (
        ("labels()", labels, (len(dataset),), "int64"),
        ("sample_digests()", digests, (len(dataset), 16), "uint8"),
    ):
        if array.shape != shape or array.dtype != dtype:
            raise UserError(
                f"{what}: {name} is of shape {array.shape} and dtype {array.dtype}, but shape {shape} and {dtype} are needed."
            )
    names = list(dataset.class_names)
    if len(names) < 2 or len(set(names)) < len(names) or not all(type(name) is str for name in names):
        raise UserError(f"{what}: class_names is {names!r}; two or more different texts are needed.")
    if not dataset.sample_shape or not all(type(size) is int and size > 0 for size in dataset.sample_shape):
        raise UserError(f"{what}: sample_shape is {dataset.sample_shape!r}; a tuple of positive int is needed.")
    outside = np.flatnonzero((labels < NO_LABEL) | (labels >= classes))
    if len(outside):
        raise UserError(
            f"{what}: sample {outside[0]} has label {labels[outside[0]]}; 0 to {classes - 1} are allowed, and -1 for none."
        )


def fingerprint(dataset: Dataset) -> dict[str, Any]:
    """What identifies a split by content: digests and labels in order, classes, shape, and its list of cache rows."""
    digests = np.ascontiguousarray(dataset.sample_digests())
    labels = np.ascontiguousarray(dataset.labels(), dtype="<i8")
    return {
        "samples": len(dataset),
        "labelled": int((labels != NO_LABEL).sum()),
        "sample_shape": list(dataset.sample_shape),
        "class_names": list(dataset.class_names),
        "digests_sha256": hashlib.sha256(digests.data).hexdigest(),
        "labels_sha256": hashlib.sha256(labels.data).hexdigest(),
        "rows_sha256": rows_of(dataset).sha256,
    }


@dataclass(frozen=True)
class Rows:
    """The rows of a cache for one split: its distinct samples in order of first appearance, R of them.

    `first_index` (R,) is where each first appears, `digests` (R, 16), `views` (R,) int32 and `labels` (R,) int64, which
    is -1 where equal samples disagree.
    """

    first_index: Indices
    digests: NDArray[np.uint8]
    views: NDArray[np.int32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.first_index)

    @property
    def sha256(self) -> str:
        """Hash of the ordered (digest, view) list: the part of a cache's key that is not its row_key."""
        return rows_sha256(self.digests, self.views)


def rows_sha256(digests: NDArray[np.uint8], views: NDArray[np.int32]) -> str:
    """Sha256 over (digest, little-endian int32 view) of each row in order. `digests` (R, 16), `views` (R,)."""
    state = hashlib.sha256()
    for piece in pieces(len(digests)):
        view_bytes = views[piece].astype("<i4").view(np.uint8).reshape(-1, 4)
        state.update(np.concatenate([digests[piece], view_bytes], axis=1).data)
    return state.hexdigest()


def rows_of(dataset: Dataset, class_names: Sequence[str] | None = None) -> Rows:
    """The rows that hold a split's soft targets (view 0): equal samples share a row.

    Their labels are positions in `class_names` (default: the dataset's own); a class that is not there gives -1.
    """
    digests = dataset.sample_digests()
    labels = labels_in(dataset, class_names or dataset.class_names)
    order = order_of_digests(digests)  # stable: of equal samples, the first to appear comes first
    starts = np.flatnonzero(_differs_from_previous(digests, order))
    if len(starts) == len(digests):
        return Rows(all_indices(len(digests)), digests, np.zeros(len(digests), np.int32), labels)
    first, sorted_labels = order[starts], labels[order]
    lowest, highest = np.minimum.reduceat(sorted_labels, starts), np.maximum.reduceat(sorted_labels, starts)
    by_appearance = np.argsort(first)
    first_index = first[by_appearance]
    agreed = np.where(lowest == highest, lowest, NO_LABEL)[by_appearance]
    return Rows(first_index, digests[first_index], np.zeros(len(first), np.int32), agreed)


def _differs_from_previous(digests: NDArray[np.uint8], order: Indices) -> NDArray[np.bool_]:
    """Whether each digest (N,) of the given order is another than the one before it; the first is."""
    differs = np.ones(len(order), dtype=np.bool_)
    for piece in pieces(len(order)):
        before = order[max(0, piece.start - 1) : piece.stop]
        high, low = words_of_digests(np.take(digests, before, axis=0))
        differs[max(1, piece.start) : piece.stop] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    return differs


def labels_in(dataset: Dataset, class_names: Sequence[str]) -> NDArray[np.int64]:
    """A dataset's labels (N,) as positions in another list of class names; -1 for classes that it does not have."""
    position = {name: column for column, name in enumerate(class_names)}
    mapped = [position.get(name, NO_LABEL) for name in dataset.class_names]
    return np.array([*mapped, NO_LABEL], dtype=np.int64)[dataset.labels()]  # -1 takes the last place, which is -1


def within_budget(labels: NDArray[np.int64], digests: NDArray[np.uint8], labelled: int, seed: int) -> NDArray[np.int64]:
    """Labels (N,) of which only `labelled` are kept, as evenly over the classes as their sizes allow; others are -1.

    Which samples keep theirs is a function of their digests (N, 16) and the seed, not of their order.
    Raises UserError when there are fewer labels than that.
    """
    available = int((labels != NO_LABEL).sum())
    if labelled > available:
        raise UserError(f"student.labelled = {labelled}, but the training split has {available} labelled samples.")
    prefix = hashlib.blake2b(f"softcache label budget {seed}\0".encode(), digest_size=16)
    queue = []
    for index in np.flatnonzero(labels != NO_LABEL):
        state = prefix.copy()
        state.update(digests[index].tobytes())
        queue.append((state.digest(), int(labels[index]), int(index)))
    queue.sort()
    place_in_class: dict[int, int] = {}
    ranked = []
    for tie_break, (_, label, position) in enumerate(queue):
        place = place_in_class[label] = place_in_class.get(label, -1) + 1
        ranked.append((place, tie_break, position))
    kept = [position for _, _, position in sorted(ranked)[:labelled]]
    budgeted = np.full(len(labels), NO_LABEL, dtype=np.int64)
    budgeted[kept] = labels[kept]
    return budgeted


def class_columns(wanted: Sequence[str], available: Sequence[str], what: str) -> NDArray[np.int64]:
    """For each wanted class name, its position among the available ones.

    Raises UserError naming the first class that is not available.
    """
    position = {name: column for column, name in enumerate(available)}
    missing = [name for name in wanted if name not in position]
    if missing:
        raise UserError(f"{what} has no class {missing[0]!r}; its classes are {', '.join(available)}.")
    return np.array([position[name] for name in wanted], dtype=np.int64)
