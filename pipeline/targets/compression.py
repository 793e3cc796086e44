"""Compression of blocks in the Zarr layout: codecs that stock zarr knows, decoded straight into memory that is there.

numcodecs does both: of the maintained ways (zarr-python, the Rust pipeline `zarrs`, tensorstore) it alone decodes into a
buffer of ours, and it is what zarr itself calls (benchmarks/RESULTS.md compares them).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

# What a compressor may add to data that it cannot make smaller, at most; a larger object is refused unread.
LARGEST_EXPANSION_BYTES = 2**16


class Compression(Protocol):
    """One codec, with fixed parameters."""

    name: str

    def zarr_codecs(self, item_bytes: int) -> list[Any]:
        """The bytes-to-bytes codecs that zarr writes into an array's metadata, before the crc32c."""
        ...

    def encode(self, data: memoryview, item_bytes: int) -> bytes | memoryview:
        """The stored form of a chunk's bytes, whose numbers have `item_bytes` each."""
        ...

    def decode_into(self, stored: NDArray[np.uint8], target: NDArray[np.uint8]) -> None:
        """Fill `target` with the chunk's bytes. Raises ValueError when they are not exactly as many, before decoding."""
        ...


class Uncompressed:
    """Raw bytes: a block is mapped into memory as it is."""

    name = "none"

    def zarr_codecs(self, item_bytes: int) -> list[Any]:
        return []

    def encode(self, data: memoryview, item_bytes: int) -> bytes | memoryview:
        return data

    def decode_into(self, stored: NDArray[np.uint8], target: NDArray[np.uint8]) -> None:
        _refuse_other_size(len(stored), len(target))
        target[:] = stored


@dataclass(frozen=True)
class Zstd:
    """Zstandard, with its own checksum of the content."""

    name = "zstd"
    level: int = 3

    def zarr_codecs(self, item_bytes: int) -> list[Any]:
        from zarr.codecs import ZstdCodec

        return [ZstdCodec(level=self.level, checksum=True)]

    def encode(self, data: memoryview, item_bytes: int) -> bytes | memoryview:
        from numcodecs import zstd

        return bytes(zstd.compress(data, self.level, True))

    def decode_into(self, stored: NDArray[np.uint8], target: NDArray[np.uint8]) -> None:
        from numcodecs import zstd

        _refuse_other_size(_zstd_content_bytes(stored), len(target))
        try:
            zstd.decompress(stored, target)
        except RuntimeError as problem:
            raise ValueError(str(problem)) from None


@dataclass(frozen=True)
class BloscLz4:
    """LZ4 within Blosc, after a transposition of bits: the sign and exponent bits of neighbouring numbers are alike."""

    name = "blosc-lz4"
    level: int = 5

    def zarr_codecs(self, item_bytes: int) -> list[Any]:
        from zarr.codecs import BloscCodec

        return [BloscCodec(typesize=item_bytes, cname="lz4", clevel=self.level, shuffle="bitshuffle")]

    def encode(self, data: memoryview, item_bytes: int) -> bytes | memoryview:
        from numcodecs import blosc

        return bytes(blosc.compress(data, b"lz4", self.level, blosc.BITSHUFFLE, 0, item_bytes))

    def decode_into(self, stored: NDArray[np.uint8], target: NDArray[np.uint8]) -> None:
        from numcodecs import blosc

        # Header of c-blosc 1: version, versionlz, flags, typesize, then nbytes, blocksize and cbytes as uint32.
        content_bytes, _, stored_bytes = struct.unpack_from("<3I", stored.data, 4) if len(stored) >= 16 else (0, 0, 0)
        _refuse_other_size(content_bytes, len(target))
        _refuse_other_size(stored_bytes, len(stored))
        try:
            blosc.decompress(stored, target)
        except RuntimeError as problem:
            raise ValueError(str(problem)) from None


COMPRESSIONS: dict[str, Compression] = {"none": Uncompressed(), "zstd": Zstd(), "blosc-lz4": BloscLz4()}


def _refuse_other_size(found: int, expected: int) -> None:
    if found != expected:
        raise ValueError(f"it holds {found} bytes, not {expected}")


def _zstd_content_bytes(stored: NDArray[np.uint8]) -> int:
    """The content size that a frame's header declares (RFC 8878, section 3.1.1.1); -1 where it declares none."""
    if len(stored) < 6 or bytes(stored[:4]) != b"\x28\xb5\x2f\xfd":
        return -1
    descriptor = int(stored[4])
    single_segment, size_flag = descriptor >> 5 & 1, descriptor >> 6
    field_bytes = (single_segment, 2, 4, 8)[size_flag]
    start = 5 + (0 if single_segment else 1) + (0, 1, 2, 4)[descriptor & 3]
    field = bytes(stored[start : start + field_bytes])
    if field_bytes == 0 or len(field) < field_bytes:
        return -1
    return int.from_bytes(field, "little") + (256 if field_bytes == 2 else 0)
