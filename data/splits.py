"""Splitting a dataset into training, validation and test samples by their content.

Which split a sample falls in is a function of its digest and the seed alone: reordering the dataset, or adding to it,
moves no sample, and equal samples never fall on both sides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from data.digests import DIGEST_BYTES, Digests
from data.errors import DatasetError

SPLITS = ("training", "validation", "test")


class Splittable(Protocol):
    """A dataset that a part can be taken of (ArrayDataset, ImageDataset)."""

    @property
    def origin(self) -> str: ...

    def __len__(self) -> int: ...

    def sample_digests(self) -> Digests: ...

    def subset(self, indices: NDArray[np.int64], split: str) -> Self: ...


S = TypeVar("S", bound=Splittable)


def uniform_of(digests: Digests, purpose: str, seed: int) -> NDArray[np.float64]:
    """A number in [0, 1) for each digest (N, 16): a function of the digest, the purpose and the seed alone."""
    prefix = hashlib.blake2b(f"softcache {purpose} {seed}\0".encode(), digest_size=8)
    content, words = np.ascontiguousarray(digests).data.cast("B"), bytearray()
    for start in range(0, len(content), DIGEST_BYTES):  # slices: a row of numpy's takes longer to make than to hash
        state = prefix.copy()
        state.update(content[start : start + DIGEST_BYTES])
        words += state.digest()
    return (np.frombuffer(bytes(words), dtype="<u8") >> np.uint64(11)).astype(np.float64) / 2.0**53


def split_by_content(
    dataset: S,
    *,
    validation: float,
    test: float,
    seed: int,
    transfer_only: NDArray[np.bool_] | None = None,
) -> dict[str, S]:
    """Split into about the given fractions. `test` may be 0 where the source has a test split of its own.

    Samples of the mask `transfer_only` (N,) go to the end of the training split, wherever their content would put them;
    those that equal a sample of another split are left out. Raises DatasetError when a split that was asked for is empty.
    """
    digests = dataset.sample_digests()
    position = uniform_of(digests, "split", seed)
    transfer = np.zeros(len(dataset), bool) if transfer_only is None else transfer_only
    chosen = {
        "training": ~transfer & (position >= validation + test),
        "validation": ~transfer & (position < validation),
        "test": ~transfer & (position >= validation) & (position < validation + test),
    }
    fractions = {"training": 1.0, "validation": validation, "test": test}
    for split in SPLITS:
        if fractions[split] > 0 and not chosen[split].any():
            raise DatasetError(f"{dataset.origin}: {(~transfer).sum()} samples leave the {split} split empty.")
    held_out = chosen["validation"] | chosen["test"]
    free = np.flatnonzero(transfer)
    if len(free):
        free = free[~among(digests[free], digests[held_out])]
    indices = {split: np.flatnonzero(mask) for split, mask in chosen.items() if fractions[split] > 0}
    indices["training"] = np.concatenate([indices["training"], free])
    return {split: dataset.subset(taken, split) for split, taken in indices.items()}


def among(digests: Digests, others: Digests) -> NDArray[np.bool_]:
    """Which of the digests (N, 16) are among the others (M, 16)."""
    high, low = (np.ascontiguousarray(np.concatenate([others, digests])).view("<u8")[:, word] for word in (0, 1))
    order = np.lexsort((low, high))
    starts = np.ones(len(order), bool)
    starts[1:] = (np.diff(high[order]) != 0) | (np.diff(low[order]) != 0)
    groups = np.empty(len(order), np.int64)
    groups[order] = np.cumsum(starts) - 1  # equal digests are of one group
    known = np.zeros(len(order), bool)
    known[groups[: len(others)]] = True
    return known[groups[len(others) :]]


def filled_splits(
    found: Mapping[str, S],
    *,
    validation: float,
    test: float,
    seed: int,
    transfer_only: NDArray[np.bool_] | None = None,
) -> dict[str, S]:
    """The splits that a source has, and those it lacks, taken of its training split as `split_by_content` does."""
    missing = {split: 0.0 if split in found else share for split, share in (("validation", validation), ("test", test))}
    parts = dict(found)
    if any(missing.values()):
        parts |= split_by_content(
            found["training"],
            validation=missing["validation"],
            test=missing["test"],
            seed=seed,
            transfer_only=transfer_only,
        )
    return {split: parts[split] for split in SPLITS if split in parts}
