"""The arrays of a target cache: their names, types, shapes and the chunks they are stored in.

Every array has axis 0 = rows. The index arrays (sample_digest, view, label) are known before the teacher runs; the
encoding's arrays follow, block by block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LARGEST_CHUNK_BYTES = 16_000_000

# Little-endian dtypes that a cache may hold, by their names in zarr and numpy, with the value of unwritten elements.
FILL_VALUES: dict[str, float | int] = {
    "uint8": 0,
    "uint16": 0,
    "int32": 0,
    "int64": -1,
    "float16": math.nan,
    "float32": math.nan,
}


@dataclass(frozen=True)
class EncodedArray:
    """What an encoding stores for one position, in one of its arrays: after the axes of rows and positions."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    dimensions: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Positions:
    """The axes of structured outputs between rows and classes, such as tokens or height and width; none in classification."""

    names: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """Positions of one row."""
        return math.prod(self.sizes)


ONE_POSITION = Positions()


@dataclass(frozen=True)
class ArraySpec:
    """One stored array of shape (rows, *inner_shape), chunked along axis 0 only.

    `compression` names one of `pipeline/targets/compression.py`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    rows_per_chunk: int
    dimensions: tuple[str, ...]
    compression: str = "none"

    @property
    def numpy_dtype(self) -> np.dtype[np.generic]:
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def fill_value(self) -> float | int:
        return FILL_VALUES[self.dtype]

    @property
    def chunks(self) -> int:
        """How many chunks hold the array; the last one is stored full size, padded with the fill value."""
        return -(-self.shape[0] // self.rows_per_chunk)

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        return (self.rows_per_chunk, *self.shape[1:])

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.numpy_dtype.itemsize

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk in memory; stored, it is as large or compressed."""
        return math.prod(self.chunk_shape) * self.numpy_dtype.itemsize

    def chunk_name(self, chunk: int) -> str:
        """The object's name, "soft_targets/c.3.0": in the Zarr layout, its path in the store."""
        return f"{self.name}/c.{chunk}" + ".0" * (len(self.shape) - 1)

    def rows_of_chunk(self, chunk: int) -> range:
        """The rows that a chunk holds, without the padding."""
        first = chunk * self.rows_per_chunk
        return range(first, min(first + self.rows_per_chunk, self.shape[0]))


def rows_per_chunk(rows: int, bytes_per_row: int, at_most: int) -> int:
    """At most `at_most` rows and 16 MB, at least one row, and no more than there are."""
    return max(1, min(rows, at_most, LARGEST_CHUNK_BYTES // max(1, bytes_per_row)))


def block_arrays(
    columns: Sequence[EncodedArray], rows: int, positions: Positions, rows_per_block: int, compression: str = "none"
) -> tuple[ArraySpec, ...]:
    """The arrays of an encoding, cut at the same rows: the largest decides how many fit into a block."""
    largest = positions.count * max(column.nbytes for column in columns)
    per_chunk = rows_per_chunk(rows, largest, at_most=rows_per_block)
    return tuple(
        ArraySpec(
            column.name,
            column.dtype,
            (rows, *positions.sizes, *column.shape),
            per_chunk,
            ("row", *positions.names, *column.dimensions),
            compression,
        )
        for column in columns
    )


def index_arrays(rows: int) -> tuple[ArraySpec, ...]:
    """The arrays that say which sample, view and label each row has."""

    def spec(name: str, dtype: str, *inner: int) -> ArraySpec:
        bytes_per_row = np.dtype(dtype).itemsize * math.prod(inner)
        chunk = rows_per_chunk(rows, bytes_per_row, at_most=rows)
        return ArraySpec(name, dtype, (rows, *inner), chunk, ("row", "byte")[: 1 + len(inner)])

    return spec("sample_digest", "uint8", 16), spec("view", "int32"), spec("label", "int64")
