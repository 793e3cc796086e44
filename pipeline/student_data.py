"""What a model learns from: a split's samples and labels in the model's classes, and their cached soft targets.

Shape legend: N samples, B samples of a batch, C classes of the model, K classes of the cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.dataset import NO_LABEL, Dataset, class_columns, within_budget
from pipeline.errors import MismatchError, UserError
from pipeline.sorting import Indices, all_indices, pieces
from pipeline.targets.reader import TargetCache
from pipeline.targets.sparse import SparseTargets

ROWS_AT_ONCE = 4096  # when all rows are looked through


@dataclass(frozen=True)
class LearningSet:
    """Samples of `dataset` at `indices` (N,), with `labels` (N,) as positions in `class_names`, -1 for none."""

    dataset: Dataset
    indices: Indices
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def sample_digests(self) -> NDArray[np.uint8]:
        """Digests (N, 16) of the samples; not copied where these are all samples of the dataset in their order."""
        digests = self.dataset.sample_digests()
        in_order = all(np.array_equal(self.indices[at], np.arange(at.start, at.stop)) for at in pieces(len(self)))
        return digests if in_order and len(self) == len(digests) else digests[self.indices]

    def at(self, positions: Indices) -> LearningSet:
        """Only the samples at these positions, in that order."""
        return replace(self, indices=self.indices[positions], labels=self.labels[positions])

    def labelled_only(self) -> LearningSet:
        """Only the samples with a label. Raises UserError when there is none."""
        positions = np.flatnonzero(self.labels != NO_LABEL)
        if len(positions) == 0:
            raise UserError(f"the {self.dataset.split} split has no labelled sample to learn from.")
        return self.at(positions)

    def within_budget(self, labelled: int | None, seed: int) -> LearningSet:
        """The same samples with only `labelled` labels kept, stratified; all labels when it is None."""
        if labelled is None:
            return self
        return replace(self, labels=within_budget(self.labels, self.sample_digests(), labelled, seed))


def learning_set(dataset: Dataset, classes: Sequence[str] | None = None) -> LearningSet:
    """A split in the given classes (default: its own); samples labelled with another class are left out.

    Raises UserError when the dataset has no class of that name.
    """
    labels = dataset.labels()
    everything = all_indices(len(dataset))
    if classes is None:
        return LearningSet(dataset, everything, labels, dataset.class_names)
    position = np.full(len(dataset.class_names) + 1, NO_LABEL - 1)
    position[class_columns(classes, dataset.class_names, f"the {dataset.split} split")] = np.arange(len(classes))
    position[NO_LABEL] = NO_LABEL  # the last place: a sample without label stays one
    mapped = position[labels]
    kept = mapped >= NO_LABEL
    if not kept.any():
        raise UserError(f"the {dataset.split} split has no sample of the classes {', '.join(classes)}.")
    return LearningSet(dataset, everything[kept], mapped[kept], tuple(classes))


class CachedSoftTargets:
    """Soft targets of a learning set's samples, read from a cache by the content of each sample."""

    def __init__(self, cache: TargetCache, samples: LearningSet, temperature: float, classes: Sequence[str] | None):
        """Join `samples` to `cache`.

        Raises JoinError for samples without a row, and MismatchError when the classes differ from the cache's and
        `classes` (student.classes) does not say how to map them.
        """
        if classes is None and samples.class_names != cache.class_names:
            raise MismatchError(
                f"the dataset has classes {', '.join(samples.class_names)}, but cache {cache.key[:12]} has "
                f"{', '.join(cache.class_names)}. Map them by name with student.classes = [...]."
            )
        self._columns: Tensor | None = None
        if samples.class_names != cache.class_names:
            columns = class_columns(samples.class_names, cache.class_names, f"cache {cache.key[:12]}")
            self._columns = torch.from_numpy(columns)
        self._cache = cache
        self._temperature = temperature
        self._rows = cache.join(samples.sample_digests())

    def __call__(self, positions: NDArray[np.int64]) -> Tensor:
        """Float32 probabilities (B, C) of the samples at `positions` (B,) of the learning set."""
        chosen_BC = self._in_classes(positions)
        return chosen_BC if self._columns is None else chosen_BC / chosen_BC.sum(dim=1, keepdim=True)

    def for_loss(self, positions: NDArray[np.int64]) -> Tensor | SparseTargets:
        """The same as a loss takes it: sparse where a cache is, unless its classes are mapped."""
        if self._columns is not None:
            return self(positions)
        return self._cache.served(self._rows[positions], self._temperature, max_kl=math.inf)

    def kept_mass(self) -> tuple[float, float]:
        """The least and the mean mass that the student's classes have of the cache's, over all samples.

        Raises MismatchError with the count and the first indices of samples for which they have none at all.
        """
        places = pieces(len(self._rows), ROWS_AT_ONCE)
        mass_N = torch.cat([self._in_classes(np.arange(at.start, at.stop)).sum(dim=1) for at in places]).double()
        empty = torch.nonzero(mass_N == 0).ravel().tolist()
        if empty:
            shown = ", ".join(map(str, empty[:5])) + (", ..." if len(empty) > 5 else "")
            raise MismatchError(
                f"{len(empty)} of {len(mass_N)} samples (samples {shown}) have no stored mass in the classes that "
                "student.classes keeps, so there is no soft target for them. Leave these samples out of the dataset, or use "
                'a cache with targets.dtype = "float32".'
            )
        return float(mass_N.min()), float(mass_N.mean())

    def _in_classes(self, positions: NDArray[np.int64]) -> Tensor:
        targets_BK = self._cache.soft_targets(self._rows[positions], self._temperature, max_kl=math.inf)
        return targets_BK if self._columns is None else targets_BK[:, self._columns]
