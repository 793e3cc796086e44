"""Samples of .tar files by number, read from where they lie: encoded images, or arrays of numbers.

Shape legend: M samples of a part, B of a batch.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from data.errors import DatasetError
from data.names import Names
from data.shards.stored_names import StoredNames
from data.shards.tar_index import TarIndex


class _Members:
    """M members of several files. No file stays open: there may be thousands."""

    def __init__(self, folder: Path, files: Sequence[str], indices: Sequence[TarIndex]):
        """`files` are relative to `folder`, and `indices` say where the samples of each are."""
        self._paths = [str(folder / name) for name in files]
        keys = Names(b"".join(index.keys for index in indices))
        counts = [len(index.offsets) for index in indices]
        self.names = StoredNames(f"{folder}/", files, counts, "sample", keys)
        self._offsets = np.concatenate([np.frombuffer(index.offsets, np.int64) for index in indices])
        self._sizes = np.concatenate([np.frombuffer(index.sizes, np.int64) for index in indices])

    def content(self, number: int) -> bytes:
        """The bytes of a member. Raises DatasetError when the file is another than it was."""
        size, offset = int(self._sizes[number]), int(self._offsets[number])
        try:
            with open(self._paths[self.names.file_of(number)], "rb", buffering=0) as file:  # noqa: PTH123 - a million times
                content = os.pread(file.fileno(), size, offset)
        except OSError as problem:
            raise DatasetError(f"{self.names.place(number)}: this file cannot be read ({problem.strerror}).") from None
        if len(content) != size:
            raise DatasetError(
                f"{self.names.place(number)}: the file ends after {len(content)} of its {size} bytes, and did not when the run "
                "began. Let the files be while they are used, and run again."
            )
        return content


class ImageMembers(_Members):
    """Encoded images."""

    def opened(self, number: int) -> IO[bytes]:
        """An image as a file."""
        return io.BytesIO(self.content(number))


class ArrayMembers(_Members):
    """Arrays as `numpy.save` writes them, all of one dtype and shape. See `data.shards.stored_arrays.Rows`."""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def dtype(self) -> np.dtype[np.generic]:
        return self._first.dtype

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return self._first.shape

    def place(self, number: int) -> str:
        """Which sample this is, for messages."""
        return self.names.place(number)

    def gathered(self, numbers: NDArray[np.int64]) -> NDArray[np.generic]:
        """The arrays (B, *sample_shape) of these numbers (B,)."""
        found = np.empty((len(numbers), *self.sample_shape), self.dtype)
        for place, number in enumerate(numbers.tolist()):
            values = array_in(self.content(number), self.place(number))
            if (values.shape, values.dtype) != (self.sample_shape, self.dtype):
                raise DatasetError(
                    f"{self.place(number)}: shape {values.shape} and dtype {values.dtype}, but {self.names[0]} has "
                    f"{self.sample_shape} and {self.dtype}; all must be alike."
                )
            found[place] = values
        return found

    @cached_property
    def _first(self) -> NDArray[np.generic]:
        return array_in(self.content(0), self.place(0)) if len(self) else np.empty(0)


def array_in(content: bytes, place: str) -> NDArray[np.generic]:
    """The array of a .npy file. Raises DatasetError when it is damaged, or holds Python objects, which are never opened."""
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} of the format is not known")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(file)
    except ValueError as problem:
        raise DatasetError(f"{place}: this is no .npy file ({problem}).") from None
    size = dtype.itemsize * int(np.prod(shape, dtype=object))
    if dtype.hasobject or size != len(content) - file.tell():
        what = "Python objects" if dtype.hasobject else f"{size} bytes, but {len(content) - file.tell()} are there"
        raise DatasetError(f"{place}: the array should hold {what}. Only plain numbers are read.")
    flat = np.frombuffer(content, dtype, offset=file.tell()).astype(dtype.newbyteorder("="), copy=False)
    return flat.reshape(shape, order="F" if is_fortran else "C")
