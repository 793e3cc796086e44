"""Small pictures for tests: their pixels, image files of them, and settings of a `[data]` table."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.recipe import Data

Pixels = NDArray[np.uint8]


def grey(seed: int, height: int = 8, width: int = 6) -> Pixels:
    """Random grey pixels (H, W)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def colour(seed: int, height: int = 8, width: int = 6) -> Pixels:
    """Random coloured pixels (H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path: Path, pixels: NDArray[np.generic], **options: Any) -> Path:
    """Write an image file in the format of its extension; the folders above are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def as_sample(pixels: Pixels) -> Pixels:
    """Pixels (H, W) or (H, W, 3) as a sample (C, H, W)."""
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def png(colour_type: int, depth: int, width: int, rows: list[bytes]) -> bytes:
    """A PNG file made by hand, for kinds that Pillow does not write (PNG specification, 11.2.2)."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour_type, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def settings(**fields: Any) -> Data:
    """A `[data]` table of images."""
    return Data(**{"kind": "folder", "path": "images", **fields})
