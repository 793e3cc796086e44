"""A dataset of image files: decoded by workers, kept in memory where they are few, digested by their pixels.

Shape legend: M images of a store, N samples of a dataset, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import IO

import numpy as np
from numpy.typing import NDArray

from data.arrays import NO_LABEL
from data.digests import DIGEST_BYTES, Digests, array_digests
from data.geometry import Geometry
from data.pixels import Pixels, bombs_are_errors, decoded
from data.shaping import ShapedDataset
from data.workers import Memory, Workers

IMAGES_AT_ONCE = 1024  # in the first look: few enough to stop soon, many enough for the workers


class ImageStore:
    """M images by number. The first look decodes each once, for its digest and shape; later ones come from memory if it lasts."""

    def __init__(
        self,
        names: Sequence[str],
        opened: Callable[[int], IO[bytes]],
        place_of: Callable[[str], str],
        workers: Workers,
        memory: Memory,
    ):
        """`names` (M,) of the images, `opened` opens one by its number, `place_of` names one in messages."""
        self.names, self.workers, self.memory = names, workers, memory
        self._opened, self._place_of = opened, place_of
        self._kept: Sequence[Pixels] | Pixels | None = None

    def __len__(self) -> int:
        return len(self.names)

    def place(self, number: int) -> str:
        """Which image this is, for messages."""
        return self._place_of(self.names[number])

    def pixels(self, number: int) -> Pixels:
        """The decoded image (C, H, W). Raises DatasetError naming it when that is not possible."""
        kept = self._kept
        return kept[number] if kept is not None else self._decoded(number)

    def gathered(self, numbers: NDArray[np.int64]) -> Pixels:
        """The decoded images (B, C, H, W) of these numbers (B,), which must be of one shape."""
        kept = self._kept
        return kept[numbers] if isinstance(kept, np.ndarray) else np.stack([self.pixels(int(n)) for n in numbers])

    @property
    def digests(self) -> Digests:
        """Digests (M, 16) of the decoded pixels with their shape, as of an array (C, H, W) of uint8."""
        return self._looked[0]

    @property
    def shapes(self) -> NDArray[np.int64]:
        """Shapes (M, 3) of the decoded images: channels, height, width."""
        return self._looked[1]

    @property
    def in_memory(self) -> bool:
        return len(self._looked) > 0 and self._kept is not None  # only the first look tells

    def let_go(self) -> None:
        """Forget the decoded images that are kept."""
        if self._kept is not None:
            self.memory.give_back(int(self.shapes.prod(axis=1).sum()))
            self._kept = None

    @cached_property
    def _looked(self) -> tuple[Digests, NDArray[np.int64]]:
        digests = np.empty((len(self), DIGEST_BYTES), np.uint8)
        shapes = np.empty((len(self), 3), np.int64)
        keeping: list[Pixels] | None = []
        with bombs_are_errors():
            for start in range(0, len(self), IMAGES_AT_ONCE):
                numbers = range(start, min(start + IMAGES_AT_ONCE, len(self)))
                for number, (pixels, digest) in zip(numbers, self.workers.map(self._digested, numbers), strict=True):
                    digests[number], shapes[number] = digest, pixels.shape
                    keeping = self._keep(keeping, pixels)
        self._kept = _in_one_array(keeping) if keeping is not None and (shapes == shapes[0]).all() else keeping
        return digests, shapes

    def _keep(self, keeping: list[Pixels] | None, pixels: Pixels) -> list[Pixels] | None:
        """The list with one image more, or None from the first that does not fit: half a set in memory helps nobody."""
        if keeping is None:
            return None
        if self.memory.take(pixels.nbytes):
            keeping.append(pixels)
            return keeping
        self.memory.give_back(sum(kept.nbytes for kept in keeping))
        return None

    def _digested(self, number: int) -> tuple[Pixels, NDArray[np.uint8]]:
        pixels = self._decoded(number)
        return pixels, array_digests(pixels[None])[0]

    def _decoded(self, number: int) -> Pixels:
        place = self.place(number)
        with self._opened(number) as file:
            return decoded(file, place)


def _in_one_array(images: list[Pixels]) -> Pixels:
    """Images of one shape stacked along a new axis 0. The list is emptied on the way: both at once need twice the memory."""
    stacked = np.empty((len(images), *images[0].shape), np.uint8)
    for number in reversed(range(len(images))):
        stacked[number] = images.pop()
    return stacked


@dataclass(frozen=True)
class ImageDataset:
    """The images of `store` at `positions` (N,), with `given_labels` (N,), -1 where a sample has none.

    A sample is its decoded pixels (C, H, W) uint8; sizes and modes may differ until `data.shaped` makes them equal. See
    ArrayDataset for `part` and `origin`.
    """

    store: ImageStore
    positions: NDArray[np.int64]
    given_labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    split: str
    origin: str
    part: str = "all"

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return self._unshaped.sample_shape

    @property
    def part_samples(self) -> int:
        """How many samples the part has, those of other splits and those that were left out included."""
        return len(self.store)

    @property
    def names(self) -> list[str]:
        return [self.store.names[number] for number in self.positions]

    @property
    def shapes(self) -> NDArray[np.int64]:
        return self.store.shapes[self.positions]

    def place(self, index: int) -> str:
        """Which image a sample is, for messages."""
        return self.store.place(int(self.positions[index]))

    def sample(self, index: int) -> NDArray[np.generic]:
        """The decoded image at a stable index."""
        return self.store.pixels(int(self.positions[index]))

    def samples(self, indices: NDArray[np.int64]) -> NDArray[np.generic]:
        """The images (B, C, H, W) at `indices` (B,), which must all be of one shape."""
        return self._unshaped.samples(indices)

    def label(self, index: int) -> int | None:
        """The class index of a sample, or None."""
        label = int(self.given_labels[index])
        return None if label == NO_LABEL else label

    def labels(self) -> NDArray[np.int64]:
        """All labels (N,), -1 where a sample has none."""
        return self.given_labels

    def sample_digests(self) -> Digests:
        """Digests (N, 16) of the decoded pixels of every sample."""
        return self.store.digests[self.positions]

    def subset(self, indices: NDArray[np.int64], split: str) -> ImageDataset:
        """The samples at `indices`, in that order, as a dataset of its own."""
        return replace(self, positions=self.positions[indices], given_labels=self.given_labels[indices], split=split)

    @cached_property
    def _unshaped(self) -> ShapedDataset:
        return ShapedDataset(self, Geometry(), self.store.workers, self.store.memory)
