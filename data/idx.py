"""IDX files, as MNIST and Fashion-MNIST come in: two of images and two of labels, plain or gzipped."""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from data.errors import DatasetError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data.arrays import ArrayDataset

VERSION = 1
PREFIX_OF_SPLIT = {"training": "train", "test": "t10k"}
IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
DIMENSIONS = {IMAGES: 3, LABELS: 1}
FILES = tuple(f"{prefix}-{kind}" for prefix in PREFIX_OF_SPLIT.values() for kind in DIMENSIONS)
BYTES_AT_ONCE = 1 << 20


class IdxSource:
    """A folder with the four FILES; the test split is t10k, and training and validation are split by content."""

    def __init__(
        self,
        folder: Path,
        *,
        validation: float,
        test: float,
        split_seed: int,
        class_names: Sequence[str] | None = None,
        sha256: Mapping[str, str] | None = None,
        source: str | None = None,
    ):
        """`sha256` of the decompressed content is checked while a file is read; `source` says where to get the files."""
        self.version: int | None = VERSION
        self._folder, self._class_names, self._source = folder, class_names, source
        self._sha256 = sha256 or {}
        self._fractions = (validation, test, split_seed)

    def files(self) -> dict[str, Path]:
        """The four files, each plain or as .gz. Raises DatasetError naming the first that is missing, and where to get it."""
        return {name: self._found(name) for name in FILES}

    def load(self) -> dict[str, ArrayDataset]:
        """The three splits, samples of shape (1, height, width) uint8."""
        import numpy as np

        from data.npz import splits_of_arrays

        files = self.files()
        arrays: dict[str, NDArray[np.generic]] = {}
        for split, prefix in PREFIX_OF_SPLIT.items():
            images, labels = f"{prefix}-{IMAGES}", f"{prefix}-{LABELS}"
            arrays[f"x_{split}"] = read_idx(files[images], DIMENSIONS[IMAGES], self._sha256.get(images))[:, None]
            arrays[f"y_{split}"] = read_idx(files[labels], DIMENSIONS[LABELS], self._sha256.get(labels))
            found = len(arrays[f"x_{split}"]), len(arrays[f"y_{split}"])
            if found[0] != found[1]:
                raise DatasetError(
                    f"{files[images]} has {found[0]} images, but {files[labels]} has {found[1]} labels; they must be equal."
                )
            self._refuse_other_labels(arrays[f"y_{split}"], files[labels])
        if self._class_names is not None:
            arrays["class_names"] = np.array(self._class_names)
        validation, test, seed = self._fractions
        return splits_of_arrays(arrays, str(self._folder), validation=validation, test=test, seed=seed)

    def _refuse_other_labels(self, labels: NDArray[np.generic], path: Path) -> None:
        if self._class_names is None:
            return
        outside = (labels.astype("int64") >= len(self._class_names)).nonzero()[0]
        if len(outside):
            raise DatasetError(
                f"{path}: row {outside[0]} has label {labels[outside[0]]}; 0 to {len(self._class_names) - 1} are allowed, "
                f"since data.class_names names {len(self._class_names)} classes."
            )

    def _found(self, name: str) -> Path:
        for path in (self._folder / name, self._folder / f"{name}.gz"):
            if path.is_file():
                return path
        where = f" Get it from: {self._source}." if self._source else ""
        raise DatasetError(
            f"{self._folder / name}: no such file, nor with .gz at its end.{where} A relative path starts at the data folder "
            "(--data-dir, or the environment variable SOFTCACHE_DATA)."
        )


def read_idx(path: Path, dimensions: int, sha256: str | None = None) -> NDArray[np.uint8]:
    """The array of unsigned bytes in an IDX file, plain or gzipped, with that many dimensions.

    The format is a magic number (0, 0, 8 for unsigned bytes, the number of dimensions), each dimension as a big-endian
    uint32, then the bytes in C order. Raises DatasetError naming the file when it is anything else, is cut short, has
    bytes to spare, or when its decompressed content has another sha256 than the one given.
    """
    import numpy as np

    try:
        with _opened(path) as file:
            content = hashlib.sha256()
            shape = _shape(file, dimensions, path, content)
            size = math.prod(shape)
            data = _bytes(file, size, content, path, shape)
            if file.read(1):
                raise DatasetError(f"{path}: there are bytes after the {size:,} that its header {shape} announces.")
    except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
        raise DatasetError(f"{path}: the gzip file is damaged or cut short ({problem}). Get it again.") from None
    except MemoryError:
        raise DatasetError(f"{path}: its header announces {size:,} bytes, more than there is memory for.") from None
    if sha256 is not None and content.hexdigest() != sha256.lower():
        raise DatasetError(
            f"{path}: its decompressed content has sha256 {content.hexdigest()}, but data.sha256 gives {sha256.lower()}. "
            "It is another file than the recipe means, or it is damaged: get it again."
        )
    return np.frombuffer(data, np.uint8).reshape(shape)


def _opened(path: Path) -> IO[bytes] | gzip.GzipFile:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _shape(file: IO[bytes] | gzip.GzipFile, dimensions: int, path: Path, content: hashlib._Hash) -> tuple[int, ...]:
    header = file.read(4 + 4 * dimensions)
    content.update(header)
    expected = bytes((0, 0, 8, dimensions))
    if len(header) >= 4 and header[:4] != expected:
        gzipped = " (it is gzipped: its name must end in .gz)" if header[:2] == b"\x1f\x8b" else ""
        raise DatasetError(
            f"{path}: the magic number is {header[:4].hex()}, but {expected.hex()} is needed for an IDX file of unsigned bytes "
            f"with {dimensions} dimensions{gzipped}."
        )
    if len(header) < 4 + 4 * dimensions:
        raise DatasetError(f"{path}: cut short; it ends within its header, after {len(header)} bytes.")
    return tuple(int.from_bytes(header[at : at + 4], "big") for at in range(4, len(header), 4))


def _bytes(
    file: IO[bytes] | gzip.GzipFile, size: int, content: hashlib._Hash, path: Path, shape: tuple[int, ...]
) -> bytearray:
    """The next `size` bytes, read in pieces: a header may announce more than there is memory for."""
    data = bytearray()
    while len(data) < size:
        piece = file.read(min(BYTES_AT_ONCE, size - len(data)))
        if not piece:
            row = len(data) * shape[0] // size
            raise DatasetError(
                f"{path}: cut short in row {row}; its header {shape} announces {size:,} bytes, but {len(data):,} are there."
            )
        content.update(piece)
        data += piece
    return data
