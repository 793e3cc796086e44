"""Batches for training: inputs, labels and cached soft targets of the samples that a step draws.

Shape legend: N samples of a dataset, B samples of a batch, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.dataset import Dataset
from pipeline.errors import RecipeError
from pipeline.lanes import Change
from pipeline.prefetch import batches_ahead, prefetched
from pipeline.recipe import Normalise
from pipeline.sorting import Indices
from pipeline.targets.order import BatchOrder
from pipeline.targets.sparse import SparseTargets


@dataclass(frozen=True)
class Batch:
    """`inputs` (B, *sample_shape) float32 as a model sees them, `labels` (B,) int64 with -1 for none, `soft_targets` (B, C).

    Soft targets of a top-k cache are sparse.
    """

    inputs: Tensor
    labels: Tensor
    soft_targets: Tensor | SparseTargets | None

    def each(self, change: Change) -> Batch:
        """The batch with every tensor changed."""
        targets = self.soft_targets
        if targets is not None:
            targets = targets.each(change) if isinstance(targets, SparseTargets) else change(targets)
        return Batch(change(self.inputs), change(self.labels), targets)


class SoftTargets(Protocol):
    """Where soft targets come from: float32 probabilities (B, C), or sparse, for positions (B,) in the training set."""

    def __call__(self, positions: NDArray[np.int64]) -> Tensor | SparseTargets: ...


class Preprocess:
    """`(sample - mean) / std` in float32, for each channel or for all."""

    def __init__(self, normalise: Normalise, sample_shape: Sequence[int]):
        channels = len(normalise.mean)
        if channels not in (1, sample_shape[0]):
            raise RecipeError(f"normalise has {channels} channels, but samples have shape {tuple(sample_shape)}")
        shape = (1, channels, *([1] * (len(sample_shape) - 1)))
        constants = torch.tensor(normalise.mean).reshape(shape), torch.tensor(normalise.std).reshape(shape)
        self._constants = {torch.device("cpu"): constants}

    def __call__(self, samples: NDArray[np.generic]) -> Tensor:
        """Raw samples (B, *sample_shape) to float32 inputs of the same shape."""
        return self.normalised(self.raw(samples))

    def raw(self, samples: NDArray[np.generic]) -> Tensor:
        """Samples (B, *sample_shape) as they are, for `normalised`, which may happen elsewhere: bytes are copied sooner."""
        native = np.ascontiguousarray(samples, dtype=samples.dtype.newbyteorder("="))  # torch knows no other order
        return torch.from_numpy(native)

    def normalised(self, raw: Tensor) -> Tensor:
        """Float32 inputs of raw samples, on the device where these are. Every device gives the same bits (IEEE 754)."""
        if raw.device not in self._constants:
            mean, std = self._constants[torch.device("cpu")]
            self._constants[raw.device] = mean.to(raw.device), std.to(raw.device)
        mean, std = self._constants[raw.device]
        return (raw.to(torch.float32) - mean) / std


class TrainingBatches:
    """The batch of every step, as a pure function of (seed, step)."""

    def __init__(
        self,
        dataset: Dataset,
        indices: Indices,
        labels: NDArray[np.int64],
        preprocess: Callable[[NDArray[np.generic]], Tensor],
        *,
        batch_size: int,
        seed: int,
        soft_targets: SoftTargets | None = None,
        order: str = "global",
    ):
        """Draw from the samples of `dataset` at `indices` (N,), with their `labels` (N,), in one of ORDERS.

        Inputs are what `preprocess` makes of samples: a Preprocess, or the `raw` of one.
        """
        self.order = BatchOrder(len(indices), batch_size, seed, order)
        self._dataset, self._indices, self._labels = dataset, indices, labels
        self._preprocess, self._soft_targets = preprocess, soft_targets

    def __call__(self, step: int) -> Batch:
        positions = self.order.rows_of_step(step)
        inputs = self._preprocess(self._dataset.samples(self._indices[positions].astype(np.int64, copy=False)))
        targets = self._soft_targets(positions) if self._soft_targets else None
        return Batch(inputs, torch.from_numpy(self._labels[positions]), targets)


def inputs_in_order(dataset: Dataset, indices: Indices, preprocess: Preprocess, batch_size: int) -> Iterator[Tensor]:
    """The inputs of the samples at `indices` (N,), in that order, `batch_size` at a time."""

    def batch(number: int) -> Tensor:
        wanted = indices[number * batch_size : (number + 1) * batch_size]
        return preprocess(dataset.samples(wanted.astype(np.int64, copy=False)))

    count = -(-len(indices) // batch_size)
    with prefetched(batch, batches_ahead(dataset), count) as inputs:
        for number in range(count):
            yield inputs(number)
