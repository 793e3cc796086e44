"""Splitting a dataset into training, validation and test samples by their content.

Which split a sample falls in is a function of its digest and the seed alone: reordering the dataset, or adding to it,
moves no sample, and equal samples never fall on both sides.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from data.arrays import ArrayDataset
from data.digests import Digests
from data.errors import DatasetError

SPLITS = ("training", "validation", "test")


def uniform_of(digests: Digests, purpose: str, seed: int) -> NDArray[np.float64]:
    """A number in [0, 1) for each digest (N, 16): a function of the digest, the purpose and the seed alone."""
    prefix = hashlib.blake2b(f"softcache {purpose} {seed}\0".encode(), digest_size=8)
    words = bytearray()
    for digest in digests:
        state = prefix.copy()
        state.update(digest)
        words += state.digest()
    return (np.frombuffer(bytes(words), dtype="<u8") >> np.uint64(11)).astype(np.float64) / 2.0**53


def split_by_content(dataset: ArrayDataset, *, validation: float, test: float, seed: int) -> dict[str, ArrayDataset]:
    """Split into about the given fractions. `test` may be 0 where the source has a test split of its own.

    Raises DatasetError when a split that was asked for is empty.
    """
    position = uniform_of(dataset.sample_digests(), "split", seed)
    chosen = {
        "training": position >= validation + test,
        "validation": position < validation,
        "test": (position >= validation) & (position < validation + test),
    }
    fractions = {"training": 1.0, "validation": validation, "test": test}
    for split in SPLITS:
        if fractions[split] > 0 and not chosen[split].any():
            raise DatasetError(f"{dataset.origin}: {len(dataset)} samples leave the {split} split empty.")
    return {
        split: dataset.subset(np.flatnonzero(mask), split) for split, mask in chosen.items() if fractions[split] > 0
    }
