"""The block table: size, place and checksums of every stored object, as one .npy file beside the store.

`np.load("blocks.npy")` reads it. The names of its entries follow from the manifest: the store's metadata objects, then
the chunks of each array in order.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import CorruptCacheError

BLOCK_TABLE_FILE = "blocks.npy"
WORTH_A_THREAD = 2**18  # bytes whose sha256 takes longer than starting a thread
ENTRY = np.dtype([("size", "<u8"), ("offset", "<u8"), ("crc32c", "<u4"), ("sha256", "V32")])


@dataclass(frozen=True)
class Checksums:
    """Of one stored object: its size in bytes with any codec trailer, crc32c of its data, sha256 of all of it."""

    size: int
    crc32c: int
    sha256: str

    def as_json(self) -> dict[str, Any]:
        """The same as a JSON object."""
        return {"size": self.size, "crc32c": self.crc32c, "sha256": self.sha256}


def crc32c_of(data: bytes | memoryview | NDArray[np.generic]) -> int:
    """CRC-32C (Castagnoli) of the bytes of `data`."""
    return int(google_crc32c.value(np.frombuffer(data, dtype=np.uint8)))


def checksums_of(data: bytes | memoryview | NDArray[np.generic], trailer: bytes = b"") -> Checksums:
    """Checksums of `data` as it is stored: with the codec's `trailer` after it, which the crc32c does not cover."""
    return Hashing(data, trailer).checksums(crc32c_of(data))


class Hashing:
    """The sha256 of an object, computed on a thread of its own while the object is written."""

    def __init__(self, data: bytes | memoryview | NDArray[np.generic], trailer: bytes = b""):
        view = data.data.cast("B") if isinstance(data, np.ndarray) else memoryview(data).cast("B")
        self._size = view.nbytes + len(trailer)
        self._sha256 = hashlib.sha256()
        self._thread: threading.Thread | None = None
        if self._size < WORTH_A_THREAD:
            self._hash(view, trailer)
        else:
            self._thread = threading.Thread(target=self._hash, args=(view, trailer), name="sha256")
            self._thread.start()

    def checksums(self, crc32c: int) -> Checksums:
        """Wait for the sha256; `crc32c` is that of the data, which is computed faster than it is passed on."""
        if self._thread is not None:
            self._thread.join()
        return Checksums(self._size, crc32c, self._sha256.hexdigest())

    def _hash(self, view: memoryview, trailer: bytes) -> None:
        self._sha256.update(view)
        self._sha256.update(trailer)


def block_table_bytes(entries: Sequence[tuple[Checksums, int]]) -> bytes:
    """The .npy file for (checksums, offset) pairs."""
    table = np.empty(len(entries), dtype=ENTRY)
    for row, (checksums, offset) in enumerate(entries):
        table[row] = (checksums.size, offset, checksums.crc32c, bytes.fromhex(checksums.sha256))
    file = io.BytesIO()
    np.save(file, table, allow_pickle=False)
    return file.getvalue()


def read_block_table(content: bytes, expected_entries: int) -> NDArray[np.void]:
    """The table (one entry of dtype ENTRY for each object) from its file. Raises CorruptCacheError."""
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[
            version
        ]
        shape, is_fortran, dtype = read_header(file)
    except Exception as problem:  # numpy parses the header as Python; bad ones raise from its tokenizer as well
        raise CorruptCacheError(f"{BLOCK_TABLE_FILE} is not a block table: {problem}.") from None
    # np.load would allocate what the header declares, and open an archive; here nothing is decoded before it fits.
    held = len(content) - file.tell()
    if dtype != ENTRY or shape != (expected_entries,) or is_fortran or held != expected_entries * ENTRY.itemsize:
        raise CorruptCacheError(
            f"{BLOCK_TABLE_FILE} has shape {shape}, dtype {dtype} and {held} bytes of entries; "
            f"the manifest's arrays need {expected_entries} entries of {ENTRY}."
        )
    return np.frombuffer(content, dtype=ENTRY, offset=file.tell())
