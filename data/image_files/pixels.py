"""Decoding one image file into pixels: what is read as it is, and what is refused rather than guessed at.

Pixels are (C, H, W) uint8, C = 1 (L) or 3 (RGB). They do not depend on the file's format, so that a PNG and a BMP of the
same picture have the same digest. The orientation that a camera noted (EXIF) is not applied.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from data.errors import DatasetError

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

Pixels = NDArray[np.uint8]

# Only these decoders are ever tried, whatever a file's name: some of Pillow's others start programs or hold vectors.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")

DECODED_MODE = {
    **{"1": "L", "L": "L", "LA": "L", "La": "L"},
    **{
        "RGB": "RGB",
        "P": "RGB",
        "PA": "RGB",
        "RGBA": "RGB",
        "RGBa": "RGB",
        "RGBX": "RGB",
        "CMYK": "RGB",
        "YCbCr": "RGB",
    },
}
SIXTEEN_BITS = re.compile(r"(?<!BGR);16[BLN]?$")  # Pillow's raw modes; BGR;16 has 16 bits a pixel, not a channel


def decoded(file: IO[bytes], place: str) -> Pixels:
    """The pixels (C, H, W) of an image file; `place` names it in messages.

    Raises DatasetError when it cannot be decoded whole, is larger than Pillow's limit against decompression bombs, has
    16 bits or floats, more than one frame, or pixels that are not opaque.
    """
    try:
        with Image.open(file, formats=FORMATS) as image:
            _refuse_large(image, place)
            _refuse_deep(image, place)
            _refuse_frames(image, place)
            image.load()
            return _pixels_of(image, place)
    except DatasetError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(place) from None
    except Exception as problem:  # damaged bytes fail anywhere in Pillow's parsers, zlib, struct or an allocation
        reason = "it is no image of a known format" if isinstance(problem, UnidentifiedImageError) else problem
        raise DatasetError(
            f"{place}: this image cannot be decoded ({reason}). Was it cut short, or is it another kind of file? "
            "Replace it, or take it out of the dataset."
        ) from None


@contextmanager
def bombs_are_errors() -> Iterator[None]:
    """Pillow only warns of an image somewhat above its limit; here that is an error. Not for threads: enter it before."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def in_mode(pixels: Pixels, mode: str) -> Pixels:
    """Pixels (C, H, W) as L or RGB. Colour becomes grey by the luma of ITU-R 601-2, as in Pillow."""
    if len(pixels) == {"L": 1, "RGB": 3}[mode]:
        return pixels
    if mode == "RGB":
        return np.repeat(pixels, 3, axis=0)
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).convert("L"))[None]


def _refuse_large(image: ImageFile, place: str) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise _too_large(place, f"{image.width} x {image.height} pixels")


def _too_large(place: str, size: str = "more pixels") -> DatasetError:
    limit = f"the {Image.MAX_IMAGE_PIXELS:,} that" if Image.MAX_IMAGE_PIXELS is not None else "what"
    return DatasetError(
        f"{place}: the file declares {size}; {limit} Pillow accepts (PIL.Image.MAX_IMAGE_PIXELS) guard against "
        "decompression bombs. Make the image smaller, or take it out of the dataset."
    )


def _refuse_deep(image: ImageFile, place: str) -> None:
    """Pillow reads 16-bit colour as 8-bit, dropping the lower half without a word."""
    raw = [part for tile in image.tile for part in (tile.args if isinstance(tile.args, tuple) else (tile.args,))]
    deep = any(isinstance(part, str) and SIXTEEN_BITS.search(part) for part in raw)
    scaled = image.format == "PPM" and any(isinstance(part, int) and part > 255 for part in raw)
    if deep or scaled or image.mode not in DECODED_MODE:
        what = "16 bits a channel" if deep or scaled or image.mode.startswith("I;16") else f"mode {image.mode}"
        raise DatasetError(
            f"{place}: the image has {what}; 8 bits a channel, grey or colour, are needed, and nothing is clipped silently. "
            'Convert it to 8 bits with a scale of your own choice, or bring the values as arrays (kind = "npz").'
        )


def _refuse_frames(image: ImageFile, place: str) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a camera's MPO is a JPEG with a preview behind it
        raise DatasetError(
            f"{place}: the file holds {frames} frames; one image a file is needed. Save them one by one."
        )


def _pixels_of(image: Image.Image, place: str) -> Pixels:
    mode = DECODED_MODE[image.mode]
    if image.has_transparency_data:
        alpha = image.convert("LA" if mode == "L" else "RGBA").getchannel("A")
        least = alpha.getextrema()[0]
        if least != 255:
            raise DatasetError(
                f"{place}: the image (mode {image.mode}) is not opaque, its least alpha is {least} of 255. Flatten it on a "
                "background of your choice, for example with ImageMagick: convert IN -background white -alpha remove OUT."
            )
        image = image.convert("LA" if mode == "L" else "RGBA")
    array = np.asarray(image if image.mode == mode else image.convert(mode))
    return array[None].copy() if mode == "L" else np.ascontiguousarray(array.transpose(2, 0, 1))
