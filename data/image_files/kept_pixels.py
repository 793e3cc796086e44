"""Decoded images that stay in memory: one array of bytes, for a million small arrays would take more for themselves.

Shape legend: M images of a store, B of a batch, C channels, H height, W width.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data.image_files.pixels import Pixels

Shapes = NDArray[np.int32]  # (M, 3): channels, height, width


class KeptPixels:
    """The pixels of M images by number, each there once it was put; memory that no image lies in is not touched."""

    def __init__(self, shapes: Shapes, flat: Pixels | None = None):
        """`flat` are the pixels of all images one after another, if they are there already."""
        self._shapes = shapes
        self._one_shape = tuple(shapes[0].tolist()) if len(shapes) and bool((shapes == shapes[0]).all()) else None
        self._ends = None if self._one_shape else np.cumsum(sizes_of(shapes))
        self._flat = np.empty(int(sizes_of(shapes).sum()), np.uint8) if flat is None else flat
        self._there = np.full(len(shapes), flat is not None)

    @property
    def nbytes(self) -> int:
        return self._flat.nbytes

    def put(self, number: int, pixels: Pixels) -> None:
        """Keep the pixels (C, H, W) of an image, which are of its shape."""
        self._place(number)[...] = pixels
        self._there[number] = True

    def missing(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the images that are not there yet."""
        missing: NDArray[np.int64] = numbers[~self._there[numbers]]
        return missing

    def one(self, number: int) -> Pixels | None:
        """The pixels (C, H, W) of an image, if they are there."""
        return self._place(number) if self._there[number] else None

    def gathered(self, numbers: NDArray[np.int64]) -> Pixels:
        """The pixels (B, C, H, W) of images that are all there and of one shape."""
        if self._one_shape is not None:
            everything: Pixels = self._flat.reshape(-1, *self._one_shape)
            return everything[numbers]
        return np.stack([self._place(number) for number in numbers.tolist()])

    def _place(self, number: int) -> Pixels:
        shape = self._one_shape or tuple(self._shapes[number].tolist())
        size = int(np.prod(shape))
        end = (number + 1) * size if self._ends is None else int(self._ends[number])
        return self._flat[end - size : end].reshape(shape)


def sizes_of(shapes: Shapes) -> NDArray[np.int64]:
    """Bytes (M,) of each image."""
    sizes: NDArray[np.int64] = shapes.prod(axis=1, dtype=np.int64)
    return sizes


def joined(pieces: list[Pixels]) -> Pixels:
    """All pieces (n,) one after another. The list is emptied on the way: both at once need twice the memory."""
    whole = np.empty(sum(map(len, pieces)), np.uint8)
    end = len(whole)
    while pieces:
        piece = pieces.pop()
        whole[end - len(piece) : end] = piece
        end -= len(piece)
    return whole
