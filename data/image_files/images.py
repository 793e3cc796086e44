"""A dataset of image files: decoded by workers, kept in memory where they are few, digested by their pixels.

Shape legend: M images of a store, N samples of a dataset, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from threading import Lock
from typing import IO

import numpy as np
from numpy.typing import NDArray

from data.digests import DIGEST_BYTES, Digests, image_digest
from data.errors import DatasetError
from data.geometry import Geometry
from data.image_files.image_memory import Seen
from data.image_files.kept_pixels import KeptPixels, Shapes, joined, sizes_of
from data.image_files.pixels import Pixels, bombs_are_errors, decoded
from data.placed import PlacedSamples
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
        seen: Seen | None = None,
    ):
        """`names` (M,) of the images, `opened` opens one by its number, `place_of` names one in messages.

        With `seen`, digests and shapes are known without a look, and an image is decoded when it is first asked for.
        """
        self.names, self.workers, self.memory = names, workers, memory
        self._opened, self._place_of = opened, place_of
        self._known = seen
        self._kept: KeptPixels | None = None
        self._may_keep: bool | None = None  # not known before the first look

    def __len__(self) -> int:
        return len(self.names)

    def place(self, number: int) -> str:
        """Which image this is, for messages."""
        return self._place_of(self.names[number])

    def pixels(self, number: int) -> Pixels:
        """The decoded image (C, H, W). Raises DatasetError naming it when that is not possible."""
        kept = self._kept.one(number) if self._kept is not None else None
        return self._decoded(number) if kept is None else kept

    def gathered(self, numbers: NDArray[np.int64]) -> Pixels:
        """The decoded images (B, C, H, W) of these numbers (B,), which must be of one shape."""
        kept = self._kept
        if kept is None:
            return np.stack(self.workers.map(self._decoded, numbers.tolist()))
        missing = kept.missing(numbers).tolist()
        for number, pixels in zip(missing, self.workers.map(self._decoded, missing), strict=True):
            kept.put(number, pixels)
        return kept.gathered(numbers)

    @property
    def digests(self) -> Digests:
        """Digests (M, 16) of the decoded pixels with their shape, as of an array (C, H, W) of uint8."""
        return self.seen.digests

    @property
    def shapes(self) -> Shapes:
        """Shapes (M, 3) of the decoded images: channels, height, width."""
        return self.seen.shapes

    @property
    def seen(self) -> Seen:
        """What the first look saw of all images. Raises DatasetError naming the first that cannot be decoded."""
        return self._known or self.look(lambda amount: None)

    @property
    def in_memory(self) -> bool:
        """Whether decoded images stay in memory; asking takes the room for them, if it is free."""
        shapes = self.shapes  # only the first look tells
        if self._may_keep is None:
            self._may_keep = self.memory.take(int(sizes_of(shapes).sum()))
            self._kept = KeptPixels(shapes) if self._may_keep else None
        return self._kept is not None

    def let_go(self) -> None:
        """Forget the decoded images that are kept."""
        if self._kept is not None:
            self.memory.give_back(self._kept.nbytes)
            self._kept, self._may_keep = None, False

    def look(self, advance: Callable[[int], None]) -> Seen:
        """Decode each image, for its digest and shape, and keep them all if memory lasts: half a set there helps nobody."""
        seen = Seen(np.empty((len(self), DIGEST_BYTES), np.uint8), np.empty((len(self), 3), np.int32))
        room = _Room(self.memory)

        def looked_at(number: int) -> Pixels | None:
            pixels = self._decoded(number)
            seen.digests[number] = np.frombuffer(image_digest(pixels), np.uint8)
            seen.shapes[number] = pixels.shape
            return pixels if room.take(pixels.nbytes) else None

        pieces: list[Pixels] = []
        with bombs_are_errors():
            for start in range(0, len(self), IMAGES_AT_ONCE):
                images = self.workers.map(looked_at, range(start, min(start + IMAGES_AT_ONCE, len(self))))
                if not room.lasts:
                    pieces.clear()
                elif images:
                    pieces.append(np.concatenate([pixels.reshape(-1) for pixels in images if pixels is not None]))
                advance(len(images))
        self._known, self._may_keep = seen, room.lasts
        self._kept = KeptPixels(seen.shapes, joined(pieces)) if room.lasts else None
        return seen

    def _decoded(self, number: int) -> Pixels:
        place = self.place(number)
        with self._opened(number) as file:
            pixels = decoded(file, place)
        if self._known is not None and pixels.shape != (expected := tuple(self._known.shapes[number].tolist())):
            raise DatasetError(
                f"{place}: the image is {pixels.shape} now, and was {expected} when it was first looked at. Let the files be "
                "while they are used, and run again."
            )
        return pixels


class _Room:
    """What images have taken of the memory; all of it is given back when one does not fit."""

    def __init__(self, memory: Memory):
        self.lasts = True
        self._memory, self._taken, self._lock = memory, 0, Lock()

    def take(self, size: int) -> bool:
        """Whether one more, and so far each, fits."""
        with self._lock:
            if self.lasts and self._memory.take(size):
                self._taken += size
            elif self.lasts:
                self._memory.give_back(self._taken)
                self.lasts = False
            return self.lasts


class ImageDataset(PlacedSamples[ImageStore]):
    """Images of a store: a sample is its decoded pixels (C, H, W) uint8.

    Sizes and modes may differ until `data.shaped` makes them equal.
    """

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return self._unshaped.sample_shape

    @property
    def names(self) -> list[str]:
        return [self.store.names[number] for number in self.positions]

    @property
    def shapes(self) -> Shapes:
        return self.store.shapes[self.positions]

    def sample(self, index: int) -> NDArray[np.generic]:
        """The decoded image at a stable index."""
        return self.store.pixels(int(self.positions[index]))

    def samples(self, indices: NDArray[np.int64]) -> NDArray[np.generic]:
        """The images (B, C, H, W) at `indices` (B,), which must all be of one shape."""
        return self._unshaped.samples(indices)

    @cached_property
    def _unshaped(self) -> ShapedDataset:
        return ShapedDataset(self, Geometry(), self.store.workers, self.store.memory)
