"""Samples as a page shows them: images as PNG inside the page, other shapes as a few of their values."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST_SIDE = 96  # pixels stored; a page shows no more
MOST_VALUES = 8


def is_image(shape: Sequence[int]) -> bool:
    """Whether samples of this shape are images: (1 or 3 channels, height, width)."""
    return len(shape) == 3 and shape[0] in (1, 3)


def grey_range(samples: Sequence[NDArray[np.generic]]) -> tuple[float, float]:
    """The values that become black and white: 0 and 255 for bytes that use them, else the lowest and highest there are.

    Shapes and modes of the samples may differ, as those of raw images do.
    """
    values = np.concatenate([np.asarray(sample, dtype=np.float64).ravel() for sample in samples])
    finite = values[np.isfinite(values)]
    if len(finite) == 0:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    if all(sample.dtype == np.uint8 for sample in samples) and high > 127:
        return 0.0, 255.0
    return low, high if high > low else low + 1.0


def png_uri(sample: NDArray[np.generic], low: float, high: float) -> str:
    """A data: URI of an image (1 or 3, H, W) in which `low` is black and `high` is white."""
    from PIL import Image

    scaled = (np.asarray(sample, dtype=np.float64) - low) / (high - low)
    pixels = np.nan_to_num(255 * np.clip(scaled, 0, 1)).round().astype(np.uint8)
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def first_values(sample: NDArray[np.generic]) -> str:
    """The first values of a sample, in C order, for samples that are no images."""
    flat = np.asarray(sample).ravel()
    shown = ", ".join(
        f"{value:.4g}" if isinstance(value, float) else str(value) for value in flat[:MOST_VALUES].tolist()
    )
    return shown + (", …" if len(flat) > MOST_VALUES else "")


def shown_samples(samples: Sequence[NDArray[np.generic]]) -> list[dict[str, Any]]:
    """For each sample its "picture" (a data: URI) or its "values" (text); one range of grey serves them all."""
    if not samples or not all(is_image(sample.shape) for sample in samples):
        return [{"values": first_values(sample)} for sample in samples]
    low, high = grey_range(samples)
    return [{"picture": png_uri(sample, low, high)} for sample in samples]
