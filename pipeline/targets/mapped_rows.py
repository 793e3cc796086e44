"""Rows of an uncompressed array, mapped into memory: any row is one index away, at the speed of one memory-mapped file.

The blocks lie in many files (Zarr) or at many offsets (HDF5). They are mapped one behind the other into one reserved range
of addresses, each at a place that is a whole number of rows from the first, so that one gather serves rows of all blocks.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.sorting import Indices
from pipeline.targets.arrays import ArraySpec
from pipeline.targets.layouts import Extent

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# From Linux's asm-generic/mman.h; Python's mmap module knows neither fixed addresses nor reservations.
PROT_NONE, PROT_READ = 0, 1
MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS, MAP_NORESERVE = 0x02, 0x10, 0x20, 0x4000
MAP_FAILED = ctypes.c_void_p(-1).value

LARGEST_RESERVATION = 2**45  # of 2^47 addresses
MOST_MAPPINGS = 2**15  # half of what Linux allows a process by default (vm.max_map_count)


def can_map(spec: ArraySpec, extents: Sequence[Extent]) -> bool:
    """Whether MappedRows can serve an array; where not, PooledRows gives the same rows."""
    return (
        sys.platform == "linux"
        and spec.compression == "none"
        and len(extents) <= MOST_MAPPINGS
        and all(extent.offset % mmap.PAGESIZE == 0 for extent in extents)
        and len(extents) * rows_apart(spec) * spec.row_bytes <= LARGEST_RESERVATION
    )


def rows_apart(spec: ArraySpec) -> int:
    """How many rows the first rows of two neighbouring blocks are apart: whole pages, and whole rows."""
    granule = math.lcm(mmap.PAGESIZE, spec.row_bytes)
    return -(-spec.chunk_bytes // granule) * granule // spec.row_bytes


class MappedRows:
    """The rows of one array. It may be used by any number of threads, and in a forked process."""

    def __init__(self, folder: Path, spec: ArraySpec, extents: Sequence[Extent]):
        """Map all blocks of `spec`, for which `can_map` holds. Raises OSError."""
        import torch

        self._rows_per_block, self._rows_apart = spec.rows_per_chunk, rows_apart(spec)
        self._chunk_bytes = spec.chunk_bytes
        apart = self._rows_apart * spec.row_bytes
        memory = _reserve(max(1, len(extents)) * apart)
        for number, extent in enumerate(extents):
            _map_file(ctypes.addressof(memory) + number * apart, folder / extent.file, extent.offset, extent.data_bytes)
        self._bytes: NDArray[np.uint8] = np.ctypeslib.as_array(memory).view(np.uint8)
        self._words = torch.frombuffer(memory, dtype=word_of(spec)).view(-1, spec.row_bytes // word_of(spec).itemsize)

    def block(self, block: int) -> NDArray[np.uint8]:
        """The bytes of one block, where they are mapped; writing to them ends the process."""
        start = block * self._rows_apart * (self._words.shape[1] * self._words.element_size())
        return self._bytes[start : start + self._chunk_bytes]

    def gather(self, rows: Indices, out: Tensor) -> None:
        """Copy the rows (B,), which must exist, to `out` (B, words of a row)."""
        import torch

        if self._rows_apart != self._rows_per_block:
            rows = rows + rows // self._rows_per_block * (self._rows_apart - self._rows_per_block)
        torch.index_select(self._words, 0, torch.from_numpy(rows), out=out)


def word_of(spec: ArraySpec) -> torch.dtype:
    """The largest integers that a row consists of: rows are copied as these, whatever they mean."""
    import torch

    sizes = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}
    return next(dtype for size, dtype in sizes.items() if spec.row_bytes % size == 0)


def _reserve(size: int) -> ctypes.Array[ctypes.c_char]:
    """So many bytes of addresses without memory behind them; given back when nothing refers to the result any more."""
    address = _libc().mmap(None, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if address == MAP_FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    memory = (ctypes.c_char * size).from_address(address)
    weakref.finalize(memory, _libc().munmap, address, size).atexit = False
    return memory


def _map_file(address: int, path: Path, offset: int, size: int) -> None:
    """Map a range of a file, read-only, to an address within a reservation."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = _libc().mmap(address, size, PROT_READ, MAP_PRIVATE | MAP_FIXED, descriptor, offset)
    finally:
        os.close(descriptor)  # the mapping stays
    if found == MAP_FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_longlong,
    ]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc
