"""Digests of samples: what a row of a target cache is joined by.

A digest is blake2b-128 of a domain tag and the sample's raw content, before any transform. Two samples with equal
content have equal digests wherever they are stored and in whatever order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

DIGEST_BYTES = 16

Digests = NDArray[np.uint8]  # shape (N, 16)


def array_digests(samples: NDArray[np.generic]) -> Digests:
    """Digests (N, 16) of N samples stacked along axis 0: dtype, shape and little-endian C-order bytes of each."""
    little_endian = samples.dtype.newbyteorder("<")
    stacked = np.ascontiguousarray(samples, dtype=little_endian)
    prefix = _array_prefix(little_endian.str.lstrip("<|="), samples.shape[1:])
    rows = stacked.reshape(len(stacked), -1).view(np.uint8) if stacked.size else stacked.view(np.uint8)
    return _stack(_finish(prefix, row.data) for row in rows)


def image_digest(pixels: NDArray[np.uint8]) -> bytes:
    """The digest of one sample of uint8, as `array_digests` gives it; for images, which are decoded one by one."""
    return _finish(_array_prefix("u1", pixels.shape), np.ascontiguousarray(pixels).data)


@lru_cache(maxsize=64)
def _array_prefix(dtype: str, shape: tuple[int, ...]) -> hashlib.blake2b:
    return hashlib.blake2b(f"softcache array 1\0{dtype}\0{list(shape)}\0".encode(), digest_size=DIGEST_BYTES)


def text_digests(samples: Iterable[Sequence[str]]) -> Digests:
    """Digests (N, 16) of N samples of one or more text fields each: length-prefixed UTF-8, unnormalised."""
    prefix = hashlib.blake2b(b"softcache text 1\0", digest_size=DIGEST_BYTES)

    def content(fields: Sequence[str]) -> bytes:
        encoded = [field.encode("utf-8") for field in fields]
        return b"".join(len(field).to_bytes(8, "little") + field for field in encoded)

    return _stack(_finish(prefix, content(fields)) for fields in samples)


def _finish(prefix: hashlib.blake2b, content: bytes | memoryview) -> bytes:
    state = prefix.copy()
    state.update(content)
    return state.digest()


def _stack(digests: Iterable[bytes]) -> Digests:
    content = bytearray()  # a list of bytes objects, which join would make, takes four times as much
    for digest in digests:
        content += digest
    stacked = np.frombuffer(content, dtype=np.uint8).reshape(-1, DIGEST_BYTES)
    stacked.flags.writeable = False
    return stacked
