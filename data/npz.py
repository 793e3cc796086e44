"""NumPy .npz files: `x` and `y`, or one pair for each split; and the same arrays as a user's function returns them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.arrays import ArrayDataset, checked_dataset, numbered_classes
from data.errors import DatasetError
from data.splits import SPLITS, filled_splits, split_by_content

VERSION = 1
LAYOUT_OF_ARRAYS = (
    "x and (optional) y, split by content; or x_training and y_training with x_test and y_test and (optional) "
    "x_validation and y_validation; and (optional) class_names"
)


class NpzSource:
    """One .npz file; see LAYOUT_OF_ARRAYS for the names of its arrays."""

    def __init__(
        self,
        path: Path,
        *,
        validation: float,
        test: float,
        split_seed: int,
        class_names: Sequence[str] | None = None,
    ):
        """`class_names` names the labels of a file that has no array of that name."""
        self.version: int | None = VERSION
        self._path = path
        self._class_names = class_names
        self._fractions = (validation, test, split_seed)

    def files(self) -> dict[str, Path]:
        """The file, whose name does not matter. Raises DatasetError when it is not there."""
        if not self._path.is_file():
            raise DatasetError(f"{self._path}: no such file. A relative path starts at the data folder (--data-dir).")
        return {"npz": self._path}

    def load(self) -> dict[str, ArrayDataset]:
        """The splits that the file holds, or that are made of it."""
        [path] = self.files().values()
        arrays = read_npz(path)
        if self._class_names is not None:
            if "class_names" in arrays:
                raise DatasetError(
                    f"{path}: the file has class_names of its own; remove data.class_names of the recipe."
                )
            arrays["class_names"] = np.array(self._class_names)
        validation, test, seed = self._fractions
        return splits_of_arrays(arrays, str(path), validation=validation, test=test, seed=seed)


def read_npz(path: Path) -> dict[str, NDArray[np.generic]]:
    """All arrays of a .npz file; pickled objects are refused. Raises DatasetError naming the file and the array."""
    with path.open("rb") as file:  # numpy forgets to close a file that it opened itself and found damaged
        try:
            archive = np.load(file, allow_pickle=False)
        except (zipfile.BadZipFile, EOFError, ValueError, MemoryError) as problem:
            reason = "it is neither a zip file nor an array" if "allow_pickle" in str(problem) else str(problem)
            raise DatasetError(
                f"{path}: not a whole .npz file ({reason}). Was it cut short, or is it another kind?"
            ) from None
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DatasetError(f"{path}: a .npy file holds one array; a .npz with {LAYOUT_OF_ARRAYS} is needed.")
        return {name: _member(archive, name, path) for name in archive.files}


def _member(archive: np.lib.npyio.NpzFile, name: str, path: Path) -> NDArray[np.generic]:
    try:
        return np.asarray(archive[name])
    except Exception as problem:  # damaged bytes fail anywhere in zipfile, zlib, numpy's header parser or an allocation
        reason = "it holds Python objects, which are never opened" if "allow_pickle" in str(problem) else str(problem)
        raise DatasetError(f"{path}: array {name!r} cannot be read ({reason}).") from None


def splits_of_arrays(
    arrays: Mapping[str, NDArray[np.generic]], origin: str, *, validation: float, test: float, seed: int
) -> dict[str, ArrayDataset]:
    """Datasets from named arrays (LAYOUT_OF_ARRAYS). Raises DatasetError naming the array and row at fault."""
    expected = {"class_names", "x", "y"} | {f"{letter}_{split}" for letter in "xy" for split in SPLITS}
    unknown = sorted(set(arrays) - expected)
    if unknown:
        raise DatasetError(f"{origin}: unknown array {unknown[0]!r}. The arrays are: {LAYOUT_OF_ARRAYS}.")
    whole = "x" in arrays
    if not whole and "x_training" not in arrays:
        raise DatasetError(f"{origin}: neither x nor x_training is there. The arrays are: {LAYOUT_OF_ARRAYS}.")
    used = {"class_names", "x", "y"} if whole else expected - {"x", "y"}
    used -= {f"y_{split}" for split in SPLITS if f"x_{split}" not in arrays}
    unused = sorted(set(arrays) - used)
    if unused:
        raise DatasetError(f"{origin}: array {unused[0]!r} has no partner here. The arrays are: {LAYOUT_OF_ARRAYS}.")
    names = [str(name) for name in np.atleast_1d(arrays["class_names"])] if "class_names" in arrays else None

    def dataset(suffix: str, split: str) -> ArrayDataset:
        label = f"y{suffix}"
        place = f"{origin} (x{suffix})"
        return checked_dataset(arrays[f"x{suffix}"], arrays.get(label), names, split=split, origin=place)

    if whole:
        return split_by_content(dataset("", "all"), validation=validation, test=test, seed=seed)
    if names is None:
        given = {split: arrays[f"y_{split}"] for split in SPLITS if f"y_{split}" in arrays}
        numbered = [
            numbered_classes(labels.astype(np.int64), f"{origin} (y_{split})")
            for split, labels in given.items()
            if labels.size and labels.dtype.kind in "biu"
        ]
        names = [str(label) for label in range(max(map(len, numbered), default=0))]
    found = {split: dataset(f"_{split}", split) for split in SPLITS if f"x_{split}" in arrays}
    for split, made in found.items():
        if made.sample_shape != found["training"].sample_shape:
            raise DatasetError(
                f"{origin}: samples of x_{split} have shape {made.sample_shape}, those of x_training "
                f"{found['training'].sample_shape}; they must be equal."
            )
    return filled_splits(found, validation=validation, test=test, seed=seed)
