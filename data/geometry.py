"""What a model sees of an image: its mode, resized, then cropped at the centre. Pure functions of the raw sample.

Shape legend: C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import DatasetError

Sides = int | tuple[int, int]
CHANNELS = {"L": 1, "RGB": 3}
MOST_PIXELS = 89_478_485  # of a resized image: Pillow's own limit for a decoded one


@dataclass(frozen=True)
class Geometry:
    """`mode` is L or RGB, `resize` the shorter side or (height, width), `crop` a side or (height, width).

    They are done in this order; None leaves that out. Sizes are computed as by torchvision's Resize and CenterCrop,
    pixels by Pillow's bilinear filter, which averages over what it shrinks.
    """

    mode: str | None = None
    resize: Sides | None = None
    crop: Sides | None = None

    @classmethod
    def of(cls, settings: Any) -> Geometry:
        """That of a recipe's `[data]` table."""
        return cls(settings.mode, settings.resize, settings.crop)

    @property
    def changes_nothing(self) -> bool:
        return self == Geometry()

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that a raw sample of `shape` gets. Raises DatasetError when it cannot be made."""
        if self.changes_nothing:
            return shape
        if len(shape) != 3:
            raise DatasetError(
                f"mode, resize and crop are for images of shape (channels, height, width), not for samples of shape {shape}."
            )
        if self.mode is not None and shape[0] not in CHANNELS.values():
            raise DatasetError(
                f"mode = {self.mode!r} is for images of 1 or 3 channels, not for samples of shape {shape}."
            )
        channels = shape[0] if self.mode is None else CHANNELS[self.mode]
        sides = resized_sides(shape[1], shape[2], self.resize)
        if sides[0] * sides[1] > MOST_PIXELS:
            raise DatasetError(
                f"resize = {self.resize} would make {sides[0]} x {sides[1]} pixels of {shape[1]} x {shape[2]}; "
                f"at most {MOST_PIXELS:,} are allowed. Give both sides: resize = [height, width]."
            )
        return (channels, *_cropped_sides(sides, self.crop))

    def __call__(self, image: NDArray[np.generic]) -> NDArray[np.generic]:
        """What a model sees of the raw image (C, H, W). uint8 stays uint8; resizing makes other dtypes float32."""
        if self.changes_nothing:
            return image
        self.shape_of(image.shape)
        if self.mode is not None and len(image) != CHANNELS[self.mode]:
            image = _in_mode(image, self.mode)
        if self.resize is not None:
            image = _resized(image, resized_sides(image.shape[1], image.shape[2], self.resize))
        if self.crop is not None:
            height, width = _cropped_sides((image.shape[1], image.shape[2]), self.crop)
            top, left = round((image.shape[1] - height) / 2.0), round((image.shape[2] - width) / 2.0)
            image = image[:, top : top + height, left : left + width]
        return image


def resized_sides(height: int, width: int, resize: Sides | None) -> tuple[int, int]:
    """Height and width after `resize`: one number is the shorter side's, the longer one follows, rounded down."""
    if resize is None:
        return height, width
    if not isinstance(resize, int):
        return resize
    if height <= width:
        return resize, int(resize * width / height)
    return int(resize * height / width), resize


def _cropped_sides(sides: tuple[int, int], crop: Sides | None) -> tuple[int, int]:
    if crop is None:
        return sides
    height, width = (crop, crop) if isinstance(crop, int) else crop
    if height > sides[0] or width > sides[1]:
        raise DatasetError(
            f"crop = {crop} is larger than the image, {sides[0]} x {sides[1]} (height x width) when it comes to be cropped. "
            "Give a smaller crop, or a resize to at least its size."
        )
    return height, width


def _in_mode(image: NDArray[np.generic], mode: str) -> NDArray[np.generic]:
    from data.image_files.pixels import in_mode

    if image.dtype != np.uint8:
        raise DatasetError(f"mode = {mode!r} converts images of 8 bits (uint8), not samples of dtype {image.dtype}.")
    return in_mode(image.astype(np.uint8, copy=False), mode)


def _resized(image: NDArray[np.generic], sides: tuple[int, int]) -> NDArray[np.generic]:
    """Each channel resized by Pillow's bilinear filter, antialiased."""
    from PIL import Image

    size = (sides[1], sides[0])
    plain = image if image.dtype == np.uint8 else image.astype(np.float32)
    channels = [Image.fromarray(np.ascontiguousarray(channel)) for channel in plain]
    return np.stack([np.asarray(channel.resize(size, Image.Resampling.BILINEAR)) for channel in channels])
